// What this process may use of the machine: see topology.h.
//
// Knows: affinity masks, /sys and control groups (versions 1 and 2). Does not know: what the cores are used for.
// Sources: Linux's Documentation/admin-guide/cputopology.rst, cgroup-v2.rst, scheduler/sched-bwc.rst.
#include "topology.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace lg {
namespace {

bool read_line(const std::string& path, std::string* line) {
  std::ifstream file(path);
  return static_cast<bool>(std::getline(file, *line));
}

Cpus affinity() {
  Cpus cpus;
#if defined(__linux__)
  for (int size = 1024; size <= 1 << 18 && cpus.empty(); size *= 4) {
    cpu_set_t* set = CPU_ALLOC(size);
    const size_t bytes = CPU_ALLOC_SIZE(size);
    if (set != nullptr && sched_getaffinity(0, bytes, set) == 0) {
      for (int cpu = 0; cpu < size; ++cpu)
        if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
  }
#endif
  if (cpus.empty()) {
    const int32_t count = std::max(1u, std::thread::hardware_concurrency());
    for (int32_t cpu = 0; cpu < count; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

// Groups a node's processors by physical core.
void add_cores(const std::string& cpu_folder, const Cpus& cpus, std::vector<Cpus>* cores) {
  std::map<std::string, size_t> known;  // siblings as the system lists them
  for (int32_t cpu : cpus) {
    const std::string folder = cpu_folder + "/cpu" + std::to_string(cpu) + "/topology/";
    std::string siblings;
    if (!read_line(folder + "core_cpus_list", &siblings) && !read_line(folder + "thread_siblings_list", &siblings))
      siblings = std::to_string(cpu);
    const auto [core, is_new] = known.emplace(siblings, cores->size());
    if (is_new) cores->emplace_back();
    (*cores)[core->second].push_back(cpu);
  }
}

std::vector<Node> read_nodes(const std::string& folder, const Cpus& allowed) {
  std::vector<Node> nodes;
  std::string online;
  if (read_line(folder + "/online", &online)) {
    for (int32_t id : parse_cpu_list(online)) {
      std::string list;
      if (!read_line(folder + "/node" + std::to_string(id) + "/cpulist", &list)) continue;
      Node node{id, {}};
      for (int32_t cpu : parse_cpu_list(list))
        if (std::binary_search(allowed.begin(), allowed.end(), cpu)) node.cpus.push_back(cpu);
      if (!node.cpus.empty()) nodes.push_back(node);
    }
  }
  if (nodes.empty()) nodes.push_back(Node{0, allowed});
  return nodes;
}

// Cores' worth of time that one control group's folder allows; 0 for no limit.
double quota_of(const std::string& folder) {
  std::string line;
  if (read_line(folder + "/cpu.max", &line)) {
    std::istringstream words(line);
    double quota = 0, period = 0;
    return (words >> quota >> period) && period > 0 ? quota / period : 0;  // "max 100000" fails to parse: no limit
  }
  std::string period;
  if (read_line(folder + "/cpu.cfs_quota_us", &line) && read_line(folder + "/cpu.cfs_period_us", &period)) {
    const double us = atof(line.c_str()), of = atof(period.c_str());
    return us > 0 && of > 0 ? us / of : 0;
  }
  return 0;
}

// The tightest quota on the way from this process's group up to `mount`. Inside a container the path may name folders
// that only the host sees; those are skipped, and the mount itself is the container's own group.
double tightest_quota(const std::string& mount, std::string path) {
  double tightest = 0;
  for (;;) {
    const double quota = quota_of(mount + path);
    if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
    if (path.empty() || path == "/") return tightest;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

double read_quota(const std::string& root) {
  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  double tightest = 0;
  while (std::getline(groups, line)) {  // hierarchy:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    double quota = 0;
    if (controllers == ",,") {
      quota = tightest_quota(root + "/sys/fs/cgroup", path);
    } else if (controllers.find(",cpu,") != std::string::npos) {
      quota = tightest_quota(root + "/sys/fs/cgroup/cpu", path);
    }
    if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
  }
  return tightest;
}

int64_t read_l2(const std::string& cpu_folder, int32_t cpu) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder = cpu_folder + "/cpu" + std::to_string(cpu) + "/cache/index" + std::to_string(index);
    std::string level, size;
    if (!read_line(folder + "/level", &level) || level != "2" || !read_line(folder + "/size", &size)) continue;
    const int64_t number = atoll(size.c_str());
    if (number > 0) return number * (size.back() == 'M' ? 1 << 20 : size.back() == 'K' ? 1 << 10 : 1);
  }
  return 1 << 20;
}

}  // namespace

Cpus parse_cpu_list(const std::string& text) {
  Cpus cpus;
  std::istringstream in(text);
  int32_t first = 0;
  while (in >> first) {
    int32_t last = first;
    if (in.peek() == '-') {
      in.get();
      if (!(in >> last) || last - first > 1 << 18) break;
    }
    for (int32_t cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    if (in.peek() != ',') break;
    in.get();
  }
  return cpus;
}

Topology read_topology(const std::string& root) { return read_topology(root, affinity()); }

Topology read_topology(const std::string& root, const Cpus& allowed) {
  const std::string cpu_folder = root + "/sys/devices/system/cpu";
  Topology topology{};
  topology.nodes = read_nodes(root + "/sys/devices/system/node", allowed);
  lg_topology& s = topology.summary;
  s.allowed_cpus = static_cast<int32_t>(allowed.size());
  for (const Node& node : topology.nodes) add_cores(cpu_folder, node.cpus, &topology.cores);
  s.allowed_cores = static_cast<int32_t>(topology.cores.size());
  s.numa_nodes = static_cast<int32_t>(topology.nodes.size());
  s.cpu_quota = read_quota(root);
  s.l2_bytes = read_l2(cpu_folder, allowed.front());
  s.default_threads = s.allowed_cores;
  // A thread beyond the quota would be stopped for part of each period, and the others would wait for it.
  if (s.cpu_quota > 0) s.default_threads = std::min(s.default_threads, std::max(1, static_cast<int32_t>(s.cpu_quota)));
  return topology;
}

int32_t allowed_cpu_count() { return static_cast<int32_t>(affinity().size()); }

void bind_this_thread(const Cpus& cpus) {
#if defined(__linux__)
  const int32_t highest = *std::max_element(cpus.begin(), cpus.end());
  cpu_set_t* set = CPU_ALLOC(highest + 1);
  if (set == nullptr) return;
  const size_t bytes = CPU_ALLOC_SIZE(highest + 1);
  CPU_ZERO_S(bytes, set);
  for (int32_t cpu : cpus) CPU_SET_S(cpu, bytes, set);
  sched_setaffinity(0, bytes, set);  // refused by a sandbox: the thread stays where it is
  CPU_FREE(set);
#else
  (void)cpus;
#endif
}

// Twice a step: no allocation, two system calls each way at most.
Bound::Bound(const Cpus& cpus) {
#if defined(__linux__)
  if (cpus.empty()) return;
  uint64_t mask[kMaxCpus / 64] = {};
  for (int32_t cpu : cpus) {
    if (cpu >= kMaxCpus) return;
    mask[cpu / 64] |= uint64_t{1} << cpu % 64;
  }
  is_bound_ = sched_getaffinity(0, sizeof before_, reinterpret_cast<cpu_set_t*>(before_)) == 0 &&
              sched_setaffinity(0, sizeof mask, reinterpret_cast<cpu_set_t*>(mask)) == 0;
#else
  (void)cpus;
#endif
}

Bound::~Bound() {
#if defined(__linux__)
  if (is_bound_) sched_setaffinity(0, sizeof before_, reinterpret_cast<cpu_set_t*>(before_));
#endif
}

std::vector<Cpus> place_threads(const Topology& topology, int32_t threads) {
  if (threads == static_cast<int32_t>(topology.cores.size()) && threads > 1) return topology.cores;
  std::vector<Cpus> sets;
  if (topology.nodes.size() < 2) return sets;
  int64_t before = 0;
  for (const Node& node : topology.nodes) {
    const int64_t after = before + static_cast<int64_t>(node.cpus.size());
    const int64_t until = after * threads / topology.summary.allowed_cpus;
    while (static_cast<int64_t>(sets.size()) < until) sets.push_back(node.cpus);
    before = after;
  }
  return sets;
}

std::string describe_placement(const Topology& topology, int32_t threads) {
  const std::vector<Cpus> sets = place_threads(topology, threads);
  const bool pinned = !sets.empty() && sets == topology.cores;
  std::string text = pinned ? "each thread on a core of its own" : "threads are placed by the system";
  if (topology.nodes.size() < 2) return text;
  for (const Node& node : topology.nodes) {
    const auto here = std::count_if(sets.begin(), sets.end(), [&](const Cpus& cpus) {
      return std::binary_search(node.cpus.begin(), node.cpus.end(), cpus.front());
    });
    text += "; " + std::to_string(here) + " on memory node " + std::to_string(node.id);
  }
  return text + "; each thread's share of the weights lies in its own node's memory";
}

}  // namespace lg
