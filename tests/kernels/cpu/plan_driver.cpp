// A small model's steps as a plan, in every instruction set against the portable one, with memory of
// exactly the bytes that are needed: for sanitizers. Links with the library, as driver.cpp does.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../../../octavo/kernels/cpu/src/plan.h"

extern "C" {
const char *octavo_isas();
int32_t octavo_set_isa(const char *name);
void octavo_set_threads(int32_t count);
void octavo_run(const void *plan, int64_t count, void *step);
}

using namespace octavo;

std::mt19937 g_random(1);

std::vector<float> random_floats(int64_t count, float size = 1) {
  std::vector<float> made(static_cast<size_t>(count));
  for (float &value : made) value = size * std::normal_distribution<float>()(g_random);
  return made;
}

struct Shape {
  int32_t heads, kv_heads, dim, block_size, cache;
  int64_t hidden, inner, window;
  float soft_cap;
};

// Two steps of two sequences: a prefill of both in chunks of odd length, then both together.
std::vector<float> run_model(const Shape &shape, const std::string &isa) {
  g_random.seed(7);
  octavo_set_isa(isa.c_str());
  const int64_t vocab = 37, most = 150, table_width = (most + shape.block_size - 1) / shape.block_size;
  const int64_t joint = (shape.heads + 2 * shape.kv_heads) * shape.dim, out_dim = shape.heads * shape.dim;
  const auto embedding = random_floats(vocab * shape.hidden), norm = random_floats(shape.hidden);
  const auto head_norm = random_floats(shape.dim), angles = random_floats(most * shape.dim);
  const auto qkv_weight = random_floats(joint * shape.hidden, 0.2f), bias = random_floats(joint);
  const auto out_weight = random_floats(shape.hidden * out_dim, 0.2f);
  const auto up_weight = random_floats(2 * shape.inner * shape.hidden, 0.2f);
  const auto down_weight = random_floats(shape.hidden * shape.inner, 0.2f);
  std::vector<uint8_t> cache(static_cast<size_t>(
      2 * table_width * shape.kv_heads * cache_unit_bytes(shape.cache, shape.dim, shape.block_size)));
  std::vector<float> all_logits;
  const std::vector<std::vector<int64_t>> steps = {{140, 0, 3, 0}, {1, 140, 9, 3}, {1, 141, 1, 12}};
  for (const auto &lens : steps) {  // new and old tokens of each sequence
    const int64_t tokens = lens[0] + lens[2];
    const std::vector<int64_t> starts = {0, lens[0], tokens}, contexts = {lens[1], lens[3]};
    const std::vector<int64_t> wanted = {lens[0] - 1, tokens - 1};
    std::vector<int64_t> ids, positions, slots, tables;
    for (int64_t i = 0; i < 2 * table_width; ++i) tables.push_back(2 * table_width - 1 - i);
    for (int64_t seq = 0; seq < 2; ++seq)
      for (int64_t i = 0; i < lens[2 * seq]; ++i) {
        const int64_t position = lens[2 * seq + 1] + i, size = shape.block_size;
        ids.push_back((5 * position + seq) % vocab);
        positions.push_back(position);
        slots.push_back(tables[seq * table_width + position / size] * size + position % size);
      }
    std::vector<float> x(tokens * shape.hidden), residual(x), normed(x), qkv(tokens * joint);
    std::vector<float> attended(tokens * out_dim), gate_up(tokens * 2 * shape.inner);
    std::vector<float> gated(tokens * shape.inner), last(2 * shape.hidden), logits(2 * vocab);
    std::vector<int64_t> most_likely(2);
    std::vector<Op> ops;
    const auto add = [&](Kind kind, const void *in, void *out, int64_t width) -> Op & {
      ops.emplace_back();
      ops.back().kind = kind;
      ops.back().in = in;
      ops.back().out = out;
      ops.back().width = width;
      return ops.back();
    };
    Op &embed = add(kEmbed, nullptr, residual.data(), shape.hidden);
    embed.weight = embedding.data();
    embed.num_rows = vocab;
    embed.scale = 2;
    Op &first = add(kNorm, residual.data(), normed.data(), shape.hidden);
    first.weight = norm.data();
    first.eps = 1e-5f;
    Op &project = add(kDense, normed.data(), qkv.data(), joint);
    project.weight = qkv_weight.data();
    project.weight2 = bias.data();
    project.in_width = shape.hidden;
    for (const Kind kind : {kRotate, kAttend}) {
      Op &op = add(kind, qkv.data(), kind == kRotate ? qkv.data() : attended.data(), 0);
      op.width = kind == kRotate ? joint : out_dim;
      op.in_width = joint;
      op.weight = angles.data();
      op.weight2 = op.weight3 = head_norm.data();
      op.eps = 1e-5f;
      op.cache = cache.data();
      op.dtype = shape.cache;
      op.num_heads = shape.heads;
      op.num_kv_heads = shape.kv_heads;
      op.head_dim = shape.dim;
      op.block_size = shape.block_size;
      op.window = shape.window;
      op.scale = 0.3f;
      op.soft_cap = shape.soft_cap;
    }
    Op &back = add(kDense, attended.data(), x.data(), shape.hidden);
    back.weight = out_weight.data();
    back.in_width = out_dim;
    Op &second = add(kAddNorm, x.data(), normed.data(), shape.hidden);
    second.out2 = residual.data();
    second.weight = norm.data();
    second.eps = 1e-5f;
    Op &up = add(kDense, normed.data(), gate_up.data(), 2 * shape.inner);
    up.weight = up_weight.data();
    up.in_width = shape.hidden;
    add(kGate, gate_up.data(), gated.data(), shape.inner).option = kGeluTanh;
    Op &down = add(kDense, gated.data(), x.data(), shape.hidden);
    down.weight = down_weight.data();
    down.in_width = shape.inner;
    add(kSelect, x.data(), last.data(), shape.hidden).scope = kLogits;
    Op &head = add(kDense, last.data(), nullptr, vocab);
    head.weight = embedding.data();
    head.in_width = shape.hidden;
    head.scope = kLogits;
    Op &cap = add(kSoftCap, nullptr, nullptr, vocab);
    cap.scale = 30;
    cap.scope = kLogits;
    add(kArgmax, nullptr, nullptr, vocab).scope = kLogits;
    Step step{};
    step.num_tokens = tokens;
    step.num_logits = step.num_seqs = 2;
    step.table_width = table_width;
    step.token_ids = ids.data();
    step.positions = positions.data();
    step.slots = slots.data();
    step.logit_indices = wanted.data();
    step.query_starts = starts.data();
    step.context_lens = contexts.data();
    step.block_tables = tables.data();
    step.logits = logits.data();
    step.argmax = most_likely.data();
    octavo_run(ops.data(), static_cast<int64_t>(ops.size()), &step);
    if (step.error != kGood) std::abort();
    all_logits.insert(all_logits.end(), logits.begin(), logits.end());
  }
  return all_logits;
}

