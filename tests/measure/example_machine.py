"""A calibrated machine for tests, near a server's two cores. No test here measures."""

from __future__ import annotations

from legato.measure.machine import AttentionRate, Machine, ProductRate, RowCosts, cpu_name
from legato.version import __version__

INPUTS = {1: 3e-9, 4: 1.5e-9, 16: 1e-9, 64: 1e-9, 256: 1e-9}
Q4 = {1: 13e-12, 4: 21e-12, 16: 70e-12, 64: 250e-12, 256: 980e-12}
Q8 = {1: 22e-12, 4: 40e-12, 16: 100e-12, 64: 290e-12, 256: 1100e-12}

MACHINE = Machine(
    name=cpu_name(),
    isa="avx512",
    threads=2,
    version=__version__,
    date="2026-11-22T10:00:00+00:00",
    memory_bytes=1 << 34,
    read_gb_s={"1": 30.0, "all": 45.0},
    int8_tops={"q4_0": {"1": 0.15, "256": 0.52}},
    step_overhead_us=70.0,
    disk_gb_s=1.5,
    products=(ProductRate("q4_0", 4.5, Q4), ProductRate("q8_0", 8.5, Q8)),
    rows=RowCosts(INPUTS, 1e-6, 2e-4, 1.1e-5, 1.4e-6),
    attention=(
        AttentionRate("int8", 2e-6, 1.5e-9, 5e-7, 2.2e-11, 1.2e-11, 1.1e-11, start=5e-6),
        AttentionRate("bf16", 2e-6, 1.5e-9, 5e-7, 1e-11, 3.6e-11, 3.2e-11),
        AttentionRate("int8", 2e-6, 1e-9, 5e-7, 2e-11, 8e-12, 9e-12, 128),
    ),
)
