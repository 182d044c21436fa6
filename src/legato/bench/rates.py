"""From the steps of made-up models to a machine's rates: what each kind of work costs, by least squares.

Knows: samples of steps with the time of each kind of operation, closed forms of what they carried.
Does not know: how steps are run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from legato.core.spec import ArchSpec
from legato.kernels.ops import KvFormat
from legato.measure import cost
from legato.measure.cost import Role
from legato.measure.machine import TILE, AttentionRate, ProductRate
from legato.measure.predict import FEW_ROWS
from legato.weights.tensor import WeightFormat

LAPS = {"qkv": Role.QKV, "attn_out": Role.OUT, "mlp_up": Role.UP, "mlp_down": Role.DOWN}
LEAST_S = 1e-8  # of a product
LEAST_PART = 0.3  # of a product's time is its weights': on a busy machine a fit may say none


@dataclass(frozen=True, slots=True)
class Shape:
    """A made-up model and how it is kept. looks: its steps also tell what looking back costs."""

    name: str
    spec: ArchSpec
    weights: WeightFormat
    kv: KvFormat
    looks: bool


@dataclass(frozen=True, slots=True)
class Load:
    """A step of `streams` sequences with `start` tokens each, which compute `length` more."""

    streams: int
    start: int
    length: int = 1

    @property
    def rows(self) -> int:
        return self.streams * self.length

    @property
    def pairs(self) -> int:
        return self.streams * cost.visible_pairs(self.start, self.length, None)

    @property
    def tokens(self) -> int:
        return self.streams * (self.start + self.length)


@dataclass(slots=True)
class Steps:
    """Steps of one shape under one load: whole seconds, and seconds by kind of operation."""

    shape: Shape
    load: Load
    taken: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)

    def laps(self, quantile: float) -> dict[str, float]:
        """Seconds by kind in the step at that quantile of all; waiting is shared out among the kinds."""
        taken = sorted(self.taken, key=lambda step: step[0])
        _, laps = taken[min(len(taken) - 1, int(quantile * len(taken)))]
        wait, total = laps.get("wait", 0.0), sum(laps.values())
        scale = total / (total - wait) if total > wait else 1.0
        return {name: scale * seconds for name, seconds in laps.items() if name != "wait"}


def product_rates(
    steps: Sequence[Steps], matrix: float, quantile: float
) -> tuple[tuple[ProductRate, ...], dict[int, float]]:
    """(rates by weight format, seconds a number that a product reads of a row, by rows).

    For each number of rows: a matrix takes weights x rate + rows x inputs x reading + `matrix`.
    """
    formats = tuple(dict.fromkeys(s.shape.weights for s in steps))
    seconds: dict[WeightFormat, dict[int, float]] = {fmt: {} for fmt in formats}
    inputs: dict[int, float] = {}
    for rows in sorted({s.load.rows for s in steps}):
        left, right = [], []
        for s in (s for s in steps if s.load.rows == rows):
            laps = s.laps(quantile)
            matrices = {m.role: m for m in cost.layer_matrices(s.shape.spec, s.shape.spec.layers[0])}
            for lap, role in LAPS.items():
                m = matrices[role]
                weights = [float(m.elements) if s.shape.weights is fmt else 0.0 for fmt in formats]
                left.append([*weights, float(rows * m.cols)])
                taken = max(LEAST_S, laps[lap] / s.shape.spec.num_layers)
                right.append(max(LEAST_PART * taken, taken - matrix))
        *_, inputs[rows] = (float(x) for x in fit(left, right))
        for i, fmt in enumerate(formats):
            mine = [
                (line[i], taken, line[-1] * inputs[rows]) for line, taken in zip(left, right, strict=True) if line[i]
            ]
            weights, taken, reading = (sum(column) for column in zip(*mine, strict=True))
            seconds[fmt][rows] = max(taken - reading, LEAST_PART * taken) / weights
    return tuple(
        ProductRate(str(f), 8 * f.block_bytes / f.block, dict(zip(by, rising(list(by.values())), strict=True)))
        for f, by in seconds.items()
    ), inputs


def rising(values: Sequence[float]) -> list[float]:
    """The nearest values that never fall: neighbours that do become their mean. More rows take no less time."""
    groups: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        mean, count = value, 1
        while groups and groups[-1][0] > mean:
            before, many = groups.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        groups.append((mean, count))
    return [mean for mean, count in groups for _ in range(count)]


def attention_rates(steps: Iterable[Steps], quantile: float) -> tuple[AttentionRate, ...]:
    """By format of keys and values, and by size of a head."""
    kinds: dict[tuple[KvFormat, int], list[Steps]] = {}
    for s in steps:
        kinds.setdefault((s.shape.kv, s.shape.spec.layers[0].attention.head_dim), []).append(s)
    return tuple(_attention_rate(fmt, head_dim, some, quantile) for (fmt, head_dim), some in kinds.items())


def _attention_rate(fmt: KvFormat, head_dim: int, steps: list[Steps], quantile: float) -> AttentionRate:
    left = [_attention_work(s, decode=s.load.length <= FEW_ROWS) for s in steps]
    found = fit(left, [_attention_seconds(s, quantile) for s in steps])
    layer, number, stream, byte, pair, prompt_pair, start = (float(x) for x in found)
    return AttentionRate(str(fmt), layer, number, stream, byte, pair, prompt_pair, head_dim, start)


def _attention_work(s: Steps, *, decode: bool) -> list[float]:
    """In the order of `AttentionRate`'s fields."""
    a, load = s.shape.spec.layers[0].attention, s.load
    size = a.num_kv_heads * cost.kv_head_bytes(str(s.shape.kv), a.head_dim)
    looked = float(load.pairs * a.q_size)
    shared = [1.0, float(load.rows * (a.q_size + 2 * a.kv_size)), float(load.streams)]
    back = [float(load.tokens * size), looked, 0.0] if decode else [0.0, 0.0, looked]
    return [*shared, *back, min(1.0, load.start / TILE)]


def _attention_seconds(s: Steps, quantile: float) -> float:
    return s.laps(quantile)["attention"] / s.shape.spec.num_layers


def fit(left: Sequence[Sequence[float]], right: Sequence[float], turns: int = 1000) -> NDArray[np.float64]:
    """The costs, none negative, that bring left @ costs nearest to right, each line by its relative error."""
    weight = 1.0 / np.maximum(np.array(right, np.float64), 1e-9)
    a = np.array(left, np.float64) * weight[:, None]
    scale = np.maximum(np.sqrt((a * a).sum(axis=0)), 1e-300)
    a = a / scale
    gram, pull = a.T @ a, a.T @ (np.array(right, np.float64) * weight)
    x = np.zeros(a.shape[1])
    for _ in range(turns):
        before = x.copy()
        for j in range(len(x)):
            if gram[j, j] > 0:
                x[j] = max(0.0, x[j] + (pull[j] - gram[j] @ x) / gram[j, j])
        if np.abs(x - before).max() <= 1e-12 * max(1e-30, np.abs(x).max()):
            break
    some = x > 0
    exact = np.linalg.lstsq(a[:, some], np.array(right, np.float64) * weight, rcond=None)[0]
    if (exact > 0).all():  # going downhill one at a time takes long where costs resemble each other
        x[some] = exact
    return np.asarray(x / scale)
