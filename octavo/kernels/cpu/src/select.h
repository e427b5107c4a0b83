// The first few of many items in their order, without sorting them all: by number, or by how much
// weight they have together. Both halve a range around one of its items, as quickselect does (Hoare,
// "Algorithm 65: Find", 1961).
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo {
namespace OCTAVO_ISA {

// A token. Keys are all different and rise from the largest logit down, ties by token id.
struct Item {
  int64_t key;
  double weight;
};

constexpr int64_t kFew = 24;  // so few items are sorted

// Bits of a float, read as an integer, order as the float does once those of negative ones are
// flipped. 0.0 and -0.0 are equal; a positive NaN is larger than all, a negative one smaller.
static inline int64_t key_of(float value, int64_t id) {
  const float sum = value + 0.0f;
  int32_t bits;
  memcpy(&bits, &sum, 4);
  const int32_t falling = ~(bits ^ ((bits >> 31) & 0x7fffffff));
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<int64_t>(falling)) << 32 |
                              static_cast<uint32_t>(id));
}

static inline int64_t id_of(int64_t key) { return key & 0xffffffff; }

static inline float value_of(int64_t key) {
  const int32_t rising = ~static_cast<int32_t>(key >> 32);
  const int32_t bits = rising ^ ((rising >> 31) & 0x7fffffff);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// The median of three items, one of each third: never the last in order, so a range gets shorter.
// Places are mixed, so that no usual order of items is a bad one, and always in the same way.
static inline int64_t pivot_of(const Item *items, int64_t count, uint64_t *mixed) {
  *mixed = *mixed * 6364136223846793005u + 1442695040888963407u;
  const int64_t third = count / 3;
  const int64_t at = static_cast<int64_t>((*mixed >> 33) % static_cast<uint64_t>(third));
  const int64_t a = items[at].key, b = items[third + at].key, c = items[2 * third + at].key;
  const int64_t low = a < b ? a : b, high = a < b ? b : a;
  return c < low ? low : c < high ? c : high;
}

// Moves items up to the pivot to the front, without a jump that could be guessed wrong. Returns how
// many, and their weight.
static inline int64_t divide(Item *items, int64_t count, int64_t pivot, double *weight) {
  int64_t num = 0;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Item item = items[i];
    const bool is_before = item.key <= pivot;
    items[i] = items[num];
    items[num] = item;
    num += is_before;
    sum += is_before ? item.weight : 0.0;
  }
  *weight = sum;
  return num;
}

static inline void sort_few(Item *items, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const Item item = items[i];
    int64_t at = i;
    for (; at > 0 && items[at - 1].key > item.key; --at) items[at] = items[at - 1];
    items[at] = item;
  }
}

// Afterwards the first `num` in order are the first `num`, in no order.
static inline void select_first(Item *items, int64_t count, int64_t num) {
  int64_t begin = 0, end = count;
  uint64_t mixed = 1;
  while (end - begin > kFew) {
    double weight;
    const int64_t pivot = pivot_of(items + begin, end - begin, &mixed);
    const int64_t middle = begin + divide(items + begin, end - begin, pivot, &weight);
    if (middle == num) return;
    (middle < num ? begin : end) = middle;
  }
  sort_few(items + begin, end - begin);
}

// Place of the first item, in order, up to which the weights exceed `goal`, or with `reaches` reach
// it; if rounding lets none do so, the last one that may. Afterwards the items that come before it
// in order lie before it. `sum`: the weights up to it.
static inline int64_t find_share(Item *items, int64_t count, double goal, bool reaches, double *sum) {
  int64_t begin = 0, end = count;
  uint64_t mixed = 1;
  double before = 0;
  while (end - begin > kFew) {
    double weight;
    const int64_t pivot = pivot_of(items + begin, end - begin, &mixed);
    const int64_t middle = begin + divide(items + begin, end - begin, pivot, &weight);
    const double to_middle = before + weight;
    if (reaches ? to_middle >= goal : to_middle > goal) {
      end = middle;
    } else {
      begin = middle;
      before = to_middle;
    }
  }
  sort_few(items + begin, end - begin);
  for (;; ++begin) {
    before += items[begin].weight;
    if (begin + 1 == end || (reaches ? before >= goal : before > goal)) break;
  }
  *sum = before;
  return begin;
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
