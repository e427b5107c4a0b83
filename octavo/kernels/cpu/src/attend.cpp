// Paged attention of a ragged batch: decodes, prefills and both together; grouped query heads,
// sliding windows, soft caps. plan.h has the cache's layout.
//
// A tile is a few query tokens of one sequence with all heads that share a KV head: its rows. Keys
// are taken in parts of 128 positions, counted from the sequence's beginning. Each part has its own
// largest logit, sum and weighted values, and parts are joined in order (Milakov and Gimelshein
// 2018, arXiv:1805.02867). So a row's result does not depend on its tile, on the threads, or on what
// else is in the batch, bit for bit: neither sums over dimensions nor those over keys are regrouped.
#include "attend.h"

#include "attend_inner.h"
#include "pool.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int64_t kTileRows = 48;   // most rows of a tile that has several tokens
constexpr int64_t kLeastWork = 1 << 17;  // multiplications of a piece: some 5 us

struct Job {
  const Op &op;
  const Step &step;
  int64_t per_kv;       // query heads of a KV head
  int64_t tile_tokens;
  int64_t row_width;    // of `in`, which begins with the queries
  const int64_t *first_tiles;  // [seqs + 1] of each sequence, or null: parts are shared out
  int64_t max_parts;
  float *joined;        // what the parts come to before they are joined, where they are shared out
  bool *failed;
};

// A tile's memory. Rows are in the order of tokens, then heads.
struct Tile {
  int64_t seq, head, first, tokens, rows;
  float *queries;  // [rows, dim] times the scale
  float *weights;  // [rows, kPart] logits, then weights, of a part
  float *part;     // [rows, dim] a part's weighted values
  float *total;    // [rows, dim]
  float *part_max, *part_sum, *total_max, *total_sum;  // [rows]
  float *scales;   // [2, kPart] of keys and of values in 8 bits, of a part
  float *widened;  // [kPart, dim] keys or values of some positions, where many rows read them
};

int64_t tile_floats(int64_t rows, int64_t dim) {
  return rows * (3 * dim + kPart + 4) + kPart * (dim + 2) + 8 * 16;
}

float *aligned(float *at) {
  return reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(at) + 63) & ~uintptr_t{63});
}

bool make_tile(const Job &job, int64_t seq, int64_t head, int64_t tile, Tile *out) {
  const int64_t begin = job.step.query_starts[seq], end = job.step.query_starts[seq + 1];
  const int64_t dim = job.op.head_dim;
  out->seq = seq;
  out->head = head;
  out->first = tile * job.tile_tokens;
  const int64_t left = end - begin - out->first;
  out->tokens = left < job.tile_tokens ? left : job.tile_tokens;
  const int64_t rows = out->rows = out->tokens * job.per_kv;
  const int64_t bytes = 4 * tile_floats(job.tile_tokens * job.per_kv, dim);
  float *memory = static_cast<float *>(scratch(2, bytes));
  if (memory == nullptr) return false;
  float **runs[] = {&out->queries, &out->weights, &out->part, &out->total};
  for (float **run : runs) {
    *run = memory = aligned(memory);
    memory += rows * (run == &out->weights ? kPart : dim);
  }
  float **numbers[] = {&out->part_max, &out->part_sum, &out->total_max, &out->total_sum};
  for (float **run : numbers) {
    *run = memory;
    memory += rows;
  }
  out->scales = memory = aligned(memory);
  out->widened = memory + 2 * kPart;
  const float *from = static_cast<const float *>(job.op.in) + (begin + out->first) * job.row_width +
                      head * job.per_kv * dim;
  for (int64_t token = 0; token < out->tokens; ++token, from += job.row_width)
    for (int64_t i = 0; i < job.per_kv * dim; ++i)
      out->queries[token * job.per_kv * dim + i] = from[i] * job.op.scale;
  for (int64_t row = 0; row < rows; ++row) {
    out->total_max[row] = -INFINITY;
    out->total_sum[row] = 0;
  }
  memset(out->total, 0, sizeof(float) * static_cast<size_t>(rows * dim));
  return true;
}

template <typename T>
struct Cache {
  const Op &op;
  const int64_t *table;
  int64_t head, size, dim;

