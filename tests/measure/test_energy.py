"""Joules and money: counters of a made-up system, declared watts, and bills that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.measure.energy import Bill, Meter, Nvml, Rapl, Rates, Tab, open_rates

RANGE = 262_143_328_850  # microjoules, as an ordinary server shows


class System:
    """A powercap tree; `draw` moves its counters."""

    def __init__(self, root: Path, zones: dict[str, str]) -> None:
        self.root, self.now = root, 0.0
        for path, name in zones.items():
            folder = root / path
            folder.mkdir(parents=True)
            (folder / "name").write_text(name + "\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
            (folder / "energy_uj").write_text("1000\n")

    def clock(self) -> float:
        return self.now

    def draw(self, seconds: float, **watts: float) -> None:
        self.now += seconds
        for path in self.root.iterdir():
            name = (path / "name").read_text().strip().replace("-", "_")
            counter = path / "energy_uj"
            moved = int(counter.read_text()) + round(1e6 * seconds * watts.get(name, 0.0))
            counter.write_text(f"{moved % (RANGE + 1)}\n")


SERVER = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl-mmio:0": "package-0",  # the first one again, by another way
}


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path / "powercap", SERVER)


def meter_of(system: System) -> Meter:
    rates, notes = open_rates(True, None, None, root=system.root, clock=system.clock)
    assert rates is not None and rates.meter is not None and not notes
    return rates.meter


def test_packages_and_memory_count_and_cores_are_in_the_packages(system: System) -> None:
    meter = meter_of(system)
    assert meter.source == "rapl"
    system.draw(2.0, package_0=30, package_1=20, core=25, dram=5)
    meter.mark()
    assert meter.watts(0.0, 2.0) == pytest.approx(55)


def test_a_counter_that_wraps_goes_on(system: System) -> None:
    (system.root / "intel-rapl:0" / "energy_uj").write_text(f"{RANGE - 10_000_000}\n")
    meter = meter_of(system)
    for _ in range(3):
        system.draw(1.0, package_0=40)
        meter.mark()
    assert meter.watts(0.0, 3.0) == pytest.approx(40, abs=1e-5)


def test_power_between_marks_is_even(system: System) -> None:
    meter = meter_of(system)
    for watts in (10, 30, 50):
        system.draw(1.0, package_0=watts)
        meter.mark()
    assert meter.watts(0.5, 1.5) == pytest.approx(20)
    assert meter.watts(1.0, 3.0) == pytest.approx(40)
    assert meter.watts(1.2, 1.3) == pytest.approx(30)
    assert meter.watts(-5.0, 9.0) == pytest.approx(30)  # before the first and after the last nothing is known
    assert meter.watts(7.0, 8.0) == pytest.approx(50)


def test_readings_too_close_together_are_left_out(system: System) -> None:
    meter = meter_of(system)
    for _ in range(1000):
        system.draw(0.001, package_0=10)
        meter.mark()
    assert len(meter._times) <= 202
    assert meter.watts(0.0, 1.0) == pytest.approx(10)


@pytest.mark.parametrize("zones", [{"intel-rapl:0": "psys"}, {"intel-rapl:0": "psys", "intel-rapl:1": "package-0"}])
def test_the_board_counts_where_it_is_all_there_is(tmp_path: Path, zones: dict[str, str]) -> None:
    system = System(tmp_path / "powercap", zones)
    meter = meter_of(system)
    system.draw(1.0, psys=100, package_0=40)
    meter.mark()
    assert meter.watts(0.0, 1.0) == pytest.approx(40 if len(zones) > 1 else 100)


def test_no_counters_and_nothing_declared_is_no_energy(tmp_path: Path) -> None:
    rates, (note,) = open_rates(True, None, None, root=tmp_path)
    assert rates is not None and rates.meter is None and "--watts" in note
    assert rates.bill(2.0, 0.0, 2.0).as_json() == {"machine_ms": 2000.0}
    assert open_rates(False, None, None, root=tmp_path) == (None, [])
    assert Rapl.open(tmp_path) is None


def test_counters_that_are_closed_to_us_are_named(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(root: Path) -> Rapl:
        raise PermissionError

    monkeypatch.setattr(Rapl, "open", closed)
    rates, notes = open_rates(True, 65.0, None, root=system.root)
    assert rates is not None and rates.meter is not None and rates.meter.source == "declared"
    assert len(notes) == 1 and "cannot be read by this user" in notes[0]


def test_declared_watts_are_called_so_and_give_way_to_counters(system: System) -> None:
    rates, notes = open_rates(False, 65.0, 0.36, root=system.root, clock=system.clock)
    assert rates is not None and not notes
    assert rates.bill(2.0, 0.0, 9.0).as_json() == {
        "machine_ms": 2000.0,
        "energy_j": 130.0,
        "energy_source": "declared",
        "price": 0.0002,
    }
    rates, _ = open_rates(True, 65.0, None, root=system.root, clock=system.clock)
    assert rates is not None and rates.meter is not None and rates.meter.source == "rapl"
    elsewhere, notes = open_rates(True, None, None, root=system.root, counters=False)
    assert elsewhere is not None and elsewhere.meter is None and "another machine" in notes[0]


def test_a_counter_that_disappears_leaves_what_was_read(system: System) -> None:
    meter = meter_of(system)
    system.draw(1.0, package_0=10)
    meter.mark()
    (system.root / "intel-rapl:0" / "energy_uj").unlink()
    system.now += 1.0
    meter.mark()
    assert meter.watts(0.0, 2.0) == pytest.approx(10)


@settings(derandomize=True, max_examples=100)
@given(
    st.lists(st.tuples(st.floats(0.05, 3), st.floats(1, 300), st.floats(0, 1)), min_size=1, max_size=20),
    st.floats(0.01, 10),
)
def test_bills_of_steps_shared_by_two_add_up_to_what_was_drawn(
    steps: list[tuple[float, float, float]], price: float
) -> None:
    """Two requests that live from the first step to the last: seconds, joules and money are divided, not doubled."""

    class Drawn:
        name = "rapl"
        now = total = 0.0

        def joules(self) -> float:
            return self.total

    counter = Drawn()
    rates = Rates(Meter([counter], None, lambda: counter.now), price)
    for seconds, watts, _ in steps:
        counter.now += seconds
        counter.total += seconds * watts
        rates.mark()
    first = rates.bill(sum(s * part for s, _, part in steps), 0.0, counter.now)
    second = rates.bill(sum(s * (1 - part) for s, _, part in steps), 0.0, counter.now)
    both = first + second
    assert both.seconds == pytest.approx(counter.now)
    assert both.energy_j == pytest.approx(counter.total) and both.price == pytest.approx(price * counter.now / 3600)
    assert both.energy_source == "rapl"


def test_what_one_of_two_does_not_know_their_sum_does_not() -> None:
    assert (Bill(1.0, 2.0, "rapl", 0.5) + Bill(1.0)).as_json() == {"machine_ms": 2000.0}


def test_nvml_where_there_is_no_driver() -> None:
    found = Nvml.open()
    assert found is None or found.joules() >= 0


class Driver:
    """NVML's own functions, for two devices that have drawn 3 and 5 joules."""

    fails = False

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int, out: Any) -> int:
        out._obj.value = (3000, 5000)[device]
        return 999 if self.fails else 0


def test_devices_are_added_up() -> None:
    driver = Driver()
    found = Nvml(driver, [0, 1])  # type: ignore[arg-type, list-item]
    assert found.joules() == 8.0
    driver.fails = True
    with pytest.raises(OSError, match="error 999"):
        found.joules()


def test_a_run_has_a_bill_by_token() -> None:
    rates, _ = open_rates(False, 50.0, 3.6)
    assert Tab(rates).row(10.0, 1000) == {
        "energy_j": 500.0,
        "energy_source": "declared",
        "price": 0.01,
        "energy_j_per_token": 0.5,
        "price_per_million_tokens": 10.0,
    }
    assert Tab(None).row(10.0, 1000) == {}
    assert "energy_j_per_token" not in Tab(rates).row(0.0, 0)
