"""What an answer costs in joules and in money: measured where the system tells, declared where the user does.

Knows: RAPL's and NVML's counters, declared watts, a price an hour, the rule below. Does not know: requests, terminals.

The rule. A request is billed for the seconds of steps that were its share (`measure.shares`), at the mean power between
its arrival and its end, and at the price an hour. So the bills of requests that ran together add up to the steps' time
and no more: what the machine drew while it had nothing to do is nobody's.

    rapl      processor packages and memory (powercap; energy_uj, which wraps at max_energy_range_uj). One board-wide
              zone (psys) is used instead of the packages where that is all there is
    nvml      all NVIDIA devices, since the driver was loaded
    declared  watts that the user states: no measurement, and called so wherever they are shown

Nothing is guessed: without counters that can be read and without declared watts there is no energy.
"""

from __future__ import annotations

import ctypes
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
LEAST_S = 0.005  # counters move about once a millisecond; closer readings say little about power
MARKS = 4096
WH = 3600.0
Clock = Callable[[], float]


class Counter(Protocol):
    """Joules so far, counted up from anywhere."""

    name: str

    def joules(self) -> float:
        """Raises `OSError` when it can no longer be read."""


@dataclass(slots=True)
class _Zone:
    path: Path
    wraps_at: int
    last: int
    total: int = 0

    def read(self) -> int:
        """Microjoules since the zone was opened. Two readings must be less than one wrap apart (minutes to hours)."""
        now = _number(self.path / "energy_uj")
        moved = now - self.last
        self.total += moved if moved >= 0 else moved + self.wraps_at + 1
        self.last = now
        return self.total


class Rapl:
    """Processor packages and their memory."""

    name = "rapl"

    def __init__(self, zones: Sequence[_Zone]) -> None:
        self._zones = zones

    @classmethod
    def open(cls, root: Path = POWERCAP) -> Rapl | None:
        """None where the system shows none. Raises `PermissionError` where it does not let this process read them."""
        # intel-rapl-mmio shows the same packages a second time
        named = {path: _text(path / "name") for path in sorted(root.glob("intel-rapl:*"))}
        packages = [path for path, name in named.items() if name.startswith("package")]
        memory = [path for path, name in named.items() if name == "dram"]
        board = [path for path, name in named.items() if name == "psys"]
        zones = [*packages, *memory] or board
        return cls([_zone(path) for path in zones]) if zones else None

    def joules(self) -> float:
        return 1e-6 * sum(zone.read() for zone in self._zones)


class Nvml:
    """NVIDIA devices, through the driver's own library."""

    name = "nvml"

    def __init__(self, library: ctypes.CDLL, devices: Sequence[ctypes.c_void_p]) -> None:
        self._library, self._devices = library, devices

    @classmethod
    def open(cls) -> Nvml | None:
        """None without a driver, or with devices that do not count energy (before Volta)."""
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            if library.nvmlInit_v2():
                return None
            count = ctypes.c_uint()
            library.nvmlDeviceGetCount_v2(ctypes.byref(count))
            devices = [ctypes.c_void_p() for _ in range(count.value)]
            for i, device in enumerate(devices):
                if library.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(device)):
                    return None
            found = cls(library, devices)
            found.joules()
        except (OSError, AttributeError):
            return None
        return found if devices else None

    def joules(self) -> float:
        total, millijoules = 0, ctypes.c_ulonglong()
        for device in self._devices:
            if code := self._library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
                raise OSError(f"nvmlDeviceGetTotalEnergyConsumption: error {code}")
            total += millijoules.value
        return 1e-3 * total


class Meter:
    """This machine's power between any two moments of which it was told. One thread at a time.

    source  "rapl", "nvml", "rapl+nvml", or "declared"
    """

    def __init__(self, counters: Sequence[Counter], watts: float | None, clock: Clock = time.perf_counter) -> None:
        assert counters or watts is not None
        self._counters, self._watts, self._clock = counters, watts, clock
        self.source = "+".join(counter.name for counter in counters) or "declared"
        self._times: deque[float] = deque(maxlen=MARKS)
        self._joules: deque[float] = deque(maxlen=MARKS)
        self.mark()

    def mark(self) -> None:
        """Something begins or ends now. Readings closer than LEAST_S are left out."""
        now = self._clock()
        if not self._counters or (self._times and now - self._times[-1] < LEAST_S):
            return
        try:
            joules = sum(counter.joules() for counter in self._counters)
        except OSError:  # gone since: what was read before still counts
            return
        self._times.append(now)
        self._joules.append(joules)

    def watts(self, begin: float, end: float) -> float | None:
        """Mean power between two readings of the clock; between marks it is taken to be even. None: not known."""
        if not self._counters:
            return self._watts
        if len(self._times) < 2:
            return None
        times, joules = list(self._times), list(self._joules)
        first = max(0, bisect_right(times, begin) - 1)
        last = min(len(times) - 1, bisect_right(times, end))
        first = min(first, last - 1)  # of a moment shorter than the marks' distance, the nearest pair
        begin, end = max(begin, times[first]), min(end, times[last])
        if end <= begin:
            begin, end = times[first], times[last]
        drawn = _between(times, joules, end) - _between(times, joules, begin)
        return drawn / (end - begin)


