// Activations in 8 bits: each run of 32 columns of a row has a scale of its own, as ggml's Q8_1.
//
// The blocks with the largest scales, one in four, have a second code: what the first one's rounding
// left over, in 8 bits again. A few columns of a model's activations are a hundred times as large as
// the rest, and with one code of 8 bits nothing is left of their neighbours; so this takes away most
// of the error for a quarter of the work at most (docs/decisions has the figures).
//
// Rows are taken together in tiles of R, so that a kernel walks along one pointer. A tile is, for
// each block of 32 columns: R x 32 codes i8 in -127..127, R scales f32, R sums f32 (scale times the
// sum of the codes, which a weight's minimum is multiplied by), R x 2 such sums of 16 columns. Then,
// row by row, its second codes: for each, the same as of a tile of one row, and its block's number.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "blocks.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(OCTAVO_NEON)
#include "acts_neon.h"
#endif

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kActBytes = 48;     // of one row and block
constexpr int kSecondBytes = 64;  // of a second code: kActBytes, i32 number of its block, SecondPlace

// Second codes of each row. They are as many whatever the numbers are: so a row costs the same
// everywhere, and its result does not depend on where in a tile it is.
static inline int64_t num_second(int64_t num_blocks) { return (num_blocks + 3) / 4; }

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

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)

static inline __m512 load16(const void *x, int64_t at, int32_t dtype) {
  if (dtype == 0) return _mm512_loadu_ps(static_cast<const float *>(x) + at);
  const void *halves = static_cast<const uint16_t *>(x) + at;
  const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i *>(halves));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Row r of a tile's block: 32 numbers. Returns their scale.
static inline float quantize_block(__m512 low, __m512 high, uint8_t *block, int rows, int r) {
  // The largest magnitude by its bits, which order like the numbers, with "not a number" above all.
  const __m512i abs = _mm512_set1_epi32(0x7fffffff);
  const __m512i top = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), abs),
                                       _mm512_and_si512(_mm512_castps_si512(high), abs));
  const float largest =
      largest_of(_mm256_max_epi32(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1)));
  const float d = largest / 127.0f;
  const bool is_usual = d > 1e-36f && d < 1e36f;
  const __m512 inverse = _mm512_set1_ps(is_usual ? 127.0f / largest : 0.0f);
  const __m128i bytes0 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)));
  const __m128i bytes1 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, inverse)));
  const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes0), bytes1, 1);
  // Sums of 4 codes in each lane, then of 16 in each half.
  __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
  fours = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
  fours = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0xb1));
  const int32_t sums[2] = {_mm_cvtsi128_si32(_mm256_castsi256_si128(fours)),
                           _mm_cvtsi128_si32(_mm256_extracti128_si256(fours, 1))};
  void *codes = block + 32 * r;
  _mm256_storeu_si256(static_cast<__m256i *>(codes), bytes);
#else

static inline float quantize_block(const void *x, int64_t at, int32_t dtype, uint8_t *block,
                                   int rows, int r) {
  __m256 v[4];
  // The largest magnitude by its bits, which order like the numbers, with "not a number" above all.
  const __m256i abs = _mm256_set1_epi32(0x7fffffff);
  __m256i top = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    v[i] = load8(x, at + 8 * i, dtype);
    top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), abs));
  }
  const float largest = largest_of(top);
  const float d = largest / 127.0f;
  const bool is_usual = d > 1e-36f && d < 1e36f;
  const __m256 inverse = _mm256_set1_ps(is_usual ? 127.0f / largest : 0.0f);
  __m256i q[4];
  for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
  const __m256i first = _mm256_add_epi32(q[0], q[1]), second = _mm256_add_epi32(q[2], q[3]);
  const int32_t sums[2] = {
      sum_of(_mm_add_epi32(_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1))),
      sum_of(_mm_add_epi32(_mm256_castsi256_si128(second), _mm256_extracti128_si256(second, 1)))};
  const __m256i words0 = _mm256_packs_epi32(q[0], q[1]), words1 = _mm256_packs_epi32(q[2], q[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words0, words1), order);
  void *codes = block + 32 * r;
  _mm256_storeu_si256(static_cast<__m256i *>(codes), bytes);
#endif
#elif defined(OCTAVO_NEON)

static inline float quantize_block(const void *x, int64_t at, int32_t dtype, uint8_t *block,
                                   int rows, int r) {
  float32x4_t v[kBlock / 4];
  const float largest = load_block(x, at, dtype, v), d = largest / 127.0f;
  const bool is_usual = d > 1e-36f && d < 1e36f;
  int32_t sums[2];
  round_block(v, is_usual ? 127.0f / largest : 0.0f, block + 32 * r, sums);
#else

static inline float quantize_block(const void *x, int64_t at, int32_t dtype, uint8_t *block,
                                   int rows, int r) {
  float largest = 0;
  bool is_number = true;
  for (int i = 0; i < kBlock; ++i) {
    const float value = fabsf(load_element(x, at + i, dtype));
    is_number &= value == value;
    if (value > largest) largest = value;
  }
  const float d = is_number ? largest / 127.0f : NAN;
  const bool is_usual = d > 1e-36f && d < 1e36f;
  const float inverse = is_usual ? 127.0f / largest : 0.0f;
  int32_t sums[2] = {0, 0};
  int8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    codes[i] = is_usual ? static_cast<int8_t>(lrintf(load_element(x, at + i, dtype) * inverse)) : 0;
    sums[i / 16] += codes[i];
  }
  memcpy(block + 32 * r, codes, kBlock);
#endif
  // Blocks too small for a scale count as zero; infinite ones and "not a number" go on as the latter.
  const float scale = is_usual ? d : d <= 1e-36f ? 0.0f : NAN;
  float *scales = reinterpret_cast<float *>(block + 32 * rows);
  scales[r] = scale;
  scales[rows + r] = scale * static_cast<float>(is_usual ? sums[0] + sums[1] : 0);
  scales[2 * rows + 2 * r] = scale * static_cast<float>(is_usual ? sums[0] : 0);
  scales[2 * rows + 2 * r + 1] = scale * static_cast<float>(is_usual ? sums[1] : 0);
  return scale;
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
// The same, of 32 elements of x from `at` on.
static inline float quantize_block(const void *x, int64_t at, int32_t dtype, uint8_t *block,
                                   int rows, int r) {
  return quantize_block(load16(x, at, dtype), load16(x, at + 16, dtype), block, rows, r);
}
#endif

}  // namespace OCTAVO_ISA
}  // namespace octavo