int main() {
  octavo_set_threads(2);
  bool is_good = true;
  const Shape shapes[] = {{3, 1, 64, 16, kF32, 48, 96, 0, 0},   {4, 2, 10, 16, kF32, 35, 51, 40, 0},
                          {4, 4, 16, 12, kF32, 32, 64, 0, 5},   {9, 3, 64, 16, kBF16, 33, 40, 20, 2},
                          {4, 1, 20, 32, kI8, 48, 96, 0, 0},    {2, 2, 7, 1, kI8, 31, 33, 9, 0},
                          {60, 1, 8, 16, kBF16, 32, 32, 0, 0}};
  const std::string isas = std::string(octavo_isas()) + ",";
  for (size_t begin = 0, end; begin < isas.size(); begin = end + 1) {
    end = isas.find(',', begin);
    const std::string isa = isas.substr(begin, end - begin);
    for (const Shape &shape : shapes) {
      const auto want = run_model(shape, "portable"), got = run_model(shape, isa);
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const double difference = std::fabs(double(got[i]) - want[i]);
        if (!(difference <= worst)) worst = difference;
      }
      is_good &= worst == 0;
      std::printf("%s, heads of %d: %s, largest difference %.1e\n", isa.c_str(), shape.dim,
                  worst == 0 ? "good" : "WRONG", worst);
    }
  }
  return is_good ? 0 : 1;
}
