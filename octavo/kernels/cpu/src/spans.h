// A row of logits in spans: their largest values, their weights, and the tokens that reach a bound.
//
// A weight is exp(-distance / temperature), the distance that to the largest logit: 1 for the most
// probable token. Sums are in float64. Spans and parts have fixed sizes, so that a row's results
// depend neither on other rows nor on the number of threads.
#pragma once

#include "abi.h"
#include "select.h"
#include "vec.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kSpan = 512;           // tokens whose weights are summed together
constexpr int64_t kPeaks = 16;           // of a span: peak i is the largest of tokens i, 16 + i ...
constexpr int64_t kPartSpans = 16;       // spans that a thread takes together: a part
constexpr int kBounds = 7;               // that are tried at a time
static_assert(kPeaks % kLanes == 0, "peaks are vectors");

static inline int64_t num_spans(int64_t vocab) { return (vocab + kSpan - 1) / kSpan; }
static inline int64_t num_parts(int64_t vocab) {
  return (num_spans(vocab) + kPartSpans - 1) / kPartSpans;
}

// A row of logits at one temperature, and what is found out about it.
template <typename T>
struct Row {
  const T *logits;
  int64_t vocab;
  float temperature, farthest;  // tokens at a larger scaled distance have no weight
  bool weighs;
  float *peaks;  // [spans, kPeaks], as if there were no NaNs; -inf behind the last token
  float *tops;   // [parts] largest logits; NaN where there is one
  double *sums;  // [spans] of weights, if it weighs
  float top;     // of all parts
};

static inline int64_t row_bytes(int64_t vocab) {
  const int64_t spans = num_spans(vocab);
  return (spans * (8 + 4 * kPeaks) + 4 * num_parts(vocab) + 63) / 64 * 64;
}

template <typename T>
static inline void set_memory(Row<T> *row, uint8_t *memory) {
  const int64_t spans = num_spans(row->vocab);
  row->sums = reinterpret_cast<double *>(memory);
  row->peaks = reinterpret_cast<float *>(row->sums + spans);
  row->tops = row->peaks + spans * kPeaks;
}

static inline void set_least(float *at) { *at = -INFINITY; }
static inline void set_least(uint16_t *at) { *at = 0xff80; }

// Tokens of a span, at least 1.
template <typename T>
static inline int64_t span_size(const Row<T> &row, int64_t span) {
  const int64_t left = row.vocab - span * kSpan;
  return left < kSpan ? left : kSpan;
}

// A span's logits; the last one's in the buffer, with -inf behind the last token.
template <typename T>
static inline const T *span_at(const Row<T> &row, int64_t span, T *buffer) {
  const T *at = row.logits + span * kSpan;
  const int64_t size = span_size(row, span);
  if (size == kSpan) return at;
  memcpy(buffer, at, sizeof(T) * static_cast<size_t>(size));
  for (int64_t i = size; i < kSpan; ++i) set_least(buffer + i);
  return buffer;
}

static inline uint32_t lanes_of(IntVec mask) {  // bit i: lane i is set
#if defined(__AVX512DQ__)
  __m512i own;
  memcpy(&own, &mask, sizeof own);
  return _mm512_movepi32_mask(own);
#elif defined(__AVX2__)
  __m256 own;
  memcpy(&own, &mask, sizeof own);
  return static_cast<uint32_t>(_mm256_movemask_ps(own));
#else
  uint64_t halves[kLanes / 2], any = 0;
  memcpy(halves, &mask, sizeof halves);
  for (const uint64_t half : halves) any |= half;
  uint32_t bits = 0;
  for (int i = 0; any != 0 && i < kLanes; ++i) bits |= (mask[i] != 0 ? 1u : 0u) << i;
  return bits;
#endif
}

// Peaks and top of the spans of a part.
template <typename T>
static inline void survey(const Row<T> &row, int64_t part) {
  constexpr int kVecs = kPeaks / kLanes;
  alignas(64) T buffer[kSpan];
  const int64_t spans = num_spans(row.vocab);
  const int64_t begin = part * kPartSpans;
  const int64_t end = begin + kPartSpans < spans ? begin + kPartSpans : spans;
  Vec most = all(-INFINITY);
  IntVec strange = {};
  for (int64_t span = begin; span < end; ++span) {
    const T *at = span_at(row, span, buffer);
    Vec peaks[kVecs];
    for (int j = 0; j < kVecs; ++j) peaks[j] = all(-INFINITY);
    for (int64_t i = 0; i < kSpan; i += kPeaks)
      for (int j = 0; j < kVecs; ++j) {
        const Vec v = load(at + i + j * kLanes);
        peaks[j] = larger(v, peaks[j]);
        strange |= v != v;
      }
    for (int j = 0; j < kVecs; ++j) {
      store(row.peaks + span * kPeaks + j * kLanes, peaks[j]);
      most = larger(peaks[j], most);
    }
  }
  row.tops[part] = lanes_of(strange) != 0 ? NAN : largest_of(most);
}

