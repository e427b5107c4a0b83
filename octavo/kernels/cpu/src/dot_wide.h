// Products of two panels (16 packed rows) with a tile of activations, in vectors of 512 bits.
//
// The codes of one block of both panels are taken apart once and stay in 8 registers while all rows
// of the tile pass by, four at a time. Every result is the same, bit for bit, as `dot_tile`'s: the
// same whole-number sum of each block, multiplied and added in the same order.
#pragma once

#include "dot.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define OCTAVO_HAS_PAIRS

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kPair = 2 * kPanel;
constexpr int kPairTile = 32;  // rows of a tile

static inline __m512i load_pair(const uint8_t *a, const uint8_t *b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load256(a)), load256(b), 1);
}

static inline __m512 join(__m256 a, __m256 b) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}

template <int kShift>
static inline __m512i shift16(__m512i v) {  // left where positive, of 16-bit lanes
  if constexpr (kShift > 0) return _mm512_slli_epi16(v, kShift);
  if constexpr (kShift < 0) return _mm512_srli_epi16(v, -kShift);
  return v;
}

// As `dot4`, for 16 rows.
static inline __m512i dot4(__m512i sum, __m512i w, const uint8_t *a) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum)
      : "v"(w), "m"(*reinterpret_cast<const uint8_t(*)[4]>(a)));
  return sum;
}

// The codes of one block of 16 rows: w[g] has columns 4 g to 4 g + 3, as unsigned bytes.
template <int kBits, int G = 0>
static inline void take_codes(const uint8_t *a, const uint8_t *b, __m512i *w) {
  if constexpr (kBits == 8) {
    w[G] = _mm512_xor_si512(load_pair(a + 32 * G, b + 32 * G), _mm512_set1_epi8(-128));
  } else {
    const __m512i low4 = _mm512_set1_epi8(15), both = load_pair(a + 32 * (G % 4), b + 32 * (G % 4));
    w[G] = _mm512_and_si512(G < 4 ? both : _mm512_srli_epi16(both, 4), low4);
    if constexpr (kBits == 5) {
      const __m512i top = shift16<4 - G>(load_pair(a + 128, b + 128));
      w[G] = _mm512_or_si512(w[G], _mm512_and_si512(top, _mm512_set1_epi8(0x10)));
    }
    if constexpr (kBits == 6) {
      constexpr int kAt = 128 + 32 * (G / 4);
      const __m512i top = shift16<4 - 2 * (G % 4)>(load_pair(a + kAt, b + kAt));
      w[G] = _mm512_or_si512(w[G], _mm512_and_si512(top, _mm512_set1_epi8(0x30)));
    }
  }
  if constexpr (G < 7) take_codes<kBits, G + 1>(a, b, w);
}

// A block of two panels: codes, and the scales and minima of its halves.
template <int32_t kType>
struct PairBlock {
  static constexpr int kSubs = subs_of(kType);
  __m512i w[8];
  __m512 d[kSubs], m[kSubs];

  inline __attribute__((always_inline)) PairBlock(const uint8_t *a, const uint8_t *b,
                                                  int64_t scales, int64_t block) {
    const int64_t at = block * code_bytes_of(kType);
    take_codes<bits_of(kType)>(a + at, b + at, w);
    for (int h = 0; h < kSubs; ++h) {
      __m256 d2[2], m2[2];
      scales_at<kType>(a + scales, block, h, d2, m2);
      scales_at<kType>(b + scales, block, h, d2 + 1, m2 + 1);
      d[h] = join(d2[0], d2[1]);
      m[h] = join(m2[0], m2[1]);
    }
  }
};

// A row's activations of one block, and where its 16 results are added up.
struct PairRow {
  const uint8_t *codes;
  const float *scale, *sums;  // one sum, or one for each half
  float *total;
};