@dataclass(frozen=True, slots=True)
class Bill:
    """Of one request or run. `seconds` of the machine; energy and price are None where nobody said."""

    seconds: float
    energy_j: float | None = None
    energy_source: str | None = None
    price: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What is known, and nothing else."""
        shown: dict[str, Any] = {"machine_ms": round(1e3 * self.seconds, 3)}
        if self.energy_j is not None:
            shown |= {"energy_j": float(f"{self.energy_j:.6g}"), "energy_source": self.energy_source}
        if self.price is not None:
            shown["price"] = float(f"{self.price:.6g}")
        return shown

    def __add__(self, other: Bill) -> Bill:
        def both(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a + b

        energy, price = both(self.energy_j, other.energy_j), both(self.price, other.price)
        return Bill(self.seconds + other.seconds, energy, self.energy_source, price)


class Rates:
    """What a second of the machine costs: in joules by a meter, in money by a price an hour."""

    def __init__(self, meter: Meter | None, price_per_hour: float | None) -> None:
        self.meter, self._price = meter, price_per_hour

    def mark(self) -> None:
        if self.meter is not None:
            self.meter.mark()

    def bill(self, seconds: float, begin: float, end: float) -> Bill:
        """`seconds` of the machine, of a life from `begin` to `end` of the clock."""
        price = None if self._price is None else self._price * seconds / WH
        watts = None if self.meter is None else self.meter.watts(begin, end)
        if self.meter is None or watts is None:
            return Bill(seconds, price=price)
        return Bill(seconds, watts * seconds, self.meter.source, price)


class Tab:
    """The bill of a whole run that is being measured: open it at its begin, `row` at its end."""

    def __init__(self, rates: Rates | None, clock: Clock = time.perf_counter) -> None:
        self._rates, self._clock, self._begin = rates, clock, clock()
        if rates is not None:
            rates.mark()

    def row(self, seconds: float, tokens: int) -> dict[str, Any]:
        """Fields for a result's row: of `seconds` in which `tokens` were written; nothing where nobody asked."""
        if self._rates is None:
            return {}
        self._rates.mark()
        bill = self._rates.bill(seconds, self._begin, self._clock())
        shown = bill.as_json()
        del shown["machine_ms"]  # the row says how long it took
        if tokens and bill.energy_j is not None:
            shown["energy_j_per_token"] = float(f"{bill.energy_j / tokens:.6g}")
        if tokens and bill.price is not None:
            shown["price_per_million_tokens"] = float(f"{1e6 * bill.price / tokens:.6g}")
        return shown


def open_rates(
    energy: bool,
    watts: float | None,
    price_per_hour: float | None,
    *,
    gpu: bool = False,
    counters: bool = True,
    root: Path = POWERCAP,
    clock: Clock = time.perf_counter,
) -> tuple[Rates | None, list[str]]:
    """(the rates, what to know about them); None when neither energy nor a price was asked for.

    energy    measure it; declared watts are used where it cannot be measured, and ask for energy themselves
    gpu       count NVIDIA devices, too
    counters  False: the work is done on another machine, so only declared watts count
    """
    if not energy and watts is None and price_per_hour is None:
        return None, []
    found: list[Counter] = []
    notes: list[str] = []
    if energy and counters:
        try:
            if (rapl := Rapl.open(root)) is not None:
                found.append(rapl)
        except PermissionError:
            notes.append(f"energy: RAPL's counters cannot be read by this user; chmod a+r {root}/*/energy_uj lets it")
        except OSError as error:
            notes.append(
                f"energy: RAPL's counters cannot be read ({error.strerror or error}); --watts declares instead"
            )
        if gpu and (nvml := Nvml.open()) is not None:
            found.append(nvml)
    if energy and not found and watts is None:
        why = "this system shows no counters (RAPL, NVML)" if counters else "another machine's counters are not seen"
        notes.append(f"energy: {why}, so none is told; --watts declares what the machine draws")
    meter = Meter(found, watts, clock) if found or watts is not None else None
    return Rates(meter, price_per_hour), notes


def _between(times: Sequence[float], joules: Sequence[float], at: float) -> float:
    """The counter at a moment between two marks."""
    i = min(max(bisect_right(times, at) - 1, 0), len(times) - 2)
    part = (at - times[i]) / (times[i + 1] - times[i])
    return joules[i] + part * (joules[i + 1] - joules[i])


def _zone(path: Path) -> _Zone:
    return _Zone(path, _number(path / "max_energy_range_uj"), _number(path / "energy_uj"))


def _number(path: Path) -> int:
    return int(path.read_text().strip())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
