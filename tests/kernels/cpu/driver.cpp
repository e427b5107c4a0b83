// Every instruction set against the portable one, without Python: for machines and sanitizers that
// have none. Links with the library:
//   g++ -std=c++17 -O2 tests/kernels/cpu/driver.cpp liboctavo_cpu.so -Wl,-rpath,'$ORIGIN' -o driver
// Prints one line per format and set; with an argument, also the speed of each.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
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

struct Format {
  int32_t type;
  const char *name;
  int cols, bytes, first_half, num_halves;
};

const Format kFormats[] = {{2, "Q4_0", 32, 18, 0, 1},   {3, "Q4_1", 32, 20, 0, 2},
                           {6, "Q5_0", 32, 22, 0, 1},   {7, "Q5_1", 32, 24, 0, 2},
                           {8, "Q8_0", 32, 34, 0, 1},   {12, "Q4_K", 256, 144, 0, 2},
                           {13, "Q5_K", 256, 176, 0, 2}, {14, "Q6_K", 256, 210, 208, 1}};

std::mt19937 g_random(1);

// Memory of exactly these bytes, so that a sanitizer sees every byte too far.
struct Packed {
  uint8_t *bytes;
  explicit Packed(int64_t size) : bytes(static_cast<uint8_t *>(std::aligned_alloc(64, size))) {}
  ~Packed() { std::free(bytes); }
};

std::vector<uint8_t> random_blocks(const Format &format, int64_t rows, int64_t cols) {
  std::vector<uint8_t> stored(rows * cols / format.cols * format.bytes);
  for (uint8_t &byte : stored) byte = static_cast<uint8_t>(g_random());
  for (size_t at = 0; at < stored.size(); at += format.bytes)
    for (int i = 0; i < format.num_halves; ++i)  // 2^-7 to 2^-6, of either sign
      stored[at + format.first_half + 2 * i + 1] = 0x20 | (g_random() % 2 << 7) | g_random() % 4;
  return stored;
}

double worst_difference(const std::vector<float> &a, const std::vector<float> &b) {
  double worst = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double(a[i]) - b[i]);
    if (!(difference <= worst)) worst = difference;
    size += double(b[i]) * b[i];
  }
  return worst / std::sqrt(size / b.size() + 1e-30);
}

double check(const Format &format, const std::string &isa) {
  double worst = 0;
  for (const int64_t rows : {1, 8, 37})
    for (const int64_t cols : {format.cols, 3 * format.cols})
      for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 11, 50}) {
        const auto stored = random_blocks(format, rows, cols);
        Packed packed(octavo_packed_bytes(format.type, rows, cols));
        if (!octavo_pack(format.type, stored.data(), nullptr, rows, cols, 0, packed.bytes)) abort();
        std::vector<float> x(tokens * cols), want(tokens * rows, NAN), got(tokens * rows, NAN);
        for (float &value : x) value = std::normal_distribution<float>()(g_random);
        octavo_set_isa("portable");
        octavo_linear(packed.bytes, x.data(), tokens, cols, nullptr, want.data(), rows, 0);
        octavo_set_isa(isa.c_str());
        octavo_linear(packed.bytes, x.data(), tokens, cols, nullptr, got.data(), rows, 0);
        const double found = worst_difference(got, want);
        if (!(found <= worst)) worst = found;
      }
  return worst;
}

void time_one(const Format &format, const std::string &isa) {
  const int64_t rows = 3072, cols = 768, copies = 32;
  const auto stored = random_blocks(format, rows, cols);
  const int64_t size = octavo_packed_bytes(format.type, rows, cols);
  Packed packed(size * copies);
  for (int64_t i = 0; i < copies; ++i)
    octavo_pack(format.type, stored.data(), nullptr, rows, cols, 0, packed.bytes + i * size);
  octavo_set_isa(isa.c_str());
  for (const int64_t tokens : {1, 4, 16, 256}) {
    std::vector<float> x(tokens * cols, 0.5f), y(tokens * rows);
    double best = 1e9;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto begin = std::chrono::steady_clock::now();
      for (int64_t i = 0; i < copies; ++i)
        octavo_linear(packed.bytes + i * size, x.data(), tokens, cols, nullptr, y.data(), rows, 0);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (taken.count() / copies < best) best = taken.count() / copies;
    }
    std::printf("  %s %s %3d rows: %7.1f us, %5.1f GB/s, %6.1f GOP/s\n", isa.c_str(), format.name,
                int(tokens), best * 1e6, size / best / 1e9, 2e-9 * tokens * rows * cols / best);
  }
}

int main(int argc, char **) {
  octavo_set_threads(2);
  bool is_good = true;
  std::string isas = octavo_isas();
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = isas.find(',', begin) == std::string::npos ? isas.size() : isas.find(',', begin);
    const std::string isa = isas.substr(begin, end - begin);
    begin = end + 1;
    for (const Format &format : kFormats) {
      const double worst = check(format, isa);
      is_good &= worst == 0;
      std::printf("%s %s: %s, largest difference %.1e\n", isa.c_str(), format.name,
                  worst == 0 ? "good" : "WRONG", worst);
      if (argc > 1 && isa != "portable") time_one(format, isa);
    }
  }
  return is_good ? 0 : 1;
}
