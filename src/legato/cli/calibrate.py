"""`legato calibrate`: this machine's walls, kept for predictions.

Knows: its options, what it prints, when a machine is measured again. Does not know: how it is measured.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from legato.cli.options import FiniteRange, config_of, json_option, machine_options, save_option
from legato.cli.terminal import Terminal
from legato.config import Config
from legato.errors import LegatoError
from legato.measure.machine import Machine

SHOWN = ("name", "isa", "threads", "date", "read_gb_s", "int8_tops", "bf16_tflops", "step_overhead_us", "disk_gb_s")


@click.command("calibrate")
@machine_options
@click.option("--again", is_flag=True, help="measure also where it was done before and nothing has changed")
@click.option("--seconds", type=FiniteRange(0.01, 60), default=12.0, show_default=True, help="of measuring in all")
@save_option
@json_option
def command(again: bool, seconds: float, save: Path | None, as_json: bool, **options: Any) -> None:
    """Measure this machine: memory, matrix products by rows, looking back, the fixed cost of a step, disk.

    What was measured is kept; a later call looks for 0.3 s whether it still holds, and measures anew if it does not.
    """
    from legato.cli.saving import keeping

    config = config_of(options)
    terminal = Terminal(config.color)
    with keeping("calibrate", save, None, terminal) as kept:
        kept.settings["seconds"] = seconds
        machine = calibrated(config, terminal, seconds=seconds, again=again)
        shown = {name: _short(value) for name, value in asdict(machine).items() if name in SHOWN}
        shown["attention"] = [asdict(rate) for rate in machine.attention]
        kept.rows.append(shown)
    if as_json:
        terminal.json(shown)
    else:
        _tell(machine, terminal)


def calibrated(config: Config, terminal: Terminal, *, seconds: float = 12.0, again: bool = False) -> Machine:
    """This machine's rates: those that are kept, if they still hold; else measured now, with progress, and kept."""
    from legato.assemble import open_backend
    from legato.bench.compare import BUSY_CORES, LOOK_S, busy_cores
    from legato.bench.found import BUSY
    from legato.bench.walls import SMALL_S, calibrate, look_again
    from legato.measure.calibrated import read_machine, write_machine

    backend, isa, threads = open_backend(config)
    found = read_machine(config.cache_dir, isa, threads)
    if found.damaged is not None:
        terminal.note(f"{found.note.rpartition(': ')[0]}; measuring anew")
    if found.machine is not None and not again:
        drift = look_again(backend, found.machine)
        if not drift.far:
            terminal.dim(f"measured {found.machine.date}; now it {drift.describe()} (--again measures anew)")
            return found.machine
        terminal.note(f"measured {found.machine.date}, but now it {drift.describe()}: measuring anew")
    if seconds < SMALL_S:
        terminal.note(
            f"in less than {SMALL_S:g} s models are so small that caches hold them, and rates come out too good: "
            "calibrate --again without --seconds before trusting a plan"
        )
    others = busy_cores(LOOK_S)
    with terminal.bar() as bar:
        machine = calibrate(backend, isa, threads, seconds, bar, config.cache_dir)
    if others is not None and others > BUSY_CORES:
        terminal.note(f"others used {others:.1f} cores just before: calibrate --again when this machine is quiet")
    elif machine.spread[1] > BUSY:
        factor = f"{machine.spread[1]:.1f} times"
        terminal.note(f"this machine is busy, steps took up to {factor} as long: calibrate --again when it is quiet")
    try:
        terminal.dim(f"kept in {write_machine(config.cache_dir, machine)}")
    except LegatoError as error:
        terminal.note(f"this is not kept for later: {error}")
    return machine


def _tell(machine: Machine, terminal: Terminal) -> None:
    def line(name: str, text: str) -> None:
        terminal.answer(f"{name:<24} {text}", end="\n")

    line(machine.name, f"isa {machine.isa}, {machine.threads} threads")
    line("read GB/s by threads", ", ".join(f"{name}: {rate:.1f}" for name, rate in machine.read_gb_s.items()))
    products = {f"{fmt} int8 TOPS": rates for fmt, rates in machine.int8_tops.items()}
    for name, rates in {**products, "bf16 TFLOPS": machine.bf16_tflops}.items():
        if rates:
            line(name + " by rows", ", ".join(f"{key}: {rate:.3f}" for key, rate in rates.items()))
    for rate in machine.attention:
        deep, prompt = 1e-9 / max(rate.byte, 1e-15), 2e-12 / max(rate.prompt_pair, 1e-18)
        line(
            f"attention {rate.kv_format}, heads of {rate.head_dim}",
            f"reads {deep:.1f} GB/s of keys and values, prompts {2 * prompt:.3f} TOPS",
        )
    if machine.step_overhead_us is not None:
        line("step overhead", f"{machine.step_overhead_us:.0f} us")
    if machine.rows is not None:
        host, matrix = 1e6 * machine.rows.host, 1e6 * machine.rows.matrix
        line(
            "around a model",
            f"host {host:.0f} us a step, {1e6 * machine.rows.stream:.1f} us a stream; {matrix:.1f} us a product",
        )
    if machine.disk_gb_s is not None:
        line("disk", f"{machine.disk_gb_s:.2f} GB/s")


def _short(value: Any) -> Any:
    """Four significant digits: no measurement here has more."""
    if isinstance(value, dict):
        return {name: _short(v) for name, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
