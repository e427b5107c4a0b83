// Rounding of activations on 64-bit Arm: what acts.h's `quantize_block` does with a block's numbers.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace octavo {
namespace OCTAVO_ISA {

// 32 elements of x from `at` on, and the largest magnitude; not a number where one of them is none.
static inline float load_block(const void *x, int64_t at, int32_t dtype, float32x4_t *v) {
  if (dtype == 0) {
    for (int i = 0; i < 8; ++i) v[i] = vld1q_f32(static_cast<const float *>(x) + at + 4 * i);
  } else {
    for (int i = 0; i < 4; ++i) {
      const uint16x8_t bits = vld1q_u16(static_cast<const uint16_t *>(x) + at + 8 * i);
      v[2 * i] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16));
      v[2 * i + 1] = vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16));
    }
  }
  float32x4_t top = vabsq_f32(v[0]);
  for (int i = 1; i < 8; ++i) top = vmaxq_f32(top, vabsq_f32(v[i]));
  return vmaxvq_f32(top);
}

// Codes of v times `inverse`, to nearest with ties to even, and their sums of 16 columns.
static inline void round_block(const float32x4_t *v, float inverse, uint8_t *codes, int32_t *sums) {
  for (int i = 0; i < 2; ++i) {
    int32x4_t q[4];
    for (int j = 0; j < 4; ++j) q[j] = vcvtnq_s32_f32(vmulq_n_f32(v[4 * i + j], inverse));
    sums[i] = vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3])));
    const int16x8_t first = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
    const int16x8_t second = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
    const int8x16_t bytes = vcombine_s8(vmovn_s16(first), vmovn_s16(second));
    vst1q_u8(codes + 16 * i, vreinterpretq_u8_s8(bytes));
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
