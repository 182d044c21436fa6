// Persistent threads that walk the same job together, phase by phase.
//
// Knows: spinning, sleeping, barriers, tickets. Does not know: what a job computes.
//
// The caller of `run` is worker 0. Waiting is a bounded spin, then sleep: between the phases of a step nobody sleeps,
// an idle engine burns nothing, and where the machine is busy with others the spins shorten by themselves. Inside a job, workers share work through tickets: `take(owner)` counts up from 0
// in every phase, so that a worker that is done can go on with another's share. Results must not depend on who did it.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "topology.h"

namespace lg {

class Pool;

struct Worker {
  Pool* pool;
  int32_t id;
  int32_t count;
  uint32_t phase;  // barriers passed in this job

  void barrier();
  // The next number of `owner`'s counter in this phase. Not in phase 0, where counters are still being cleared.
  int64_t take(int32_t owner);
};

class Pool {
 public:
  using Job = void (*)(void* argument, Worker& worker);

  // cpu_sets: one list of processors a worker may run on, or empty to leave threads where the system puts them.
  Pool(int32_t threads, std::vector<Cpus> cpu_sets);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int32_t threads() const { return count_; }
  // Runs job(argument, worker) on every worker; returns when all are done. `job` must not throw.
  void run(Job job, void* argument);

 private:
  friend struct Worker;
  // How long to spin, learnt by one worker for one kind of wait: halved when a spin was in vain, doubled when it paid.
  struct Spin {
    int64_t ns;
  };
  // A worker's ticket counters, one in use and one being cleared, for all; and its spins, for itself.
  struct alignas(64) Seat {
    std::atomic<int64_t> next[2];
    alignas(64) Spin in_phase, between_jobs;
  };

  void loop(int32_t id);
  void arrive(Worker& worker);
  void start(int32_t id);
  void clear(const Worker& worker);
  void stop();
  template <class Changed>
  void wait(Spin* spin, Changed changed);
  void wake();

  const int32_t count_;
  const int64_t longest_spin_ns_;
  const int64_t owner_pid_;
  const std::vector<Cpus> cpu_sets_;
  std::unique_ptr<Seat[]> seats_;

  alignas(64) std::atomic<uint32_t> epoch_{0};    // jobs started
  alignas(64) std::atomic<uint32_t> phase_{0};    // barriers completed
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<int32_t> sleepers_{0};
  Job job_ = nullptr;
  void* argument_ = nullptr;
  bool stopping_ = false;
  std::mutex mutex_;
  std::condition_variable woken_;
  std::vector<std::thread> threads_;
};

}  // namespace lg
