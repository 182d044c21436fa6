"""A machine's rates on disk: what comes back is what was kept, and nothing else is ever believed.

No test measures anything; one machine is made up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from example_machine import MACHINE

from legato.errors import UsageError
from legato.measure.calibrated import machine_path, read_machine, widest_machine, write_machine


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    path = write_machine(tmp_path, MACHINE)
    assert path == machine_path(tmp_path, "avx512", 2) and path.is_file()
    for found in (read_machine(tmp_path), read_machine(tmp_path, "avx512", 2)):
        assert found.machine == MACHINE and found.note == "" and found.damaged is None
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_machine_never_calibrated_says_so_in_a_line(tmp_path: Path) -> None:
    write_machine(tmp_path, MACHINE)
    for found in (
        read_machine(tmp_path / "elsewhere"),
        read_machine(tmp_path, "avx2", 2),
        read_machine(tmp_path, "avx512", 3),
    ):
        assert found.machine is None and found.damaged is None
        assert "never calibrated" in found.note and "legato calibrate" in found.note and "\n" not in found.note


def test_the_last_one_measured_is_taken(tmp_path: Path) -> None:
    for age, threads in enumerate((1, 4, 2)):
        path = write_machine(tmp_path, replace(MACHINE, threads=threads))
        os.utime(path, (1e9 - 100 * age,) * 2)
    found = read_machine(tmp_path).machine
    assert found is not None and found.threads == 1


def test_more_threads_are_known_whenever_they_were_measured(tmp_path: Path) -> None:
    assert widest_machine(tmp_path, MACHINE.isa) is None
    for age, threads in enumerate((1, 4, 2)):
        path = write_machine(tmp_path, replace(MACHINE, threads=threads))
        os.utime(path, (1e9 - 100 * age,) * 2)
    found = widest_machine(tmp_path, MACHINE.isa)
    assert found is not None and found.threads == 4
    machine_path(tmp_path, MACHINE.isa, 4).write_text("rates")
    found = widest_machine(tmp_path, MACHINE.isa)
    assert found is not None and found.threads == 2
    assert widest_machine(tmp_path, "portable") is None


DAMAGES: dict[str, Callable[[dict[str, object]], object]] = {
    "half a file": lambda kept: json.dumps(kept)[:300],
    "not JSON": lambda kept: "rates",
    "not an object": lambda kept: [kept],
    "a field missing": lambda kept: {k: v for k, v in kept.items() if k != "read_gb_s"},
    "a text for a number": lambda kept: kept | {"threads": "two"},
    "no reading speed": lambda kept: kept | {"read_gb_s": {"1": 30.0}},
    "a rate of nothing": lambda kept: kept | {"read_gb_s": {"1": 30.0, "all": 0.0}},
    "a negative rate": lambda kept: kept | {"products": [{"format": "q4_0", "bits": 4.5, "seconds": {"1": -1e-9}}]},
    "no rows at all": lambda kept: kept | {"products": [{"format": "q4_0", "bits": 4.5, "seconds": {}}]},
    "products alone": lambda kept: kept | {"rows": None, "attention": []},
    "infinite": lambda kept: json.dumps(kept).replace("70.0", "1e999").replace("2e-11", "-1e99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_not_believed(tmp_path: Path, damage: str) -> None:
    path = write_machine(tmp_path, MACHINE)
    broken = DAMAGES[damage](json.loads(path.read_text()))
    path.write_text(broken if isinstance(broken, str) else json.dumps(broken))
    found = read_machine(tmp_path)
    assert found.machine is None and found.damaged == path
    assert str(path) in found.note and "damaged" in found.note and "\n" not in found.note


def test_a_file_of_another_processor_or_version_is_not_believed(tmp_path: Path) -> None:
    path = write_machine(tmp_path, MACHINE)
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"name": "another"}))
    assert "another processor" in read_machine(tmp_path).note
    path.write_text(json.dumps(kept | {"version": "0.0.1"}))
    found = read_machine(tmp_path)
    assert found.machine is None and "version 0.0.1" in found.note and found.damaged is None


def test_no_place_to_keep_it_is_a_line_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="LEGATO_CACHE_DIR"):
        write_machine(tmp_path / "file", MACHINE)
