// Products that a test asks for, in one instruction set: for processors that Python does not run on,
// such as emulated ones. Links with the library, as driver.cpp does.
//   products_driver ISA < cases > results
// A case is seven int64 (type, rows, columns, tokens, dtype, bytes of blocks, bytes of x), then the
// stored blocks and x. Its result is tokens x rows numbers of dtype (0: float32, 1: bfloat16). With
// no argument it prints the instruction sets that are there.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
const char *octavo_isas();
int32_t octavo_set_isa(const char *name);
void octavo_set_threads(int32_t count);
int64_t octavo_packed_bytes(int32_t type, int64_t rows, int64_t cols);
int32_t octavo_pack(int32_t type, const uint8_t *stored, const int64_t *order, int64_t rows,
                    int64_t cols, int64_t next, uint8_t *packed);
void octavo_linear(const uint8_t *packed, const void *x, int64_t num_rows, int64_t x_stride,
                   const void *bias, void *y, int64_t y_stride, int32_t dtype);
}

std::vector<uint8_t> read_bytes(int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  if (std::fread(bytes.data(), 1, bytes.size(), stdin) != bytes.size()) std::exit(3);
  return bytes;
}

int main(int argc, char **argv) {
  if (argc < 2) return std::puts(octavo_isas()) < 0;
  if (!octavo_set_isa(argv[1])) return 2;
  octavo_set_threads(2);
  int64_t header[7];
  while (std::fread(header, sizeof(header), 1, stdin) == 1) {
    const auto type = static_cast<int32_t>(header[0]), dtype = static_cast<int32_t>(header[4]);
    const int64_t rows = header[1], cols = header[2], tokens = header[3];
    const auto stored = read_bytes(header[5]), x = read_bytes(header[6]);
    const int64_t size = octavo_packed_bytes(type, rows, cols);
    auto *packed = static_cast<uint8_t *>(std::aligned_alloc(64, static_cast<size_t>(size)));
    if (!octavo_pack(type, stored.data(), nullptr, rows, cols, 0, packed)) return 4;
    std::vector<uint8_t> y(static_cast<size_t>(tokens * rows * (dtype == 0 ? 4 : 2)));
    octavo_linear(packed, x.data(), tokens, cols, nullptr, y.data(), rows, dtype);
    std::free(packed);
    if (std::fwrite(y.data(), 1, y.size(), stdout) != y.size()) return 5;
  }
  return 0;
}
