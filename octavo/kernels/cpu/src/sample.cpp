// `sample`: one token for each row of logits, and reports of log-probabilities. See sample.h.
//
// Nothing is sorted. Greedy rows and those that keep all tokens need a row's peaks, and the sums of
// its spans' weights (spans.h). For the others, tokens that surely include the kept ones are
// collected: with top-k those that reach the k-th of the peaks; with top-p those whose probability is
// at least (1 - p) / vocabulary, since all below that together have less than 1 - p. What is kept of
// them, and which one is drawn, is found by selection (select.h), with the results of a sort.
#include "sample.h"

#include "plan.h"
#include "pool.h"
#include "spans.h"
#include "table.h"

namespace octavo {
namespace OCTAVO_ISA {

#define OCTAVO_KERNEL(name, params, args) void name params;
#include "kernels.def"
#undef OCTAVO_KERNEL

namespace {

// Philox4x32-10 at (position, 0) with the seed as key, as runner/philox.py: 52 bits in [0, 1).
double uniform(uint64_t seed, int64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position),
                   static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{c[0]} * 0xD2511F53u, b = uint64_t{c[2]} * 0xCD9E8D57u;
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0;
    c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1;
    c[3] = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<double>((uint64_t{c[0]} << 32 | c[1]) >> 12) * 0x1p-52;
}

// The first token of the largest logit; the first that is not a number, if there is one.
template <typename T>
int64_t first_largest(const Row<T> &row) {
  const bool is_strange = row.top != row.top;
  for (int64_t span = 0; span < num_spans(row.vocab); ++span) {
    if (!is_strange && !reaches(row, span, row.top, false)) continue;
    const T *at = row.logits + span * kSpan;
    for (int64_t i = 0; i < span_size(row, span); ++i) {
      const float value = load_one(at + i);
      if (is_strange ? value != value : value == row.top) return span * kSpan + i;
    }
  }
  return 0;
}

// Draws from all tokens that have weight, in token order.
template <typename T>
int64_t draw(const Row<T> &row, double u) {
  alignas(64) float weights[kSpan];
  const double goal = u * sum_of(row);
  double before = 0, below = 0;
  int64_t found = 0;
  for (int64_t span = 0; span < num_spans(row.vocab); ++span) {
    if (row.sums[span] > 0) {  // where rounding lets no span exceed the goal, the last one is taken
      found = span;
      below = before;
    }
    before += row.sums[span];
    if (before > goal) break;
  }
  weigh_span(row, found, weights);
  int64_t token = 0;
  for (int64_t i = 0; i < kSpan; ++i) {
    if (weights[i] == 0) continue;
    token = found * kSpan + i;
    below += weights[i];
    if (below > goal) break;
  }
  return token;
}

// The logit that a scaled distance from the top leads to, or a little less: scaling rounds, and may
// come to nothing.
float bound_at(float top, double scaled, double temperature) {
  const double bound = top - (scaled * (1 + 1e-5) + 1e-44) * temperature - 1e-44;
  return static_cast<float>(bound - fabs(bound) * 1e-6);
}

// Draws from what min-p, top-k and top-p keep, from the most probable token down.
template <typename T>
int64_t draw_ordered(const Row<T> &row, int64_t top_k, double top_p, double u, Item *items) {
  const bool is_finite = row.top - row.top == 0;  // else all are collected
  float bound = is_finite ? bound_at(row.top, row.farthest, row.temperature) : -INFINITY;
  double total = 0;
  if (top_k > 0) {
    const float own = bound_of_first(row, top_k, items);
    if (own > bound) bound = own;
  } else {
    total = sum_of(row);
    const double least = 0.999 * (1 - top_p) * total / static_cast<double>(row.vocab);
    const float own = is_finite ? bound_at(row.top, -log(least), row.temperature) : -INFINITY;
    if (own > bound) bound = own;
    if (bound > -INFINITY) bound = raise_bound(row, bound, top_p * total, total);
  }
  int64_t count = collect(row, bound, false, items);
  if (top_k > 0) {
    if (count > top_k) {
      select_first(items, count, top_k);
      count = top_k;
    }
    for (int64_t i = 0; i < count; ++i) total += items[i].weight;
  }
  if (top_p < 1) count = find_share(items, count, top_p * total, true, &total) + 1;
  return id_of(items[find_share(items, count, u * total, false, &total)].key);
}

int32_t bits_of_float(float value) {
  int32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// One row's report, see Sampling::reports; the row was weighed at temperature 1.
template <typename T>
void report(const Row<T> &row, int64_t token, int64_t num_top, Item *items, int32_t *out) {
  const double log_sum = log(sum_of(row));
  const auto logprob = [&](float logit) {
    return static_cast<float>(0.0 - distance_of(logit, row.top) - log_sum);
  };
  const float sampled = load_one(row.logits + token);
  int32_t rank = 1;
  for (int64_t span = 0; span < num_spans(row.vocab); ++span) {
    if (!reaches(row, span, sampled, true)) continue;
    const T *at = row.logits + span * kSpan;
    for (int64_t i = 0; i < span_size(row, span); ++i) rank += load_one(at + i) > sampled;
  }
  out[0] = static_cast<int32_t>(token);
  out[1] = rank;
  out[2] = bits_of_float(logprob(sampled));
  if (num_top == 0) return;
  const int64_t count = collect(row, bound_of_first(row, num_top, items), true, items);
  select_first(items, count, num_top);
  sort_few(items, num_top);
  for (int64_t i = 0; i < num_top; ++i) {
    const float logit = value_of(items[i].key);
    const bool is_tie = i > 0 && logit == value_of(items[i - 1].key);
    out[3 + i] = static_cast<int32_t>(id_of(items[i].key));
    out[3 + num_top + i] = is_tie ? out[2 + num_top + i] : static_cast<int32_t>(i + 1);
    out[3 + 2 * num_top + i] = bits_of_float(logprob(logit));
  }
}

// What is to be done for one row of logits. `own` is the row that a token is chosen from, `raw` the
// one whose log-probabilities are reported; where it is `own` too, `is_same`, it is left out.
template <typename T>
struct Work {
  Row<T> own, raw;
  bool chooses, reports, is_same, is_greedy;
  int64_t place, report, top_k;
  double top_p;
};

struct Job {
  Sampling *sampling;
  int64_t *reports;  // [rows] which report is the row's, or -1
  void *works;       // [rows], where rows share threads
};

template <typename T>
Work<T> work_of(const Job &job, int64_t place, uint8_t *memory) {
  const Sampling &asked = *job.sampling;
  Work<T> work{};
  work.place = place;
  work.report = job.reports[place];
  work.reports = work.report >= 0;
  work.chooses = asked.rows != nullptr;
  Row<T> *const own = &work.own, *const raw = &work.raw;
  own->vocab = raw->vocab = asked.vocab_size;
  set_memory(own, memory);
  set_memory(raw, memory + row_bytes(asked.vocab_size));
  own->logits = static_cast<const T *>(asked.logits) + place * asked.stride;
  raw->logits = asked.raw == nullptr
                    ? own->logits
                    : static_cast<const T *>(asked.raw) + work.report * asked.raw_stride;
  own->temperature = raw->temperature = 1;
  own->farthest = raw->farthest = INFINITY;
  raw->weighs = true;
  if (work.chooses) {
    const int64_t row = asked.rows[place];
    work.is_greedy = asked.temperature[row] == 0;
    if (!work.is_greedy) {
      own->temperature = asked.temperature[row];
      own->farthest = asked.farthest[row];
    }
    work.top_k = asked.top_k[row] < asked.vocab_size ? asked.top_k[row] : 0;
    work.top_p = asked.top_p[row];
    work.is_same = work.reports && asked.raw == nullptr && own->temperature == 1 &&
                   own->farthest == INFINITY;
    own->weighs = work.is_same || (!work.is_greedy && work.top_k == 0);
  }
  return work;
}

template <typename T>
void survey_part(const Work<T> &work, int64_t part) {
  if (work.chooses) survey(work.own, part);
  if (work.reports && !work.is_same) survey(work.raw, part);
}

template <typename T>
void find_tops(Work<T> *work) {
  if (work->chooses) work->own.top = top_of(work->own);
  if (work->reports && !work->is_same) work->raw.top = top_of(work->raw);
}

template <typename T>
void weigh_part(const Work<T> &work, int64_t part) {
  if (work.chooses && work.own.weighs) weigh(work.own, part);
  if (work.reports && !work.is_same) weigh(work.raw, part);
}

void fail(const Job &job, int64_t error) {
  __atomic_store_n(&job.sampling->error, error, __ATOMIC_RELAXED);
}

template <typename T>
void finish(const Job &job, const Work<T> &work) {
  const Sampling &asked = *job.sampling;
  const int64_t room = asked.vocab_size + kSpan;
  Item *items = static_cast<Item *>(scratch(2, room * static_cast<int64_t>(sizeof(Item))));
  if (items == nullptr) return fail(job, kNoMemory);
  int64_t token = asked.token_ids[work.place];
  if (work.chooses) {
    const Row<T> &row = work.own;
    if (work.is_greedy) {
      token = first_largest(row);
    } else {
      const double u = uniform(asked.seed[asked.rows[work.place]], asked.positions[work.place]);
      const bool keeps_all = work.top_k == 0 && !(work.top_p < 1);
      token = keeps_all ? draw(row, u) : draw_ordered(row, work.top_k, work.top_p, u, items);
    }
    asked.token_ids[work.place] = token;
  }
  if (!work.reports) return;
  if (token < 0 || token >= asked.vocab_size) return fail(job, kBadToken);
  report(work.is_same ? work.own : work.raw, token, asked.num_top, items,
         asked.reports + work.report * (3 + 3 * asked.num_top));
}

template <typename T>
void run_rows(void *context, int64_t begin, int64_t end, int32_t) {
  const Job &job = *static_cast<const Job *>(context);
  const int64_t vocab = job.sampling->vocab_size, parts = num_parts(vocab);
  uint8_t *memory = static_cast<uint8_t *>(scratch(1, 2 * row_bytes(vocab)));
  if (memory == nullptr) return fail(job, kNoMemory);
  for (int64_t place = begin; place < end; ++place) {
    Work<T> work = work_of<T>(job, place, memory);
    for (int64_t part = 0; part < parts; ++part) survey_part(work, part);
    find_tops(&work);
    for (int64_t part = 0; part < parts; ++part) weigh_part(work, part);
    finish(job, work);
  }
}

// The same with few rows, whose parts are shared out among the threads.
template <typename T>
void run_parts(Job *job, uint8_t *memory) {
  const int64_t num = job->sampling->num_rows, vocab = job->sampling->vocab_size;
  const int64_t pieces = num * num_parts(vocab);
  Work<T> *const works = static_cast<Work<T> *>(job->works);
  for (int64_t i = 0; i < num; ++i)
    works[i] = work_of<T>(*job, i, memory + 2 * i * row_bytes(vocab));
  const auto survey_pieces = [](void *context, int64_t begin, int64_t end, int32_t) {
    const Job &own = *static_cast<const Job *>(context);
    const int64_t parts = num_parts(own.sampling->vocab_size);
    for (int64_t i = begin; i < end; ++i)
      survey_part(static_cast<const Work<T> *>(own.works)[i / parts], i % parts);
  };
  const auto weigh_pieces = [](void *context, int64_t begin, int64_t end, int32_t) {
    const Job &own = *static_cast<const Job *>(context);
    const int64_t parts = num_parts(own.sampling->vocab_size);
    for (int64_t i = begin; i < end; ++i)
      weigh_part(static_cast<const Work<T> *>(own.works)[i / parts], i % parts);
  };
  const auto finish_rows = [](void *context, int64_t begin, int64_t end, int32_t) {
    const Job &own = *static_cast<const Job *>(context);
    for (int64_t i = begin; i < end; ++i)
      finish(own, static_cast<const Work<T> *>(own.works)[i]);
  };
  parallel_for(pieces, 1, survey_pieces, job);
  bool weighs = false;
  for (int64_t i = 0; i < num; ++i) {
    find_tops(&works[i]);
    weighs |= works[i].own.weighs || works[i].reports;
  }
  if (weighs) parallel_for(pieces, 1, weigh_pieces, job);
  parallel_for(num, 1, finish_rows, job);
}

template <typename T>
void run_all(Job *job) {
  const int64_t num = job->sampling->num_rows, vocab = job->sampling->vocab_size;
  const int64_t row_work = 8 + static_cast<int64_t>(sizeof(Work<T>));
  const int64_t work_bytes = (num * row_work / 64 + 1) * 64;
  const bool are_few = num < 2 * num_threads() && num_threads() > 1 && num_parts(vocab) > 1;
  uint8_t *memory = static_cast<uint8_t *>(
      scratch(0, work_bytes + (are_few ? 2 * num * row_bytes(vocab) : 0)));
  if (memory == nullptr) return fail(*job, kNoMemory);
  job->reports = reinterpret_cast<int64_t *>(memory);
  job->works = memory + 8 * num;
  for (int64_t i = 0; i < num; ++i) job->reports[i] = -1;
  for (int64_t i = 0; i < job->sampling->num_reports; ++i)
    job->reports[job->sampling->places[i]] = i;
  if (are_few)
    run_parts<T>(job, memory + work_bytes);
  else
    parallel_for(num, 1, run_rows<T>, job);
}

}  // namespace

// Does what a Sampling asks for, and sets its `error`.
void sample(void *asked) {
  Job job{static_cast<Sampling *>(asked), nullptr, nullptr};
  job.sampling->error = kGood;
  if (job.sampling->dtype == OCTAVO_F32)
    run_all<float>(&job);
  else
    run_all<uint16_t>(&job);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
