"""What the library makes of a machine: made-up trees of /sys and /proc, as real ones look."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from legato.kernels.cpu import Library, Topology

Read = Callable[[dict[str, str]], Topology]


@pytest.fixture
def read(library: Library, tmp_path: Path) -> Read:
    def read_tree(files: dict[str, str]) -> Topology:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return library.topology(str(tmp_path))

    return read_tree


@pytest.fixture
def cpus() -> list[int]:
    """The processors this process may run on: made-up trees must speak of these."""
    return sorted(os.sched_getaffinity(0))


def test_an_empty_tree_is_one_node_of_plain_cores(read: Read, cpus: list[int]) -> None:
    found = read({})
    assert (found.allowed_cpus, found.allowed_cores, found.numa_nodes) == (len(cpus), len(cpus), 1)
    assert found.cpu_quota == 0 and found.default_threads == len(cpus)


def test_hardware_threads_of_one_core_count_once(read: Read, cpus: list[int]) -> None:
    siblings = ",".join(map(str, cpus))
    found = read({f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": siblings for cpu in cpus})
    assert (found.allowed_cpus, found.allowed_cores, found.default_threads) == (len(cpus), 1, 1)


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", 0), ("5000 100000", 0.05)])
def test_quota_of_control_groups_2(read: Read, cpus: list[int], text: str, quota: float) -> None:
    found = read({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": text})
    assert found.cpu_quota == pytest.approx(quota)
    assert found.default_threads == (min(len(cpus), max(1, int(quota))) if quota else len(cpus))


def test_the_tightest_group_on_the_way_up_counts(read: Read) -> None:
    files = {"sys/fs/cgroup/a/b/cpu.max": "300000 100000", "sys/fs/cgroup/cpu.max": "120000 100000"}
    assert read({"proc/self/cgroup": "0::/a/b", **files}).cpu_quota == pytest.approx(1.2)


def test_quota_of_control_groups_1_seen_from_inside_a_container(read: Read) -> None:
    """The path names the host's folders; the container's own group is the mount itself."""
    found = read(
        {
            "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        }
    )
    assert found.cpu_quota == 2


def test_no_quota_in_control_groups_1(read: Read) -> None:
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    assert read({"proc/self/cgroup": "4:cpu:/", **files}).cpu_quota == 0


def test_nodes_with_processors_of_ours(read: Read, cpus: list[int]) -> None:
    """A node of memory alone, and one whose processors we may not use, do not count."""
    nodes = "sys/devices/system/node"
    online = {f"{nodes}/online": "0-2,7"}
    lists = {0: str(cpus[0]), 1: "", 2: "4000-4003", 7: ",".join(map(str, cpus[1:])) or "4004"}
    found = read(online | {f"{nodes}/node{i}/cpulist": text for i, text in lists.items()})
    assert found.numa_nodes == (2 if len(cpus) > 1 else 1)


@pytest.mark.parametrize(("text", "size"), [("2048K", 2 << 20), ("1M", 1 << 20), ("?", 1 << 20)])
def test_second_level_cache(read: Read, cpus: list[int], text: str, size: int) -> None:
    folder = f"sys/devices/system/cpu/cpu{cpus[0]}/cache"
    files = {f"{folder}/index0/level": "1", f"{folder}/index2/level": "2", f"{folder}/index2/size": text}
    assert read({**files, f"{folder}/index0/size": "48K"}).l2_bytes == size
