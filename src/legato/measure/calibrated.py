"""This machine's rates on disk: one small JSON file for each processor, instruction set and number of threads.

Knows: where they are kept, what makes a file fit this machine, when one is damaged. Does not know: how rates are
measured, what is predicted with them.

    read_machine(config.cache_dir)                 the one last measured here, whatever it was measured with
    read_machine(config.cache_dir, isa, threads)   the one measured with just these
    widest_machine(config.cache_dir, isa)          the one with the most threads, for what more of them would bring
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from legato.errors import UsageError
from legato.measure.machine import Machine, cpu_name
from legato.version import __version__

FOLDER = "machines"
AGAIN = "run `legato calibrate` (some 15 seconds)"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was found. `note` is a line for a person: why there is no machine, or "" where there is one.

    damaged  the file that cannot be used, if that is why
    """

    machine: Machine | None
    note: str = ""
    damaged: Path | None = None


def machine_path(cache_dir: Path, isa: str, threads: int, cpu: str | None = None) -> Path:
    """Where the rates of this processor (or of another one, by name) are kept."""
    return cache_dir / FOLDER / f"{_slug(cpu or cpu_name())}_{isa}_{threads}.json"


def write_machine(cache_dir: Path, machine: Machine) -> Path:
    """Keeps it; whoever reads meanwhile sees the old one or the new one. Raises `UsageError` where it cannot."""
    import msgspec

    path = machine_path(cache_dir, machine.isa, machine.threads, machine.name)
    passing = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        passing.write_bytes(msgspec.json.format(msgspec.json.encode(machine)) + b"\n")
        passing.replace(path)
    except OSError as error:
        with suppress(OSError):
            passing.unlink()
        raise UsageError(
            f"{path}: {error.strerror or error}; choose a place that can be written: LEGATO_CACHE_DIR"
        ) from None
    return path


def read_machine(cache_dir: Path, isa: str | None = None, threads: int | None = None) -> Calibrated:
    """The rates of this machine as last measured with that instruction set and number of threads (None: any)."""
    found = _paths(cache_dir, isa, threads)
    if not found:
        how = "" if isa is None else f" with {isa} and {threads} threads"
        return Calibrated(None, f"this machine was never calibrated{how}: {AGAIN}")
    return _read(found[-1])


def widest_machine(cache_dir: Path, isa: str) -> Machine | None:
    """Its rates with the most threads that were measured with that instruction set, whenever that was."""
    found = (_read(path).machine for path in _paths(cache_dir, isa, None))
    return max((machine for machine in found if machine is not None), key=lambda m: m.threads, default=None)


def _paths(cache_dir: Path, isa: str | None, threads: int | None) -> list[Path]:
    """The last measured one at the end."""
    pattern = f"{_slug(cpu_name())}_{isa or '*'}_{threads or '*'}.json"
    try:
        return sorted((cache_dir / FOLDER).glob(pattern), key=lambda path: path.stat().st_mtime)
    except OSError:
        return []


def _read(path: Path) -> Calibrated:
    import msgspec  # only here: a machine that was never calibrated has nothing to decode

    try:
        machine = msgspec.json.decode(path.read_bytes(), type=Machine)
        _check(machine)
    except (OSError, msgspec.DecodeError, ValueError) as error:
        said = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        return Calibrated(None, f"{path} is damaged ({said}): {AGAIN}", path)
    if machine.name != cpu_name():
        return Calibrated(None, f"{path} is of another processor ({machine.name}): {AGAIN}", path)
    if machine.version != __version__:
        return Calibrated(None, f"{path} was measured with version {machine.version}, this is {__version__}: {AGAIN}")
    return Calibrated(machine)


def _check(machine: Machine) -> None:
    """Raises ValueError where numbers cannot be rates: steps that take no time would be predicted from them."""
    rates = [("read_gb_s", rate) for rate in machine.read_gb_s.values()]
    rates += [(f"products.{p.format}", s) for p in machine.products for s in p.seconds.values()]
    if "all" not in machine.read_gb_s or not all(p.seconds for p in machine.products):
        raise ValueError("rates are missing")
    for name, rate in rates:
        if not (isfinite(rate) and rate > 0):
            raise ValueError(f"{name} {rate} is not a rate")
    costs = machine.rows
    if bool(machine.products) != (costs is not None) or bool(machine.products) != bool(machine.attention):
        raise ValueError("rates are missing")
    small = [costs.matrix, costs.host, costs.stream, costs.row, *costs.inputs.values()] if costs else []
    small += [
        x for a in machine.attention for x in (a.layer, a.number, a.stream, a.byte, a.pair, a.prompt_pair, a.start)
    ]
    if not all(isfinite(x) and x >= 0 for x in small):
        raise ValueError("a cost is negative or no number")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "unknown"
