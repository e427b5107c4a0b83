// Vectors of float32 by the compiler's own extension, as wide as the instruction set has them.
//
// Every instruction set gets the same bits: a product and a sum are rounded once where `fused` is
// written and twice where it is not (the compiler may fuse nothing by itself, see build.py), and
// sums across lanes are those of 16 lanes everywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "blocks.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(OCTAVO_NEON)
#include <arm_neon.h>
#endif

namespace octavo {
namespace OCTAVO_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));
typedef int8_t ByteVec __attribute__((vector_size(kLanes)));
typedef double WideVec __attribute__((vector_size(4 * kLanes)));
typedef float NarrowVec __attribute__((vector_size(2 * kLanes)));  // what becomes a WideVec

constexpr int kSumLanes = 16;  // that sums across numbers have
constexpr int kSumVecs = kSumLanes / kLanes;

static inline Vec load(const float *at) {
  Vec v;
  memcpy(&v, at, sizeof v);
  return v;
}

static inline Vec load(const uint16_t *at) {  // bfloat16
  // GCC makes several instructions, or one for each number, of the plain way.
  const void *halves_at = at;
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i *>(halves_at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#elif defined(__AVX2__)
  const __m128i halves = _mm_loadu_si128(static_cast<const __m128i *>(halves_at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
#elif defined(OCTAVO_NEON)
  (void)halves_at;
  return reinterpret_cast<Vec>(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at), 16)));
#else
  HalfVec halves;
  memcpy(&halves, halves_at, sizeof halves);
  const IntVec bits = __builtin_convertvector(halves, IntVec) << 16;
  Vec v;
  memcpy(&v, &bits, sizeof v);
  return v;
#endif
}

static inline Vec load(const int8_t *at) {
  const void *bytes = at;
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(bytes))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(bytes))));
#elif defined(OCTAVO_NEON)
  int32_t four;
  memcpy(&four, bytes, sizeof four);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return reinterpret_cast<Vec>(vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))));
#else
  ByteVec own;
  memcpy(&own, bytes, sizeof own);
  return __builtin_convertvector(__builtin_convertvector(own, IntVec), Vec);
#endif
}

static inline float load_one(const float *at) { return *at; }
static inline float load_one(const uint16_t *at) { return bf16_to_float(*at); }
static inline float load_one(const int8_t *at) { return *at; }

static inline void store(float *at, Vec v) { memcpy(at, &v, sizeof v); }

// The difference with zero is the value itself, so that only the broadcast is left of it.
static inline Vec all(float value) { return value - Vec{}; }

static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// a * b + c, rounded once.
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

static inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  Vec sum;
  for (int i = 0; i < kLanes; ++i) sum[i] = fused(a[i], b[i], c[i]);
  return sum;
#else
  typedef double Doubles __attribute__((vector_size(8 * kLanes)));
  typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));
  // The product is exact in float64. So is the sum nearly always; where not, rounding it again to
  // float32 goes wrong only from the middle between two numbers.
  const Doubles sum = __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles) +
                      __builtin_convertvector(c, Doubles);
  Longs bits;
  memcpy(&bits, &sum, sizeof bits);
  const Longs is_middle = (bits & 0x1fffffff) == 0x10000000;
  Vec rounded = __builtin_convertvector(sum, Vec);
  int64_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= is_middle[i];
  if (any)
    for (int i = 0; i < kLanes; ++i) rounded[i] = fused(a[i], b[i], c[i]);
  return rounded;
#endif
}

// The sum of 16 lanes: those above a half are added to those below, until one is left.
template <typename V, typename T>
static inline T sum_of(const V (&vectors)[kSumLanes * sizeof(T) / sizeof(V)], T *lanes) {
  memcpy(lanes, vectors, sizeof vectors);
  for (int width = kSumLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

static inline float sum_of(const Vec (&vectors)[kSumVecs]) {
  float lanes[kSumLanes];
  return sum_of(vectors, lanes);
}

// The sum of squares, in float64.
static inline double sum_of_squares(const float *x, int64_t width) {
  constexpr int kWideLanes = kLanes / 2;
  WideVec sums[kSumLanes / kWideLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= width; i += kSumLanes)
    for (int v = 0; v < kSumLanes / kWideLanes; ++v) {
      NarrowVec own;
      memcpy(&own, x + i + v * kWideLanes, sizeof own);
      const WideVec wide = __builtin_convertvector(own, WideVec);
      sums[v] += wide * wide;  // a product is exact
    }
  double lanes[kSumLanes];
  double sum = sum_of(sums, lanes);
  for (; i < width; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

static inline float largest_of(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  float most = lanes[0];
  for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// e^x to some 2 units in the last place: 2^n times a polynomial (Cephes' expf). Below -87.3 it is
// zero, above 88.3 it stays what it is there; not a number stays one.
static inline Vec exponential(Vec x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
#if defined(__AVX512F__)
  const Vec bounded = _mm512_min_ps(all(88.3f), x);  // of a number and none, the second: none
#else
  const Vec top = all(88.3f);
  const Vec bounded = x > top ? top : x;
#endif
  const Vec shifted = fused(bounded, all(1.44269504f), all(kMagic));
  const Vec n = shifted - kMagic;
  const Vec f = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), bounded));
  Vec p = fused(f, all(1.9875691500e-4f), all(1.3981999507e-3f));
  p = fused(p, f, all(8.3334519073e-3f));
  p = fused(p, f, all(4.1665795894e-2f));
  p = fused(p, f, all(1.6666665459e-1f));
  p = fused(p, f, all(5.0000001201e-1f));
  p = fused(p, f * f, f) + 1.0f;
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, all(-87.3f), _CMP_NLT_UQ), p, n);
#else
  IntVec whole, bits;
  memcpy(&whole, &shifted, sizeof whole);
  memcpy(&bits, &p, sizeof bits);
  bits += whole << 23;  // of the magic number only n's bits are left
  Vec result;
  memcpy(&result, &bits, sizeof result);
  result = x < -87.3f ? Vec{} : result;
  return x == x ? result : x;
#endif
}

static inline float exponential_of(float x) {
  Vec v = exponential(all(x));
  return v[0];
}

static inline Vec tangent(Vec x) {  // hyperbolic
  return 1.0f - 2.0f / (1.0f + exponential(2.0f * x));
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
