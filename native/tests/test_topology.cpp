// Where threads go on machines that are not here: made-up trees of /sys for servers with nodes and hardware threads.
//
// Knows: topology.h, how Linux lists processors. Does not know: what threads do.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "../src/topology.h"

using namespace lg;

static int failures = 0;

static void expect(bool ok, const char* what) {
  if (!ok) std::printf("FAIL %s\n", what);
  failures += !ok;
}

static void write(const std::string& path, const std::string& text) {
  for (size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1))
    mkdir(path.substr(0, at).c_str(), 0755);
  std::ofstream(path) << text << "\n";
}

static Cpus range(int32_t begin, int32_t end) {
  Cpus cpus;
  for (int32_t cpu = begin; cpu < end; ++cpu) cpus.push_back(cpu);
  return cpus;
}

// Two nodes of four cores with two hardware threads each: core c has processors c and c + 8, node n has cores 4n..4n+3.
static std::string two_nodes(const std::string& root) {
  const std::string system = root + "/sys/devices/system";
  for (int cpu = 0; cpu < 16; ++cpu) {
    const std::string siblings = std::to_string(cpu % 8) + "," + std::to_string(cpu % 8 + 8);
    write(system + "/cpu/cpu" + std::to_string(cpu) + "/topology/core_cpus_list", siblings);
  }
  write(system + "/node/online", "0-1");
  write(system + "/node/node0/cpulist", "0-3,8-11");
  write(system + "/node/node1/cpulist", "4-7,12-15");
  return root;
}

static void test_two_nodes(const std::string& root) {
  const Topology t = read_topology(root, range(0, 16));
  expect(t.summary.allowed_cpus == 16 && t.summary.allowed_cores == 8, "cores of two hardware threads");
  expect(t.summary.default_threads == 8 && t.summary.numa_nodes == 2, "a thread a core");
  expect(place_threads(t, 8) == t.cores && t.cores[0] == Cpus({0, 8}) && t.cores[7] == Cpus({7, 15}), "a core each");
  const auto four = place_threads(t, 4);
  expect(four.size() == 4 && four[1] == t.nodes[0].cpus && four[2] == t.nodes[1].cpus, "two threads a node");
  expect(describe_placement(t, 4).find("2 on memory node 1") != std::string::npos, "placement is said");
  const auto three = place_threads(t, 3);
  expect(three.size() == 3 && three[2] == t.nodes[1].cpus, "three threads on two nodes");
  expect(place_threads(t, 20).size() == 20, "more threads than cores");
}

static void test_part_of_it(const std::string& root) {
  const Topology one = read_topology(root, range(0, 4));
  expect(one.summary.numa_nodes == 1 && one.summary.allowed_cores == 4, "one node, four cores");
  expect(place_threads(one, 2).empty(), "fewer threads than cores go where they like");
  expect(place_threads(one, 4).size() == 4, "as many threads as cores have one each");
  expect(place_threads(read_topology(root, {3}), 1).empty(), "a lone thread goes where it likes");
  const Topology ends = read_topology(root, {3, 11, 12});
  expect(ends.summary.allowed_cores == 2 && ends.cores[0] == Cpus({3, 11}), "an uneven mask");
}

static void test_lists() {
  expect(parse_cpu_list("0-2,7,9-10") == Cpus({0, 1, 2, 7, 9, 10}), "ranges and numbers");
  expect(parse_cpu_list("").empty() && parse_cpu_list("x").empty(), "nothing");
  expect(parse_cpu_list("0-99999999").empty(), "an absurd range");
  expect(parse_cpu_list("3-") .empty(), "half a range");
}

int main() {
  char folder[] = "/tmp/legato_topology_XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  const std::string root = two_nodes(folder);
  test_two_nodes(root);
  test_part_of_it(root);
  test_lists();
  const int removed = std::system(("rm -r " + root).c_str());
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0 || removed != 0;
}
