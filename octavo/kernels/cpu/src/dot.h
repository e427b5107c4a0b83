// Products of one panel (8 packed rows) with one tile of activations (R rows): the innermost loops.
// `Codes<bits, subs>` says how codes come out of memory, `Scales<type>` how scales do.
#pragma once

#include "second.h"
#include "vec.h"

namespace octavo {
namespace OCTAVO_ISA {

// Columns of which a scale is, in blocks: two scales per block for Q6_K, one for all others.
static constexpr int subs_of(int32_t type) { return type == kQ6_K ? 2 : 1; }

static constexpr int bits_of(int32_t type) {
  return type == kQ8_0 ? 8 : type == kQ6_K ? 6
         : type == kQ5_0 || type == kQ5_1 || type == kQ5_K ? 5 : 4;
}

// Packed bytes of the codes of 8 rows and one block.
static constexpr int code_bytes_of(int32_t type) {
  return bits_of(type) == 8 ? 256 : 128 + 32 * (bits_of(type) - 4);
}

#if defined(__AVX2__)

static inline __m256i load256(const void *at) {
  return _mm256_loadu_si256(static_cast<const __m256i *>(at));
}

template <int kShift>
static inline __m256i shift16(__m256i v) {  // left where positive, of 16-bit lanes
  if constexpr (kShift > 0) return _mm256_slli_epi16(v, kShift);
  if constexpr (kShift < 0) return _mm256_srli_epi16(v, -kShift);
  return v;
}

// Keeps a sum in its register at this point of the program. Left alone, GCC computes the products
// of many groups first, adds them up late, and spills most of them to memory meanwhile.
static inline void pin(__m256i &v) { asm volatile("" : "+x"(v)); }

// The 8 x 4 codes of group G (columns 4 G to 4 G + 3 of the block), as bytes.
template <int kBits, int G>
static inline __m256i code(const uint8_t *codes) {
  if constexpr (kBits == 8) {
    return load256(codes + 32 * G);
  } else {
    const __m256i low4 = _mm256_set1_epi8(15);
    __m256i v = load256(codes + 32 * (G % 4));
    v = _mm256_and_si256(G < 4 ? v : _mm256_srli_epi16(v, 4), low4);
    if constexpr (kBits == 5) {
      const __m256i top = shift16<4 - G>(load256(codes + 128));
      v = _mm256_or_si256(v, _mm256_and_si256(top, _mm256_set1_epi8(0x10)));
    }
    if constexpr (kBits == 6) {
      const __m256i top = shift16<4 - 2 * (G % 4)>(load256(codes + 128 + 32 * (G / 4)));
      v = _mm256_or_si256(v, _mm256_and_si256(top, _mm256_set1_epi8(0x30)));
    }
    return v;
  }
}

static inline __m256 load_halves(const uint8_t *at) {
  const void *halves = at;
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(halves)));
}

static inline __m256 load_bytes(const uint8_t *at, bool is_signed) {
  const void *bytes = at;
  const __m128i eight = _mm_loadl_epi64(static_cast<const __m128i *>(bytes));
  return _mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight));
}

// Scales and minima of 8 rows, of half h of block b.
template <int32_t kType>
static inline void scales_at(const uint8_t *scales, int64_t b, int h, __m256 *d, __m256 *m) {
  if constexpr (kType == kQ4_K || kType == kQ5_K) {
    const uint8_t *group = scales + b / 8 * 160, *own = group + 32 + b % 8 * 8;
    *d = _mm256_mul_ps(load_halves(group), load_bytes(own, false));
    *m = _mm256_mul_ps(_mm256_xor_ps(load_halves(group + 16), _mm256_set1_ps(-0.0f)),
                       load_bytes(own + 64, false));
  } else if constexpr (kType == kQ6_K) {
    const uint8_t *group = scales + b / 8 * 144;
    *d = _mm256_mul_ps(load_halves(group), load_bytes(group + 16 + (b % 8 * 2 + h) * 8, true));
    *m = _mm256_mul_ps(*d, _mm256_set1_ps(-32));
  } else if constexpr (kType == kQ4_1 || kType == kQ5_1) {
    *d = load_halves(scales + b * 32);
    *m = load_halves(scales + b * 32 + 16);
  } else {
    *d = load_halves(scales + b * 16);
    *m = _mm256_mul_ps(*d, _mm256_set1_ps(kType == kQ4_0 ? -8 : kType == kQ5_0 ? -16 : 0));
  }
}

static inline __m256i broadcast4(const uint8_t *at) {
  int32_t four;
  memcpy(&four, at, 4);
  return _mm256_set1_epi32(four);
}

