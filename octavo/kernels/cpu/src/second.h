// Second codes of a row of activations, and so whole rows; acts.h says what they are for.
#pragma once

#include "acts.h"

namespace octavo {
namespace OCTAVO_ISA {

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
static inline __m512 rest16(__m512 v, const uint8_t *codes, __m512 scale) {
  const void *sixteen = codes;
  const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(sixteen)));
  __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(wide), scale);
  asm volatile("" : "+v"(product));  // keeps the compiler from fusing it with the difference
  return _mm512_sub_ps(v, product);
}
#endif

// What a block's codes left over, of x from element `at` on, as a block of a tile of one row. The
// product is rounded before it is taken away, whatever the processor, so that all get the same codes.
static inline void quantize_rest(const void *x, int64_t at, int32_t dtype, const uint8_t *codes,
                                 float scale, uint8_t *second) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  const __m512 scales = _mm512_set1_ps(scale);
  quantize_block(rest16(load16(x, at, dtype), codes, scales),
                 rest16(load16(x, at + 16, dtype), codes + 16, scales), second, 1, 0);
#else
  alignas(32) float rest[kBlock];
#if defined(__AVX2__)
  for (int i = 0; i < kBlock; i += 8) {
    const void *eight = codes + i;
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(eight)));
    __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale));
    asm volatile("" : "+x"(product));  // keeps the compiler from fusing it with the difference
    _mm256_store_ps(rest + i, _mm256_sub_ps(load8(x, at + i, dtype), product));
  }
#else
  for (int i = 0; i < kBlock; ++i)
    rest[i] = scale * static_cast<float>(static_cast<int8_t>(codes[i]));
  asm volatile("" : : "r"(rest) : "memory");  // as above, for processors that fuse by themselves
  for (int i = 0; i < kBlock; ++i) rest[i] = load_element(x, at + i, dtype) - rest[i];
#endif
  quantize_block(rest, 0, 0, second, 1, 0);
#endif
}

// Which blocks of a row have a second code: those whose scale is above `scale`, and the first
// `num_equal` of those that have just this one.
struct LeastSecond {
  float scale;
  int64_t num_equal;
};

// The `count` largest scales that are above zero and numbers, the first ones among equals; `scales`
// are `stride` bytes apart. Zero or more scales of a float order as their bits do.
static inline LeastSecond least_second(const uint8_t *scales, int64_t stride, int64_t num_blocks,
                                       int64_t count) {
  constexpr int64_t kMost = 1024;
  constexpr int32_t kInfinite = 0x7f800000;
  int32_t own[kMost];  // side by side, for most rows
  if (num_blocks <= kMost) {
    for (int64_t b = 0; b < num_blocks; ++b) memcpy(own + b, scales + b * stride, 4);
    scales = reinterpret_cast<const uint8_t *>(own);
    stride = 4;
  }
  int32_t bound = kInfinite;
  while (true) {
    int32_t most = 0, num_equal = 0;
    if (stride == 4) {
      for (int64_t b = 0; b < num_blocks; ++b) most = own[b] > most && own[b] < bound ? own[b] : most;
      for (int64_t b = 0; b < num_blocks; ++b) num_equal += own[b] == most;
    } else {
      for (int64_t b = 0; b < num_blocks; ++b) {
        int32_t bits;
        memcpy(&bits, scales + b * stride, 4);
        if (bits < bound && bits > most) most = bits, num_equal = 0;
        num_equal += bits == most;
      }
    }
    float scale;
    memcpy(&scale, &most, 4);
    if (most == 0) return {0, 0};
    if (num_equal >= count) return {scale, count};
    count -= num_equal;
    bound = most;
  }
}

// The second code of block b of a row, to `second`.
static inline void write_second(const void *x, int64_t at, int32_t dtype, const uint8_t *codes,
                                float scale, int64_t b, uint8_t *second) {
  quantize_rest(x, at + b * kBlock, dtype, codes, scale, second);
  const auto number = static_cast<int32_t>(b);
  memcpy(second + kActBytes, &number, sizeof(number));
}

// A second code of nothing, which counts as the last block's.
static inline void write_no_second(int64_t num_blocks, uint8_t *second) {
  const auto number = static_cast<int32_t>(num_blocks - 1);
  memset(second, 0, kSecondBytes);
  memcpy(second + kActBytes, &number, sizeof(number));
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)

constexpr int64_t kMostInRegisters = 64;

// Of 64 scales, by their bits, one bit for each of the `count` largest above zero, the first ones
// among equals. What is not a number is none of them.
static inline uint64_t largest_64(__m512i *scales, int64_t count) {
  for (int i = 0; i < 4; ++i)
    scales[i] = _mm512_maskz_mov_epi32(
        _mm512_cmplt_epi32_mask(scales[i], _mm512_set1_epi32(0x7f800000)), scales[i]);
  uint64_t above_zero = 0;
  for (int i = 0; i < 4; ++i)
    above_zero |= static_cast<uint64_t>(_mm512_test_epi32_mask(scales[i], scales[i])) << 16 * i;
  if (__builtin_popcountll(above_zero) <= count) return above_zero;
  for (uint64_t left = above_zero; left != 0; left &= left - 1) {
    const int b = __builtin_ctzll(left);
    const __m512i own = _mm512_permutexvar_epi32(
        _mm512_set1_epi32(b % 16), b < 32 ? (b < 16 ? scales[0] : scales[1])
                                          : (b < 48 ? scales[2] : scales[3]));
    uint64_t larger = 0, equal = 0;
    for (int i = 0; i < 4; ++i) {
      larger |= static_cast<uint64_t>(_mm512_cmpgt_epi32_mask(scales[i], own)) << 16 * i;
      equal |= static_cast<uint64_t>(_mm512_cmpeq_epi32_mask(scales[i], own)) << 16 * i;
    }
    int64_t missing = count - __builtin_popcountll(larger);
    if (missing <= 0 || __builtin_popcountll(equal) < missing) continue;
    for (; missing > 0; --missing, equal &= equal - 1) larger |= equal & -equal;
    return larger;
  }
  return above_zero;  // unreachable
}

