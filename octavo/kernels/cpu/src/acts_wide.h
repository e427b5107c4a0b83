// Tiles of activations for dot_wide.h's products: the numbers of acts.h, 16 rows at a time, of which
// each is in a lane of its own once its columns are done with.
//
// A tile's blocks are as in acts.h up to the sums; then they have R offsets i32, by which products with
// 8-bit codes are too large: those codes count as unsigned, moved up by 128. Second codes follow in the
// order in which products take them: by blocks, and by rows within a block, 32 codes each. Behind them
// is, for each block, which rows have one.
#pragma once

#include "second.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define OCTAVO_HAS_WIDE

#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kGroup = 16;     // rows that have a lane each
constexpr int kWideTile = 32;  // most rows of a tile
constexpr int kFewRows = 3;    // so many are rounded one by one

// Where a tile's second codes are, and the masks of rows that have them, one for each block.
static inline int64_t second_codes_at(int64_t num_blocks, int rows) {
  return num_blocks * rows * kActBytes;
}

static inline int64_t second_rows_at(int64_t num_blocks, int rows) {
  return second_codes_at(num_blocks, rows) + rows * num_second(num_blocks) * kBlock;
}

template <bool kIsMax>
static OCTAVO_INLINE __m512i merge(__m512i a, __m512i b) {
  return kIsMax ? _mm512_max_epi32(a, b) : _mm512_add_epi32(a, b);
}

