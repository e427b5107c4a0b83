// `linear`: activations times packed weights. See blocks.h and acts.h for the two layouts.
//
// Panels (four at a time, where vectors are wide enough) are shared out among the threads; a thread
// takes each of its panels through all tiles of activations, so that weights come from memory once
// and tiles from the cache.
#include "dot.h"
#include "dot_wide.h"
#include "pool.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int kMaxParts = 8;
constexpr int64_t kCachedActs = 256 << 10;  // bytes of activations that stay in a core's cache
constexpr int64_t kLeastCachedRows = 48;
constexpr int64_t kLeastOwnRows = 32;  // of each thread, from which on it reads all weights itself
constexpr int64_t kLeastWork = 1 << 16;     // products per piece: some 2 us

#if defined(OCTAVO_HAS_WIDE)

constexpr int kUnitRows = kWide, kTileRows = kWideTile;

using DotWide = void (*)(const Panels &panels, int64_t num_blocks, const uint8_t *acts, int rows,
                         float *results, int64_t stride);

DotWide wide_for(int32_t type) {
  switch (type) {
    case kQ4_0: return dot_wide<kQ4_0>;
    case kQ4_1: return dot_wide<kQ4_1>;
    case kQ5_0: return dot_wide<kQ5_0>;
    case kQ5_1: return dot_wide<kQ5_1>;
    case kQ8_0: return dot_wide<kQ8_0>;
    case kQ4_K: return dot_wide<kQ4_K>;
    case kQ5_K: return dot_wide<kQ5_K>;
    case kQ6_K: return dot_wide<kQ6_K>;
    default: return nullptr;
  }
}

#else

constexpr int kUnitRows = kPanel, kTileRows = kMaxTile;

using DotTile = void (*)(const uint8_t *codes, const uint8_t *scales, int64_t num_blocks,
                         const uint8_t *acts, uint8_t *rests, float *out);

template <int32_t kType>
DotTile dot_for(int rows) {
  switch (rows) {
    case 1: return dot_tile<kType, 1>;
    case 2: return dot_tile<kType, 2>;
    case 3: return dot_tile<kType, 3>;
    case 4: return dot_tile<kType, 4>;
#if defined(__AVX2__)
    case 5: return dot_tile<kType, 5>;
    case 6: return dot_tile<kType, 6>;
#endif
    default: return nullptr;
  }
}

DotTile dot_for(int32_t type, int rows) {
  switch (type) {
    case kQ4_0: return dot_for<kQ4_0>(rows);
    case kQ4_1: return dot_for<kQ4_1>(rows);
    case kQ5_0: return dot_for<kQ5_0>(rows);
    case kQ5_1: return dot_for<kQ5_1>(rows);
    case kQ8_0: return dot_for<kQ8_0>(rows);
    case kQ4_K: return dot_for<kQ4_K>(rows);
    case kQ5_K: return dot_for<kQ5_K>(rows);
    case kQ6_K: return dot_for<kQ6_K>(rows);
    default: return nullptr;
  }
}

#endif

struct Part {
  Header header;
  const uint8_t *panels;
  int64_t first_unit;  // among all parts'
  int64_t first_row;
#if defined(OCTAVO_HAS_WIDE)
  DotWide wide;
#else
  DotTile full, short_by_one;  // for tiles of `tile_rows` and of one fewer
#endif
};

// Threads share out the matrix's rows by units: panels, or four of them. Activations' rows are cut
// into `num_full` tiles of `tile_rows` and then tiles of one row fewer.
struct Job {
  const void *x;
  const void *bias;
  void *y;
  int64_t x_stride, y_stride, num_blocks, row_bytes;  // row_bytes: of quantized activations
  int64_t begin_row, end_row, run_rows, num_units, num_tiles, num_full;
  int32_t dtype, tile_rows, num_parts;
  bool has_halves;   // some weights have scales for 16 columns
  bool has_offsets;  // some have codes of 8 bits
  uint8_t *acts;
  Part parts[kMaxParts];

  int64_t row_of(int64_t tile) const {
    return tile * tile_rows - (tile > num_full ? tile - num_full : 0);
  }
  int rows_of(int64_t tile) const { return tile < num_full ? tile_rows : tile_rows - 1; }
  uint8_t *acts_of(int64_t tile) const { return acts + row_of(tile) * row_bytes; }
};