// The largest logit, or NaN if there is one.
template <typename T>
static inline float top_of(const Row<T> &row) {
  float top = row.tops[0];
  for (int64_t part = 1; part < num_parts(row.vocab); ++part)
    top = row.tops[part] > top || row.tops[part] != row.tops[part] ? row.tops[part] : top;
  return top;
}

// Distance to the top. Where that is infinite, or no number, the tokens that are it are alike: 0.
static inline Vec distance_of(Vec logits, Vec top) {
  const Vec distance = top - logits;
  return distance == distance ? distance : Vec{};
}

static inline float distance_of(float logit, float top) {
  const float distance = top - logit;
  return distance == distance ? distance : 0.0f;
}

static inline Vec weight_of(Vec logits, Vec top, Vec temperature, Vec farthest) {
  const Vec scaled = distance_of(logits, top) / temperature;
  const Vec limit = all(88);  // beyond it nothing is left
  const Vec weight = exponential(-(scaled < limit ? scaled : limit));
  return scaled <= farthest ? weight : Vec{};
}

// Weights of a span, 0 behind the last token.
template <typename T>
static inline void weigh_span(const Row<T> &row, int64_t span, float *weights) {
  alignas(64) T buffer[kSpan];
  const T *at = span_at(row, span, buffer);
  const Vec top = all(row.top), temperature = all(row.temperature), farthest = all(row.farthest);
  for (int64_t i = 0; i < kSpan; i += kLanes)
    store(weights + i, weight_of(load(at + i), top, temperature, farthest));
  for (int64_t i = span_size(row, span); i < kSpan; ++i) weights[i] = 0;
}

static inline double sum_span(const float *weights) {
  typedef float Few __attribute__((vector_size(2 * kLanes)));
  typedef double Wide __attribute__((vector_size(4 * kLanes)));
  constexpr int64_t kNum = kLanes / 2;
  Wide sums[2] = {};
  for (int64_t i = 0; i < kSpan; i += 2 * kNum)
    for (int j = 0; j < 2; ++j) {
      Few few;
      memcpy(&few, weights + i + j * kNum, sizeof few);
      sums[j] += __builtin_convertvector(few, Wide);
    }
  double sum = 0;
  for (int i = 0; i < kNum; ++i) sum += sums[0][i] + sums[1][i];
  return sum;
}

// Sums of a part, once the top is known.
template <typename T>
static inline void weigh(const Row<T> &row, int64_t part) {
  alignas(64) float weights[kSpan];
  for (int64_t span = part * kPartSpans; span < (part + 1) * kPartSpans; ++span) {
    if (span >= num_spans(row.vocab)) return;
    weigh_span(row, span, weights);
    row.sums[span] = sum_span(weights);
  }
}

template <typename T>
static inline double sum_of(const Row<T> &row) {
  double sum = 0;
  for (int64_t span = 0; span < num_spans(row.vocab); ++span) sum += row.sums[span];
  return sum;
}

// Whether a span has a logit that is not below the bound (strictly: that is above it).
template <typename T>
static inline bool reaches(const Row<T> &row, int64_t span, float bound, bool strictly) {
  const float *peaks = row.peaks + span * kPeaks;
  const Vec limit = all(bound);
  IntVec any = {};
  for (int64_t i = 0; i < kPeaks; i += kLanes) {
    const Vec v = load(peaks + i);
    any |= strictly ? v > limit : ~(v < limit);
  }
  return lanes_of(any) != 0;
}

// A bound that at least `num` tokens reach, and not many more: as many of the peaks do. -inf, which
// all do, where peaks do not tell. `items` has room for all peaks.
template <typename T>
static inline float bound_of_first(const Row<T> &row, int64_t num, Item *items) {
  const int64_t count = num_spans(row.vocab) * kPeaks;
  if (num > count / 8 * 7 || !(row.top - row.top == 0)) return -INFINITY;
  for (int64_t i = 0; i < count; ++i) items[i] = {key_of(row.peaks[i], i), 0};
  select_first(items, count, num);
  int64_t last = items[0].key;
  for (int64_t i = 1; i < num; ++i) last = items[i].key > last ? items[i].key : last;
  return value_of(last);
}