// In each quarter of the result four numbers, of which each quarter has its own share of one vector.
template <bool kIsMax>
static OCTAVO_INLINE __m512i merge_four(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = merge<kIsMax>(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = merge<kIsMax>(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return merge<kIsMax>(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// Lane i is the largest, or the sum, of vector i of 16, which `merge_four` has taken by fours.
template <bool kIsMax>
static OCTAVO_INLINE __m512i merge_all(const __m512i *fours) {
  __m512i halves[2];
  for (int i = 0; i < 2; ++i) {
    const __m512i a = fours[2 * i], b = fours[2 * i + 1];
    halves[i] = merge<kIsMax>(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
  }
  return merge<kIsMax>(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                       _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd));
}

template <int32_t kDtype>
static OCTAVO_INLINE __m512 load16(const void *x, int64_t at) {
  if constexpr (kDtype == 0) return _mm512_loadu_ps(static_cast<const float *>(x) + at);
  const void *halves = static_cast<const uint16_t *>(x) + at;
  const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i *>(halves));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Rows of a tile: row r is at element `at` + r `stride` of x.
struct WideRows {
  const void *x;
  int64_t at, stride, num_blocks;
  uint8_t *tile;
  int rows;
  bool has_halves;   // sums of 16 columns are needed
  bool has_offsets;  // offsets are

  uint8_t *block(int64_t b) const { return tile + b * rows * kActBytes; }
  float *scales(int64_t b) const { return reinterpret_cast<float *>(block(b) + kBlock * rows); }
  int32_t *offsets(int64_t b) const {
    return reinterpret_cast<int32_t *>(block(b) + kPlainBytes * rows);
  }
};

// The largest magnitudes of N rows' 32 numbers, by their bits, which order like the numbers, with
// "not a number" above all.
template <int32_t kDtype, int N>
static OCTAVO_INLINE __m512i tops_of(const WideRows &own, int64_t at) {
  const __m512i abs = _mm512_set1_epi32(0x7fffffff);
  __m512i tops[4] = {};
  for (int r = 0; r < N; ++r, at += own.stride)
    tops[r] = _mm512_max_epi32(
        _mm512_and_si512(_mm512_castps_si512(load16<kDtype>(own.x, at)), abs),
        _mm512_and_si512(_mm512_castps_si512(load16<kDtype>(own.x, at + 16)), abs));
  return merge_four<true>(tops[0], tops[1], tops[2], tops[3]);
}

// Codes of N rows' 32 numbers; sums of each half of them, or of all in the first.
template <int32_t kDtype, int N>
static OCTAVO_INLINE void round_rows(const WideRows &own, int64_t at, const float *inverses,
                                     uint8_t *codes, __m512i *sums) {
  __m512i low[4] = {}, high[4] = {};
  for (int r = 0; r < N; ++r, at += own.stride) {
    const __m512 inverse = _mm512_set1_ps(inverses[r]);
    low[r] = _mm512_cvtps_epi32(_mm512_mul_ps(load16<kDtype>(own.x, at), inverse));
    high[r] = _mm512_cvtps_epi32(_mm512_mul_ps(load16<kDtype>(own.x, at + 16), inverse));
    void *to = codes + kBlock * r;
    _mm_storeu_si128(static_cast<__m128i *>(to), _mm512_cvtepi32_epi8(low[r]));
    _mm_storeu_si128(static_cast<__m128i *>(to) + 1, _mm512_cvtepi32_epi8(high[r]));
  }
  if (own.has_halves) {
    sums[0] = merge_four<false>(low[0], low[1], low[2], low[3]);
    sums[1] = merge_four<false>(high[0], high[1], high[2], high[3]);
  } else {
    for (int r = 0; r < N; ++r) low[r] = _mm512_add_epi32(low[r], high[r]);
    sums[0] = merge_four<false>(low[0], low[1], low[2], low[3]);
  }
}

#define OCTAVO_OF_FOUR(num, call) \
  switch (num) {                  \
    case 1: call(1); break;       \
    case 2: call(2); break;       \
    case 3: call(3); break;       \
    default: call(4);             \
  }

// First codes of rows [first, first + num) of a tile, at most 16.
template <int32_t kDtype>
static inline void round_group(const WideRows &own, int first, int num) {
  const auto lanes = static_cast<__mmask16>((1u << num) - 1);
  const __m512 least = _mm512_set1_ps(1e-35f), none = _mm512_set1_ps(NAN);
  for (int64_t b = 0; b < own.num_blocks; ++b) {
    uint8_t *block = own.block(b);
    float *scales = own.scales(b);
    const int64_t at = own.at + first * own.stride + b * kBlock;
    __m512i fours[4] = {}, sums[2][4] = {};
    for (int i = 0; 4 * i < num; ++i) {
#define CALL(N) fours[i] = tops_of<kDtype, N>(own, at + 4 * i * own.stride)
      OCTAVO_OF_FOUR(num - 4 * i, CALL)
#undef CALL
    }
    const __m512 largest = _mm512_castsi512_ps(merge_all<true>(fours));
    const __m512 d = _mm512_div_ps(largest, _mm512_set1_ps(127.0f));
    const __mmask16 is_usual = _mm512_cmp_ps_mask(d, least, _CMP_GT_OQ) &
                               _mm512_cmp_ps_mask(d, _mm512_set1_ps(1e36f), _CMP_LT_OQ);
    const __mmask16 is_zero = _mm512_cmp_ps_mask(d, least, _CMP_LE_OQ);
    alignas(64) float inverses[kGroup];
    _mm512_store_ps(inverses, _mm512_maskz_div_ps(is_usual, _mm512_set1_ps(127.0f), largest));
    const __m512 not_usual = _mm512_maskz_mov_ps(static_cast<__mmask16>(~is_zero), none);
    const __m512 scale = _mm512_mask_mov_ps(not_usual, is_usual, d);
    _mm512_mask_storeu_ps(scales + first, lanes, scale);
    for (int i = 0; 4 * i < num; ++i) {
      __m512i own_sums[2] = {};
#define CALL(N)                                                                   \
  round_rows<kDtype, N>(own, at + 4 * i * own.stride, inverses + 4 * i, \
                        block + kBlock * (first + 4 * i), own_sums)
      OCTAVO_OF_FOUR(num - 4 * i, CALL)
#undef CALL
      sums[0][i] = own_sums[0];
      sums[1][i] = own_sums[1];
    }
    __m512i sum = merge_all<false>(sums[0]);
    if (own.has_halves) {
      const __m512i high = merge_all<false>(sums[1]);
      const __m512 parts[2] = {_mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum)),
                               _mm512_mul_ps(scale, _mm512_cvtepi32_ps(high))};
      const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const __m512i next = _mm512_add_epi32(order, _mm512_set1_epi32(8));
      const uint32_t both = num < kGroup ? (1u << 2 * num) - 1 : ~0u;
      float *halves = scales + 2 * (own.rows + first);
      _mm512_mask_storeu_ps(halves, static_cast<__mmask16>(both),
                            _mm512_permutex2var_ps(parts[0], order, parts[1]));
      _mm512_mask_storeu_ps(halves + kGroup, static_cast<__mmask16>(both >> 16),
                            _mm512_permutex2var_ps(parts[0], next, parts[1]));
      sum = _mm512_add_epi32(sum, high);
    }
    _mm512_mask_storeu_ps(scales + own.rows + first, lanes,
                          _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum)));
    if (own.has_offsets)
      _mm512_mask_storeu_epi32(own.offsets(b) + first, lanes, _mm512_slli_epi32(sum, 7));
  }
}

