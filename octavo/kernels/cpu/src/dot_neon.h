// Products of one panel with one tile of activations on 64-bit Arm: dot.h's loops with vectors of
// 128 bits. Rows 0 to 3 of a panel are in the first of two vectors, rows 4 to 7 in the second.
//
// With the dot-product extension one instruction multiplies and adds the 4 columns of 4 rows.
// Without it products are added up in 16 bits, as many as cannot overflow, and then widened.
#pragma once

#include <arm_neon.h>

namespace octavo {
namespace OCTAVO_ISA {

// Left to itself GCC makes functions of their own of some loops, with the sums in memory.
#define OCTAVO_INLINE __attribute__((always_inline)) static inline

template <int kShift>
static inline uint8x16_t shift8(uint8x16_t v) {  // left where positive
  if constexpr (kShift > 0) return vshlq_n_u8(v, kShift);
  if constexpr (kShift < 0) return vshrq_n_u8(v, -kShift);
  return v;
}

// The 4 x 4 codes of group G (columns 4 G to 4 G + 3 of the block) of the panel's rows 4 half on.
template <int kBits, int G>
static inline int8x16_t code(const uint8_t *codes, int half) {
  codes += 16 * half;
  if constexpr (kBits == 8) {
    return vreinterpretq_s8_u8(vld1q_u8(codes + 32 * G));
  } else {
    const uint8x16_t pair = vld1q_u8(codes + 32 * (G % 4));
    uint8x16_t v = G < 4 ? vandq_u8(pair, vdupq_n_u8(15)) : vshrq_n_u8(pair, 4);
    if constexpr (kBits == 5) {
      const uint8x16_t top = shift8<4 - G>(vld1q_u8(codes + 128));
      v = vorrq_u8(v, vandq_u8(top, vdupq_n_u8(0x10)));
    }
    if constexpr (kBits == 6) {
      const uint8x16_t top = shift8<4 - 2 * (G % 4)>(vld1q_u8(codes + 128 + 32 * (G / 4)));
      v = vorrq_u8(v, vandq_u8(top, vdupq_n_u8(0x30)));
    }
    return vreinterpretq_s8_u8(v);
  }
}

#if defined(__ARM_FEATURE_DOTPROD)

template <int kBits, int R, int G, int kLast>
OCTAVO_INLINE void add_groups(const uint8_t *codes, const uint8_t *acts, int32x4_t (*sums)[2]) {
  for (int half = 0; half < 2; ++half) {
    const int8x16_t w = code<kBits, G>(codes, half);
    for (int r = 0; r < R; ++r) {
      const int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(acts + 32 * r + 16 * (G / 4)));
      sums[r][half] = vdotq_laneq_s32(sums[r][half], w, a, G % 4);
    }
  }
  if constexpr (G + 1 < kLast) add_groups<kBits, R, G + 1, kLast>(codes, acts, sums);
}

// sums[r] = products of 8 rows with row r of a tile's block, in groups [kFirst, kLast).
template <int kBits, int R, int kFirst, int kLast>
OCTAVO_INLINE void multiply_groups(const uint8_t *codes, const uint8_t *acts,
                                   int32x4_t (*sums)[2]) {
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = vdupq_n_s32(0);
  add_groups<kBits, R, kFirst, kLast>(codes, acts, sums);
}

#else

// Group G's 4 activations, four times.
template <int G>
static inline int8x16_t repeat4(const uint8_t *acts) {
  int32_t four;
  memcpy(&four, acts + 4 * G, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// Adds products with 2 of w's 4 rows to each of two words.
OCTAVO_INLINE void add_products(int8x16_t w, int8x16_t a, int16x8_t *words) {
  words[0] = vmlal_s8(words[0], vget_low_s8(w), vget_low_s8(a));
  words[1] = vmlal_high_s8(words[1], w, a);
}

// All of a block's groups fit into 16 bits: 8 of 5-bit codes (8 x 31 x 127 < 2^15), 4 of 6-bit ones
// (4 x 63 x 127).
template <int kBits, int R, int G, int kLast>
OCTAVO_INLINE void add_small(const uint8_t *codes, const uint8_t *acts, int half,
                             int16x8_t (*words)[2]) {
  const int8x16_t w = code<kBits, G>(codes, half);
  for (int r = 0; r < R; ++r) add_products(w, repeat4<G>(acts + 32 * r), words[r]);
  if constexpr (G + 1 < kLast) add_small<kBits, R, G + 1, kLast>(codes, acts, half, words);
}

// 8-bit codes: two groups fit into 16 bits (2 x 128 x 127 < 2^15).
template <int R, int G>
OCTAVO_INLINE void add_large(const uint8_t *codes, const uint8_t *acts, int half,
                             int32x4_t (*pairs)[2]) {
  const int8x16_t w0 = code<8, G>(codes, half), w1 = code<8, G + 1>(codes, half);
  for (int r = 0; r < R; ++r) {
    int16x8_t words[2] = {vdupq_n_s16(0), vdupq_n_s16(0)};
    add_products(w0, repeat4<G>(acts + 32 * r), words);
    add_products(w1, repeat4<G + 1>(acts + 32 * r), words);
    for (int i = 0; i < 2; ++i) pairs[r][i] = vpadalq_s16(pairs[r][i], words[i]);
  }
  if constexpr (G + 2 < 8) add_large<R, G + 2>(codes, acts, half, pairs);
}

// One half of the panel after the other, whose sums fit into registers.
template <int kBits, int R, int kFirst, int kLast>
OCTAVO_INLINE void multiply_groups(const uint8_t *codes, const uint8_t *acts,
                                   int32x4_t (*sums)[2]) {
  for (int half = 0; half < 2; ++half) {
    int32x4_t pairs[R][2];
    if constexpr (kBits == 8) {
      static_assert(kFirst == 0 && kLast == 8, "8-bit codes have one scale per block");
      for (int r = 0; r < R; ++r) pairs[r][0] = pairs[r][1] = vdupq_n_s32(0);
      add_large<R, 0>(codes, acts, half, pairs);
    } else {
      int16x8_t words[R][2];
      for (int r = 0; r < R; ++r) words[r][0] = words[r][1] = vdupq_n_s16(0);
      add_small<kBits, R, kFirst, kLast>(codes, acts, half, words);
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < 2; ++i) pairs[r][i] = vpaddlq_s16(words[r][i]);
    }
    for (int r = 0; r < R; ++r) sums[r][half] = vpaddq_s32(pairs[r][0], pairs[r][1]);
  }
}

#endif

static inline void load_halves(const uint8_t *at, float32x4_t *out) {
  const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(at));
  out[0] = vcvt_f32_f16(vget_low_f16(halves));
  out[1] = vcvt_high_f32_f16(halves);
}

static inline void load_bytes(const uint8_t *at, bool is_signed, float32x4_t *out) {
  const uint8x8_t bytes = vld1_u8(at);
  if (is_signed) {
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(bytes));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
    out[1] = vcvtq_f32_s32(vmovl_high_s16(words));
  } else {
    const uint16x8_t words = vmovl_u8(bytes);
    out[0] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)));
    out[1] = vcvtq_f32_u32(vmovl_high_u16(words));
  }
}

