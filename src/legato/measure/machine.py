"""This machine: how fast it reads memory, and the walls that follow from it.

Knows: arrays, threads, clocks, /proc. Does not know: models, kernels (rates of their products are handed in).
"""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

READ_BYTES = 128 << 20  # far beyond any cache of a core, and the size of a step


@dataclass(frozen=True, slots=True)
class Walls:
    """What `legato calibrate` prints. A rate that cannot be measured here is absent.

    read_gb_s         10^9 bytes a second, by number of threads ("1" and "all"); the median pass
    int8_tops         10^12 operations a second of 4-bit and 8-bit matrix products, by format, then rows
    bf16_tflops       the same of bf16 weights, by rows
    step_overhead_us  a whole engine step around a model of almost no work
    """

    isa: str
    threads: int
    read_gb_s: dict[str, float]
    int8_tops: dict[str, dict[str, float]] = field(default_factory=dict)
    bf16_tflops: dict[str, float] = field(default_factory=dict)
    step_overhead_us: float | None = None


def read_seconds(nbytes: int, threads: int, passes: int) -> list[float]:
    """Seconds of each of `passes` readings of `nbytes`, cut evenly between threads, by numpy."""
    data = np.ones(nbytes // 8, np.int64)
    parts = np.array_split(data, threads)
    return [_pass_seconds(parts) for _ in range(passes)]


def _pass_seconds(parts: list[NDArray[np.int64]]) -> float:
    """One pass; numpy sums without holding Python's lock, so threads really read at once."""
    workers = [threading.Thread(target=part.sum) for part in parts[1:]]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    parts[0].sum()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as its maker gives it."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """The machine in a few words, for records of measurements."""
    return {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": total_memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def total_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    return meminfo_bytes("MemTotal", meminfo)


def meminfo_bytes(name: str, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """A line of /proc/meminfo in bytes (or a plain count), None where there is none."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith(name + ":"):
                words = line.split()
                return int(words[1]) * (1024 if words[2:] == ["kB"] else 1)
    except (OSError, ValueError, IndexError):
        pass
    return None
