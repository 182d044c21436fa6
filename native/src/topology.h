// What this process may use of the machine: processors, cores, nodes, quotas, caches.
//
// Knows: affinity masks, /sys and control groups (versions 1 and 2). Does not know: what the cores are used for.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../legato.h"

namespace lg {

struct Node {
  int32_t id;
  std::vector<int32_t> cpus;  // allowed ones
};

struct Topology {
  lg_topology summary;
  std::vector<Node> nodes;  // those with allowed processors
};

// `root` is put before /sys and /proc. Affinity is always this process's own.
Topology read_topology(const std::string& root);
// The same for a made-up list of allowed processors.
Topology read_topology(const std::string& root, const std::vector<int32_t>& allowed);

int32_t allowed_cpu_count();
void bind_this_thread(const std::vector<int32_t>& cpus);

// Which processors each of `threads` workers runs on: nodes in order, filled in proportion. Empty on one node, where
// the system's own placement is at least as good.
std::vector<std::vector<int32_t>> place_threads(const Topology& topology, int32_t threads);
std::string describe_placement(const Topology& topology, int32_t threads);

// "0-3,8" -> 0 1 2 3 8; stops at the first thing that is neither.
std::vector<int32_t> parse_cpu_list(const std::string& text);

}  // namespace lg
