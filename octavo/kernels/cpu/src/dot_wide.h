// Products of four panels (32 packed rows) with a tile of activations, in vectors of 512 bits.
//
// The codes of one block of all four are taken apart once and stay in 16 registers while all rows of
// the tile pass by, two at a time: an activation that is loaded is multiplied twice. A row's sums go
// along its blocks, whatever else is in the tile.
#pragma once

#include "acts_wide.h"
#include "dot.h"

#if defined(OCTAVO_HAS_WIDE)

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kPairs = 2;                    // vectors of 16 rows
constexpr int kWide = 2 * kPanel * kPairs;   // rows

static OCTAVO_INLINE __m512i load_pair(const uint8_t *a, const uint8_t *b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load256(a)), load256(b), 1);
}

static OCTAVO_INLINE __m512 join(__m256 a, __m256 b) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}

template <int kShift>
static OCTAVO_INLINE __m512i shift16(__m512i v) {  // left where positive, of 16-bit lanes
  if constexpr (kShift > 0) return _mm512_slli_epi16(v, kShift);
  if constexpr (kShift < 0) return _mm512_srli_epi16(v, -kShift);
  return v;
}

// The codes of one block of 16 rows: w[g] has columns 4 g to 4 g + 3, as unsigned bytes.
template <int kBits, int G = 0>
static OCTAVO_INLINE void take_codes(const uint8_t *a, const uint8_t *b, __m512i *w) {
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

// Four panels, which may be some of them the same one.
struct Panels {
  const uint8_t *at[2 * kPairs];
  int64_t scales;  // bytes from a panel's codes to its scales
  int64_t bytes;   // of a panel
};

constexpr int64_t kBlocksAhead = 16;

// Brings block i + kBlocksAhead of each panel into the cache, beyond a panel's end of the next four.
template <int32_t kType>
static OCTAVO_INLINE void fetch_ahead(const Panels &panels, int64_t num_blocks, int64_t i) {
  int64_t block = i + kBlocksAhead, skip = 0;
  if (block >= num_blocks) {
    block -= num_blocks;
    skip = 2 * kPairs * panels.bytes;
  }
  const int64_t codes = skip + block * code_bytes_of(kType);
  const int64_t scales = skip + panels.scales + block * scale_bytes_of(kType);
  for (int p = 0; p < 2 * kPairs; ++p) {
    const char *at = reinterpret_cast<const char *>(panels.at[p]);
    for (int line = 0; line < code_bytes_of(kType); line += 64)
      _mm_prefetch(at + codes + line, _MM_HINT_T0);
    _mm_prefetch(at + scales, _MM_HINT_T0);
  }
}

// A block of four panels: codes, and the scales and minima of its halves.
template <int32_t kType>
struct WideBlock {
  static constexpr int kSubs = subs_of(kType);
  __m512i w[kPairs][8];
  __m512 d[kPairs][kSubs], m[kPairs][kSubs];

  OCTAVO_INLINE WideBlock(const Panels &panels, int64_t block) {
    const int64_t at = block * code_bytes_of(kType);
    for (int p = 0; p < kPairs; ++p) {
      const uint8_t *a = panels.at[2 * p], *b = panels.at[2 * p + 1];
      take_codes<bits_of(kType)>(a + at, b + at, w[p]);
      for (int h = 0; h < kSubs; ++h) {
        __m256 own_d[2], own_m[2];
        scales_at<kType>(a + panels.scales, block, h, own_d, own_m);
        scales_at<kType>(b + panels.scales, block, h, own_d + 1, own_m + 1);
        d[p][h] = join(own_d[0], own_d[1]);
        m[p][h] = join(own_m[0], own_m[1]);
      }
    }
  }
};

// A row's activations of one block, where its 32 results are added up, and where they go at last.
struct WideRow {
  const uint8_t *codes;
  const float *scale, *sums;  // one sum, or one for each half
  const int32_t *offset;
  float *total, *result;
};

// Which block of its row it is: before the first one nothing was added up, and results leave with the
// last one, so that no store of theirs is waited for.
enum Place { kFirst = 1, kLast = 2 };

// The products of N rows' codes of half h with a block's, of integers.
template <int32_t kType, int N>
static OCTAVO_INLINE void multiply_codes(const WideBlock<kType> &block, int h,
                                         const uint8_t *const *codes, __m512i (*sums)[kPairs]) {
  constexpr int kGroups = 8 / subs_of(kType);
  for (int r = 0; r < N; ++r)
    for (int p = 0; p < kPairs; ++p) sums[r][p] = _mm512_setzero_si512();
  for (int g = h * kGroups; g < (h + 1) * kGroups; ++g)
    for (int r = 0; r < N; ++r) {
      int32_t four;
      memcpy(&four, codes[r] + 4 * g, 4);
      const __m512i acts = _mm512_set1_epi32(four);
      for (int p = 0; p < kPairs; ++p)
        sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], block.w[p][g], acts);
    }
}

