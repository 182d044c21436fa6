"""What measuring a machine found, and the `Machine` that follows from it.

Knows: samples of steps, of readings, of the host's time; which of them tell which rate. Does not know: how they were
taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

from legato import __version__
from legato.bench.rates import LAPS, Load, Shape, Steps, attention_rates, fit, product_rates
from legato.measure.machine import Machine, ProductRate, RowCosts, cpu_name, total_memory
from legato.weights.tensor import WeightFormat

QUANTILE = 0.25  # of a step's repetitions: below it there is luck, above it a machine has neighbours
SURE = (0.88, 1.18)  # the least that predictions may be off, where nothing varied
BUSY = 1.6  # times that a step took among its longest repetitions: then other programs were measured too


@dataclass(slots=True)
class Found:
    """Samples of one or more rounds; two are added up by `+`.

    reading    10^9 bytes a second, by number of threads ("1" and "all")
    overheads  seconds of engine steps around almost nothing
    host       seconds of engine steps outside the backend's call, by (sequences, rows)
    disk       10^9 bytes a second
    steps      of made-up models
    """

    reading: dict[str, list[float]] = field(default_factory=dict)
    overheads: list[float] = field(default_factory=list)
    host: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    disk: list[float] = field(default_factory=list)
    steps: dict[tuple[Shape, Load], Steps] = field(default_factory=dict)

    def __add__(self, other: Found) -> Found:
        both = Found(disk=self.disk + other.disk, overheads=self.overheads + other.overheads)
        for found in (self, other):
            for name, rates in found.reading.items():
                both.reading.setdefault(name, []).extend(rates)
            for key, seconds in found.host.items():
                both.host.setdefault(key, []).extend(seconds)
            for (shape, load), steps in found.steps.items():
                both.of(shape, load).taken.extend(steps.taken)
        return both

    def of(self, shape: Shape, load: Load) -> Steps:
        """The steps of that kind, to be added to."""
        return self.steps.setdefault((shape, load), Steps(shape, load))

    def machine(self, isa: str, threads: int, quantile_: float = QUANTILE) -> Machine:
        """`quantile_`: which of a step's repetitions counts, from the shortest (0) to the longest (1)."""
        steps = [s for s in self.steps.values() if s.taken]
        products, costs = self._products(steps, quantile_) if steps else ((), None)
        shown = {p.format: {str(n): 2e-12 * n / s for n, s in p.seconds.items()} for p in products}
        bf16 = shown.pop(str(WeightFormat.BF16), {})
        return Machine(
            name=cpu_name(),
            isa=isa,
            threads=threads,
            version=__version__,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            memory_bytes=total_memory(),
            read_gb_s={name: quantile(rates, 1 - quantile_) for name, rates in self.reading.items()},
            int8_tops=shown,
            bf16_tflops=bf16,
            step_overhead_us=1e6 * quantile(self.overheads, quantile_),
            disk_gb_s=max(self.disk) if self.disk else None,
            products=products,
            rows=costs,
            attention=attention_rates((s for s in steps if s.shape.looks), quantile_),
            spread=_spread(steps, quantile_),
        )

    def _products(self, steps: list[Steps], quantile_: float) -> tuple[tuple[ProductRate, ...], RowCosts]:
        tiny = next(s for s in steps if s.shape.name == "tiny")
        laps = tiny.laps(quantile_)
        matrix = sum(laps[lap] for lap in LAPS) / (len(LAPS) * tiny.shape.spec.num_layers)
        whole = [s for s in steps if s.shape.name in ("wide", "narrow") and s.load.streams == 1 and s.load.start == 0]
        products, inputs = product_rates(whole, matrix, quantile_)
        left = [[1.0, float(seqs), float(rows)] for seqs, rows in self.host]
        host = fit(left, [quantile(seconds, quantile_) for seconds in self.host.values()])
        return products, RowCosts(inputs, matrix, *(float(x) for x in host))


def _spread(steps: list[Steps], quantile_: float) -> tuple[float, float]:
    """How far repetitions of a step usually are from the one that counts, on either side; at least `SURE`."""
    low, high = [1.0], [1.0]
    for s in steps:
        taken = [seconds for seconds, _ in s.taken]
        usual = quantile(taken, quantile_)
        low.append(min(taken) / usual)
        high.append(quantile(taken, 0.9) / usual)
    return min(SURE[0], median(low)), max(SURE[1], median(high))


def quantile(values: Iterable[float], part: float) -> float:
    """The value below which that part of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