#if defined(OCTAVO_HAS_WIDE)
void quantize_tiles(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t at = (job.begin_row + job.row_of(tile)) * job.x_stride;
    const WideRows rows = {job.x, at, job.x_stride, job.num_blocks, job.acts_of(tile),
                           job.rows_of(tile), job.has_halves, job.has_offsets};
    if (job.dtype == 0)
      quantize_tile<0>(rows);
    else
      quantize_tile<1>(rows);
  }
}
#else
void quantize_rows(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  for (int64_t row = begin; row < end; ++row) {
    int64_t tile = row / job.tile_rows;
    if (tile >= job.num_full)
      tile = job.num_full + (row - job.num_full * job.tile_rows) / (job.tile_rows - 1);
    const int r = static_cast<int>(row - job.row_of(tile));
    quantize_row(job.x, (job.begin_row + row) * job.x_stride, job.dtype, job.num_blocks,
                 job.acts_of(tile), job.rows_of(tile), r);
  }
}
#endif

// One row's results of a unit, `count` of them, to where they belong.
void store(const Job &job, int64_t row, int64_t column, int64_t count, float *values) {
  if (job.bias != nullptr)
    for (int64_t i = 0; i < count; ++i) values[i] += load_element(job.bias, column + i, job.dtype);
  const int64_t at = row * job.y_stride + column;
  if (job.dtype == 0) {
    float *y = static_cast<float *>(job.y) + at;
    if (count == kPanel) {
      memcpy(y, values, sizeof(float) * kPanel);
    } else {
      for (int64_t i = 0; i < count; ++i) y[i] = values[i];
    }
  } else {
    uint16_t *y = static_cast<uint16_t *>(job.y) + at;
    for (int64_t i = 0; i < count; ++i) y[i] = float_to_bf16(values[i]);
  }
}

#if defined(OCTAVO_HAS_WIDE)
void multiply_units(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  const bool is_plain = job.dtype == 0 && job.bias == nullptr;
  int at = 0;
  for (int64_t i = begin; i < end; ++i) {
    while (at + 1 < job.num_parts && i >= job.parts[at + 1].first_unit) ++at;
    const Part &part = job.parts[at];
    const int64_t first = kWide * (i - part.first_unit), left = part.header.rows - first;
    Panels panels;
    panels.scales = part.header.code_bytes;
    panels.bytes = part.header.panel_bytes;
    for (int p = 0; p < 2 * kPairs; ++p)  // a matrix's end is filled up with its unit's first panel
      panels.at[p] = part.panels + (first + (p * kPanel < left ? p * kPanel : 0)) / kPanel *
                                       part.header.panel_bytes;
    const int64_t column = part.first_row + first;
    for (int64_t tile = 0; tile < job.num_tiles; ++tile) {
      const int rows = job.rows_of(tile);
      const int64_t row = job.begin_row + job.row_of(tile);
      if (is_plain && left >= kWide) {
        float *y = static_cast<float *>(job.y) + row * job.y_stride + column;
        part.wide(panels, job.num_blocks, job.acts_of(tile), rows, y, job.y_stride);
        continue;
      }
      float out[kWide * kWideTile];
      part.wide(panels, job.num_blocks, job.acts_of(tile), rows, out, kWide);
      for (int r = 0; r < rows; ++r)
        store(job, row + r, column, left < kWide ? left : kWide, out + kWide * r);
    }
  }
}
#else
void multiply_units(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  auto *rests = static_cast<uint8_t *>(scratch(1, rests_bytes(job.num_blocks, job.tile_rows)));
  if (rests == nullptr) return;
  int at = 0;
  for (int64_t i = begin; i < end; ++i) {
    while (at + 1 < job.num_parts && i >= job.parts[at + 1].first_unit) ++at;
    const Part &part = job.parts[at];
    const int64_t panel = i - part.first_unit;
    const uint8_t *codes = part.panels + panel * part.header.panel_bytes;
    const uint8_t *scales = codes + part.header.code_bytes;
    const int64_t left = part.header.rows - panel * kPanel;
    const int64_t column = part.first_row + panel * kPanel;
    for (int64_t tile = 0; tile < job.num_tiles; ++tile) {
      const int rows = job.rows_of(tile);
      alignas(64) float out[kPanel * kMaxTile];
      (tile < job.num_full ? part.full : part.short_by_one)(codes, scales, job.num_blocks,
                                                            job.acts_of(tile), rests, out);
      for (int r = 0; r < rows; ++r)
        store(job, job.begin_row + job.row_of(tile) + r, column, left < kPanel ? left : kPanel,
              out + kPanel * r);
    }
  }
}
#endif