// Which blocks have second codes, of 16 rows: `LeastSecond` in each lane, by the scales' bits.
struct LeastSeconds {
  __m512i bits, num_equal;
};

static OCTAVO_INLINE __m512i scale_bits(const WideRows &own, int first, __mmask16 lanes, int64_t b) {
  const uint8_t *at = own.tile + b * own.rows * kActBytes + kBlock * own.rows + 4 * first;
  const __m512i bits = _mm512_maskz_loadu_epi32(lanes, at);
  return _mm512_maskz_mov_epi32(_mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(0x7f800000)), bits);
}

static inline LeastSeconds least_seconds(const WideRows &own, int first, int num) {
  constexpr int64_t kMostSorted = 32;
  const int64_t count = num_second(own.num_blocks);
  const auto lanes = static_cast<__mmask16>((1u << num) - 1);
  LeastSeconds least;
  if (count <= kMostSorted) {
    __m512i sorted[kMostSorted];
    for (int64_t i = 0; i < count; ++i) sorted[i] = _mm512_setzero_si512();
    for (int64_t b = 0; b < own.num_blocks; ++b) {
      __m512i bits = scale_bits(own, first, lanes, b);
      for (int64_t i = 0; i < count; ++i) {
        const __m512i more = _mm512_max_epi32(sorted[i], bits);
        bits = _mm512_min_epi32(sorted[i], bits);
        sorted[i] = more;
      }
    }
    least.bits = sorted[count - 1];
    least.num_equal = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; ++i)
      least.num_equal = _mm512_mask_add_epi32(least.num_equal,
                                              _mm512_cmpeq_epi32_mask(sorted[i], least.bits),
                                              least.num_equal, _mm512_set1_epi32(1));
    return least;
  }
  alignas(64) int32_t bits[kGroup] = {}, num_equal[kGroup] = {};
  for (int r = 0; r < num; ++r) {
    const LeastSecond own_least =
        least_second(own.tile + kBlock * own.rows + 4 * (first + r),
                     static_cast<int64_t>(own.rows) * kActBytes, own.num_blocks, count);
    memcpy(bits + r, &own_least.scale, 4);
    num_equal[r] = static_cast<int32_t>(own_least.num_equal);
  }
  return {_mm512_load_si512(bits), _mm512_load_si512(num_equal)};
}

// The rows among them that have a second code of block b; called for one block after the other.
static OCTAVO_INLINE uint32_t take_rows(const WideRows &own, int first, int num, int64_t b,
                                        LeastSeconds *least) {
  const __m512i bits = scale_bits(own, first, static_cast<__mmask16>((1u << num) - 1), b);
  const __mmask16 is_equal =
      _mm512_mask_cmpgt_epi32_mask(_mm512_cmpeq_epi32_mask(bits, least->bits), least->num_equal,
                                   _mm512_setzero_si512());
  least->num_equal =
      _mm512_mask_sub_epi32(least->num_equal, is_equal, least->num_equal, _mm512_set1_epi32(1));
  const auto all = static_cast<__mmask16>(is_equal | _mm512_cmpgt_epi32_mask(bits, least->bits));
  return static_cast<uint32_t>(all & _mm512_test_epi32_mask(bits, bits)) << first;
}

// Second codes of 16 numbers, whose first ones are `codes`.
template <int32_t kDtype>
static OCTAVO_INLINE __m512i round_rest(const void *x, int64_t at, const uint8_t *codes,
                                        float scale, uint8_t *second) {
  const void *sixteen = codes;
  const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(sixteen)));
  const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(scale));
  const __m512 rest = _mm512_sub_ps(load16<kDtype>(x, at), product);
  const __m512i rounded =
      _mm512_cvtps_epi32(_mm512_mul_ps(rest, _mm512_set1_ps(kSecondSteps / scale)));
  void *to = second;
  _mm_storeu_si128(static_cast<__m128i *>(to), _mm512_cvtepi32_epi8(rounded));
  return rounded;
}