// How many peaks reach the bound.
template <typename T>
static inline int64_t num_peaks(const Row<T> &row, float bound) {
  int64_t num = 0;
  const int64_t count = num_spans(row.vocab) * kPeaks;
  for (int64_t i = 0; i < count; i += kLanes)
    num += __builtin_popcount(lanes_of(load(row.peaks + i) >= all(bound)));
  return num;
}

// Adds up the weights of the tokens that reach each of the bounds, to about 1e-4 of them all.
template <typename T>
static inline void weigh_above(const Row<T> &row, const float *bounds, double *totals) {
  alignas(64) T buffer[kSpan];
  const Vec top = all(row.top), temperature = all(row.temperature), farthest = all(row.farthest);
  Vec sums[kBounds] = {};
  for (int j = 0; j < kBounds; ++j) totals[j] = 0;
  for (int64_t span = 0; span < num_spans(row.vocab); ++span) {
    const T *at = span_at(row, span, buffer);
    for (int64_t i = 0; reaches(row, span, bounds[0], false) && i < kSpan; i += kLanes) {
      const Vec v = load(at + i), weights = weight_of(v, top, temperature, farthest);
      for (int j = 0; j < kBounds; ++j) sums[j] += v >= all(bounds[j]) ? weights : Vec{};
    }
    if ((span + 1) % kPartSpans != 0 && span + 1 < num_spans(row.vocab)) continue;
    for (int j = 0; j < kBounds; ++j) {
      for (int lane = 0; lane < kLanes; ++lane) totals[j] += sums[j][lane];
      sums[j] = Vec{};
    }
  }
}

// A higher bound that tokens of at least the weight `share` still reach, of `total` that all have,
// where so many tokens reach this one that to collect them would take longer than to look again.
template <typename T>
static inline float raise_bound(const Row<T> &row, float bound, double share, double total) {
  if (num_peaks(row, bound) <= num_spans(row.vocab) * kPeaks / 4 * 3) return bound;
  float bounds[kBounds];
  double totals[kBounds];
  for (int j = 0; j < kBounds; ++j)
    bounds[j] = bound + (row.top - bound) * (static_cast<float>(j + 1) / (kBounds + 1));
  weigh_above(row, bounds, totals);
  for (int j = 0; j < kBounds && totals[j] >= share + 1e-3 * total; ++j) bound = bounds[j];
  return bound;
}

// Collects items: tokens that reach the bound and have weight; with `even`, all that reach it, and
// nothing is weighed. `items` has room for one more than there are. Returns how many.
template <typename T>
static inline int64_t collect(const Row<T> &row, float bound, bool even, Item *items) {
  alignas(64) T buffer[kSpan];
  float values[2 * kLanes];
  int64_t ids[2 * kLanes], num_waiting = 0, count = 0;
  const Vec top = all(row.top), temperature = all(row.temperature), farthest = all(row.farthest);
  const auto take = [&](int64_t num) {
    const Vec weights = weight_of(load(values), top, temperature, farthest);
    for (int64_t i = 0; i < num; ++i) {
      items[count] = {key_of(values[i], ids[i]), weights[i]};
      count += even || weights[i] > 0;
    }
    num_waiting -= num;
    for (int64_t i = 0; i < num_waiting; ++i) {
      values[i] = values[kLanes + i];
      ids[i] = ids[kLanes + i];
    }
  };
  for (float &value : values) value = 0;
  for (int64_t span = 0; span < num_spans(row.vocab); ++span) {
    if (bound > -INFINITY && !reaches(row, span, bound, false)) continue;
    const int64_t size = span_size(row, span);
    const T *at = span_at(row, span, buffer);
    for (int64_t i = 0; i < size; i += kLanes) {
      const Vec v = load(at + i);
      uint32_t bits = lanes_of(~(v < all(bound)));
      if (size - i < kLanes) bits &= (1u << (size - i)) - 1;
      for (; bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        values[num_waiting] = load_one(at + i + lane);
        ids[num_waiting++] = span * kSpan + i + lane;
      }
      if (num_waiting >= kLanes) take(kLanes);
    }
  }
  take(num_waiting);
  return count;
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
