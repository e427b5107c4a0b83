// A block's numbers in registers on 64-bit Arm; acts.h says what each function does.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace octavo {
namespace OCTAVO_ISA {

struct Numbers {
  float32x4_t v[8];
};

static inline Numbers load_numbers(const void *x, int64_t at, int32_t dtype) {
  Numbers numbers;
  if (dtype == 0) {
    for (int i = 0; i < 8; ++i)
      numbers.v[i] = vld1q_f32(static_cast<const float *>(x) + at + 4 * i);
  } else {
    for (int i = 0; i < 4; ++i) {
      const uint16x8_t bits = vld1q_u16(static_cast<const uint16_t *>(x) + at + 8 * i);
      numbers.v[2 * i] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16));
      numbers.v[2 * i + 1] = vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16));
    }
  }
  return numbers;
}

static inline float largest_of(const Numbers &numbers) {
  float32x4_t top = vabsq_f32(numbers.v[0]);
  for (int i = 1; i < 8; ++i) top = vmaxq_f32(top, vabsq_f32(numbers.v[i]));
  return vmaxvq_f32(top);
}

static inline void leave_rest(const uint8_t *codes, float scale, Numbers *numbers) {
  for (int i = 0; i < 4; ++i) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(codes + 8 * i)));
    const int32x4_t parts[2] = {vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide)};
    for (int j = 0; j < 2; ++j) {
      const float32x4_t product = vmulq_n_f32(vcvtq_f32_s32(parts[j]), scale);
      float32x4_t &v = numbers->v[2 * i + j];
      v = vsubq_f32(v, product);
    }
  }
}

// To nearest, with ties to even.
static inline void round_numbers(const Numbers &numbers, float inverse, uint8_t *codes,
                                 int32_t *sums) {
  for (int i = 0; i < 2; ++i) {
    int32x4_t q[4];
    for (int j = 0; j < 4; ++j) q[j] = vcvtnq_s32_f32(vmulq_n_f32(numbers.v[4 * i + j], inverse));
    sums[i] = vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3])));
    const int16x8_t first = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
    const int16x8_t second = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
    const int8x16_t bytes = vcombine_s8(vmovn_s16(first), vmovn_s16(second));
    vst1q_u8(codes + 16 * i, vreinterpretq_u8_s8(bytes));
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
