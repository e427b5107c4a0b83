// A SentencePiece vocabulary that comes without merges: texts to ids straight from the pieces.
//
// Byte-pair encoding needs, of two neighbours, which token they make and how early. The merges that
// the library `tokenizers` wants listed (half a million for Gemma's vocabulary, a second's work) are
// all of one kind: any two pieces whose texts together are a third, ranked by that third, then the
// longest left part. So a hash table of the pieces answers the same question when it comes up. The
// order of merges, down to entries that have gone stale, is that of the library's `Word::merge_all`.
#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <queue>
#include <string>
#include <vector>

#include "abi.h"

namespace octavo {
namespace {

constexpr char kSpace[] = "\xE2\x96\x81";  // how SentencePiece spells a space
constexpr int64_t kSpaceLen = 3;
constexpr int64_t kMostBytes = int64_t{1} << 30;

enum { kFirstStretch = 1, kEachStretch = 2 };  // of `prefix`

uint32_t hash_of(const char *text, int64_t len) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (int64_t i = 0; i < len; ++i)
    hash = (hash ^ static_cast<unsigned char>(text[i])) * 0x100000001b3u;
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

int64_t char_len(unsigned char first) {
  return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

struct Symbol {
  int32_t id;  // -1: merged into the one before
  int64_t prev, next;
};

struct Merge {
  int32_t rank, left, right, id;
  int64_t at;

  // Whether the other one comes first.
  bool operator>(const Merge &other) const {
    if (rank != other.rank) return rank > other.rank;
    if (left != other.left) return left < other.left;
    if (right != other.right) return right < other.right;
    if (id != other.id) return id > other.id;
    return at > other.at;
  }
};

class Pieces {
 public:
  // False where the pieces are none that this can do: empty ones, equal ones, no piece for a byte.
  bool read(const char *text, int64_t num_bytes, int64_t count, const int32_t *ranks,
            const uint8_t *whole) {
    if (count < 1 || num_bytes < 1 || num_bytes >= kMostBytes) return false;
    text_.assign(text, static_cast<size_t>(num_bytes));
    begins_.reserve(static_cast<size_t>(count) + 1);
    begins_.push_back(0);
    for (int64_t i = 0; i < num_bytes; ++i)
      if (text_[i] == '\0') begins_.push_back(static_cast<uint32_t>(i + 1));
    if (static_cast<int64_t>(begins_.size()) != count) return false;
    begins_.push_back(static_cast<uint32_t>(num_bytes + 1));
    size_t num_slots = 16;
    while (num_slots < 2 * static_cast<size_t>(count)) num_slots *= 2;
    slots_.assign(num_slots, {0, -1});
    num_chars_.resize(static_cast<size_t>(count));
    whole_.assign(whole, whole + count);
    if (ranks != nullptr) ranks_.assign(ranks, ranks + count);
    for (int32_t id = 0; id < count; ++id)
      if (!add(id)) return false;
    return find_bytes();
  }

  int32_t find(const char *text, int64_t len) const {
    if (len < 1 || len > longest_) return -1;
    const uint32_t hash = hash_of(text, len);
    for (size_t at = hash;; ++at) {
      const Slot &slot = slots_[at & (slots_.size() - 1)];
      if (slot.id < 0) return -1;
      if (slot.hash == hash && len_of(slot.id) == len &&
          std::memcmp(text_of(slot.id), text, static_cast<size_t>(len)) == 0)
        return slot.id;
    }
  }

  // All merges, the first one first: pairs of ids.
  std::vector<int32_t> merges() const {
    std::vector<Listed> found;
    for (int32_t id = 0; id < static_cast<int32_t>(num_chars_.size()); ++id) {
      const char *text = text_of(id);
      const int64_t len = len_of(id);
      for (int64_t cut = len - 1; cut > 0; --cut) {
        if ((text[cut] & 0xC0) == 0x80) continue;
        const int32_t left = find(text, cut), right = left < 0 ? -1 : find(text + cut, len - cut);
        if (right >= 0) found.push_back({ranked(left, right, id, 0), left, right});
      }
    }
    if (!ranks_.empty())  // else they are in order
      std::sort(found.begin(), found.end(), [](const Listed &a, const Listed &b) {
        return b.merge > a.merge;
      });
    std::vector<int32_t> pairs;
    pairs.reserve(2 * found.size());
    for (const Listed &each : found) {
      pairs.push_back(each.left);
      pairs.push_back(each.right);
    }
    return pairs;
  }

  // Stretches between pieces that stay whole, which are taken from the left, the longest first.
  int64_t encode(const char *text, int64_t len, int32_t prefix, int32_t *ids) const {
    int64_t num_ids = 0, begin = 0;
    const auto stretch = [&](int64_t end) {
      if (end == begin) return;
      const char first = text[begin];
      const bool has_space =
          first == ' ' || (end - begin >= kSpaceLen && !std::memcmp(text + begin, kSpace, kSpaceLen));
      const bool adds = prefix == kEachStretch ||
                        (prefix == kFirstStretch && begin == 0 && !has_space);
      num_ids += encode_stretch(text + begin, end - begin, adds, ids + num_ids);
    };
    for (int64_t at = 0; at < len;) {
      const int32_t id = find_whole(text + at, len - at);
      if (id < 0) {
        ++at;
        continue;
      }
      stretch(at);
      ids[num_ids++] = id;
      begin = at += len_of(id);
    }
    stretch(len);
    return num_ids;
  }

 private:
  struct Slot {
    uint32_t hash;
    int32_t id;
  };

  struct Listed {
    Merge merge;
    int32_t left, right;
  };

  const char *text_of(int32_t id) const { return text_.data() + begins_[id]; }
  int64_t len_of(int32_t id) const { return int64_t{begins_[id + 1]} - begins_[id] - 1; }

  bool add(int32_t id) {
    const char *text = text_of(id);
    const int64_t len = len_of(id);
    if (len < 1) return false;
    const uint32_t hash = hash_of(text, len);
    size_t at = hash & (slots_.size() - 1);
    while (slots_[at].id >= 0) {
      const int32_t other = slots_[at].id;
      if (slots_[at].hash == hash && len_of(other) == len &&
          std::memcmp(text_of(other), text, static_cast<size_t>(len)) == 0)
        return false;
      at = (at + 1) & (slots_.size() - 1);
    }
    slots_[at] = {hash, id};
    if (len > longest_) longest_ = len;
    int32_t num_chars = 0;
    for (int64_t i = 0; i < len; ++i) num_chars += (text[i] & 0xC0) != 0x80;
    num_chars_[id] = num_chars;
    if (whole_[id]) {
      std::vector<int64_t> &lens = whole_lens_[static_cast<unsigned char>(text[0])];
      size_t i = 0;
      while (i < lens.size() && lens[i] > len) ++i;
      if (i == lens.size() || lens[i] != len) lens.insert(lens.begin() + i, len);
    }
    return true;
  }

  bool find_bytes() {
    const char digits[] = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; ++byte) {
      const char piece[] = {'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'};
      if ((byte_ids_[byte] = find(piece, sizeof piece)) < 0) return false;
    }
    return (space_id_ = find(kSpace, kSpaceLen)) >= 0;
  }

  int32_t find_whole(const char *text, int64_t len) const {
    for (const int64_t each : whole_lens_[static_cast<unsigned char>(text[0])]) {
      if (each > len) continue;
      const int32_t id = find(text, each);
      if (id >= 0 && whole_[id]) return id;
    }
    return -1;
  }

  Merge ranked(int32_t left, int32_t right, int32_t id, int64_t at) const {
    return {ranks_.empty() ? id : ranks_[id], num_chars_[left], num_chars_[right], id, at};
  }

  // What two neighbours make; its id is -1 where they make nothing.
  Merge merge_of(int32_t left, int32_t right, int64_t at, std::string *joined) const {
    if (len_of(left) + len_of(right) > longest_) return {0, 0, 0, -1, at};
    joined->assign(text_of(left), static_cast<size_t>(len_of(left)));
    joined->append(text_of(right), static_cast<size_t>(len_of(right)));
    const int32_t id = find(joined->data(), static_cast<int64_t>(joined->size()));
    if (id < 0) return {0, 0, 0, -1, at};
    return ranked(left, right, id, at);
  }

  int64_t encode_stretch(const char *text, int64_t len, bool adds_space, int32_t *ids) const {
    std::vector<Symbol> symbols;
    symbols.reserve(static_cast<size_t>(len) + 1);
    const auto append = [&](int32_t id) {
      const int64_t at = static_cast<int64_t>(symbols.size());
      symbols.push_back({id, at - 1, at + 1});
    };
    if (adds_space) append(space_id_);
    for (int64_t at = 0; at < len;) {
      int64_t step = char_len(static_cast<unsigned char>(text[at]));
      if (step > len - at) step = len - at;
      const int32_t id = text[at] == ' ' ? space_id_ : find(text + at, step);
      if (id >= 0) append(id);
      for (int64_t i = 0; id < 0 && i < step; ++i)
        append(byte_ids_[static_cast<unsigned char>(text[at + i])]);
      at += step;
    }
    merge_all(&symbols);
    int64_t num_ids = 0;
    for (const Symbol &symbol : symbols)
      if (symbol.id >= 0) ids[num_ids++] = symbol.id;
    return num_ids;
  }

  void merge_all(std::vector<Symbol> *all) const {
    std::vector<Symbol> &symbols = *all;
    const int64_t count = static_cast<int64_t>(symbols.size());
    std::string joined;
    std::vector<Merge> first;
    for (int64_t at = 0; at + 1 < count; ++at) {
      const Merge merge = merge_of(symbols[at].id, symbols[at + 1].id, at, &joined);
      if (merge.id >= 0) first.push_back(merge);
    }
    std::priority_queue<Merge, std::vector<Merge>, std::greater<Merge>> queue(
        std::greater<Merge>(), std::move(first));
    const auto offer = [&](int64_t left, int64_t right) {
      if (left < 0 || right >= count) return;
      const Merge merge = merge_of(symbols[left].id, symbols[right].id, left, &joined);
      if (merge.id >= 0) queue.push(merge);
    };
    while (!queue.empty()) {
      const Merge top = queue.top();
      queue.pop();
      Symbol &left = symbols[top.at];
      if (left.id < 0 || left.next >= count) continue;
      Symbol &right = symbols[left.next];
      if (merge_of(left.id, right.id, top.at, &joined).id != top.id) continue;
      left.id = top.id;
      left.next = right.next;
      right.id = -1;
      if (left.next < count) symbols[left.next].prev = top.at;
      offer(left.prev, top.at);
      offer(top.at, left.next);
    }
  }

  std::string text_;               // the pieces, a 0 between each two
  std::vector<uint32_t> begins_;   // of each in `text_`, and one behind the last
  std::vector<int32_t> num_chars_;
  std::vector<int32_t> ranks_;     // empty: an id is its own rank
  std::vector<uint8_t> whole_;
  std::vector<Slot> slots_;        // a power of two, at most half of them taken
  std::vector<int64_t> whole_lens_[256];  // by the first byte, the longest first
  int32_t byte_ids_[256] = {};
  int32_t space_id_ = -1;
  int64_t longest_ = 0;
};

}  // namespace
}  // namespace octavo