template <int32_t kType, int N>
static inline __attribute__((always_inline)) void add_rows(const PairBlock<kType> &block,
                                                           const PairRow *rows) {
  constexpr int kSubs = subs_of(kType), kGroups = 8 / kSubs;
  for (int h = 0; h < kSubs; ++h) {
    __m512i sums[N];
    for (int r = 0; r < N; ++r) sums[r] = _mm512_setzero_si512();
    for (int g = 0; g < kGroups; ++g)
      for (int r = 0; r < N; ++r)
        sums[r] = dot4(sums[r], block.w[h * kGroups + g], rows[r].codes + 4 * (h * kGroups + g));
    for (int r = 0; r < N; ++r) {
      const __m512 both = _mm512_mul_ps(block.d[h], _mm512_set1_ps(*rows[r].scale));
      __m512 total = _mm512_load_ps(rows[r].total);
      total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), both, total);
      total = _mm512_fmadd_ps(block.m[h], _mm512_set1_ps(rows[r].sums[h]), total);
      _mm512_store_ps(rows[r].total, total);
    }
  }
}

template <int32_t kType>
static inline __attribute__((always_inline)) void add_last_rows(const PairBlock<kType> &block, const PairRow *rows, int count) {
  if (count == 3) add_rows<kType, 3>(block, rows);
  if (count == 2) add_rows<kType, 2>(block, rows);
  if (count == 1) add_rows<kType, 1>(block, rows);
}

// Second codes, by the order of their blocks that `sort_second` left, so that a block's weights are
// taken apart once for all rows that have a second code of it. `totals` as below.
template <int32_t kType>
static void add_second(const uint8_t *a, const uint8_t *b, int64_t scales, int64_t num_blocks,
                       const uint8_t *acts, int rows, float *totals) {
  const int64_t count = num_second(num_blocks), num_entries = rows * count;
  const uint8_t *second = acts + num_blocks * rows * kActBytes;
  for (int64_t i = 0; i < num_entries;) {
    const int32_t number = second_at(second, i).block;
    const PairBlock<kType> block(a, b, scales, number);
    while (i < num_entries && second_at(second, i).block == number) {
      PairRow found[4];
      int num_found = 0;
      for (; num_found < 4 && i < num_entries; ++i, ++num_found) {
        const SecondPlace place = second_at(second, i);
        if (place.block != number) break;
        const uint8_t *own = second + place.entry * kSecondBytes;
        const float *act_scales = reinterpret_cast<const float *>(own + 32);
        found[num_found] = {own, act_scales, act_scales + (subs_of(kType) == 1 ? 1 : 2),
                            totals + kPair * place.row};
      }
      if (num_found == 4)
        add_rows<kType, 4>(block, found);
      else
        add_last_rows<kType>(block, found, num_found);
    }
  }
}

// totals[r][0..15] = the rows of panels `a` and `b` (their scales `scales` bytes behind) times row r
// of a tile of at most kPairTile rows. `totals` is aligned to 64 bytes.
template <int32_t kType>
static void dot_pair(const uint8_t *a, const uint8_t *b, int64_t scales, int64_t num_blocks,
                     const uint8_t *acts, int rows, float *totals) {
  constexpr int kStride = code_bytes_of(kType) + scale_bytes_of(kType);
  constexpr int kSums = subs_of(kType);
  for (int r = 0; r < rows; ++r) _mm512_store_ps(totals + kPair * r, _mm512_setzero_ps());
  for (int64_t i = 0; i < num_blocks; ++i) {
    for (int line = 0; line < kStride; line += 64) {
      const int64_t ahead = i * kStride + kAhead + line;
      _mm_prefetch(reinterpret_cast<const char *>(a) + ahead, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char *>(b) + ahead, _MM_HINT_T0);
    }
    const PairBlock<kType> block(a, b, scales, i);
    const uint8_t *own = acts + i * rows * kActBytes;
    const float *act_scales = reinterpret_cast<const float *>(own + 32 * rows);
    const float *sums = act_scales + (kSums == 1 ? rows : 2 * rows);
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
      PairRow four[4];
      for (int k = 0; k < 4; ++k)
        four[k] = {own + 32 * (r + k), act_scales + r + k, sums + kSums * (r + k),
                   totals + kPair * (r + k)};
      add_rows<kType, 4>(block, four);
    }
    PairRow last[3];
    for (int k = 0; r + k < rows; ++k)
      last[k] = {own + 32 * (r + k), act_scales + r + k, sums + kSums * (r + k),
                 totals + kPair * (r + k)};
    add_last_rows<kType>(block, last, rows - r);
  }
  add_second<kType>(a, b, scales, num_blocks, acts, rows, totals);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo

#endif
