// Vocabularies of random pieces and random texts, and strings: for sanitizers, without Python. Links with the
// library as driver.cpp does. What comes out must spell the text again.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

extern "C" {
void *octavo_pieces_new(const char *text, int64_t num_bytes, int64_t count, const int32_t *ranks,
                        const uint8_t *whole);
void octavo_pieces_free(void *pieces);
int32_t octavo_pieces_find(const void *pieces, const char *text, int64_t len);
int64_t octavo_pieces_encode(const void *pieces, const char *text, int64_t len, int32_t prefix,
                             int32_t *ids);
int64_t octavo_pieces_merges(const void *pieces, int32_t *pairs, int64_t room);
int64_t octavo_strings(const char *data, int64_t size, int64_t count, char *out);
}

std::mt19937 g_random(1);

const std::string kSpace = "\xE2\x96\x81";
const std::vector<std::string> kChars = {"a", "b", kSpace, "\xC3\xA9", "\xF0\x9F\x98\x80", "<", " "};

std::string random_text(size_t most, size_t num_kinds) {
  std::string text;
  for (size_t left = g_random() % (most + 1); left > 0; --left)
    text += kChars[g_random() % num_kinds];
  return text;
}

bool check(int round) {
  std::vector<std::string> pieces = {kSpace};
  for (int byte = 0; byte < 256; ++byte) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", byte);
    pieces.push_back(piece);
  }
  std::set<std::string> known(pieces.begin(), pieces.end());
  for (int i = 0; i < 60; ++i) {
    const std::string piece = random_text(5, 6);
    if (!piece.empty() && known.insert(piece).second) pieces.push_back(piece);
  }
  // Exactly these bytes, so that a sanitizer sees every byte too far.
  std::vector<char> joined;
  std::vector<int32_t> ranks;
  std::vector<uint8_t> whole;
  for (const std::string &piece : pieces) {
    if (!joined.empty()) joined.push_back(0);
    joined.insert(joined.end(), piece.begin(), piece.end());
    ranks.push_back(static_cast<int32_t>(g_random() % 8));
    whole.push_back(g_random() % 16 == 0);
  }
  joined.shrink_to_fit();
  const int64_t count = static_cast<int64_t>(pieces.size());
  const int64_t size = static_cast<int64_t>(joined.size());
  if (octavo_pieces_new(joined.data(), size, count + 1, nullptr, whole.data())) return false;
  if (octavo_pieces_new(joined.data(), 0, 0, nullptr, whole.data())) return false;
  void *table = octavo_pieces_new(joined.data(), size, count, round % 2 ? ranks.data() : nullptr,
                                  whole.data());
  if (table == nullptr) return false;
  bool good = true;
  for (int32_t id = 0; id < count; ++id)
    good &= octavo_pieces_find(table, pieces[id].data(), pieces[id].size()) == id;
  for (int i = 0; i < 200; ++i) {
    std::string drawn = random_text(40, kChars.size());
    if (i % 10 == 0) drawn.push_back(static_cast<char>(g_random()));  // perhaps no UTF-8
    const std::vector<char> text(drawn.begin(), drawn.end());
    std::vector<int32_t> ids(2 * text.size() + 1);
    const int64_t num_ids = octavo_pieces_encode(table, text.data(), text.size(), 0, ids.data());
    std::string spelled, wanted;
    for (int64_t k = 0; k < num_ids; ++k) {
      const std::string &piece = pieces[ids[k]];
      if (ids[k] >= 1 && ids[k] <= 256)
        spelled.push_back(static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
      else
        spelled += piece;
    }
    for (const char each : drawn) wanted += each == ' ' ? kSpace : std::string(1, each);
    good &= spelled == wanted;
    for (int32_t prefix = 1; prefix <= 2; ++prefix)
      good &= octavo_pieces_encode(table, text.data(), text.size(), prefix, ids.data()) >= num_ids / 2;
  }
  const int64_t num_merges = octavo_pieces_merges(table, nullptr, 0);
  std::vector<int32_t> pairs(2 * num_merges);
  good &= octavo_pieces_merges(table, pairs.data(), num_merges) == num_merges;
  for (int64_t i = 0; i < num_merges; ++i)
    good &= known.count(pieces[pairs[2 * i]] + pieces[pairs[2 * i + 1]]) == 1;
  octavo_pieces_free(table);
  return good;
}

// Strings behind their lengths, cut off at every byte, with lengths that lie.
bool check_strings() {
  const std::vector<std::string> strings = {"", "a", "", "piece", "\xE2\x96\x81"};
  const int64_t count = static_cast<int64_t>(strings.size());
  std::string data, joined;
  for (const std::string &each : strings) {
    const uint64_t len = each.size();
    data.append(reinterpret_cast<const char *>(&len), 8);
    data += each;
    if (&each != &strings[0]) joined.push_back('\0');
    joined += each;
  }
  bool good = true;
  for (size_t size = 0; size <= data.size(); ++size) {
    const std::vector<char> part(data.begin(), data.begin() + size);
    const int64_t taken = octavo_strings(part.data(), size, count, nullptr);
    good &= taken == (size == data.size() ? static_cast<int64_t>(size) : -1);
  }
  std::vector<char> out(joined.size());
  good &= octavo_strings(data.data(), data.size(), count, out.data()) > 0;
  good &= std::string(out.begin(), out.end()) == joined;
  for (int round = 0; round < 2000; ++round) {
    std::vector<char> broken(data.begin(), data.end());
    broken[g_random() % broken.size()] = static_cast<char>(g_random());
    const int64_t taken = octavo_strings(broken.data(), broken.size(), count, nullptr);
    if (taken < 0) continue;
    std::vector<char> exact(taken - 8 * count + count - 1);
    good &= octavo_strings(broken.data(), broken.size(), count, exact.data()) == taken;
  }
  return good;
}

int main() {
  const bool reads = check_strings();
  std::printf("strings: %s\n", reads ? "good" : "BAD");
  if (!reads) return 1;
  for (int round = 0; round < 10; ++round) {
    const bool good = check(round);
    std::printf("vocabulary %d: %s\n", round, good ? "good" : "BAD");
    if (!good) return 1;
  }
  return 0;
}
