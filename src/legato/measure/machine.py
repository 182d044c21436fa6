"""A machine as predictions need it: how fast it reads memory, multiplies matrices and attends.

Knows: rates, where they come from (measured by `legato calibrate`, or a data sheet), how they are written to a file.
Does not know: how anything is measured (`bench.walls`), models, what is predicted with it (`measure.predict`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TILE = 256  # tokens that are looked back at in one go
READ_BYTES = 128 << 20  # far beyond any cache of a core, and the size of a step


@dataclass(frozen=True, slots=True)
class ProductRate:
    """Matrix products in one weight format.

    bits     a weight, scales included: 4.5, 5, 8.5, 16
    seconds  a weight, by rows that are multiplied together; reading it from memory is part of that
    """

    format: str
    bits: float
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True)
class RowCosts:
    """What a step costs around its matrix products, in seconds.

    inputs  each number that a product reads of a row (normed, quantised), by rows of the step
    matrix  each product: threads that meet
    host    each step: scheduling, packing, choosing tokens
    stream  each sequence of a step, on the host
    row     each row of a step, on the host
    """

    inputs: dict[int, float]
    matrix: float
    host: float
    stream: float
    row: float


@dataclass(frozen=True, slots=True)
class AttentionRate:
    """Looking back at keys and values in one format, with heads of one size, in seconds of one layer: the sum of

    layer        once: threads that meet
    start        once more where sequences have TILE tokens or more behind them, less in proportion: a walk that begins
    number       each number of a row's queries, keys and values that is made ready
    stream       each sequence
    byte         each byte of keys and values read, for steps of few rows a sequence
    pair         each query-key pair and number of a query (pairs of one head x q_size), for the same
    prompt_pair  the same for many rows of a sequence, reading included
    """

    kv_format: str
    layer: float
    number: float
    stream: float
    byte: float
    pair: float
    prompt_pair: float
    head_dim: int = 64
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a maker promises, and what part of it is assumed to be reached.

    tops       10^12 operations a second by the bits of a weight up to which they hold: {8: 1979, 16: 989}
    read, compute, attention   the part of the promised rates that is assumed: of memory, products, attention
    layer_us   microseconds that each layer costs beside its bytes and operations (launches, barriers)
    """

    tops: dict[float, float]
    read: float = 0.8
    compute: float = 0.5
    attention: float = 0.35
    layer_us: float = 5.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What `legato calibrate` prints and keeps, or what a data sheet says. What was not measured is absent.

    name              processor or accelerator, for a person
    isa, threads      what was measured with; "" and 0 of a data sheet
    version           of the library that was measured; "" of a data sheet
    date              when it was measured, ISO; "" of a data sheet
    memory_bytes      what weights, keys and values have to fit into; None: not known
    read_gb_s         10^9 bytes a second, by number of threads ("1" and "all")
    int8_tops         10^12 operations a second of 4-bit and 8-bit matrix products, by format, then rows
    bf16_tflops       the same of bf16 weights, by rows
    step_overhead_us  a whole engine step around a model of almost no work
    disk_gb_s         reading a file that is in no cache
    products, rows, attention   the rates that predictions use
    spread            what a predicted time is multiplied by for its low and high end
    sheet             None: measured
    """

    name: str
    isa: str
    threads: int
    version: str
    date: str
    memory_bytes: int | None
    read_gb_s: dict[str, float]
    int8_tops: dict[str, dict[str, float]] = field(default_factory=dict)
    bf16_tflops: dict[str, float] = field(default_factory=dict)
    step_overhead_us: float | None = None
    disk_gb_s: float | None = None
    products: tuple[ProductRate, ...] = ()
    rows: RowCosts | None = None
    attention: tuple[AttentionRate, ...] = ()
    spread: tuple[float, float] = (0.8, 1.25)
    sheet: Sheet | None = None

    @property
    def read_bytes_s(self) -> float:
        """Bytes of memory a second that predictions count on."""
        return self.read_gb_s["all"] * 1e9 * (self.sheet.read if self.sheet else 1.0)

    @classmethod
    def from_sheet(
        cls,
        name: str,
        *,
        memory_gb_s: float,
        tops: Mapping[float, float],
        memory_bytes: int,
        read: float = 0.8,
        compute: float = 0.5,
        attention: float = 0.35,
        layer_us: float = 5.0,
        step_overhead_us: float = 200.0,
        spread: tuple[float, float] = (0.7, 1.5),
    ) -> Machine:
        """A machine nobody has measured; see `Sheet` for the assumptions."""
        sheet = Sheet(dict(tops), read, compute, attention, layer_us)
        return cls(
            name, "", 0, "", "", memory_bytes, {"all": memory_gb_s}, step_overhead_us=step_overhead_us, spread=spread,
            sheet=sheet,
        )  # fmt: skip

    @classmethod
    def ordinary(cls, cores: int = 1) -> Machine:
        """What so many ordinary cores do, within a factor of three: a guess for a machine that nobody has measured."""
        return cls.from_sheet(
            f"{cores} ordinary cores",
            memory_gb_s=8.0 * min(cores, 8),  # two channels of a desktop's memory are full with eight cores
            tops={9.0: 0.4 * cores, 32.0: 0.2 * cores},
            memory_bytes=total_memory() or 2**33,
            read=1.0,
            compute=1.0,
            attention=0.5,
            layer_us=5.0,
            step_overhead_us=300.0,
            spread=(0.3, 3.0),
        )


def cache_bytes(index: Path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")) -> int:
    """The last cache before memory, in bytes; 32 MiB where the system does not say."""
    try:
        return int(index.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 32 << 20


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


def usable_cpus() -> int:
    """Processors that this process may run on; all of them where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """The machine in a few words, for records of measurements."""
    return {
        "cpu": cpu_name(),
        "cpus": usable_cpus(),
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