// Scales and minima of 8 rows, of half h of block b.
template <int32_t kType>
static inline void scales_at(const uint8_t *scales, int64_t b, int h, float32x4_t *d,
                             float32x4_t *m) {
  float32x4_t own[2];
  if constexpr (kType == kQ4_K || kType == kQ5_K) {
    const uint8_t *group = scales + b / 8 * 160, *bytes = group + 32 + b % 8 * 8;
    load_halves(group, d);
    load_halves(group + 16, m);
    load_bytes(bytes, false, own);
    for (int i = 0; i < 2; ++i) d[i] = vmulq_f32(d[i], own[i]);
    load_bytes(bytes + 64, false, own);
    for (int i = 0; i < 2; ++i) m[i] = vmulq_f32(vnegq_f32(m[i]), own[i]);
  } else if constexpr (kType == kQ6_K) {
    const uint8_t *group = scales + b / 8 * 144;
    load_halves(group, d);
    load_bytes(group + 16 + (b % 8 * 2 + h) * 8, true, own);
    for (int i = 0; i < 2; ++i) {
      d[i] = vmulq_f32(d[i], own[i]);
      m[i] = vmulq_n_f32(d[i], -32);
    }
  } else if constexpr (kType == kQ4_1 || kType == kQ5_1) {
    load_halves(scales + b * 32, d);
    load_halves(scales + b * 32 + 16, m);
  } else {
    load_halves(scales + b * 16, d);
    for (int i = 0; i < 2; ++i) m[i] = vmulq_n_f32(d[i], kType == kQ4_0 ? -8 : -16);
  }
}

