// What this process may use of the machine: processors, cores, nodes, quotas, caches.
//
// Knows: affinity masks, /sys and control groups (versions 1 and 2). Does not know: what the cores are used for.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../legato.h"

namespace lg {

using Cpus = std::vector<int32_t>;

struct Node {
  int32_t id;
  Cpus cpus;                // allowed ones
};

struct Topology {
  lg_topology summary;
  std::vector<Node> nodes;  // those with allowed processors
  std::vector<Cpus> cores;  // allowed hardware threads of each physical core, node after node
};

// `root` is put before /sys and /proc. Affinity is always this process's own.
Topology read_topology(const std::string& root);
// The same for a made-up list of allowed processors.
Topology read_topology(const std::string& root, const Cpus& allowed);

int32_t allowed_cpu_count();
void bind_this_thread(const Cpus& cpus);

// The calling thread on `cpus` while it lives, afterwards where it was: threads that the host starts inherit nothing.
// With no processors it does nothing.
class Bound {
 public:
  explicit Bound(const Cpus& cpus);
  ~Bound();
  Bound(const Bound&) = delete;
  Bound& operator=(const Bound&) = delete;

 private:
  static constexpr int kMaxCpus = 1024;
  uint64_t before_[kMaxCpus / 64];
  bool is_bound_ = false;
};

// Which processors each of `threads` workers runs on. With one worker a core, each has its core: left alone, a busy
// system now and then puts two that wait for each other on one. Fewer or more workers are spread over nodes in
// proportion. Empty on one node, where the system finds free cores best itself.
std::vector<Cpus> place_threads(const Topology& topology, int32_t threads);
std::string describe_placement(const Topology& topology, int32_t threads);

// "0-3,8" -> 0 1 2 3 8; stops at the first thing that is neither.
Cpus parse_cpu_list(const std::string& text);

}  // namespace lg