// Adds the products of group G's codes to the rows' sums. 16-bit lanes hold the products of
// 4 groups of 5-bit codes (2 x 31 x 127 x 4 < 2^15), 8 of 4-bit and 2 of 6-bit ones; after so many
// they are widened into `sums`.
template <int kBits, int R, int G, int kLast>
static inline void add_groups(const uint8_t *codes, const uint8_t *acts, __m256i *words,
                              __m256i *sums) {
  __m256i w = code<kBits, G>(codes);
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kBits == 8) {
    const __m256i magnitude = _mm256_abs_epi8(w);
    for (int r = 0; r < R; ++r) {
      const __m256i a = _mm256_sign_epi8(broadcast4(acts + 32 * r + 4 * G), w);
      sums[r] = _mm256_add_epi32(sums[r],
                                 _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, a), ones));
      pin(sums[r]);
    }
  } else {
    constexpr int kRun = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
    for (int r = 0; r < R; ++r) {
      const __m256i product = _mm256_maddubs_epi16(w, broadcast4(acts + 32 * r + 4 * G));
      words[r] = G % kRun == 0 ? product : _mm256_add_epi16(words[r], product);
      pin(words[r]);
      if (G % kRun == kRun - 1)
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(words[r], ones));
    }
  }
  if constexpr (G + 1 < kLast) add_groups<kBits, R, G + 1, kLast>(codes, acts, words, sums);
}

// sums[r][0..7] = products of half h of a block's codes of 8 rows with row r's, of integers.
template <int32_t kType, int R>
static inline void multiply_codes(const uint8_t *own, int h, const uint8_t *acts, __m256i *sums) {
  constexpr int kBits = bits_of(kType), kGroups = 8 / subs_of(kType);
  __m256i words[R];
  for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_si256();
  if (h == 0)
    add_groups<kBits, R, 0, kGroups>(own, acts, words, sums);
  else
    add_groups<kBits, R, kGroups % 8, 8>(own, acts, words, sums);
}

// Adds to totals[r][0..7] the products of one block of the panel's 8 rows, its codes at `own` and
// number b among its scales, with row r of a tile's block; `rests` has those with second codes.
template <int32_t kType, int R>
static inline void add_block(const uint8_t *own, const uint8_t *scales, int64_t b,
                             const uint8_t *block, const uint8_t *rests, int64_t rests_stride,
                             __m256 *totals) {
  constexpr int kSubs = subs_of(kType);
  const float *act_scales = reinterpret_cast<const float *>(block + kBlock * R);
  const float *factors = reinterpret_cast<const float *>(block + kPlainBytes * R);
  const int32_t *places = reinterpret_cast<const int32_t *>(factors + R);
  for (int h = 0; h < kSubs; ++h) {
    __m256i sums[R];
    multiply_codes<kType, R>(own, h, block, sums);
    __m256 d, m;
    scales_at<kType>(scales, b, h, &d, &m);
    for (int r = 0; r < R; ++r) {
      const __m256 both = _mm256_mul_ps(d, _mm256_set1_ps(act_scales[r]));
      const auto *rest = reinterpret_cast<const float *>(rests + h * rests_stride + places[r]);
      // As if integers were added up and then rounded to float32.
      const __m256 products = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r]),
                                              _mm256_set1_ps(factors[r]), _mm256_load_ps(rest));
      totals[r] = _mm256_fmadd_ps(products, both, totals[r]);
      const float sum = kSubs == 1 ? act_scales[R + r] : act_scales[2 * R + 2 * r + h];
      if constexpr (kType != kQ8_0)
        totals[r] = _mm256_fmadd_ps(m, _mm256_set1_ps(sum), totals[r]);
    }
  }
}

// The products with all second codes of a tile, to `rests` behind those of none.
template <int32_t kType>
static inline void multiply_seconds(const uint8_t *codes, const uint8_t *seconds, int64_t count,
                                    uint8_t *rests, int64_t rests_stride) {
  for (int h = 0; h < subs_of(kType); ++h) {
    float *rest = reinterpret_cast<float *>(rests + h * rests_stride);
    _mm256_store_ps(rest, _mm256_setzero_ps());
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t *second = seconds + i * kSecondBytes;
      __m256i sums[1];
      multiply_codes<kType, 1>(codes + block_of(second) * code_bytes_of(kType), h, second, sums);
      _mm256_store_ps(rest + (i + 1) * kPanel, _mm256_cvtepi32_ps(sums[0]));
    }
  }
}

// Packed bytes of the scales of 8 rows and one block, on average.
static constexpr int scale_bytes_of(int32_t type) {
  return type == kQ6_K ? 18 : type == kQ4_K || type == kQ5_K ? 20
         : type == kQ4_1 || type == kQ5_1 ? 32 : 16;
}

constexpr int kAhead = 8192;  // bytes; prefetching beyond a matrix's end is harmless