// Tiles and memory for the run of rows from `begin_row` on; how many rows it has, 0 where there is
// no memory.
int64_t set_tiles(Job &job) {
  const int64_t left = job.end_row - job.begin_row;
  const int64_t rows = left < job.run_rows ? left : job.run_rows;
  job.acts = static_cast<uint8_t *>(scratch(0, rows * job.row_bytes));
  if (job.acts == nullptr) return 0;
  job.num_tiles = (rows + kTileRows - 1) / kTileRows;
  job.tile_rows = static_cast<int32_t>((rows + job.num_tiles - 1) / job.num_tiles);
  job.num_full = job.num_tiles - (job.num_tiles * job.tile_rows - rows);
  for (int i = 0; i < job.num_parts; ++i) {
    Part &part = job.parts[i];
#if defined(OCTAVO_HAS_WIDE)
    part.wide = wide_for(part.header.type);
#else
    part.full = dot_for(part.header.type, job.tile_rows);
    part.short_by_one = dot_for(part.header.type, job.tile_rows - 1);
#endif
  }
  return rows;
}

// Runs of rows, each by one thread from rounding to the last product: what a thread writes, no other
// one reads.
void multiply_runs(void *context, int64_t begin, int64_t end, int32_t) {
  Job job = *static_cast<const Job *>(context);
  for (int64_t run = begin; run < end; ++run) {
    job.begin_row = run * job.run_rows;
    const int64_t rows = set_tiles(job);
    if (rows == 0) return;
#if defined(OCTAVO_HAS_WIDE)
    quantize_tiles(&job, 0, job.num_tiles, 0);
#else
    quantize_rows(&job, 0, rows, 0);
#endif
    multiply_units(&job, 0, job.num_units, 0);
  }
}

}  // namespace

// y[i] = x[i] W^T + bias for `num_rows` rows, where W's rows are those of all packed parts (at most
// 8), one after the other; all have equally many columns. `x`, `bias` (or null) and `y` are of
// `dtype`; strides are in elements. Does nothing where there is no memory for the activations.
void linear(const uint8_t *packed, const void *x, int64_t num_rows, int64_t x_stride,
            const void *bias, void *y, int64_t y_stride, int32_t dtype) {
  Job job;
  job.x = x;
  job.bias = bias;
  job.y = y;
  job.x_stride = x_stride;
  job.y_stride = y_stride;
  job.dtype = dtype;
  job.num_parts = 0;
  job.has_halves = job.has_offsets = false;
  int64_t num_units = 0, num_all_rows = 0, next = 0;
  do {
    Part &part = job.parts[job.num_parts++];
    packed += next;
    memcpy(&part.header, packed, sizeof(Header));
    part.panels = packed + sizeof(Header);
    part.first_unit = num_units;
    part.first_row = num_all_rows;
    job.has_halves |= part.header.type == kQ6_K;
    job.has_offsets |= part.header.type == kQ8_0;
    num_units += (part.header.rows + kUnitRows - 1) / kUnitRows;
    num_all_rows += part.header.rows;
    next = part.header.next;
  } while (next != 0 && job.num_parts < kMaxParts);
  const int64_t cols = job.parts[0].header.cols;
  job.num_blocks = cols / kBlock;
  job.row_bytes = act_row_bytes(job.num_blocks);
  job.num_units = num_units;
  job.end_row = num_rows;
  int64_t most_rows = kCachedActs / job.row_bytes / kTileRows * kTileRows;
  if (most_rows < kLeastCachedRows) most_rows = kLeastCachedRows;
  const int64_t threads = num_threads();
  if (threads > 1 && num_rows >= kLeastOwnRows * threads) {
    // Equally many for each thread: one, two where they are long enough, or as many as fit the cache.
    int64_t each = num_rows >= 2 * kLeastOwnRows * threads ? 2 : 1;
    const int64_t needed = (num_rows + most_rows * threads - 1) / (most_rows * threads);
    if (each < needed) each = needed;
    job.run_rows = (num_rows + each * threads - 1) / (each * threads);
    parallel_for((num_rows + job.run_rows - 1) / job.run_rows, 1, multiply_runs, &job);
    return;
  }
  job.run_rows = most_rows < num_rows ? most_rows : num_rows;
  for (job.begin_row = 0; job.begin_row < num_rows; job.begin_row += job.run_rows) {
    const int64_t rows = set_tiles(job);
    if (rows == 0) return;
#if defined(OCTAVO_HAS_WIDE)
    parallel_for(job.num_tiles, 1, quantize_tiles, &job);
#else
    parallel_for(rows, kLeastWork / 16 / cols + 1, quantize_rows, &job);
#endif
    const int64_t least_units = kLeastWork / (cols * kUnitRows * rows) + 1;
    // Many pieces, so that no thread waits long for the last one; a row alone is done too soon.
    const int64_t pieces = num_units / ((rows > 1 ? 16 : 4) * threads) + 1;
    parallel_for(num_units, pieces > least_units ? pieces : least_units, multiply_units, &job);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
