// Activations in 8 bits: each run of 32 columns of a row has a scale of its own, as ggml's Q8_1.
//
// The blocks with the largest scales, one in four unless all of them are asked for (acts_share.h),
// have a second code: what the first one's rounding left over, in 8 bits again, in steps of a 254th,
// of which 127 are half a step. A few columns of a model's activations are a hundred times as large as
// the rest, and with one code of 8 bits nothing is left of their neighbours; so this takes away most
// of the error for a quarter of the work at most (docs/decisions has the figures).
//
// Rows are taken together in tiles of R, so that a kernel walks along one pointer. A tile is, for
// each block of 32 columns: R x 32 codes i8 in -127..127, R scales f32, R sums f32 (scale times the
// sum of the codes, which a weight's minimum is multiplied by), R x 2 such sums of 16 columns; then
// R factors f32 and R places i32. Of a block with a second code the scale is that code's, the sums
// are those of both, the factor says how often the first codes' products count (1 in other blocks),
// and the place is how far the second ones' products are behind those of no second code, in bytes,
// 32 for each. Behind the blocks are, row by row, the second codes, 32 each, and their block's number.
// (acts_wide.h has what follows the sums otherwise.)
//
// So a product with a block is one number, rounded to float32 once, for both codes together.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "acts_share.h"
#include "blocks.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(OCTAVO_NEON)
#include "acts_neon.h"
#endif

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kActBytes = 56;     // of one row and block
constexpr int kSecondBytes = 48;  // of a second code, the number of its block, and unused ones

constexpr int kPlainBytes = 48;    // of one row and block up to the sums
constexpr int kRestBytes = 32;     // of a second code's products with 8 rows

constexpr float kSecondSteps = 254;  // in one step of a first code

// Second codes of each row, but for blocks of zeros.
static inline int64_t num_second(int64_t num_blocks) {
  return (num_blocks + second_every - 1) / second_every;
}

// Bytes of one row's share of a tile.
static inline int64_t act_row_bytes(int64_t num_blocks) {
  return num_blocks * kActBytes + num_second(num_blocks) * kSecondBytes;
}

static inline float load_element(const void *x, int64_t at, int32_t dtype) {
  if (dtype == 0) return static_cast<const float *>(x)[at];
  return bf16_to_float(static_cast<const uint16_t *>(x)[at]);
}

static inline float load_float(const uint8_t *at) {
  float value;
  memcpy(&value, at, sizeof(value));
  return value;
}

#if defined(__AVX2__)

static inline __m256 load8(const void *x, int64_t at, int32_t dtype) {
  if (dtype == 0) return _mm256_loadu_ps(static_cast<const float *>(x) + at);
  const void *halves = static_cast<const uint16_t *>(x) + at;
  const __m128i bits = _mm_loadu_si128(static_cast<const __m128i *>(halves));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

static inline int32_t sum_of(__m128i v) {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1));
  return _mm_cvtsi128_si32(v);
}

// The largest of 8 numbers, by their bits.
static inline float largest_of(__m256i v) {
  __m128i most = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(most));
}

#endif

// What numbers are multiplied by to become codes, and codes to become numbers again.
struct Rounding {
  float inverse, scale;
};

// Of a block with this largest magnitude. Blocks too small for a scale, and for the step of a second
// code, count as zero; infinite ones and "not a number" go on as the latter.
static inline Rounding rounding_of(float largest) {
  const float d = largest / 127.0f;
  if (d > 1e-35f && d < 1e36f) return {127.0f / largest, d};
  return {0, d <= 1e-35f ? 0.0f : NAN};
}

// The numbers of a block in registers: `load_numbers`, the largest of their magnitudes (by their
// bits, which order like the numbers, with "not a number" above all), what codes leave over of them,
// and their own codes with the sums of each half.
#if defined(__AVX2__)

struct Numbers {
  __m256 v[4];
};

static inline Numbers load_numbers(const void *x, int64_t at, int32_t dtype) {
  Numbers numbers;
  for (int i = 0; i < 4; ++i) numbers.v[i] = load8(x, at + 8 * i, dtype);
  return numbers;
}

static inline float largest_of(const Numbers &numbers) {
  const __m256i abs = _mm256_set1_epi32(0x7fffffff);
  __m256i top = _mm256_setzero_si256();
  for (const __m256 &v : numbers.v)
    top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v), abs));
  return largest_of(top);
}

static inline void leave_rest(const uint8_t *codes, float scale, Numbers *numbers) {
  for (int i = 0; i < 4; ++i) {
    const void *eight = codes + 8 * i;
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(eight)));
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale));
    numbers->v[i] = _mm256_sub_ps(numbers->v[i], product);
  }
}

static inline void round_numbers(const Numbers &numbers, float inverse, uint8_t *codes,
                                 int32_t *sums) {
  __m256i q[4];
  for (int i = 0; i < 4; ++i)
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(numbers.v[i], _mm256_set1_ps(inverse)));
  for (int i = 0; i < 2; ++i) {
    const __m256i both = _mm256_add_epi32(q[2 * i], q[2 * i + 1]);
    sums[i] = sum_of(_mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
  }
  const __m256i words0 = _mm256_packs_epi32(q[0], q[1]), words1 = _mm256_packs_epi32(q[2], q[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words0, words1), order);
  void *to = codes;
  _mm256_storeu_si256(static_cast<__m256i *>(to), bytes);
}

#elif !defined(OCTAVO_NEON)  // acts_neon.h has 64-bit Arm's

struct Numbers {
  float v[kBlock];
};

static inline Numbers load_numbers(const void *x, int64_t at, int32_t dtype) {
  Numbers numbers;
  for (int i = 0; i < kBlock; ++i) numbers.v[i] = load_element(x, at + i, dtype);
  return numbers;
}

static inline float largest_of(const Numbers &numbers) {
  float largest = 0;
  for (const float v : numbers.v)
    if (!(fabsf(v) <= largest)) largest = fabsf(v);
  for (const float v : numbers.v)
    if (v != v) largest = NAN;
  return largest;
}

static inline void leave_rest(const uint8_t *codes, float scale, Numbers *numbers) {
  for (int i = 0; i < kBlock; ++i)
    numbers->v[i] -= scale * static_cast<float>(static_cast<int8_t>(codes[i]));
}

static inline void round_numbers(const Numbers &numbers, float inverse, uint8_t *codes,
                                 int32_t *sums) {
  sums[0] = sums[1] = 0;
  int8_t own[kBlock];
  for (int i = 0; i < kBlock; ++i) {  // without an inverse they may be infinite or none
    own[i] = inverse == 0 ? 0 : static_cast<int8_t>(lrintf(numbers.v[i] * inverse));
    sums[i / 16] += own[i];
  }
  memcpy(codes, own, kBlock);
}

#endif

// Row r of a tile's block of `rows`; returns the sum of its codes.
static inline int32_t write_block(const Numbers &numbers, Rounding rounding, uint8_t *block, int rows,
                               int r) {
  int32_t sums[2];
  round_numbers(numbers, rounding.inverse, block + 32 * r, sums);
  if (rounding.inverse == 0) sums[0] = sums[1] = 0;
  float *scales = reinterpret_cast<float *>(block + 32 * rows);
  scales[r] = rounding.scale;
  scales[rows + r] = rounding.scale * static_cast<float>(sums[0] + sums[1]);
  for (int h = 0; h < 2; ++h)
    scales[2 * rows + 2 * r + h] = rounding.scale * static_cast<float>(sums[h]);
  return sums[0] + sums[1];
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
