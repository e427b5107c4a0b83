// From stored GGUF blocks to packed panels, and rows of packed panels back to floats. Runs once at
// load, and for a few rows of the embedding in each step; plain code for every processor.
#include <cstring>

#include "abi.h"
#include "blocks.h"
#include "pool.h"

namespace octavo {
namespace {

// Codes of one stored block of 256 columns, in their order.
void read_codes(int32_t type, const uint8_t *block, uint8_t *codes) {
  switch (type) {
    case kQ4_K:
    case kQ5_K: {
      const uint8_t *top = block + 16, *qs = block + (type == kQ5_K ? 48 : 16);
      for (int run = 0; run < 8; ++run)
        for (int i = 0; i < 32; ++i) {
          const uint8_t pair = qs[run / 2 * 32 + i];
          const int high = type == kQ5_K ? (top[i] >> run & 1) << 4 : 0;
          codes[run * 32 + i] = (run % 2 ? pair >> 4 : pair & 15) | high;
        }
      return;
    }
    case kQ6_K:
      for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 4; ++k)
          for (int i = 0; i < 32; ++i) {
            const uint8_t pair = block[half * 64 + k % 2 * 32 + i];
            const int top = block[128 + half * 32 + i] >> 2 * k & 3;
            codes[half * 128 + k * 32 + i] = (k < 2 ? pair & 15 : pair >> 4) | top << 4;
          }
      return;
    default:
      return;
  }
}

// Nibbles of formats with blocks of 32 pair columns i and i + 16, as the packed ones do.
void copy_words(const uint8_t *words, int count, int r, uint8_t *block) {
  for (int i = 0; i < count; ++i) std::memcpy(block + 32 * i + 4 * r, words + 4 * i, 4);
}

void write_codes(int bits, const uint8_t *codes, int r, uint8_t *block) {
  uint8_t pairs[16];
  for (int i = 0; i < 16; ++i)
    pairs[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[16 + i] & 15) << 4);
  copy_words(pairs, 4, r, block);
  uint32_t top[2] = {};  // a byte for each of 4 columns; 5 bits: all in the first
  for (int g = 0; g < 8; ++g) {
    uint32_t word;
    std::memcpy(&word, codes + 4 * g, 4);
    if (bits == 5) top[0] |= (word >> 4 & 0x01010101) << g;
    if (bits == 6) top[g / 4] |= (word >> 4 & 0x03030303) << 2 * (g % 4);
  }
  if (bits >= 5) std::memcpy(block + 128 + 4 * r, &top[0], 4);
  if (bits == 6) std::memcpy(block + 160 + 4 * r, &top[1], 4);
}

// The fifth bits of a stored block of 32 columns, whose other bits `copy_words` takes as they are.
void write_fifth_bits(const uint8_t *stored, int r, uint8_t *block) {
  uint32_t bits, top = 0;
  std::memcpy(&bits, stored, 4);
  for (int g = 0; g < 8; ++g)  // bit e of 4 becomes bit g of byte e
    top |= ((bits >> 4 * g & 15) * 0x00204081 & 0x01010101) << g;
  std::memcpy(block + 128 + 4 * r, &top, 4);
}

// Scales of one stored block, for row r, into the `scales` of its 8 rows and stored_cols columns.
void write_scales(int32_t type, const uint8_t *block, int r, uint8_t *scales) {
  switch (type) {
    case kQ4_1:
    case kQ5_1:
      std::memcpy(scales + 16 + 2 * r, block + 2, 2);
      std::memcpy(scales + 2 * r, block, 2);
      return;
    case kQ4_K:
    case kQ5_K: {
      std::memcpy(scales + 2 * r, block, 2);
      std::memcpy(scales + 16 + 2 * r, block + 2, 2);
      const uint8_t *first = block + 4, *second = block + 8, *mixed = block + 12;
      for (int i = 0; i < 4; ++i) {
        scales[32 + i * 8 + r] = first[i] & 63;
        scales[32 + (i + 4) * 8 + r] = (mixed[i] & 15) | (first[i] >> 2 & 48);
        scales[96 + i * 8 + r] = second[i] & 63;
        scales[96 + (i + 4) * 8 + r] = mixed[i] >> 4 | (second[i] >> 2 & 48);
      }
      return;
    }
    case kQ6_K:
      std::memcpy(scales + 2 * r, block + 208, 2);
      for (int i = 0; i < 16; ++i) scales[16 + i * 8 + r] = block[192 + i];
      return;
    default:
      std::memcpy(scales + 2 * r, block, 2);
  }
}

struct PackJob {
  int32_t type;
  Layout layout;
  const uint8_t *stored;
  const int64_t *order;
  Header header;
  uint8_t *panels;
};

