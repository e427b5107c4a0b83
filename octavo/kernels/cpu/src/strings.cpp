// Strings of a GGUF file, each behind its length, as one text.
#include <cstring>

#include "abi.h"

int64_t octavo_strings(const char *data, int64_t size, int64_t count, char *out) {
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t len;
    if (size - at < 8) return -1;
    std::memcpy(&len, data + at, 8);
    at += 8;
    if (len > static_cast<uint64_t>(size - at)) return -1;
    if (std::memchr(data + at, 0, len) != nullptr) return -2;
    if (out != nullptr) {
      if (i > 0) *out++ = '\0';
      std::memcpy(out, data + at, len);
      out += len;
    }
    at += static_cast<int64_t>(len);
  }
  return at;
}