// The second code of row r's block b; scale and sums become those of both codes.
template <int32_t kDtype>
static OCTAVO_INLINE void add_second(const WideRows &own, int r, int64_t b, uint8_t *second) {
  const uint8_t *codes = own.block(b) + kBlock * r;
  float *scales = own.scales(b);
  const float scale = scales[r], step = scale / kSecondSteps;
  const int64_t at = own.at + r * own.stride + b * kBlock;
  const __m512i low = round_rest<kDtype>(own.x, at, codes, scale, second);
  const __m512i high = round_rest<kDtype>(own.x, at + 16, codes + 16, scale, second + 16);
  scales[r] = step;
  const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
  float *of_all = scales + own.rows + r;
  *of_all = __builtin_fmaf(step, static_cast<float>(sum), *of_all);
  if (own.has_halves) {
    const int32_t sums[2] = {_mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high)};
    float *halves = scales + 2 * (own.rows + r);
    for (int h = 0; h < 2; ++h)
      halves[h] = __builtin_fmaf(step, static_cast<float>(sums[h]), halves[h]);
  }
  if (own.has_offsets) {
    int32_t &offset = own.offsets(b)[r];
    offset = static_cast<int32_t>(kSecondSteps) * offset + 128 * sum;
  }
}

// First codes of a tile's rows, and which of them have a second one, one mask for each block.
template <int32_t kDtype>
static inline void round_tile(const WideRows &own, uint32_t *masks) {
  LeastSeconds least[kWideTile / kGroup];
  for (int first = 0; first < own.rows; first += kGroup) {
    const int num = own.rows - first < kGroup ? own.rows - first : kGroup;
    round_group<kDtype>(own, first, num);
    least[first / kGroup] = least_seconds(own, first, num);
  }
  for (int64_t b = 0; b < own.num_blocks; ++b) {
    masks[b] = 0;
    for (int first = 0; first < own.rows; first += kGroup) {
      const int num = own.rows - first < kGroup ? own.rows - first : kGroup;
      masks[b] |= take_rows(own, first, num, b, least + first / kGroup);
    }
  }
}

// The same, one row after the other.
template <int32_t kDtype>
static inline void round_few_rows(const WideRows &own, uint32_t *masks) {
  const int64_t block_bytes = static_cast<int64_t>(own.rows) * kActBytes;
  for (int64_t b = 0; b < own.num_blocks; ++b) masks[b] = 0;
  for (int r = 0; r < own.rows; ++r) {
    for (int64_t b = 0; b < own.num_blocks; ++b) {
      const Numbers numbers = load_numbers(own.x, own.at + r * own.stride + b * kBlock, kDtype);
      const int32_t sum =
          write_block(numbers, rounding_of(largest_of(numbers)), own.block(b), own.rows, r);
      if (own.has_offsets) own.offsets(b)[r] = 128 * sum;
    }
    const uint8_t *scales = own.tile + kBlock * own.rows + 4 * r;
    LeastSecond least =
        least_second(scales, block_bytes, own.num_blocks, num_second(own.num_blocks));
    for (int64_t b = 0; b < own.num_blocks; ++b) {
      const float scale = load_float(scales + b * block_bytes);
      const bool is_equal = scale == least.scale && least.num_equal > 0;
      least.num_equal -= is_equal;
      masks[b] |= static_cast<uint32_t>((scale > least.scale || is_equal) && scale > 0) << r;
    }
  }
}

// A whole tile of at most kWideTile rows.
template <int32_t kDtype>
static inline void quantize_tile(const WideRows &own) {
  uint8_t *second = own.tile + second_codes_at(own.num_blocks, own.rows);
  auto *masks = reinterpret_cast<uint32_t *>(own.tile + second_rows_at(own.num_blocks, own.rows));
  if (own.rows <= kFewRows)
    round_few_rows<kDtype>(own, masks);
  else
    round_tile<kDtype>(own, masks);
  for (int64_t b = 0; b < own.num_blocks; ++b)
    for (uint32_t mask = masks[b]; mask != 0; mask &= mask - 1, second += kBlock)
      add_second<kDtype>(own, __builtin_ctz(mask), b, second);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo

#endif
