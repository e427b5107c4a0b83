// `run`: a step of a model, its operations one after the other. See plan.h.
//
// Operations that work row by row and follow each other are shared out together, so that there is
// one start of the threads for them all, and a row stays in its core's cache.
#include <time.h>

#include "attend.h"
#include "dense.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

namespace octavo {
namespace OCTAVO_ISA {

#define OCTAVO_KERNEL(name, params, args) void name params;
#include "kernels.def"
#undef OCTAVO_KERNEL

namespace {

constexpr int64_t kLeastNumbers = 8192;  // of a piece of rows: some 3 us

struct Rows {
  const Op *ops;
  int64_t count;
  Step *step;
  bool *bad_token;
};

bool is_by_rows(const Op &op) { return op.kind != kLinear && op.kind != kDense && op.kind != kAttend; }

int64_t rows_of(const Op &op, const Step &step) {
  return op.scope == kTokens ? step.num_tokens : step.num_logits;
}

const float *in_row(const Op &op, const Step &step, int64_t row, int64_t width) {
  const float *in = op.in == nullptr ? step.logits : static_cast<const float *>(op.in);
  return in + row * width;
}

void run_row(const Op &op, Step &step, int64_t row, bool *bad_token) {
  float *out = (op.out == nullptr ? step.logits : static_cast<float *>(op.out)) + row * op.width;
  switch (op.kind) {
    case kEmbed:
      if (!embed_row(op, step.token_ids[row], out))
        __atomic_store_n(bad_token, true, __ATOMIC_RELAXED);
      return;
    case kNorm:
      norm_row(in_row(op, step, row, op.width), static_cast<const float *>(op.weight), op.width,
               op.eps, out);
      return;
    case kAddNorm: {
      float *sum = static_cast<float *>(op.out2) + row * op.width;
      add_row(in_row(op, step, row, op.width), op.width, sum);
      norm_row(sum, static_cast<const float *>(op.weight), op.width, op.eps, out);
      return;
    }
    case kRotate: rotate_row(op, step, row); return;
    case kGate: gate_row(in_row(op, step, row, 2 * op.width), op.width, op.option, out); return;
    case kSelect:
      memcpy(out, in_row(op, step, step.logit_indices[row], op.width),
             sizeof(float) * static_cast<size_t>(op.width));
      return;
    case kSoftCap: soft_cap_row(out, op.width, op.scale); return;
    case kArgmax:
      if (step.argmax != nullptr)
        step.argmax[row] = argmax_row(in_row(op, step, row, op.width), op.width);
      return;
    default: return;
  }
}

void run_rows(void *context, int64_t begin, int64_t end, int32_t) {
  const Rows &rows = *static_cast<const Rows *>(context);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t i = 0; i < rows.count; ++i) run_row(rows.ops[i], *rows.step, row, rows.bad_token);
}

int64_t run_by_rows(const Op *ops, int64_t count, Step &step) {
  bool bad_token = false;
  Rows job{ops, count, &step, &bad_token};
  int64_t numbers = 0;
  for (int64_t i = 0; i < count; ++i) numbers += ops[i].width;
  const int64_t num_rows = rows_of(ops[0], step);
  int64_t grain = kLeastNumbers / numbers + 1;
  const int64_t share = num_rows / (4 * num_threads()) + 1;
  if (grain < share) grain = share;
  parallel_for(num_rows, grain, run_rows, &job);
  return bad_token ? kBadToken : kGood;
}

int64_t run_one(const Op &op, Step &step) {
  if (op.kind == kAttend) return attend(op, step) ? kGood : kNoMemory;
  void *out = op.out == nullptr ? step.logits : op.out;
  if (op.kind == kDense) {
    multiply_dense(op, static_cast<const float *>(op.in), rows_of(op, step), static_cast<float *>(out));
    return kGood;
  }
  linear(static_cast<const uint8_t *>(op.weight), op.in, rows_of(op, step), op.in_width, op.weight2,
         out, op.width, 0);
  return kGood;
}

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
}

}  // namespace

// Runs `count` operations (an array of Op) for one step (a Step, whose `error` it sets). What they
// compute from tokens that are not in the vocabulary is not defined.
void run(const void *plan, int64_t count, void *new_step) {
  const Op *ops = static_cast<const Op *>(plan);
  Step &step = *static_cast<Step *>(new_step);
  step.error = kGood;
  for (int64_t i = 0; i < count && step.error == kGood;) {
    const int64_t begin = step.times == nullptr ? 0 : now();
    int64_t end = i + 1;
    if (is_by_rows(ops[i])) {
      while (step.times == nullptr && end < count && is_by_rows(ops[end]) &&
             ops[end].scope == ops[i].scope)
        ++end;
      step.error = run_by_rows(ops + i, end - i, step);
    } else {
      step.error = run_one(ops[i], step);
    }
    if (step.times != nullptr) step.times[i] += now() - begin;
    i = end;
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