// `quantize_row` without reading again what was just written: a vector made of small writes waits
// until they are in the cache, and another core may have had that part of it.
static inline void quantize_short_row(const void *x, int64_t at, int32_t dtype, int64_t num_blocks,
                                      uint8_t *tile, int rows, int r) {
  const int64_t stride = static_cast<int64_t>(rows) * kActBytes, count = num_second(num_blocks);
  __m512i scales[4];
  for (int i = 0; i < 4; ++i) {
    scales[i] = _mm512_setzero_si512();
    for (int64_t b = 16 * i; b < 16 * i + 16 && b < num_blocks; ++b) {
      const float scale = quantize_block(x, at + b * kBlock, dtype, tile + b * stride, rows, r);
      scales[i] = _mm512_mask_mov_epi32(scales[i], static_cast<__mmask16>(1u << (b - 16 * i)),
                                        _mm512_castps_si512(_mm512_set1_ps(scale)));
    }
  }
  uint8_t *second = tile + num_blocks * stride + r * count * kSecondBytes;
  uint8_t *const end = second + count * kSecondBytes;
  for (uint64_t left = largest_64(scales, count); left != 0; left &= left - 1) {
    const int64_t b = __builtin_ctzll(left);
    const uint8_t *block = tile + b * stride;
    write_second(x, at, dtype, block + 32 * r, load_float(block + 32 * rows + 4 * r), b, second);
    second += kSecondBytes;
  }
  for (; second < end; second += kSecondBytes) write_no_second(num_blocks, second);
}

#endif

// One row of a tile of `rows`: `num_blocks` blocks from element `at` of x on.
static inline void quantize_row(const void *x, int64_t at, int32_t dtype, int64_t num_blocks,
                                uint8_t *tile, int rows, int r) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  if (num_blocks <= kMostInRegisters) {
    quantize_short_row(x, at, dtype, num_blocks, tile, rows, r);
    return;
  }
#endif
  const int64_t stride = static_cast<int64_t>(rows) * kActBytes;
  for (int64_t b = 0; b < num_blocks; ++b)
    quantize_block(x, at + b * kBlock, dtype, tile + b * stride, rows, r);
  const uint8_t *scales = tile + 32 * rows + 4 * r;
  const int64_t count = num_second(num_blocks);
  const LeastSecond least = least_second(scales, stride, num_blocks, count);
  uint8_t *second = tile + num_blocks * stride + r * count * kSecondBytes;
  uint8_t *const end = second + count * kSecondBytes;
  int64_t num_equal = least.num_equal;
  for (int64_t b = 0; b < num_blocks && second < end; ++b) {
    const float scale = load_float(scales + b * stride);
    if (!(scale > least.scale) && !(scale == least.scale && num_equal-- > 0)) continue;
    write_second(x, at, dtype, tile + b * stride + 32 * r, scale, b, second);
    second += kSecondBytes;
  }
  for (; second < end; second += kSecondBytes) write_no_second(num_blocks, second);
}

// Which second code of a tile comes next where they are taken by blocks: kept behind the codes.
struct SecondPlace {
  int32_t block, entry;
  int32_t row;
};

static inline SecondPlace second_at(const uint8_t *second, int64_t i) {
  SecondPlace place;
  memcpy(&place, second + i * kSecondBytes + kActBytes + 4, sizeof(place));
  return place;
}

// Writes the places of a tile's second codes: by blocks, and by rows within a block, where each row's
// own order is by blocks already.
static inline void sort_second(uint8_t *tile, int64_t num_blocks, int rows) {
  constexpr int kMostRows = 64;
  const int64_t count = num_second(num_blocks), num_entries = rows * count;
  uint8_t *second = tile + num_blocks * rows * kActBytes;
  int64_t taken[kMostRows] = {};
  for (int64_t i = 0; i < num_entries;) {
    int32_t least = INT32_MAX, numbers[kMostRows];
    for (int r = 0; r < rows; ++r) {
      numbers[r] = INT32_MAX;
      if (taken[r] < count)
        memcpy(numbers + r, second + (r * count + taken[r]) * kSecondBytes + kActBytes, 4);
      if (numbers[r] < least) least = numbers[r];
    }
    for (int r = 0; r < rows; ++r) {
      if (numbers[r] != least) continue;
      const SecondPlace place = {least, static_cast<int32_t>(r * count + taken[r]++), r};
      memcpy(second + i++ * kSecondBytes + kActBytes + 4, &place, sizeof(place));
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
