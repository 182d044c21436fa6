"""Machines by name, as their makers' data sheets describe them, and how much of that is assumed to be reached.

Knows: memory, bandwidth, arithmetic rates without sparsity. Does not know: what was measured (see `Machine`).

Sources: NVIDIA's data sheets of H100 SXM, H200 SXM, A100 80GB SXM and L4, and the Ada architecture's white paper (RTX
4090, 32-bit accumulation); Apple's press releases for bandwidth and memory, and for the GPU two operations a cycle of
each of a core's 128 lanes at the usual clock; the desktop: two channels at 5,600 million transfers of 8 bytes, 8 cores
at 4.5 GHz with two 256-bit multiply-adds (floats) or VNNI (int8) a cycle.
The parts that are assumed to be reached come from published measurements: 70 % of H100's bandwidth on weights and 89 %
on keys and values (vLLM, Llama 3.1 8B, April 2026), 68 % of A100's (gpt-fast's README).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from legato.errors import UsageError
from legato.measure.machine import Machine

_FP8 = 9.0  # bits up to which a weight of a byte, scales included, still counts as one
_LESS = 7.9  # below a byte weights are widened first: products run at the rate of 16 bits


@dataclass(frozen=True, slots=True)
class Device:
    """One data sheet.

    memory_gb  10^9 bytes (GPUs), or the largest memory it is sold with
    gb_s       10^9 bytes a second
    tops       10^12 operations a second, by the bits of a weight up to which the rate holds
    usable     part of the memory that weights, keys and values may take
    chunk      rows of a prompt that engines compute in one step there
    """

    name: str
    title: str
    memory_gb: float
    gb_s: float
    tops: Mapping[float, float]
    usable: float
    chunk: int
    layer_us: float
    step_us: float

    def machine(self) -> Machine:
        return Machine.from_sheet(
            self.title,
            memory_gb_s=self.gb_s,
            tops=self.tops,
            memory_bytes=round(self.memory_gb * 1e9),
            layer_us=self.layer_us,
            step_overhead_us=self.step_us,
        )


def _gpu(name: str, title: str, memory_gb: float, gb_s: float, half: float, fp8: float | None) -> Device:
    tops = {16.0: half} if fp8 is None else {_LESS: half, _FP8: fp8, 16.0: half}
    return Device(name, title, memory_gb, gb_s, tops, usable=0.9, chunk=2048, layer_us=5.0, step_us=200.0)


def _apple(name: str, memory_gib: int, gb_s: float, tflops: float) -> Device:
    title = f"Apple {name.upper().replace('-', ' ').title()}"
    memory_gb = memory_gib * 2**30 / 1e9
    return Device(name, title, memory_gb, gb_s, {16.0: tflops}, usable=0.75, chunk=512, layer_us=10.0, step_us=300.0)


DEVICES: tuple[Device, ...] = (
    _gpu("h100", "NVIDIA H100 SXM 80 GB", 80, 3350, 989.4, 1978.9),
    _gpu("h200", "NVIDIA H200 SXM 141 GB", 141, 4800, 989.4, 1978.9),
    _gpu("a100", "NVIDIA A100 SXM 80 GB", 80, 2039, 312, None),
    _gpu("l4", "NVIDIA L4 24 GB", 24, 300, 121, 242.5),
    _gpu("rtx-4090", "NVIDIA GeForce RTX 4090 24 GB", 24, 1008, 165.2, 330.3),
    _apple("m1", 16, 68.25, 2.6),
    _apple("m1-pro", 32, 200, 5.2),
    _apple("m1-max", 64, 400, 10.4),
    _apple("m1-ultra", 128, 800, 20.8),
    _apple("m2", 24, 100, 3.6),
    _apple("m2-pro", 32, 200, 6.8),
    _apple("m2-max", 96, 400, 13.6),
    _apple("m2-ultra", 192, 800, 27.2),
    _apple("m3", 24, 100, 3.6),
    _apple("m3-pro", 36, 150, 6.4),
    _apple("m3-max", 128, 400, 14.3),
    _apple("m3-ultra", 512, 819, 28.6),
    _apple("m4", 32, 120, 4.0),
    _apple("m4-pro", 64, 273, 8.1),
    _apple("m4-max", 128, 546, 16.2),
    Device(
        "ddr5-desktop",
        "desktop, 8 cores, 2 channels DDR5-5600, 64 GB",
        memory_gb=64 * 2**30 / 1e9,
        gb_s=89.6,
        tops={_FP8: 4.6, 32.0: 1.15},
        usable=0.85,
        chunk=512,
        layer_us=10.0,
        step_us=300.0,
    ),
)


def find_device(name: str) -> Device:
    """The data sheet that a name means; raises `UsageError` with near names and all there are."""
    wanted = _plain(name)
    known = {_plain(d.name): d for d in DEVICES}
    aliases = {"4090": "rtx4090", "nvidial4": "l4", "desktop": "ddr5desktop", "ddr5": "ddr5desktop"}
    wanted = aliases.get(wanted, wanted.removeprefix("apple").removeprefix("nvidia"))
    if wanted in known:
        return known[wanted]
    near = [known[key].name for key in get_close_matches(wanted, known, 2, 0.5)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = name if len(name) <= 40 else name[:37] + "..."
    names = ", ".join(d.name for d in DEVICES)
    raise UsageError(f"no machine {shown!r}; {hint}known are: this (after `legato calibrate`), {names}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("sxm").removesuffix("80gb")
