// What a step's sampling is asked for. Mirrored in ../sampling.py; semantics are those of
// runner/sampler.py.
#pragma once

#include <cstdint>

namespace octavo {

struct Sampling {
  int64_t num_rows, vocab_size;
  const void *logits;  // [rows, vocabulary] of `dtype` (abi.h), unchanged
  int64_t stride;      // numbers from row to row
  int32_t dtype;
  int32_t num_top;  // most probable tokens that are reported, at most the vocabulary

  // Parameters: of each request's row, and which of them the rows of logits are. `rows` null: tokens
  // are given, and only reported.
  const int64_t *rows;
  const int64_t *positions;   // [rows] tokens that each has so far
  const float *temperature;   // 0: greedy
  const int32_t *top_k;       // 0: all
  const float *top_p;         // 1: all
  const float *farthest;      // min-p as the largest scaled distance from the top; infinite: all
  const uint64_t *seed;
  int64_t *token_ids;         // [rows], written (or read)

  // Reports of some rows' tokens.
  int64_t num_reports;
  const int64_t *places;  // [reports] which of the rows, rising
  const void *raw;        // [reports, vocabulary] like `logits`, which null stands for
  int64_t raw_stride;
  int32_t *reports;  // [reports, 3 + 3 num_top] token, rank, log-probability's bits; then the most
                     // probable tokens' ids, ranks, log-probabilities
  int64_t error;     // set: 0, or what went wrong (Error of plan.h)
};

}  // namespace octavo
