// See pool.h. Workers spin for a moment after a job, since a model's next kernel is a few
// microseconds away, and then sleep, so that torch's threads have the cores to themselves.
//
// The caller never waits for a worker that has not begun: a job is open or closed, workers enter by
// counting themselves in `inside` and then looking again, and the caller, when no piece is left,
// closes the job and waits until `inside` is 0. On a busy machine a worker that the system runs
// late finds the job closed, and nobody has waited for it.
#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "abi.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kWaitRounds = 10000;  // of the caller, some 150 to 500 us
constexpr int kMaxThreads = 256;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Job {
  Piece piece;
  void *context;
  int64_t count;
  int64_t grain;
};

// A thread's share of a job's pieces. It begins with its own, so that what it wrote in one job is in
// its cache in the next, and then helps others with theirs.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};  // a piece
  int64_t end = 0;
};

class Pool {
 public:
  explicit Pool(int num_workers) : num_workers_(num_workers), shares_(num_workers + 1) {
    try {
      for (int i = 0; i < num_workers; ++i) threads_.emplace_back([this, i] { work(i + 1); });
    } catch (const std::exception &) {
      stop();
      throw;
    }
  }

  ~Pool() { stop(); }

  int num_workers() const { return num_workers_; }

  void run(const Job &job) {
    job_ = job;
    const int64_t pieces = (job.count + job.grain - 1) / job.grain, threads = num_workers_ + 1;
    for (int64_t i = 0; i < threads; ++i) {
      shares_[i].next.store(pieces * i / threads, std::memory_order_relaxed);
      shares_[i].end = pieces * (i + 1) / threads;
    }
    turn_.fetch_add(1);  // now odd: open
    if (num_asleep_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    take_pieces(0);
    turn_.fetch_add(1);  // even: closed
    wait_for_workers();
  }

 private:
  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stops_.store(true);
      turn_.fetch_add(2);
    }
    wake_.notify_all();
    for (std::thread &thread : threads_) thread.join();
  }

  // Spins for a moment and then sleeps: the system may have taken the worker's core away in the
  // middle of a piece, and can give it the caller's.
  void wait_for_workers() {
    for (int i = 0; i < kWaitRounds; ++i) {
      if (inside_.load() == 0) return;
      relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    all_out_.wait(lock, [&] { return inside_.load() == 0; });
    caller_sleeps_.store(false);
  }

  void leave() {
    if (inside_.fetch_sub(1) == 1 && caller_sleeps_.load()) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      all_out_.notify_one();
    }
  }

  void take_pieces(int thread) {
    const Job job = job_;
    for (int i = 0; i <= num_workers_; ++i) {
      Share &share = shares_[(thread + i) % (num_workers_ + 1)];
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const int64_t place = share.next.fetch_add(1, std::memory_order_relaxed);
        if (place >= share.end) break;
        const int64_t begin = place * job.grain;
        const int64_t end = begin + job.grain < job.count ? begin + job.grain : job.count;
        job.piece(job.context, begin, end, thread);
      }
    }
  }

  void work(int thread) {
    uint64_t seen = 0;
    while (!stops_.load()) {
      const uint64_t turn = wait_for_turn(seen);
      if (turn % 2 == 1) {
        inside_.fetch_add(1);
        if (turn_.load() == turn) take_pieces(thread);
        leave();
      }
      seen = turn;
    }
  }

  // The number of an open job other than `seen`, or any other number when the pool stops.
  uint64_t wait_for_turn(uint64_t seen) {
    const auto deadline = Clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        const uint64_t turn = turn_.load(std::memory_order_acquire);
        if (turn != seen && turn % 2 == 1) return turn;
        relax();
      }
    } while (Clock::now() < deadline);
    std::unique_lock<std::mutex> lock(mutex_);
    num_asleep_.fetch_add(1);
    uint64_t turn = 0;
    wake_.wait(lock, [&] {
      turn = turn_.load();
      return stops_.load() || (turn != seen && turn % 2 == 1);
    });
    num_asleep_.fetch_sub(1);
    return turn;
  }

  const int num_workers_;
  Job job_{};
  std::vector<Share> shares_;
  alignas(64) std::atomic<uint64_t> turn_{0};
  alignas(64) std::atomic<int> inside_{0};
  alignas(64) std::atomic<int> num_asleep_{0};
  std::atomic<bool> stops_{false};
  std::mutex mutex_;
  std::condition_variable wake_, all_out_;
  std::atomic<bool> caller_sleeps_{false};
  std::vector<std::thread> threads_;
};

std::atomic<int> g_num_threads{1};
Pool *g_pool = nullptr;            // under g_busy
std::atomic_flag g_busy = ATOMIC_FLAG_INIT;

// A child of fork has none of the threads: it starts with no pool, and leaves the old one's memory.
void forget_pool() {
  g_pool = nullptr;
  g_busy.clear();
}

// Threads must not outlive the library's static objects.
struct AtExit {
  AtExit() { pthread_atfork(nullptr, nullptr, forget_pool); }
  ~AtExit() {
    if (!g_busy.test_and_set()) delete g_pool;
  }
} g_at_exit;

// Null where the system gives no more threads.
Pool *make_pool(int num_workers) {
  try {
    return new Pool(num_workers);
  } catch (const std::exception &) {
    return nullptr;
  }
}

struct Scratch {
  void *memory[4] = {};
  int64_t size[4] = {};
  ~Scratch() {
    for (void *each : memory) std::free(each);
  }
};

}  // namespace

int32_t num_threads() { return g_num_threads.load(std::memory_order_relaxed); }

void parallel_for(int64_t count, int64_t grain, Piece piece, void *context) {
  const int threads = num_threads();
  if (count <= 0) return;
  if (threads <= 1 || count <= grain || g_busy.test_and_set(std::memory_order_acquire)) {
    piece(context, 0, count, 0);
    return;
  }
  if (g_pool == nullptr || g_pool->num_workers() != threads - 1) {
    delete g_pool;
    g_pool = make_pool(threads - 1);
  }
  if (g_pool == nullptr)
    piece(context, 0, count, 0);
  else
    g_pool->run({piece, context, count, grain});
  g_busy.clear(std::memory_order_release);
}

void *scratch(int32_t slot, int64_t bytes) {
  thread_local Scratch own;
  if (own.size[slot] < bytes) {
    std::free(own.memory[slot]);
    const int64_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    own.memory[slot] = std::aligned_alloc(64, static_cast<size_t>(size));
    own.size[slot] = own.memory[slot] == nullptr ? 0 : size;
  }
  return own.memory[slot];
}

}  // namespace octavo

void octavo_set_threads(int32_t count) {
  const int bounded = count < 1 ? 1 : count > octavo::kMaxThreads ? octavo::kMaxThreads : count;
  octavo::g_num_threads.store(bounded);
}

int32_t octavo_threads() { return octavo::num_threads(); }
