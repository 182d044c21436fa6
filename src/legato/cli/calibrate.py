"""`legato calibrate`: this machine's walls.

Knows: its options and what it prints. Does not know: how they are measured.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from legato.cli.options import config_of, json_option, machine_options, save_option
from legato.cli.terminal import Terminal

SHOWN = ("isa", "threads", "read_gb_s", "int8_tops", "bf16_tflops", "step_overhead_us")


@click.command("calibrate")
@machine_options
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=12.0, show_default=True, help="of measuring in all")
@save_option
@json_option
def command(seconds: float, save: Path | None, as_json: bool, **options: Any) -> None:
    """Measure memory reading, matrix products by rows, and the fixed cost of a step."""
    from legato.assemble import open_backend
    from legato.bench.walls import calibrate
    from legato.cli.saving import save_rows

    config = config_of(options)
    terminal = Terminal(config.color)
    backend, isa, threads = open_backend(config)
    with terminal.bar() as bar:
        walls = calibrate(backend, isa, threads, seconds, bar, config.cache_dir)
    shown = {name: _short(value) for name, value in asdict(walls).items() if name in SHOWN}
    save_rows(save, "calibrate", {"seconds": seconds}, [shown], terminal)
    if as_json:
        terminal.json(shown)
        return
    terminal.answer(f"isa {walls.isa}, {walls.threads} threads", end="\n")
    reading = ", ".join(f"{name}: {rate:.1f}" for name, rate in walls.read_gb_s.items())
    terminal.answer(f"read GB/s by threads   {reading}", end="\n")
    products = {f"{fmt} int8 TOPS": rates for fmt, rates in walls.int8_tops.items()}
    for name, rates in {**products, "bf16 TFLOPS": walls.bf16_tflops}.items():
        rows = ", ".join(f"{key}: {rate:.3f}" for key, rate in rates.items())
        terminal.answer(f"{name + ' by rows':<22} {rows}", end="\n")
    if walls.step_overhead_us is not None:
        terminal.answer(f"step overhead          {walls.step_overhead_us:.0f} us", end="\n")


def _short(value: Any) -> Any:
    """Four significant digits: no measurement here has more."""
    if isinstance(value, dict):
        return {name: _short(v) for name, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