  const uint8_t *unit(int64_t position) const {
    const int64_t bytes = cache_unit_bytes(op.dtype, dim, size);
    const int64_t block = table[position / size];
    return static_cast<const uint8_t *>(op.cache) + (block * op.num_kv_heads + head) * bytes;
  }
  const T *key(int64_t position) const {
    return reinterpret_cast<const T *>(unit(position)) + position % size;
  }
  const T *value(int64_t position) const {
    return reinterpret_cast<const T *>(unit(position)) + (size + position % size) * dim;
  }
  // As far behind the keys of the block's next head as the value of `position` is behind this one's
  // values; with the last head it is the next block, or what is behind it all.
  const T *next_keys(int64_t position) const {
    const int64_t bytes = cache_unit_bytes(op.dtype, dim, size);
    return reinterpret_cast<const T *>(unit(position) + bytes) + position % size * dim;
  }
  // Scales of keys and values [from, to), which begin `at` places behind the part's beginning.
  void read_scales(int64_t from, int64_t to, int64_t at, float *out) const {
    for (int64_t j = from; j < to;) {
      const int64_t place = j % size, left = size - place;
      const int64_t count = left < to - j ? left : to - j;
      const uint8_t *own = unit(j) + 2 * dim * size + 4 * place;
      memcpy(out + at, own, 4 * static_cast<size_t>(count));
      memcpy(out + kPart + at, own + 4 * size, 4 * static_cast<size_t>(count));
      at += count;
      j += count;
    }
  }
};

// Rows from which keys and values are widened once for all of them.
constexpr int64_t kManyRows = 13;
constexpr int64_t kChunk = 64;  // positions that are widened at a time, so that they stay near

template <typename T>
void multiply_by_rows(const Tile &tile, const T *const *columns, int64_t count, int64_t stride,
                      int64_t dim, const T *const *ahead, float *out) {
  for (int64_t row = 0; row < tile.rows;) {
    const int64_t take = tile.rows - row < 6 ? tile.rows - row : 6;
#define CALL(R)                                                                      \
  multiply_all_keys<R>(tile.queries + row * dim, dim, columns, count, stride, ahead, \
                       out + row * kPart)
    OCTAVO_FOR_ROWS(take, CALL)
#undef CALL
    row += take;
    ahead = nullptr;
  }
}

template <typename T>
void add_by_rows(const Tile &tile, const T *values, int64_t at, int64_t count, int64_t dim,
                 const T *ahead) {
  for (int64_t row = 0; row < tile.rows;) {
    const int64_t take = tile.rows - row < 6 ? tile.rows - row : 6;
    const float *weights = tile.weights + row * kPart + at;
#define CALL(R) add_values<R>(weights, values, at, count, dim, ahead, tile.part + row * dim)
    OCTAVO_FOR_ROWS(take, CALL)
#undef CALL
    row += take;
    ahead = nullptr;
  }
}

// Logits of positions [from, to) of a part that begins at `begin`.
template <typename T>
void make_logits(const Tile &tile, const Cache<T> &cache, int64_t begin, int64_t from, int64_t to) {
  const int64_t dim = cache.dim, size = cache.size;
  if (size % kLanes == 0) {
    const T *columns[kPart / kLanes], *values[kPart / kLanes];
    const int64_t first = from / kLanes * kLanes;
    int64_t count = 0;
    for (int64_t j = first; j < to; j += kLanes) {
      columns[count] = cache.key(j);
      values[count++] = cache.value(j);
    }
    float *out = tile.weights + (first - begin);
    if constexpr (sizeof(T) < sizeof(float)) {
      if (tile.rows >= kManyRows) {
        for (int64_t i = 0; i < count; i += kChunk / kLanes) {
          const int64_t take = count - i < kChunk / kLanes ? count - i : kChunk / kLanes;
          const float *wide[kChunk / kLanes];
          for (int64_t v = 0; v < take; ++v) {
            float *own = tile.widened + v * kLanes * dim;
            for (int64_t c = 0; c < dim; ++c)
              store(own + c * kLanes, load(columns[i + v] + c * size));
            wide[v] = own;
          }
          multiply_by_rows<float>(tile, wide, take, kLanes, dim, nullptr, out + i * kLanes);
        }
        return;
      }
    }
    multiply_by_rows<T>(tile, columns, count, size, dim, values, out);
  } else {
    for (int64_t j = from; j < to; ++j) {
      const T *key = cache.key(j);
      for (int64_t row = 0; row < tile.rows; ++row) {
        float sum = 0;
        for (int64_t i = 0; i < dim; ++i)
          sum = fused(tile.queries[row * dim + i], load_one(key + i * size), sum);
        tile.weights[row * kPart + j - begin] = sum;
      }
    }
  }
}

