// Activations times plain weights, float32 or bfloat16: for layers of a plan that are not kept in
// blocks. Every result is one sum along 16 lanes of the columns, whatever is computed beside it, so
// that a row's results depend neither on the other rows nor on how wide vectors are.
#include "dense.h"

#include "pool.h"
#include "vec.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int64_t kCachedRows = 48;      // of x, which a core's cache holds beside some weights
constexpr int64_t kLeastWork = 1 << 17;  // products of a piece: some 5 us
constexpr int kRows = kLanes >= 8 ? kLanes / 4 : 1;  // at a time: their sums fit the registers

struct Job {
  const float *x;
  const void *weight;
  const float *bias;
  float *y;
  int64_t num_rows, cols, outputs;
};

// R rows of x with N rows of weights.
template <int R, int N, typename T>
inline void multiply(const Job &job, const float *x, const T *weight, int64_t row, int64_t output) {
  const int64_t cols = job.cols;
  Vec sums[R][N][kSumVecs];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < kSumVecs; ++v) sums[r][n][v] = Vec{};
  int64_t i = 0;
  for (; i + kSumLanes <= cols; i += kSumLanes)
    for (int v = 0; v < kSumVecs; ++v) {
      const int64_t at = i + v * kLanes;
      Vec own[R];
      for (int r = 0; r < R; ++r) own[r] = load(x + r * cols + at);
      for (int n = 0; n < N; ++n) {
        const Vec w = load(weight + n * cols + at);
        for (int r = 0; r < R; ++r) sums[r][n][v] = fused(own[r], w, sums[r][n][v]);
      }
    }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      float sum = sum_of(sums[r][n]);
      for (int64_t j = i; j < cols; ++j)
        sum = fused(x[r * cols + j], load_one(weight + n * cols + j), sum);
      if (job.bias != nullptr) sum += job.bias[output + n];
      job.y[(row + r) * job.outputs + output + n] = sum;
    }
}

template <int N, typename T>
void multiply_rows(const Job &job, const T *weight, int64_t begin, int64_t end, int64_t output) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows)
    multiply<kRows, N>(job, job.x + row * job.cols, weight, row, output);
  for (; row < end; ++row) multiply<1, N>(job, job.x + row * job.cols, weight, row, output);
}

template <typename T>
void multiply_outputs(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  const T *weight = static_cast<const T *>(job.weight);
  for (int64_t row = 0; row < job.num_rows; row += kCachedRows) {
    const int64_t last = row + kCachedRows < job.num_rows ? row + kCachedRows : job.num_rows;
    int64_t output = begin;
    for (; output + 3 <= end; output += 3)
      multiply_rows<3>(job, weight + output * job.cols, row, last, output);
    for (; output < end; ++output)
      multiply_rows<1>(job, weight + output * job.cols, row, last, output);
  }
}

}  // namespace

// y = x W^T + bias, for rows of op.in_width and op.width numbers.
void multiply_dense(const Op &op, const float *x, int64_t num_rows, float *y) {
  Job job{x, op.weight, static_cast<const float *>(op.weight2), y, num_rows, op.in_width, op.width};
  int64_t grain = kLeastWork / (op.in_width * num_rows + 1) + 1;
  const int64_t share = op.width / (4 * num_threads()) + 1;
  if (grain < share) grain = share;
  grain = (grain + 2) / 3 * 3;
  const bool is_wide = op.dtype == kF32;
  parallel_for(op.width, grain, is_wide ? multiply_outputs<float> : multiply_outputs<uint16_t>, &job);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
