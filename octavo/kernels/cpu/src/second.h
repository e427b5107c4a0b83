// Second codes of a row of activations, and so whole rows; acts.h says what they are for.
#pragma once

#include "acts.h"

namespace octavo {
namespace OCTAVO_ISA {

// Memory for the second codes' products of a tile with one panel: first those of no second code, which
// are zeros, then the tile's, row by row; and the same again for the second halves of blocks.
static inline int64_t rests_stride(int64_t num_blocks, int64_t rows) {
  return (1 + rows * num_second(num_blocks)) * kRestBytes;
}

static inline int64_t rests_bytes(int64_t num_blocks, int64_t rows) {
  return 2 * rests_stride(num_blocks, rows);
}

// The number of a second code's block.
static inline int32_t block_of(const uint8_t *second) {
  int32_t number;
  memcpy(&number, second + kBlock, sizeof(number));
  return number;
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

// The second code of row r of a block, whose numbers are x from element `at` on, to `second`: what its
// first codes left over. The row's scale and sums become those of both.
static inline void write_second(const void *x, int64_t at, int32_t dtype, uint8_t *block, int rows,
                                int r, uint8_t *second) {
  float *scales = reinterpret_cast<float *>(block + 32 * rows), *halves = scales + 2 * rows + 2 * r;
  const float scale = scales[r], step = scale / kSecondSteps;
  Numbers numbers = load_numbers(x, at, dtype);
  leave_rest(block + 32 * r, scale, &numbers);
  int32_t sums[2];
  round_numbers(numbers, kSecondSteps / scale, second, sums);
  const auto sum = static_cast<float>(sums[0] + sums[1]);
  scales[r] = step;
  scales[rows + r] = __builtin_fmaf(step, sum, scales[rows + r]);
  for (int h = 0; h < 2; ++h)
    halves[h] = __builtin_fmaf(step, static_cast<float>(sums[h]), halves[h]);
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
  uint8_t *const seconds = tile + num_blocks * stride;
  int64_t num_equal = least.num_equal, place = r * count;
  const int64_t end = place + count;
  for (int64_t b = 0; b < num_blocks; ++b) {
    uint8_t *block = tile + b * stride;
    float *factor = reinterpret_cast<float *>(block + kPlainBytes * rows) + r;
    int32_t *at_rests = reinterpret_cast<int32_t *>(factor + rows);
    const float scale = load_float(scales + b * stride);
    *factor = 1;
    *at_rests = 0;
    if (place == end || (!(scale > least.scale) && !(scale == least.scale && num_equal-- > 0)))
      continue;
    uint8_t *second = seconds + place++ * kSecondBytes;
    const auto number = static_cast<int32_t>(b);
    write_second(x, at + b * kBlock, dtype, block, rows, r, second);
    memcpy(second + kBlock, &number, sizeof(number));
    *factor = kSecondSteps;
    *at_rests = static_cast<int32_t>(place) * kRestBytes;
  }
  // Blocks of zeros have none; what counts for them is multiplied, and never read.
  for (; place < end; ++place) memset(seconds + place * kSecondBytes, 0, kSecondBytes);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
