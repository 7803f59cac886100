#include "team.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace bertron {
namespace {

using Clock = std::chrono::steady_clock;

// Threads look for what they wait for so long before they sleep. Ops follow each other within a few
// microseconds; to wake a thread takes about 50.
constexpr auto kSpin = std::chrono::microseconds(50);
// Helpers with nothing left to take look on while others still compute: the next op is near then.
constexpr auto kLongestSpin = std::chrono::microseconds(300);
constexpr int64_t kMaxThreads = 256, kMaxChunks = 0xffffffff;

// Until `done()`, or `kSpin` long after `busy()` was last true; whether it was done.
template <class Done, class Busy>
bool spin(const Done& done, const Busy& busy) {
  const auto start = Clock::now();
  auto now = start, end = start + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      _mm_pause();
    }
    now = Clock::now();
    if (busy()) end = std::min(now + kSpin, start + kLongestSpin);
  } while (now < end);
  return false;
}

// The chunks of one thread's share that nobody has taken: [next, end) in one word. Its thread takes
// them from the front, on to the next of its memory; others steal from the back.
class Share {
 public:
  void open(int64_t next, int64_t end) {
    word_.store(uint64_t(next) << 32 | uint64_t(end), std::memory_order_release);
  }

  // A chunk's number, or -1 where none is left.
  int64_t take(bool from_front) {
    uint64_t word = word_.load(std::memory_order_acquire);
    for (;;) {
      const int64_t next = word >> 32, end = word & kMaxChunks;
      if (next == end) return -1;
      const uint64_t left = from_front ? word + (uint64_t(1) << 32) : word - 1;
      if (word_.compare_exchange_weak(word, left, std::memory_order_acq_rel))
        return from_front ? next : end - 1;
    }
  }

 private:
  alignas(64) std::atomic<uint64_t> word_{0};
};

class Team {
 public:
  // A fork's child has no helpers.
  void forget_helpers() { helpers_.clear(); }

  void run(int64_t threads, int64_t count, int64_t chunk, Body body, void* context) {
    const int64_t chunks = (count + chunk - 1) / chunk;
    const std::unique_lock<std::mutex> only(shared_, std::try_to_lock);
    if (!only || chunks > kMaxChunks) {
      for (int64_t begin = 0; begin < count; begin += chunk)
        body(begin, std::min(begin + chunk, count), context);
      return;
    }
    threads = 1 + hire(std::min(threads, kMaxThreads) - 1);
    keep_off(sched_getcpu());
    count_ = count, chunk_ = chunk, body_ = body, context_ = context;
    unfinished_.store(uint32_t(chunks), std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
    for (int64_t i = 0; i < threads; ++i)
      shares_[i].open(chunks * i / threads, chunks * (i + 1) / threads);
    op_.fetch_add(1, std::memory_order_release);
    op_.notify_all();

    work(0);
    uint32_t left = 0;
    const auto done = [&] { return (left = unfinished_.load(std::memory_order_acquire)) == 0; };
    if (!spin(done, [] { return false; })) {
      keep_off(kNoCpu);  // a helper that is held up where it is may go on here
      while (!done()) unfinished_.wait(left, std::memory_order_acquire);
    }
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
  }

 private:
  // So many helpers, or as many as could be had.
  int64_t hire(int64_t wanted) {
    try {
      helpers_.reserve(size_t(wanted));
      while (helpers() < wanted) {
        std::thread helper([this, number = helpers() + 1, op = op_.load()] { help(number, op); });
        helpers_.push_back(helper.native_handle());
        helper.detach();
        caller_cpu_ = kUnknown;
      }
    } catch (const std::exception&) {  // no memory, or no more threads
    }
    return std::min(wanted, helpers());
  }

  int64_t helpers() const { return int64_t(helpers_.size()); }

  // Helpers may run wherever the caller may, but on `cpu`, which is where it runs. Left to Linux
  // they wake on its CPU where all others sleep deeply, as a virtual machine's do after some ms: it
  // takes those for taken by the host (vcpu_is_preempted), and both share one CPU until it balances
  // its queues.
  void keep_off(int cpu) {
    cpu_set_t allowed;
    if (cpu == caller_cpu_ || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    caller_cpu_ = cpu;
    if (cpu != kNoCpu) CPU_CLR(cpu, &allowed);
    if (CPU_COUNT(&allowed) == 0) return;
    for (const pthread_t helper : helpers_)
      pthread_setaffinity_np(helper, sizeof allowed, &allowed);
  }

  void help(int64_t number, uint32_t seen) {
    for (;;) {
      uint32_t op = seen;
      const auto is_new = [&] { return (op = op_.load(std::memory_order_acquire)) != seen; };
      const auto busy = [&] { return unfinished_.load(std::memory_order_relaxed) != 0; };
      if (!spin(is_new, busy)) op_.wait(seen, std::memory_order_acquire);
      if (!is_new()) continue;
      seen = op;
      if (number < threads_.load(std::memory_order_relaxed)) work(number);
    }
  }

  // What is left of the thread's own share, then of the others'.
  void work(int64_t number) {
    const int64_t threads = threads_.load(std::memory_order_relaxed);
    for (int64_t i = 0; i < threads; ++i) {
      Share& share = shares_[(number + i) % threads];
      for (int64_t c; (c = share.take(i == 0)) >= 0;) compute(c);
    }
  }

  void compute(int64_t number) {
    const int64_t begin = number * chunk_;
    try {
      body_(begin, std::min(begin + chunk_, count_), context_);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(throwing_);
      thrown_ = std::current_exception();
    }
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
  }

  std::mutex shared_, throwing_;
  std::vector<pthread_t> helpers_;
  // What the helpers were last kept off.
  static constexpr int kNoCpu = -1, kUnknown = -2;
  int caller_cpu_ = kUnknown;
  // The op: written while no chunk is to be had or being computed, read by who has taken one.
  int64_t count_ = 0, chunk_ = 1;
  Body body_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr thrown_;
  std::atomic<int64_t> threads_{0};
  alignas(64) std::atomic<uint32_t> op_{0};  // its number
  alignas(64) std::atomic<uint32_t> unfinished_{0};
  Share shares_[kMaxThreads];
};

}  // namespace

void share(int64_t threads, int64_t count, int64_t chunk, Body body, void* context) {
  // Never destroyed: helpers use it until the process ends.
  static Team* const team = [] {
    static Team* made = new Team;
    pthread_atfork(nullptr, nullptr, [] { made->forget_helpers(); });
    return made;
  }();
  team->run(threads, count, chunk, body, context);
}

}  // namespace bertron