using octavo::Pieces;

void *octavo_pieces_new(const char *text, int64_t num_bytes, int64_t count, const int32_t *ranks,
                        const uint8_t *whole) {
  Pieces *pieces = nullptr;
  try {
    pieces = new Pieces;
    if (pieces->read(text, num_bytes, count, ranks, whole)) return pieces;
  } catch (const std::bad_alloc &) {
  }
  delete pieces;
  return nullptr;
}

void octavo_pieces_free(void *pieces) { delete static_cast<Pieces *>(pieces); }

int32_t octavo_pieces_find(const void *pieces, const char *text, int64_t len) {
  return static_cast<const Pieces *>(pieces)->find(text, len);
}

int64_t octavo_pieces_encode(const void *pieces, const char *text, int64_t len, int32_t prefix,
                             int32_t *ids) {
  try {
    return static_cast<const Pieces *>(pieces)->encode(text, len, prefix, ids);
  } catch (const std::bad_alloc &) {
    return -1;
  }
}

int64_t octavo_pieces_merges(const void *pieces, int32_t *pairs, int64_t room) {
  try {
    const std::vector<int32_t> found = static_cast<const Pieces *>(pieces)->merges();
    const int64_t count = static_cast<int64_t>(found.size() / 2);
    if (count > 0 && count <= room) std::memcpy(pairs, found.data(), found.size() * sizeof(int32_t));
    return count;
  } catch (const std::bad_alloc &) {
    return -1;
  }
}