void pack_panels(void *context, int64_t begin, int64_t end, int32_t) {
  const PackJob &job = *static_cast<const PackJob *>(context);
  const Layout &layout = job.layout;
  const int64_t num_stored = job.header.cols / layout.stored_cols;
  const int blocks_in_stored = layout.stored_cols / kBlock;
  uint8_t codes[kGroup];
  for (int64_t panel = begin; panel < end; ++panel) {
    uint8_t *at = job.panels + panel * job.header.panel_bytes;
    std::memset(at, 0, static_cast<size_t>(job.header.panel_bytes));
    for (int r = 0; r < kPanel && panel * kPanel + r < job.header.rows; ++r) {
      const int64_t row = panel * kPanel + r;
      const int64_t from = job.order == nullptr ? row : job.order[row];
      const uint8_t *block = job.stored + from * num_stored * layout.stored_bytes;
      for (int64_t s = 0; s < num_stored; ++s, block += layout.stored_bytes) {
        uint8_t *to = at + s * blocks_in_stored * layout.code_bytes;
        if (job.type == kQ8_0) {
          copy_words(block + 2, 8, r, to);
        } else if (job.type == kQ4_0 || job.type == kQ4_1) {
          copy_words(block + (job.type == kQ4_1 ? 4 : 2), 4, r, to);
        } else if (job.type == kQ5_0 || job.type == kQ5_1) {
          const uint8_t *top = block + (job.type == kQ5_1 ? 4 : 2);
          copy_words(top + 4, 4, r, to);
          write_fifth_bits(top, r, to);
        } else {
          read_codes(job.type, block, codes);
          for (int b = 0; b < blocks_in_stored; ++b)
            write_codes(layout.bits, codes + b * kBlock, r, to + b * layout.code_bytes);
        }
        write_scales(job.type, block, r, at + job.header.code_bytes + s * layout.scale_bytes);
      }
    }
  }
}

bool make_header(int32_t type, int64_t rows, int64_t cols, Layout *layout, Header *header) {
  if (!layout_of(type, layout) || rows < 1 || cols < 1 || cols % layout->stored_cols != 0)
    return false;
  if (rows > int64_t{1} << 31 || cols > int64_t{1} << 31) return false;
  const int64_t code_bytes = cols / kBlock * layout->code_bytes;
  const int64_t bytes = code_bytes + cols / layout->stored_cols * layout->scale_bytes;
  *header = {kMagic, type, rows, cols, (bytes + 63) / 64 * 64, code_bytes, 0, {}};
  return true;
}

}  // namespace
}  // namespace octavo

using namespace octavo;

int64_t octavo_packed_bytes(int32_t type, int64_t rows, int64_t cols) {
  Layout layout;
  Header header;
  if (!make_header(type, rows, cols, &layout, &header)) return 0;
  return static_cast<int64_t>(sizeof(Header)) + num_panels(rows) * header.panel_bytes;
}

int32_t octavo_pack(int32_t type, const uint8_t *stored, const int64_t *order, int64_t rows,
                    int64_t cols, int64_t next, uint8_t *packed) {
  PackJob job{};
  if (!make_header(type, rows, cols, &job.layout, &job.header)) return 0;
  for (int64_t row = 0; order != nullptr && row < rows; ++row)
    if (order[row] < 0 || order[row] >= rows) return 0;
  job.header.next = next;
  std::memcpy(packed, &job.header, sizeof(Header));
  job.type = type;
  job.stored = stored;
  job.order = order;
  job.panels = packed + sizeof(Header);
  parallel_for(num_panels(rows), 16, pack_panels, &job);
  return 1;
}

int32_t octavo_decode_rows(const uint8_t *packed, const int64_t *ids, int64_t count, void *out,
                           int32_t dtype) {
  Header header;
  Layout layout;
  std::memcpy(&header, packed, sizeof(Header));
  if (header.magic != kMagic || !layout_of(header.type, &layout)) return 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = ids[i];
    if (row < 0 || row >= header.rows) return 0;
    const int r = static_cast<int>(row % kPanel);
    const uint8_t *panel = packed + sizeof(Header) + row / kPanel * header.panel_bytes;
    const uint8_t *scales = panel + header.code_bytes;
    for (int64_t b = 0; b < header.cols / kBlock; ++b) {
      const uint8_t *codes = panel + b * layout.code_bytes;
      float d = 0, m = 0;
      for (int c = 0; c < kBlock; ++c) {
        if (c % 16 == 0) scale_at(header.type, scales, b, c / 16, r, &d, &m);
        const float value = d * static_cast<float>(code_at(layout.bits, codes, r, c)) + m;
        const int64_t at = i * header.cols + b * kBlock + c;
        if (dtype == OCTAVO_BF16)
          static_cast<uint16_t *>(out)[at] = float_to_bf16(value);
        else
          static_cast<float *>(out)[at] = value;
      }
    }
  }
  return 1;
}