// sums[r] = products of half h of a block's codes of 8 rows with row r's, of integers.
template <int32_t kType, int R>
OCTAVO_INLINE void multiply_codes(const uint8_t *own, int h, const uint8_t *acts,
                                  int32x4_t (*sums)[2]) {
  constexpr int kBits = bits_of(kType), kGroups = 8 / subs_of(kType);
  if (h == 0)
    multiply_groups<kBits, R, 0, kGroups>(own, acts, sums);
  else
    multiply_groups<kBits, R, kGroups % 8, 8>(own, acts, sums);
}

// Adds to totals[r] the products of one block of the panel's 8 rows, its codes at `own` and number
// b among its scales, with row r of a tile's block; `rests` has those with second codes.
template <int32_t kType, int R>
OCTAVO_INLINE void add_block(const uint8_t *own, const uint8_t *scales, int64_t b,
                             const uint8_t *block, const uint8_t *rests, int64_t rests_stride,
                             float32x4_t (*totals)[2]) {
  constexpr int kSubs = subs_of(kType);
  const float *act_scales = reinterpret_cast<const float *>(block + kBlock * R);
  const float *factors = reinterpret_cast<const float *>(block + kPlainBytes * R);
  const int32_t *places = reinterpret_cast<const int32_t *>(factors + R);
  for (int h = 0; h < kSubs; ++h) {
    int32x4_t sums[R][2];
    multiply_codes<kType, R>(own, h, block, sums);
    float32x4_t d[2], m[2];
    scales_at<kType>(scales, b, h, d, m);
    for (int r = 0; r < R; ++r) {
      const float sum = kSubs == 1 ? act_scales[R + r] : act_scales[2 * R + 2 * r + h];
      const auto *rest = reinterpret_cast<const float *>(rests + h * rests_stride + places[r]);
      for (int half = 0; half < 2; ++half) {
        const float32x4_t both = vmulq_n_f32(d[half], act_scales[r]);
        // As if integers were added up and then rounded to float32.
        const float32x4_t products =
            vfmaq_n_f32(vld1q_f32(rest + 4 * half), vcvtq_f32_s32(sums[r][half]), factors[r]);
        float32x4_t total = vfmaq_f32(totals[r][half], products, both);
        if constexpr (kType != kQ8_0) total = vfmaq_n_f32(total, m[half], sum);
        totals[r][half] = total;
      }
    }
  }
}

// The products with all second codes of a tile, to `rests` behind those of none.
template <int32_t kType>
static inline void multiply_seconds(const uint8_t *codes, const uint8_t *seconds, int64_t count,
                                    uint8_t *rests, int64_t rests_stride) {
  for (int h = 0; h < subs_of(kType); ++h) {
    float *rest = reinterpret_cast<float *>(rests + h * rests_stride);
    for (int half = 0; half < 2; ++half) vst1q_f32(rest + 4 * half, vdupq_n_f32(0));
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t *second = seconds + i * kSecondBytes;
      int32x4_t sums[1][2];
      multiply_codes<kType, 1>(codes + block_of(second) * code_bytes_of(kType), h, second, sums);
      for (int half = 0; half < 2; ++half)
        vst1q_f32(rest + (i + 1) * kPanel + 4 * half, vcvtq_f32_s32(sums[0][half]));
    }
  }
}

// out[r][0..7] = the panel's 8 rows times row r of the tile.
template <int32_t kType, int R>
static void dot_tile(const uint8_t *codes, const uint8_t *scales, int64_t num_blocks,
                     const uint8_t *acts, uint8_t *rests, float *out) {
  constexpr int kCodeBytes = code_bytes_of(kType);
  const int64_t stride = rests_stride(num_blocks, R);
  multiply_seconds<kType>(codes, acts + num_blocks * R * kActBytes, R * num_second(num_blocks),
                          rests, stride);
  float32x4_t totals[R][2];
  for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = vdupq_n_f32(0);
  for (int64_t b = 0; b < num_blocks; ++b)
    add_block<kType, R>(codes + b * kCodeBytes, scales, b, acts + b * R * kActBytes, rests, stride,
                        totals);
  for (int r = 0; r < R; ++r) {
    vst1q_f32(out + kPanel * r, totals[r][0]);
    vst1q_f32(out + kPanel * r + 4, totals[r][1]);
  }
}

constexpr int kMaxTile = 4;  // totals, sums, codes and activations of more leave the 32 registers

}  // namespace OCTAVO_ISA
}  // namespace octavo