// Adds a row's products of half h to its results.
template <int32_t kType, int kPlace>
static OCTAVO_INLINE void add_products(const WideBlock<kType> &block, int h, const __m512i *sums,
                                       const WideRow &row) {
  const __m512 scale = _mm512_set1_ps(*row.scale);
  const bool is_first = (kPlace & kFirst) && h == 0;
  const bool is_last = (kPlace & kLast) && h + 1 == subs_of(kType);
  for (int p = 0; p < kPairs; ++p) {
    float *at = row.total + 2 * kPanel * p;
    __m512 total = is_first ? _mm512_setzero_ps() : _mm512_load_ps(at);
    __m512i products = sums[p];
    if constexpr (kType == kQ8_0)
      products = _mm512_sub_epi32(products, _mm512_set1_epi32(*row.offset));
    const __m512 both = _mm512_mul_ps(block.d[p][h], scale);
    total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), both, total);
    if constexpr (kType != kQ8_0)
      total = _mm512_fmadd_ps(block.m[p][h], _mm512_set1_ps(row.sums[h]), total);
    if (is_last)
      _mm512_storeu_ps(row.result + 2 * kPanel * p, total);
    else
      _mm512_store_ps(at, total);
  }
}

template <int32_t kType, int N, int kPlace>
static OCTAVO_INLINE void add_rows(const WideBlock<kType> &block, const WideRow *rows) {
  for (int h = 0; h < subs_of(kType); ++h) {
    const uint8_t *codes[N];
    for (int r = 0; r < N; ++r) codes[r] = rows[r].codes;
    __m512i sums[N][kPairs];
    multiply_codes<kType, N>(block, h, codes, sums);
    for (int r = 0; r < N; ++r) add_products<kType, kPlace>(block, h, sums[r], rows[r]);
  }
}

// A row with a second code: the first one's products count kSecondSteps times as much.
template <int32_t kType, int kPlace>
static OCTAVO_INLINE void add_row_of_two(const WideBlock<kType> &block, const WideRow &row,
                                         const uint8_t *second) {
  static_assert(kSecondSteps == (1 << 8) - (1 << 1), "what shifts make of it");
  for (int h = 0; h < subs_of(kType); ++h) {
    const uint8_t *codes[2] = {row.codes, second};
    __m512i sums[2][kPairs];
    multiply_codes<kType, 2>(block, h, codes, sums);
    for (int p = 0; p < kPairs; ++p) {
      const __m512i less = _mm512_sub_epi32(sums[1][p], _mm512_slli_epi32(sums[0][p], 1));
      sums[0][p] = _mm512_add_epi32(_mm512_slli_epi32(sums[0][p], 8), less);
    }
    add_products<kType, kPlace>(block, h, sums[0], row);
  }
}

// A tile's activations of one block, of each row.
struct WideActs {
  const uint8_t *codes;
  const float *scales, *sums;
  const int32_t *offsets;
  float *totals, *results;
  int64_t stride;

  template <int32_t kType>
  OCTAVO_INLINE WideRow row(int r) const {
    return {codes + kBlock * r, scales + r, sums + subs_of(kType) * r, offsets + r,
            totals + kWide * r, results + stride * r};
  }
};

// Block i with all rows of a tile: two rows at a time, then those that have a second code of it,
// whose codes `second` is moved along.
template <int32_t kType, int kPlace>
static OCTAVO_INLINE void add_block_of_four(const Panels &panels, int64_t num_blocks, int64_t i,
                                            const uint8_t *acts, int rows, uint32_t with_second,
                                            const uint8_t *&second, float *totals, float *results,
                                            int64_t stride) {
  fetch_ahead<kType>(panels, num_blocks, i);
  const WideBlock<kType> block(panels, i);
  const uint8_t *codes = acts + i * rows * kActBytes;
  const float *scales = reinterpret_cast<const float *>(codes + kBlock * rows);
  const float *sums = scales + (subs_of(kType) == 1 ? rows : 2 * rows);
  const auto *offsets = reinterpret_cast<const int32_t *>(codes + kPlainBytes * rows);
  const WideActs own = {codes, scales, sums, offsets, totals, results, stride};
  uint32_t left = ~with_second & (~0u >> (kWideTile - rows));
  while (left != 0) {
    WideRow two[2];
    two[0] = own.row<kType>(__builtin_ctz(left));
    left &= left - 1;
    if (left == 0) {
      add_rows<kType, 1, kPlace>(block, two);
      break;
    }
    two[1] = own.row<kType>(__builtin_ctz(left));
    left &= left - 1;
    add_rows<kType, 2, kPlace>(block, two);
  }
  for (; with_second != 0; with_second &= with_second - 1, second += kBlock)
    add_row_of_two<kType, kPlace>(block, own.row<kType>(__builtin_ctz(with_second)), second);
}

// results[r stride][0..31] = the panels' rows times row r of a tile of at most kWideTile rows.
template <int32_t kType>
static void dot_wide(const Panels &panels, int64_t num_blocks, const uint8_t *acts, int rows,
                     float *results, int64_t stride) {
  alignas(64) float totals[kWide * kWideTile];
  const uint8_t *second = acts + second_codes_at(num_blocks, rows);
  const auto *masks = reinterpret_cast<const uint32_t *>(acts + second_rows_at(num_blocks, rows));
  const int64_t last = num_blocks - 1;
#define ADD(place, i)                                                                  \
  add_block_of_four<kType, place>(panels, num_blocks, i, acts, rows, masks[i], second, \
                                  totals, results, stride)
  if (last == 0) {
    ADD(kFirst | kLast, 0);
    return;
  }
  ADD(kFirst, 0);
  for (int64_t i = 1; i < last; ++i) ADD(0, i);
  ADD(kLast, last);
#undef ADD
}

}  // namespace OCTAVO_ISA
}  // namespace octavo

#endif