// Logits [from, to) of one row to weights, of which those outside [low, high) are 0.
void make_weights(const Op &op, float *x, int64_t from, int64_t to, int64_t low, int64_t high,
                  float *most, float *sum) {
  const int64_t begin = from / kSumLanes * kSumLanes;
  const int64_t end = (to + kSumLanes - 1) / kSumLanes * kSumLanes;
  if (low >= high) {
    for (int64_t j = begin; j < end; ++j) x[j] = 0;
    *most = -INFINITY;
    *sum = 0;
    return;
  }
  if (op.soft_cap != 0) {
    const float inverse = 1.0f / op.soft_cap;
    for (int64_t j = from / kLanes * kLanes; j < to; j += kLanes)
      store(x + j, op.soft_cap * tangent(load(x + j) * inverse));
  }
  for (int64_t j = begin; j < low; ++j) x[j] = -INFINITY;
  for (int64_t j = high; j < end; ++j) x[j] = -INFINITY;
  Vec tops = load(x + begin);
  for (int64_t j = begin + kLanes; j < end; j += kLanes) tops = larger(load(x + j), tops);
  const float top = largest_of(tops);
  Vec sums[kSumVecs] = {};
  for (int64_t j = begin; j < end; j += kSumLanes)
    for (int v = 0; v < kSumVecs; ++v) {
      const Vec weights = exponential(load(x + j + v * kLanes) - top);
      sums[v] += weights;
      store(x + j + v * kLanes, weights);
    }
  *most = top;
  *sum = sum_of(sums);
}

// One part of a tile's keys: `part`, `part_max` and `part_sum`.
template <typename T>
void attend_part(const Job &job, const Tile &tile, int64_t part) {
  const Op &op = job.op;
  const int64_t dim = op.head_dim, size = op.block_size, begin = part * kPart;
  const int64_t position = job.step.context_lens[tile.seq] + tile.first;  // of the first token
  const Cache<T> cache{op, job.step.block_tables + tile.seq * job.step.table_width, tile.head, size,
                       dim};
  int64_t from = begin, to = position + tile.tokens;
  if (op.window > 0 && position + 1 - op.window > from) from = position + 1 - op.window;
  if (begin + kPart < to) to = begin + kPart;
  make_logits(tile, cache, begin, from, to);
  if (op.dtype == kI8) cache.read_scales(from, to, from - begin, tile.scales);
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t own = position + row / job.per_kv;
    float *x = tile.weights + row * kPart;
    if (op.dtype == kI8) scale_by(tile.scales + (from - begin), to - from, x + (from - begin));
    int64_t low = from, high = to;
    if (op.window > 0 && own + 1 - op.window > low) low = own + 1 - op.window;
    if (own + 1 < high) high = own + 1;
    make_weights(op, x, from - begin, to - begin, low - begin, high - begin, tile.part_max + row,
                 tile.part_sum + row);
    if (op.dtype == kI8)
      scale_by(tile.scales + kPart + (from - begin), to - from, x + (from - begin));
  }
  memset(tile.part, 0, sizeof(float) * static_cast<size_t>(tile.rows * dim));
  // Where runs do not end with blocks, all values of the part are put side by side.
  const bool is_whole = size % kRun == 0;
  const bool is_widened = (sizeof(T) < sizeof(float) && tile.rows >= kManyRows) || !is_whole;
  const int64_t most = is_whole ? kChunk : kPart;
  for (int64_t j = from, chunk = from; j < to;) {
    const int64_t block_end = (j / size + 1) * size, end = block_end < to ? block_end : to;
    if (is_widened) {
      if (end - chunk > most && j > chunk) {
        add_by_rows<float>(tile, tile.widened, chunk - begin, j - chunk, dim, nullptr);
        chunk = j;
      }
      widen(cache.value(j), (end - j) * dim, tile.widened + (j - chunk) * dim);
      if (end == to)
        add_by_rows<float>(tile, tile.widened, chunk - begin, end - chunk, dim, nullptr);
    } else {
      add_by_rows<T>(tile, cache.value(j), j - begin, end - j, dim, cache.next_keys(j));
    }
    j = end;
  }
}

