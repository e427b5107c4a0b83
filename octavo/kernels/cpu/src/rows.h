// What a plan does row by row: norms, rotation and cache, gates, embedding, the largest logit.
#pragma once

#include "abi.h"
#include "plan.h"
#include "vec.h"

namespace octavo {
namespace OCTAVO_ISA {

// out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
static inline void norm_row(const float *x, const float *weight, int64_t width, float eps,
                            float *out) {
  const float mean = static_cast<float>(sum_of_squares(x, width)) / static_cast<float>(width);
  const float inverse = 1.0f / sqrtf(mean + eps);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    store(out + i, load(x + i) * inverse * load(weight + i));
  for (; i < width; ++i) out[i] = x[i] * inverse * weight[i];
}

static inline void add_row(const float *x, int64_t width, float *sum) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(sum + i, load(sum + i) + load(x + i));
  for (; i < width; ++i) sum[i] += x[i];
}

template <int kWhich>
static inline Vec activated(Vec x) {
  if constexpr (kWhich == kSilu) return x / (1.0f + exponential(-x));
  // x (1 + tanh(u)) / 2, where (1 + tanh(u)) / 2 is the logistic function of 2 u.
  const Vec u = x * 1.5957691216057308f * fused(0.044715f * x, x, all(1.0f));
  return x / (1.0f + exponential(-u));
}

template <int kWhich>
static inline void gate_vectors(const float *in, int64_t width, float *out) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    store(out + i, activated<kWhich>(load(in + i)) * load(in + width + i));
  for (; i < width; ++i) out[i] = activated<kWhich>(all(in[i]))[0] * in[width + i];
}

static inline void gate_row(const float *in, int64_t width, int32_t which, float *out) {
  if (which == kSilu) {
    gate_vectors<kSilu>(in, width, out);
  } else if (which == kGeluTanh) {
    gate_vectors<kGeluTanh>(in, width, out);
  } else {
    for (int64_t i = 0; i < width; ++i)
      out[i] = 0.5f * in[i] * (1.0f + erff(in[i] * 0.70710678f)) * in[width + i];
  }
}

// Turns a head by its position's angles; cosines of half the dimensions, then sines.
static inline void rotate_head(float *x, const float *angles, int64_t dim) {
  const int64_t half = dim / 2;
  const float *cosines = angles, *sines = angles + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
    store(x + i, fused(-b, s, a * c));
    store(x + half + i, fused(a, s, b * c));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = fused(-b, sines[i], a * cosines[i]);
    x[half + i] = fused(a, sines[i], b * cosines[i]);
  }
}

static inline uint8_t *cache_unit(const Op &op, int64_t block, int64_t head) {
  const int64_t bytes = cache_unit_bytes(op.dtype, op.head_dim, op.block_size);
  return static_cast<uint8_t *>(op.cache) + (block * op.num_kv_heads + head) * bytes;
}

// One scale for a token's key or value; a vector of zeros has scale 0.
static inline void write_codes(const float *x, int64_t dim, int8_t *out, int64_t stride,
                               float *scale) {
  float largest = 0;
  for (int64_t i = 0; i < dim; ++i) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
  const float inverse = largest > 1e-36f ? 127.0f / largest : 0.0f;
  for (int64_t i = 0; i < dim; ++i) {
    const float scaled = x[i] * inverse;  // not a number becomes 0: the conversion has no answer
    out[i * stride] = scaled == scaled ? static_cast<int8_t>(lrintf(scaled)) : 0;
  }
  *scale = largest / 127.0f;
}

