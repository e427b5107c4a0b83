// Sampling in every instruction set against the portable one, with memory of exactly the bytes that
// are needed: for sanitizers. Links with the library, as driver.cpp does.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../../octavo/kernels/cpu/src/sample.h"

extern "C" {
const char *octavo_isas();
int32_t octavo_set_isa(const char *name);
void octavo_set_threads(int32_t count);
void octavo_sample(void *asked);
}

using namespace octavo;

std::mt19937 g_random(1);

template <typename T>
T number_of(float value) {
  if constexpr (sizeof(T) == 4) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<T>(bits >> 16);
}

struct Result {
  std::vector<int64_t> tokens;
  std::vector<int32_t> reports;
  int64_t error;
};

// Rows of all kinds: greedy and random, each truncation, infinite logits and NaNs, reports or none.
template <typename T>
Result run(int64_t vocab, int64_t num, bool has_raw, const std::string &isa) {
  g_random.seed(3);
  octavo_set_isa(isa.c_str());
  std::vector<T> logits(num * vocab), raw;
  for (T &value : logits) value = number_of<T>(4 * std::normal_distribution<float>()(g_random));
  const float special[] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 0};
  for (int64_t row = 0; row < num; row += 3)
    for (int64_t i = 0; i < 1 + vocab / 50; ++i)
      logits[row * vocab + g_random() % vocab] = number_of<T>(special[row / 3 % 6]);
  std::vector<float> temperature, top_p, farthest;
  std::vector<int32_t> top_k;
  std::vector<int64_t> rows, positions, places;
  std::vector<uint64_t> seed;
  const int32_t tops = static_cast<int32_t>(vocab < 20 ? vocab : 20);
  for (int64_t row = 0; row < num; ++row) {
    rows.push_back(num - 1 - row);
    positions.push_back(5 * row);
    seed.push_back(~uint64_t{0} - row);
    temperature.push_back(row % 5 == 0 ? 0 : row % 5 == 1 ? 1e-38f : row % 5 == 2 ? 3e38f : 1);
    top_k.push_back(row % 4 < 2 ? 0 : static_cast<int32_t>(row * row % 300));
    top_p.push_back(row % 3 == 0 ? 1 : 0.9f);
    farthest.push_back(row % 7 == 0 ? 2 : row % 7 == 1 ? 0 : INFINITY);
    if (row % 2 == 0) places.push_back(row);
  }
  if (has_raw) raw.assign(logits.begin(), logits.begin() + places.size() * vocab);
  Result result;
  result.tokens.resize(num);
  result.reports.resize(places.size() * (3 + 3 * tops));
  Sampling asked{};
  asked.num_rows = num;
  asked.vocab_size = asked.stride = asked.raw_stride = vocab;
  asked.logits = logits.data();
  asked.dtype = sizeof(T) == 4 ? 0 : 1;
  asked.num_top = tops;
  asked.rows = rows.data();
  asked.positions = positions.data();
  asked.temperature = temperature.data();
  asked.top_k = top_k.data();
  asked.top_p = top_p.data();
  asked.farthest = farthest.data();
  asked.seed = seed.data();
  asked.token_ids = result.tokens.data();
  asked.num_reports = static_cast<int64_t>(places.size());
  asked.places = places.data();
  asked.raw = has_raw ? raw.data() : nullptr;
  asked.reports = result.reports.data();
  octavo_sample(&asked);
  result.error = asked.error;
  return result;
}

int64_t num_different(const Result &a, const Result &b) {
  int64_t num = a.error != 0 || b.error != 0;
  for (size_t i = 0; i < a.tokens.size(); ++i) num += a.tokens[i] != b.tokens[i];
  for (size_t i = 0; i < a.reports.size(); ++i)  // log-probabilities may be some bits off
    num += std::abs(int64_t{a.reports[i]} - b.reports[i]) > 64;
  return num;
}

int main() {
  bool is_good = true;
  const std::string isas = std::string(octavo_isas()) + ",";
  for (size_t begin = 0, end; begin < isas.size(); begin = end + 1) {
    end = isas.find(',', begin);
    const std::string isa = isas.substr(begin, end - begin);
    for (const int64_t vocab : {1, 2, 17, 511, 513, 9001})
      for (const int64_t num : {2, 85}) {  // rows share threads, and parts of rows do
        int64_t wrong = 0;
        octavo_set_threads(2);
        for (const bool has_raw : {false, true}) {
          wrong += num_different(run<float>(vocab, num, has_raw, isa),
                                 run<float>(vocab, num, has_raw, "portable"));
          wrong += num_different(run<uint16_t>(vocab, num, has_raw, isa),
                                 run<uint16_t>(vocab, num, has_raw, "portable"));
        }
        is_good &= wrong == 0;
        std::printf("%s, %d rows of %d: %s, %d different\n", isa.c_str(), int(num), int(vocab),
                    wrong == 0 ? "good" : "WRONG", int(wrong));
      }
  }
  return is_good ? 0 : 1;
}