// Joins a part to what came before it; `old` and `own` are what both are to be multiplied by.
void join(float *total, float *total_max, float *total_sum, const float *part, float part_max,
          float part_sum, float old, float own, int64_t dim) {
  if (part_max == -INFINITY) return;
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes)
    store(total + i, fused(load(part + i), all(own), load(total + i) * old));
  for (; i < dim; ++i) total[i] = fused(part[i], own, total[i] * old);
  *total_sum = fused(part_sum, own, *total_sum * old);
  *total_max = part_max > *total_max ? part_max : *total_max;
}

void join_row(float *total, float *total_max, float *total_sum, const float *part, float part_max,
              float part_sum, int64_t dim) {
  const float top = part_max > *total_max ? part_max : *total_max;
  join(total, total_max, total_sum, part, part_max, part_sum, exponential_of(*total_max - top),
       exponential_of(part_max - top), dim);
}

// All rows of a tile, with the exponentials of many rows at a time.
void join_tile(const Tile &tile, int64_t dim) {
  for (int64_t begin = 0; begin < tile.rows; begin += kLanes) {
    const int64_t count = tile.rows - begin < kLanes ? tile.rows - begin : kLanes;
    float part_max[kLanes] = {}, total_max[kLanes] = {}, old[kLanes], own[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      part_max[i] = tile.part_max[begin + i];
      total_max[i] = tile.total_max[begin + i];
    }
    const Vec top = larger(load(part_max), load(total_max));
    store(old, exponential(load(total_max) - top));
    store(own, exponential(load(part_max) - top));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = begin + i;
      join(tile.total + row * dim, tile.total_max + row, tile.total_sum + row,
           tile.part + row * dim, tile.part_max[row], tile.part_sum[row], old[i], own[i], dim);
    }
  }
}

void write_row(const Job &job, int64_t token, int64_t head, const float *total, float sum) {
  const int64_t dim = job.op.head_dim;
  float *out = static_cast<float *>(job.op.out) + (token * job.op.num_heads + head) * dim;
  const float inverse = 1.0f / sum;
  for (int64_t i = 0; i < dim; ++i) out[i] = total[i] * inverse;
}

void first_and_last(const Job &job, const Tile &tile, int64_t *first, int64_t *last) {
  const int64_t position = job.step.context_lens[tile.seq] + tile.first;
  const int64_t from = job.op.window > 0 ? position + 1 - job.op.window : 0;
  *first = from > 0 ? from / kPart : 0;
  *last = (position + tile.tokens - 1) / kPart;
}

template <typename T>
void attend_tiles(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  const int64_t kv_heads = job.op.num_kv_heads, dim = job.op.head_dim;
  int64_t seq = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item % kv_heads, place = item / kv_heads;
    while (job.first_tiles[seq + 1] <= place) ++seq;
    Tile tile;
    if (!make_tile(job, seq, head, place - job.first_tiles[seq], &tile)) {
      __atomic_store_n(job.failed, true, __ATOMIC_RELAXED);
      return;
    }
    int64_t first, last;
    first_and_last(job, tile, &first, &last);
    for (int64_t part = first; part <= last; ++part) {
      attend_part<T>(job, tile, part);
      join_tile(tile, dim);
    }
    const int64_t token = job.step.query_starts[seq] + tile.first;
    for (int64_t row = 0; row < tile.rows; ++row)
      write_row(job, token + row / job.per_kv, head * job.per_kv + row % job.per_kv,
                tile.total + row * dim, tile.total_sum[row]);
  }
}