static inline void write_cache(const Op &op, int64_t slot, int64_t head, const float *key,
                               const float *value) {
  const int64_t dim = op.head_dim, size = op.block_size, place = slot % size;
  uint8_t *unit = cache_unit(op, slot / size, head);
  if (op.dtype == kF32) {
    float *keys = reinterpret_cast<float *>(unit), *values = keys + dim * size;
    for (int64_t i = 0; i < dim; ++i) keys[i * size + place] = key[i];
    memcpy(values + place * dim, value, sizeof(float) * static_cast<size_t>(dim));
  } else if (op.dtype == kBF16) {
    uint16_t *keys = reinterpret_cast<uint16_t *>(unit), *values = keys + dim * size;
    for (int64_t i = 0; i < dim; ++i) keys[i * size + place] = float_to_bf16(key[i]);
    for (int64_t i = 0; i < dim; ++i) values[place * dim + i] = float_to_bf16(value[i]);
  } else {
    int8_t *keys = reinterpret_cast<int8_t *>(unit), *values = keys + dim * size;
    float scales[2];
    write_codes(key, dim, keys + place, size, scales);
    write_codes(value, dim, values + place * dim, 1, scales + 1);
    uint8_t *at = unit + 2 * dim * size;
    memcpy(at + 4 * place, scales, 4);
    memcpy(at + 4 * (size + place), scales + 1, 4);
  }
}

static inline void rotate_row(const Op &op, const Step &step, int64_t token) {
  const int64_t dim = op.head_dim, heads = op.num_heads, kv_heads = op.num_kv_heads;
  float *row = static_cast<float *>(op.out) + token * (heads + 2 * kv_heads) * dim;
  if (op.weight != nullptr) {
    const float *angles = static_cast<const float *>(op.weight) + step.positions[token] * dim;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
      float *x = row + head * dim;
      const void *norm = head < heads ? op.weight2 : op.weight3;
      if (norm != nullptr) norm_row(x, static_cast<const float *>(norm), dim, op.eps, x);
      rotate_head(x, angles, dim);
    }
  }
  const float *keys = row + heads * dim, *values = keys + kv_heads * dim;
  for (int64_t head = 0; head < kv_heads; ++head)
    write_cache(op, step.slots[token], head, keys + head * dim, values + head * dim);
}

// False where the id is no row.
static inline bool embed_row(const Op &op, int64_t id, float *out) {
  if (id < 0 || id >= op.num_rows) return false;
  const int64_t width = op.width;
  if (op.dtype == kPacked) {
    if (!octavo_decode_rows(static_cast<const uint8_t *>(op.weight), &id, 1, out, OCTAVO_F32))
      return false;
  } else if (op.dtype == kBF16) {
    const uint16_t *row = static_cast<const uint16_t *>(op.weight) + id * width;
    for (int64_t i = 0; i < width; ++i) out[i] = bf16_to_float(row[i]);
  } else {
    memcpy(out, static_cast<const float *>(op.weight) + id * width,
           sizeof(float) * static_cast<size_t>(width));
  }
  if (op.scale != 1.0f)
    for (int64_t i = 0; i < width; ++i) out[i] *= op.scale;
  return true;
}

static inline void soft_cap_row(float *x, int64_t width, float cap) {
  const float inverse = 1.0f / cap;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(x + i, cap * tangent(load(x + i) * inverse));
  for (; i < width; ++i) x[i] = cap * tangent(all(x[i] * inverse))[0];
}

// The first of the largest; the first that is not a number, if there is one, as numpy has it.
static inline int64_t argmax_row(const float *x, int64_t width) {
  Vec most = all(-INFINITY);
  IntVec strange = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec v = load(x + i);
    most = larger(v, most);
    strange |= v != v;
  }
  float largest = largest_of(most);
  bool is_strange = false;
  for (int lane = 0; lane < kLanes; ++lane) is_strange |= strange[lane] != 0;
  for (; i < width; ++i) {
    largest = x[i] > largest ? x[i] : largest;
    is_strange |= x[i] != x[i];
  }
  if (is_strange) {
    for (int64_t at = 0; at < width; ++at)
      if (x[at] != x[at]) return at;
  }
  for (int64_t at = 0; at < width; at += 1024) {  // runs that the compiler can test at once
    const int64_t end = at + 1024 < width ? at + 1024 : width;
    int found = 0;
    for (int64_t j = at; j < end; ++j) found |= x[j] == largest;
    if (found)
      for (int64_t j = at; j < end; ++j)
        if (x[j] == largest) return j;
  }
  return 0;
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