// out[r][0..7] = the panel's 8 rows times row r of the tile. The order of sums is the same for every
// R, so that a token's result does not depend on those beside it in the batch.
template <int32_t kType, int R>
static void dot_tile(const uint8_t *codes, const uint8_t *scales, int64_t num_blocks,
                     const uint8_t *acts, uint8_t *rests, float *out) {
  constexpr int kCodeBytes = code_bytes_of(kType), kStride = kCodeBytes + scale_bytes_of(kType);
  const int64_t stride = rests_stride(num_blocks, R);
  multiply_seconds<kType>(codes, acts + num_blocks * R * kActBytes, R * num_second(num_blocks),
                          rests, stride);
  __m256 totals[R];
  for (int r = 0; r < R; ++r) totals[r] = _mm256_setzero_ps();
  for (int64_t b = 0; b < num_blocks; ++b) {
    const uint8_t *own = codes + b * kCodeBytes;
    // Codes, scales and the next panel's codes follow each other: one stream, fetched at one pace.
    for (int line = 0; line < kStride; line += 64)
      _mm_prefetch(reinterpret_cast<const char *>(codes) + b * kStride + kAhead + line, _MM_HINT_T0);
    add_block<kType, R>(own, scales, b, acts + b * R * kActBytes, rests, stride, totals);
  }
  for (int r = 0; r < R; ++r) _mm256_storeu_ps(out + kPanel * r, totals[r]);
}

constexpr int kMaxTile = 6;

#elif !defined(OCTAVO_NEON)  // every other processor; dot_neon.h has 64-bit Arm's

template <int32_t kType, int R>
static void add_block(const uint8_t *own, const uint8_t *scales, int64_t b, const uint8_t *block,
                      const uint8_t *seconds, float *out) {
  constexpr int kBits = bits_of(kType), kSubs = subs_of(kType), kCols = kBlock / kSubs;
  const float *act_scales = reinterpret_cast<const float *>(block + kBlock * R);
  const float *act_sums = act_scales + (kSubs == 1 ? R : 2 * R);
  const int32_t *places = reinterpret_cast<const int32_t *>(block + (kPlainBytes + 4) * R);
  int8_t weights[kPanel][kBlock];
  float d[kSubs][kPanel], m[kSubs][kPanel];
  for (int row = 0; row < kPanel; ++row) {
    for (int c = 0; c < kBlock; ++c)
      weights[row][c] = static_cast<int8_t>(code_at(kBits, own, row, c));
    for (int h = 0; h < kSubs; ++h) scale_at(kType, scales, b, h, row, &d[h][row], &m[h][row]);
  }
  for (int r = 0; r < R; ++r) {
    const int64_t place = places[r] / kRestBytes;
    const void *codes = block + kBlock * r, *rest = seconds + (place - 1) * kSecondBytes;
    for (int h = 0; h < kSubs; ++h) {
      const int8_t *first = static_cast<const int8_t *>(codes) + kCols * h;
      const int8_t *second = static_cast<const int8_t *>(rest) + kCols * h;
      float products[kPanel];
      for (int row = 0; row < kPanel; ++row) {
        const int8_t *w = weights[row] + kCols * h;
        int32_t sum = 0, more = 0;
        for (int c = 0; c < kCols; ++c) sum += w[c] * first[c];
        if (place > 0) {
          for (int c = 0; c < kCols; ++c) more += w[c] * second[c];
          sum = static_cast<int32_t>(kSecondSteps) * sum + more;
        }
        products[row] = static_cast<float>(sum);
      }
      for (int i = 0; i < kPanel; i += kLanes) {
        float *at = out + kPanel * r + i;
        Vec total = fused(load(products + i), load(d[h] + i) * all(act_scales[r]), load(at));
        if (kType != kQ8_0) total = fused(load(m[h] + i), all(act_sums[kSubs * r + h]), total);
        store(at, total);
      }
    }
  }
}

template <int32_t kType, int R>
static void dot_tile(const uint8_t *codes, const uint8_t *scales, int64_t num_blocks,
                     const uint8_t *acts, uint8_t *, float *out) {
  constexpr int kCodeBytes = code_bytes_of(kType);
  const uint8_t *seconds = acts + num_blocks * R * kActBytes;
  for (int i = 0; i < kPanel * R; ++i) out[i] = 0;
  for (int64_t b = 0; b < num_blocks; ++b)
    add_block<kType, R>(codes + b * kCodeBytes, scales, b, acts + b * R * kActBytes, seconds, out);
}

constexpr int kMaxTile = 4;

#endif

}  // namespace OCTAVO_ISA
}  // namespace octavo

#if defined(OCTAVO_NEON)
#include "dot_neon.h"
#endif