// Decodes alone: an item is one part of one KV head of one sequence.
template <typename T>
void attend_parts(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  const int64_t dim = job.op.head_dim, kv_heads = job.op.num_kv_heads;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item % job.max_parts, place = item / job.max_parts;
    Tile tile;
    if (!make_tile(job, place / kv_heads, place % kv_heads, 0, &tile)) {
      __atomic_store_n(job.failed, true, __ATOMIC_RELAXED);
      return;
    }
    int64_t first, last;
    first_and_last(job, tile, &first, &last);
    if (first + part > last) continue;
    attend_part<T>(job, tile, first + part);
    float *out = job.joined + item * job.per_kv * (dim + 2);
    for (int64_t row = 0; row < tile.rows; ++row, out += dim + 2) {
      memcpy(out, tile.part + row * dim, sizeof(float) * static_cast<size_t>(dim));
      out[dim] = tile.part_max[row];
      out[dim + 1] = tile.part_sum[row];
    }
  }
}

bool join_parts(const Job &job) {
  const int64_t dim = job.op.head_dim, kv_heads = job.op.num_kv_heads;
  for (int64_t place = 0; place < job.step.num_seqs * kv_heads; ++place) {
    Tile tile;
    if (!make_tile(job, place / kv_heads, place % kv_heads, 0, &tile)) return false;
    int64_t first, last;
    first_and_last(job, tile, &first, &last);
    for (int64_t part = 0; part <= last - first; ++part) {
      const float *from = job.joined + (place * job.max_parts + part) * job.per_kv * (dim + 2);
      for (int64_t row = 0; row < tile.rows; ++row, from += dim + 2)
        join_row(tile.total + row * dim, tile.total_max + row, tile.total_sum + row, from,
                 from[dim], from[dim + 1], dim);
    }
    for (int64_t row = 0; row < tile.rows; ++row)
      write_row(job, tile.seq, tile.head * job.per_kv + row, tile.total + row * dim,
                tile.total_sum[row]);
  }
  return true;
}

template <typename T>
bool attend_as(const Op &op, const Step &step) {
  bool failed = false;
  Job job{op, step, op.num_heads / op.num_kv_heads, 1, 0, nullptr, 1, nullptr, &failed};
  job.row_width = op.in_width;
  if (job.per_kv < kTileRows) job.tile_tokens = kTileRows / job.per_kv;
  const int64_t seqs = step.num_seqs;
  const bool is_decode = step.num_tokens == seqs;
  if (is_decode) job.tile_tokens = 1;
  int64_t *first_tiles = static_cast<int64_t *>(scratch(3, 8 * (seqs + 1)));
  if (first_tiles == nullptr) return false;
  int64_t num_keys = 0;
  first_tiles[0] = 0;
  for (int64_t seq = 0; seq < seqs; ++seq) {
    const int64_t tokens = step.query_starts[seq + 1] - step.query_starts[seq];
    const int64_t keys = step.context_lens[seq] + tokens;
    const int64_t seen = op.window > 0 && op.window + tokens < keys ? op.window + tokens : keys;
    num_keys += seen * tokens;
    const int64_t parts = (seen + 2 * kPart - 2) / kPart;
    if (parts > job.max_parts) job.max_parts = parts;
    first_tiles[seq + 1] = first_tiles[seq] + (tokens + job.tile_tokens - 1) / job.tile_tokens;
  }
  int64_t items = first_tiles[seqs] * op.num_kv_heads;
  const int64_t work = 2 * num_keys * op.num_heads * op.head_dim;
  if (is_decode && items < 8 * num_threads() && job.max_parts > 1 && work > 2 * kLeastWork) {
    items *= job.max_parts;
    job.joined = static_cast<float *>(scratch(3, 4 * items * job.per_kv * (op.head_dim + 2)));
    if (job.joined == nullptr) return false;
    const int64_t grain = kLeastWork * items / work + 1;
    parallel_for(items, grain, attend_parts<T>, &job);
    return !failed && join_parts(job);
  }
  job.first_tiles = first_tiles;
  int64_t grain = kLeastWork * items / (work + 1) + 1;
  const int64_t share = items / (16 * num_threads()) + 1;
  if (grain < share) grain = share;
  parallel_for(items, grain, attend_tiles<T>, &job);
  return !failed;
}

}  // namespace

bool attend(const Op &op, const Step &step) {
  switch (op.dtype) {
    case kF32: return attend_as<float>(op, step);
    case kBF16: return attend_as<uint16_t>(op, step);
    default: return attend_as<int8_t>(op, step);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
