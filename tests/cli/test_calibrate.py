"""`legato calibrate` on tiny time limits: what it prints, keeps, believes again, and measures anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from legato.bench import compare, walls
from legato.kernels.cpu import NativeBackend, load_library
from legato.measure.calibrated import read_machine, write_machine
from legato.measure.machine import Machine

Run = Callable[..., Any]
QUICK = ("calibrate", "--seconds", "0.01", "--threads", "2")
KEYS = {"isa", "threads", "read_gb_s", "int8_tops", "bf16_tflops", "step_overhead_us"}


@pytest.fixture
def cache(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place of its own, a memory that is read in a moment, and a drift of none."""
    if isinstance(load_library(), str):
        pytest.skip(str(load_library()))
    environ |= {"LEGATO_CACHE_DIR": str(tmp_path / "cache"), "LEGATO_BACKEND": "native"}
    monkeypatch.setattr(walls, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(walls, "DISK_BYTES", 1 << 20)
    monkeypatch.setattr(walls, "look_again", lambda backend, machine: walls.Drift(1.0, 1.0))
    return tmp_path / "cache"


def kept(cache: Path) -> Machine:
    machine = read_machine(cache).machine
    assert machine is not None
    return machine


def test_it_is_measured_once_and_believed_then(run: Run, cache: Path) -> None:
    shown = json.loads(run(*QUICK, "--json").out)
    assert shown.keys() >= KEYS and shown["read_gb_s"].keys() == {"1", "all"} and shown["threads"] == 2
    assert (
        set(shown["int8_tops"]) == {"q4_0", "q4_1", "q8_0"}
        and shown["int8_tops"]["q4_0"].keys() == shown["bf16_tflops"].keys()
    )
    first = kept(cache)
    ran = run(*QUICK)
    assert ran.code == 0 and kept(cache) == first and first.date in ran.err and first.isa in ran.out
    run(*QUICK, "--again")
    assert kept(cache).date >= first.date and kept(cache) != first


def test_a_machine_that_others_use_is_said_to_be_busy(run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "busy_cores", lambda seconds: 1.5)
    ran = run(*QUICK)
    assert ran.code == 0 and "others used 1.5 cores just before" in ran.err and "--again" in ran.err
    monkeypatch.setattr(compare, "busy_cores", lambda seconds: None)  # a system that does not tell
    assert "cores just before" not in run(*QUICK, "--again").err


def test_a_damaged_file_is_named_and_measured_anew(run: Run, cache: Path) -> None:
    run(*QUICK)
    [path] = cache.rglob("*.json")
    path.write_text("{")
    ran = run(*QUICK)
    assert ran.code == 0 and str(path) in ran.err and "damaged" in ran.err
    assert json.loads(path.read_text())["threads"] == 2


def test_a_machine_that_has_changed_is_measured_anew(run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*QUICK)
    write_machine(cache, replace(kept(cache), memory_bytes=1))  # to be told from the next one
    monkeypatch.setattr(walls, "look_again", lambda backend, machine: walls.Drift(0.5, 0.9))
    ran = run(*QUICK)
    assert "reads at 50% and multiplies at 90% of the speed then" in ran.err and "anew" in ran.err
    assert kept(cache).memory_bytes != 1


def test_a_look_tells_another_machine_from_this_one(run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*QUICK)
    machine = kept(cache)
    monkeypatch.undo()
    monkeypatch.setattr(walls, "READ_BYTES", 1 << 20)
    backend = NativeBackend(machine.threads, machine.isa)
    slow = replace(machine, read_gb_s={"1": 0.001, "all": 0.001})
    drift = walls.look_again(backend, slow)
    assert drift.far and drift.reading > 100
    fast = tuple(replace(p, seconds={n: s / 1e4 for n, s in p.seconds.items()}) for p in machine.products)
    assert walls.look_again(backend, replace(machine, products=fast)).multiplying < 0.7


def test_what_was_measured_is_told_where_it_cannot_be_kept(
    run: Run, cache: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    cache.write_text("a file in the way")
    ran = run(*QUICK, "--json", "--save", tmp_path / "saved.json")
    assert ran.code == 0 and json.loads(ran.out).keys() >= KEYS and "note: this is not kept for later" in ran.err
    assert json.loads((tmp_path / "saved.json").read_text())["rows"]
    ran = run(*QUICK, "--save", tmp_path / "none" / "x")
    assert ran.code == 2 and not ran.out and "--save=" in ran.err and "memory" not in ran.err
