// How weights are packed: GGUF's blocks, regrouped so that one vector holds the same few columns of
// 8 rows and a dot product needs no sums across a vector.
//
// A packed matrix is a header of 64 bytes and then panels of 8 rows (the last one filled up with
// zeros). Matrices that are multiplied together (q, k, v) lie behind each other, parts of one.
// A panel is two runs: the codes, 32 columns (a "block") after the other, and the scales.
// Bytes of codes of one block:
//   4 bits   128: byte 32 i + 4 r + e has column 4 i + e of row r in its low half and column
//            16 + 4 i + e in its high half (i in 0..3, r in 0..7, e in 0..3)
//   5 bits   those, then 32 bytes whose byte 4 r + e has in bit g the top bit of column 4 g + e
//   6 bits   as 4 bits, then 2 x 32 bytes: byte 32 p + 4 r + e has in its bits 2 (g - 4 p) the top
//            two bits of column 4 g + e (g in 4 p .. 4 p + 3)
//   8 bits   256: byte 32 g + 4 r + e is column 4 g + e of row r, signed
// A weight is scale * code + minimum, where codes below 8 bits are unsigned. Scales, per block or
// per group of 256 columns, each for 8 rows:
//   Q4_0, Q5_0, Q8_0   d f16; the minimum is -8 d, -16 d, 0
//   Q4_1, Q5_1         d f16, m f16
//   Q4_K, Q5_K         per 256: d f16, dmin f16, then per block of 32 columns scale u8, minimum u8;
//                      the weight is d scale code - dmin minimum
//   Q6_K               per 256: d f16, then per 16 columns scale i8; d scale (code - 32)
// So nothing is rounded, and the bytes are the file's, but for K-quants' 6-bit scales, which take
// 8 bits here (3 % more for Q4_K).
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo {

constexpr int kPanel = 8;   // rows of a panel
constexpr int kBlock = 32;  // columns of a block
constexpr int kGroup = 256;  // columns of a K-quant's own block

// ggml's numbers.
enum Type : int32_t {
  kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14
};

struct Layout {
  int bits;           // of a code
  int stored_cols;    // columns of a stored block
  int stored_bytes;   // bytes of a stored block
  int code_bytes;     // packed, of 8 rows and 32 columns
  int scale_bytes;    // packed, of 8 rows and stored_cols columns
};

// False where the format is not one of these.
static inline bool layout_of(int32_t type, Layout *layout) {
  switch (type) {
    case kQ4_0: *layout = {4, 32, 18, 128, 16}; return true;
    case kQ4_1: *layout = {4, 32, 20, 128, 32}; return true;
    case kQ5_0: *layout = {5, 32, 22, 160, 16}; return true;
    case kQ5_1: *layout = {5, 32, 24, 160, 32}; return true;
    case kQ8_0: *layout = {8, 32, 34, 256, 16}; return true;
    case kQ4_K: *layout = {4, 256, 144, 128, 160}; return true;
    case kQ5_K: *layout = {5, 256, 176, 160, 160}; return true;
    case kQ6_K: *layout = {6, 256, 210, 192, 144}; return true;
    default: return false;
  }
}

constexpr uint32_t kMagic = 0x5643544f;  // "OTCV"

struct Header {
  uint32_t magic;
  int32_t type;
  int64_t rows;
  int64_t cols;
  int64_t panel_bytes;
  int64_t code_bytes;  // of a panel; its scales follow
  int64_t next;        // bytes from here to the next part's header; 0: there is none
  int64_t unused[2];
};
static_assert(sizeof(Header) == 64, "panels must begin on a cache line");

static inline int64_t num_panels(int64_t rows) { return (rows + kPanel - 1) / kPanel; }

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {  // infinite or not a number
    bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    bits = sign | ((magnitude << 13) + 0x38000000);
  } else {  // below the normal range: magnitude * 2^-24, exactly
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint16_t load_u16(const uint8_t *at) {
  uint16_t value;
  std::memcpy(&value, at, 2);
  return value;
}

// Code of one weight: `codes` of a block, row r of the panel, column c of the block.
static inline int code_at(int bits, const uint8_t *codes, int r, int c) {
  const int g = c / 4, e = c % 4, lane = 4 * r + e;
  if (bits == 8) return static_cast<int8_t>(codes[32 * g + lane]);
  const uint8_t pair = codes[32 * (g % 4) + lane];
  int code = g < 4 ? pair & 15 : pair >> 4;
  if (bits == 5) code |= (codes[128 + lane] >> g & 1) << 4;
  if (bits == 6) code |= (codes[128 + 32 * (g / 4) + lane] >> 2 * (g % 4) & 3) << 4;
  return code;
}

// Scale and minimum of row r of a panel for 16 columns, half h of block b. `scales` is the panel's.
static inline void scale_at(int32_t type, const uint8_t *scales, int64_t b, int h, int r, float *d,
                            float *m) {
  *m = 0;
  if (type == kQ4_K || type == kQ5_K) {
    const uint8_t *group = scales + b / 8 * 160;
    *d = half_to_float(load_u16(group + 2 * r)) * group[32 + b % 8 * 8 + r];
    *m = -half_to_float(load_u16(group + 16 + 2 * r)) * group[96 + b % 8 * 8 + r];
  } else if (type == kQ6_K) {
    const uint8_t *group = scales + b / 8 * 144;
    const auto scale = static_cast<int8_t>(group[16 + (b % 8 * 2 + h) * 8 + r]);
    *d = half_to_float(load_u16(group + 2 * r)) * scale;
    *m = -32 * *d;
  } else if (type == kQ4_1 || type == kQ5_1) {
    *d = half_to_float(load_u16(scales + b * 32 + 2 * r));
    *m = half_to_float(load_u16(scales + b * 32 + 16 + 2 * r));
  } else {
    *d = half_to_float(load_u16(scales + b * 16 + 2 * r));
    *m = type == kQ4_0 ? -8 * *d : type == kQ5_0 ? -16 * *d : 0;
  }
}

// Round to nearest, ties to even; not a number stays one.
static inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float bf16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace octavo
