// The innermost loops of attention: rows of queries with vectors of keys, weights with values.
//
// Every sum goes along the dimensions, or along a run of keys, one by one: how many rows and vectors
// are computed together changes no result.
#pragma once

#include "vec.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kPart = 128;  // positions whose logits are held at a time
constexpr int64_t kRun = 16;    // positions whose values are added up before they join a part's

// Vectors that R rows are computed with at a time: so many sums that none waits for the one before
// it, and not more than there are registers.
static constexpr int vectors_of(int rows) { return rows <= 3 || kLanes == 16 ? 4 : 2; }

constexpr int64_t kLine = 64;  // bytes of a cache's line

// Logits of R rows with V vectors of keys, to `out` [R, kPart]. Values of the same tokens, which are at
// `ahead` [V] unless that is null, are brought into the cache meanwhile.
template <int R, int V, typename T>
static inline void multiply_keys(const float *queries, int64_t dim, const T *const *columns,
                                 int64_t stride, const T *const *ahead, float *out) {
  constexpr int64_t kEvery = kLine / static_cast<int64_t>(kLanes * sizeof(T));
  Vec sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = Vec{};
  for (int64_t i = 0; i < dim; ++i) {
    Vec keys[V];
    for (int v = 0; v < V; ++v) keys[v] = load(columns[v] + i * stride);
    if (ahead != nullptr && i % kEvery == 0)
      for (int v = 0; v < V; ++v) __builtin_prefetch(ahead[v] + i * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec query = all(queries[r * dim + i]);
      for (int v = 0; v < V; ++v) sums[r][v] = fused(query, keys[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(out + r * kPart + v * kLanes, sums[r][v]);
}

template <int R, typename T>
static void multiply_all_keys(const float *queries, int64_t dim, const T *const *columns,
                              int64_t count, int64_t stride, const T *const *ahead, float *out) {
  constexpr int kWide = vectors_of(R);
  int64_t v = 0;
  for (; v + kWide <= count; v += kWide)
    multiply_keys<R, kWide>(queries, dim, columns + v, stride, ahead == nullptr ? ahead : ahead + v,
                            out + v * kLanes);
  for (; v < count; ++v)
    multiply_keys<R, 1>(queries, dim, columns + v, stride, ahead == nullptr ? ahead : ahead + v,
                        out + v * kLanes);
}

// Adds a run of `count` values [count, dim], each times its weight in each of R rows, from dimension i
// on. As many numbers at `ahead`, unless that is null, are brought into the cache meanwhile.
template <int R, int V, typename T>
static inline void add_vectors(const float *weights, const T *values, int64_t count, int64_t dim,
                               int64_t i, const T *ahead, float *out) {
  constexpr int kEvery = kLine / (kLanes * sizeof(T));
  Vec sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = Vec{};
  for (int64_t j = 0; j < count; ++j) {
    Vec value[V];
    for (int v = 0; v < V; ++v) value[v] = load(values + j * dim + i + v * kLanes);
    if (ahead != nullptr)
      for (int v = 0; v < V; v += kEvery)
        __builtin_prefetch(ahead + j * dim + i + v * kLanes, 0, 2);
    for (int r = 0; r < R; ++r) {
      const Vec weight = all(weights[r * kPart + j]);
      for (int v = 0; v < V; ++v) sums[r][v] = fused(weight, value[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      float *at = out + r * dim + i + v * kLanes;
      store(at, load(at) + sums[r][v]);
    }
}

template <int R, typename T>
static inline void add_run(const float *weights, const T *values, int64_t count, int64_t dim,
                           const T *ahead, float *out) {
  constexpr int kWide = vectors_of(R);
  int64_t i = 0;
  for (; i + kWide * kLanes <= dim; i += kWide * kLanes)
    add_vectors<R, kWide>(weights, values, count, dim, i, ahead, out);
  for (; i + kLanes <= dim; i += kLanes)
    add_vectors<R, 1>(weights, values, count, dim, i, ahead, out);
  for (; i < dim; ++i)
    for (int r = 0; r < R; ++r) {
      float sum = 0;
      for (int64_t j = 0; j < count; ++j)
        sum = fused(weights[r * kPart + j], load_one(values + j * dim + i), sum);
      out[r * dim + i] += sum;
    }
}

// Adds `count` values that begin `at` places behind a part's beginning, run by run.
template <int R, typename T>
static void add_values(const float *weights, const T *values, int64_t at, int64_t count, int64_t dim,
                       const T *ahead, float *out) {
  while (count > 0) {
    const int64_t left = kRun - at % kRun, take = left < count ? left : count;
    add_run<R>(weights, values, take, dim, ahead, out);
    if (ahead != nullptr) ahead += take * dim;
    weights += take;
    values += take * dim;
    at += take;
    count -= take;
  }
}

// Float32 of 16-bit or 8-bit numbers; what is behind the last whole vector is taken one by one.
template <typename T>
static void widen(const T *from, int64_t count, float *out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(from + i));
  for (; i < count; ++i) out[i] = load_one(from + i);
}

static inline void scale_by(const float *scales, int64_t count, float *x) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, load(x + i) * load(scales + i));
  for (; i < count; ++i) x[i] *= scales[i];
}

#define OCTAVO_FOR_ROWS(take, call)  \
  switch (take) {                    \
    case 1: call(1); break;          \
    case 2: call(2); break;          \
    case 3: call(3); break;          \
    case 4: call(4); break;          \
    case 5: call(5); break;          \
    default: call(6);                \
  }

}  // namespace OCTAVO_ISA
}  // namespace octavo
