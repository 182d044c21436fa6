// Persistent threads: see pool.h.
//
// Knows: spinning, sleeping, barriers, tickets. Does not know: what a job computes.
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace lg {
namespace {

// Longer than the host's work between two steps at batch 1, shorter than anything a person's idle machine would notice.
constexpr int64_t kLongestSpinNs = 400 * 1000;
// Longer than it takes to wake a sleeper: otherwise one who overslept makes the other sleep too, and so on for ever.
constexpr int64_t kShortestSpinNs = 60 * 1000;
// More workers than processors: the one waited for may need the very processor that spins.
constexpr int64_t kCrowdedSpinNs = 4 * 1000;

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_ns() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void Worker::barrier() { pool->arrive(*this); }

int64_t Worker::take(int32_t owner) {
  return pool->seats_[owner].next[phase & 1].fetch_add(1, std::memory_order_relaxed);
}

Pool::Pool(int32_t threads, std::vector<Cpus> cpu_sets)
    : count_(threads),
      longest_spin_ns_(threads > allowed_cpu_count() ? kCrowdedSpinNs : kLongestSpinNs),
      owner_pid_(getpid()),
      cpu_sets_(std::move(cpu_sets)),
      seats_(new Seat[threads]) {
  for (int32_t id = 0; id < threads; ++id) seats_[id].in_phase.ns = seats_[id].between_jobs.ns = longest_spin_ns_;
  // Signals belong to the host's threads, never to ours.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    threads_.reserve(threads - 1);
    for (int32_t id = 1; id < threads; ++id) start(id);
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    stop();
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Pool::~Pool() { stop(); }

void Pool::start(int32_t id) {
  threads_.emplace_back([this, id] { loop(id); });
#if defined(__linux__)
  char name[16];
  snprintf(name, sizeof name, "legato-%d", id);
  pthread_setname_np(threads_.back().native_handle(), name);
#endif
}

void Pool::stop() {
  const bool forked = getpid() != owner_pid_;  // a child has the objects but not the threads
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (!forked) wake();
  for (std::thread& thread : threads_) forked ? thread.detach() : thread.join();
  threads_.clear();
}

void Pool::clear(const Worker& worker) {
  Seat& mine = seats_[worker.id];
  mine.next[0].store(0, std::memory_order_relaxed);
  mine.next[1].store(0, std::memory_order_relaxed);
}

void Pool::loop(int32_t id) {
  if (!cpu_sets_.empty()) bind_this_thread(cpu_sets_[id]);
  uint32_t seen = 0;
  for (;;) {
    wait(&seats_[id].between_jobs, [&] { return epoch_.load(std::memory_order_seq_cst) != seen; });
    ++seen;
    if (stopping_) return;
    Worker worker{this, id, count_, 0};
    clear(worker);
    job_(argument_, worker);
    arrive(worker);
  }
}

void Pool::run(Job job, void* argument) {
  static const Cpus anywhere;
  const Bound bound(cpu_sets_.empty() ? anywhere : cpu_sets_[0]);
  job_ = job;
  argument_ = argument;
  Worker worker{this, 0, count_, 0};
  clear(worker);
  if (count_ > 1) {
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    wake();
  }
  job(argument, worker);
  arrive(worker);
}

void Pool::arrive(Worker& worker) {
  if (count_ > 1) {
    const uint32_t before = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(before + 1, std::memory_order_seq_cst);
      wake();
    } else {
      wait(&seats_[worker.id].in_phase, [&] { return phase_.load(std::memory_order_seq_cst) != before; });
    }
  }
  ++worker.phase;
  // All have left the phase before, and none reaches the next one before this worker does.
  seats_[worker.id].next[(worker.phase + 1) & 1].store(0, std::memory_order_relaxed);
}

template <class Changed>
void Pool::wait(Spin* spin, Changed changed) {
  for (int i = 0; i < 128; ++i) {
    if (changed()) return;
    pause_cpu();
  }
  const int64_t deadline = now_ns() + spin->ns;
  do {
    for (int i = 0; i < 32; ++i) {
      if (changed()) {
        spin->ns = std::min(2 * spin->ns, longest_spin_ns_);
        return;
      }
      pause_cpu();
    }
  } while (now_ns() < deadline);
  spin->ns = std::min(longest_spin_ns_, std::max(spin->ns / 2, kShortestSpinNs));
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    woken_.wait(lock, changed);
  }
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

// A waiter counts itself before its last look, and we look at the count after our change: one of us sees the other.
void Pool::wake() {
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  { std::lock_guard<std::mutex> lock(mutex_); }
  woken_.notify_all();
}

}  // namespace lg
