// A model's step as a list of operations, and what is new in each step. Mirrored in ../plan.py.
//
// Activations are float32, rows of `width` numbers one behind the other, in buffers that the caller
// allocated for its largest step. An operation works on the step's tokens, or on those whose logits
// are wanted (`scope`).
#pragma once

#include <cstdint>

namespace octavo {

enum Kind : int32_t {
  kEmbed = 0,    // out = row of `weight` (packed blocks, or `dtype` numbers) times `scale`
  kNorm = 1,     // out = RMS norm of in
  kAddNorm = 2,  // out2 += in; out = RMS norm of out2
  kLinear = 3,   // out = in W^T + bias; `weight` packed, `weight2` the bias or null
  kRotate = 4,   // queries and keys of `in` are normed and turned in place; keys, values to the cache
  kAttend = 5,   // out = attention of the queries in `in`
  kGate = 6,     // out = activation(first half of in) * second half; `option` says which
  kSelect = 7,   // out = rows of in whose logits are wanted
  kSoftCap = 8,  // out = scale tanh(out / scale)
  kArgmax = 9,   // Step::argmax = place of the largest of in
  kDense = 10,   // kLinear with plain weights [width, in_width] of `dtype`
};

enum Scope : int32_t { kTokens = 0, kLogits = 1 };

enum Activation : int32_t { kSilu = 0, kGeluTanh = 1, kGelu = 2 };

// How numbers are kept: activations' and weights' first, the cache's all.
enum Dtype : int32_t { kF32 = 0, kBF16 = 1, kI8 = 2, kPacked = 3 };

struct Op {
  int32_t kind, scope;
  int32_t dtype;   // of an embedding's rows, of plain weights, of a cache
  int32_t option;
  const void *in;  // null for logits, which each step brings; so are `out` and `out2`
  void *out, *out2;
  const void *weight, *weight2, *weight3;
  int64_t width;      // of a row of out (kLinear, kGate ...); of the logits
  int64_t in_width;   // of a row of in
  int64_t num_rows;   // of an embedding; of a rotary table
  void *cache;        // of this layer, see attend.cpp
  int32_t num_heads, num_kv_heads, head_dim, block_size;
  int64_t window;     // 0: none
  float eps, scale, soft_cap, unused;
};

struct Step {
  int64_t num_tokens, num_logits, num_seqs;
  int64_t table_width;          // block ids of one sequence
  const int64_t *token_ids;     // [tokens]
  const int64_t *positions;     // [tokens]
  const int64_t *slots;         // [tokens] place in the cache: block * block_size + place in it
  const int64_t *logit_indices; // [logits] tokens
  const int64_t *query_starts;  // [seqs + 1]
  const int64_t *context_lens;  // [seqs] tokens in the cache before this step
  const int64_t *block_tables;  // [seqs, table_width]
  float *logits;                // [logits, vocabulary]
  int64_t *argmax;              // [logits], or null: not wanted
  int64_t *times;               // [operations] nanoseconds are added, or null
  int64_t error;                // set: 0, or what went wrong
};

enum Error : int64_t { kGood = 0, kBadToken = 1, kNoMemory = 2 };

// Bytes of one KV head in one block: keys [dim, tokens], values [tokens, dim], and for 8-bit codes
// the scales of both, float32 [2, tokens]. Keys lie so that a vector holds one dimension of several
// tokens: a query's products with them need no sums across a vector.
static inline int64_t cache_unit_bytes(int32_t dtype, int64_t dim, int64_t block_size) {
  const int64_t numbers = 2 * dim * block_size;
  return dtype == kF32 ? 4 * numbers : dtype == kBF16 ? 2 * numbers : numbers + 8 * block_size;
}

}  // namespace octavo
