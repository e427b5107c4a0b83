// Second codes of a row of activations, and so whole rows; acts.h says what they are for.
#pragma once

#include "acts.h"

namespace octavo {
namespace OCTAVO_ISA {

// What a block's codes left over, of x from element `at` on, as a block of a tile of one row. The
// product is rounded before it is taken away, whatever the processor, so that all get the same codes.
static inline void quantize_rest(const void *x, int64_t at, int32_t dtype, const uint8_t *codes,
                                 float scale, uint8_t *second) {
  Numbers numbers = load_numbers(x, at, dtype);
  leave_rest(codes, scale, &numbers);
  write_block(numbers, {kSecondSteps / scale, scale / kSecondSteps}, second, 1, 0);
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
  if (count >= num_blocks) return {0, 0};  // all of them
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

// One row of a tile of `rows`: `num_blocks` blocks from element `at` of x on.
static inline void quantize_row(const void *x, int64_t at, int32_t dtype, int64_t num_blocks,
                                uint8_t *tile, int rows, int r) {
  const int64_t stride = static_cast<int64_t>(rows) * kActBytes;
  for (int64_t b = 0; b < num_blocks; ++b) {
    const Numbers numbers = load_numbers(x, at + b * kBlock, dtype);
    write_block(numbers, rounding_of(largest_of(numbers)), tile + b * stride, rows, r);
  }
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

}  // namespace OCTAVO_ISA
}  // namespace octavo
