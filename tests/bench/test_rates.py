"""Rates out of steps: hidden costs make up the steps, and are found again."""

from __future__ import annotations

import itertools
import random
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.bench.found import Found
from legato.bench.made_up import batch_of, layers_of, made_up_spec
from legato.bench.rates import LAPS, Load, Shape, Steps, attention_rates, fit, product_rates, rising
from legato.bench.walls import DECODES, FEW_LOOKS, LOOKS, PRODUCTS, ROWS
from legato.kernels.ops import KvFormat
from legato.measure import cost
from legato.measure.machine import AttentionRate
from legato.measure.predict import FEW_ROWS
from legato.weights.tensor import WeightFormat

Q4, Q8 = WeightFormat.Q4_0, WeightFormat.Q8_0
WEIGHT = {Q4: 4e-12, Q8: 6e-12}  # seconds a weight and row, and no less than for 3 rows
INPUT, MATRIX = 1.2e-9, 1e-6
HIDDEN = AttentionRate("int8", 2e-6, 1.5e-9, 5e-7, 2.2e-11, 1.2e-11, 1.1e-11, start=5e-6)


def shape(width: int, group: int, weights: WeightFormat = Q4, kv: KvFormat = KvFormat.INT8, dim: int = 64) -> Shape:
    return Shape("made-up", made_up_spec(width, group=group, layers=4, head_dim=dim), weights, kv, True)


def step(shape: Shape, load: Load, rate: AttentionRate, wait: float, noise: float) -> dict[str, float]:
    """Laps by the formulas of `AttentionRate` and `ProductRate`, written out once more; `wait` is taken out of all."""
    spec, a = shape.spec, shape.spec.layers[0].attention
    laps: dict[str, float] = {}
    matrices = {m.role: m for m in cost.layer_matrices(spec, spec.layers[0])}
    for lap, role in LAPS.items():
        m = matrices[role]
        each = m.elements * WEIGHT[shape.weights] * max(3, load.rows) + load.rows * m.cols * INPUT + MATRIX
        laps[lap] = spec.num_layers * each
    looked = (
        rate.layer
        + rate.start * (load.start >= 256)
        + rate.stream * load.streams
        + rate.number * load.rows * (a.q_size + 2 * a.kv_size)
    )
    if load.length > FEW_ROWS:
        looked += rate.prompt_pair * load.pairs * a.q_size
    else:
        size = a.num_kv_heads * cost.kv_head_bytes(str(shape.kv), a.head_dim)
        looked += rate.byte * load.tokens * size + rate.pair * load.pairs * a.q_size
    laps["attention"] = spec.num_layers * looked
    laps = {name: seconds * (1 - wait) * noise for name, seconds in laps.items()}
    return laps | {"wait": sum(laps.values()) * wait / (1 - wait)}


def steps_of(shapes: list[Shape], loads: tuple[Load, ...], spread: float = 0.0) -> list[Steps]:
    """Three repetitions of each; the middle one is right, the others are off by up to `spread`."""
    made, rng = [], random.Random(3)
    for one in shapes:
        for load in loads:
            steps = Steps(one, load)
            for sign in (-1, 0, 1):
                laps = step(one, load, HIDDEN, wait=rng.choice((0.0, 0.1, 0.3)), noise=1 + sign * spread * rng.random())
                steps.taken.append((sum(laps.values()), laps))
            made.append(steps)
    return made


@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_product_rates_are_found_again(spread: float) -> None:
    shapes = [shape(1024, 8), shape(512, 2), shape(1024, 8, Q8)]
    rates, inputs = product_rates(steps_of(shapes, PRODUCTS, spread), MATRIX, quantile=0.5)
    assert [(r.format, r.bits) for r in rates] == [("q4_0", 4.5), ("q8_0", 8.5)]
    for rate, fmt in zip(rates, (Q4, Q8), strict=True):
        assert rate.seconds == pytest.approx({n: WEIGHT[fmt] * max(3, n) for n in ROWS}, rel=1e-3)
    assert inputs == pytest.approx(dict.fromkeys(ROWS, INPUT), rel=1e-2)


@pytest.mark.parametrize("loads", [LOOKS, FEW_LOOKS])
def test_attention_rates_are_found_again_for_each_format_and_size_of_head(loads: tuple[Load, ...]) -> None:
    shapes = [shape(1024, 8), shape(512, 2), shape(1024, 4, dim=128), shape(512, 1, dim=128)]
    shapes += [shape(1024, 4, kv=KvFormat.BF16), shape(512, 1, kv=KvFormat.BF16)]
    rates = attention_rates(steps_of(shapes, loads, 0.3), quantile=0.5)
    assert [(r.kv_format, r.head_dim) for r in rates] == [("int8", 64), ("int8", 128), ("bf16", 64)]
    names = [f.name for f in fields(AttentionRate) if f.type == "float"]
    for rate in rates:
        found = {name: getattr(rate, name) for name in names}
        assert found == pytest.approx({name: getattr(HIDDEN, name) for name in names}, rel=0.02)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=4, max_size=8), st.data())
def test_no_cost_is_negative_and_no_change_of_one_comes_nearer(left: list[list[float]], data: st.DataObject) -> None:
    right = [data.draw(st.floats(0.1, 10)) for _ in left]
    found = fit(left, right)
    assert (found >= 0).all() and np.isfinite(found).all()

    def far(costs: np.ndarray) -> float:
        return float((((np.array(left) @ costs - right) / right) ** 2).sum())

    for j in range(3):
        for change in (-1e-3, 1e-3):
            other = found.copy()
            other[j] = max(0.0, other[j] + change)
            assert far(found) <= far(other) + 1e-7


def test_a_load_counts_what_its_batch_holds() -> None:
    for load in (*DECODES, *PRODUCTS):
        batch = batch_of([load.start] * load.streams, load.length)
        assert len(batch.input_ids_T) == load.rows and len(batch.seq_lens_S) == load.streams
        assert int(batch.seq_lens_S.sum()) == load.tokens
        assert int((batch.positions_T + 1).sum()) == load.pairs
        used = batch.slot_mapping_T
        assert len(set(used.tolist())) == len(used), "no two rows are kept in one place"


def test_a_made_up_model_has_the_bytes_asked_for() -> None:
    for width in (512, 1024):
        spec = made_up_spec(width, layers=layers_of(width, Q4, 64 << 20))
        weights = sum(m.elements for layer in spec.layers for m in cost.layer_matrices(spec, layer))
        assert 0.85 < weights * 4.5 / 8 / (64 << 20) < 1.15


def test_rounds_add_up_to_what_they_would_have_found_together() -> None:
    one, other = Found(reading={"all": [40.0]}, overheads=[1e-4]), Found(reading={"all": [50.0], "1": [30.0]})
    small, load = shape(512, 2), Load(1, 0)
    one.of(small, load).taken.append((1.0, {"qkv": 1.0}))
    other.of(small, load).taken.append((2.0, {"qkv": 2.0}))
    other.host[1, 1] = [2e-4]
    both = one + other
    assert both.reading == {"all": [40.0, 50.0], "1": [30.0]} and both.host == {(1, 1): [2e-4]}
    assert [seconds for seconds, _ in both.of(small, load).taken] == [1.0, 2.0]
    assert len(one.of(small, load).taken) == 1, "neither is changed"


def test_no_rate_is_nothing_however_wild_the_steps() -> None:
    """On a busy machine one step takes ten times as long as its neighbours."""
    rng, steps = random.Random(5), steps_of([shape(1024, 8), shape(512, 2)], PRODUCTS)
    for s in steps:
        s.taken = [
            (t * f, {name: x * f for name, x in laps.items()}) for t, laps in s.taken for f in [rng.choice((1, 10))]
        ]
    rates, inputs = product_rates(steps, MATRIX, quantile=0.25)
    for n in ROWS:
        assert rates[0].seconds[n] > 0.25 * WEIGHT[Q4] * n and inputs[n] >= 0


@given(st.lists(st.floats(1e-12, 1e3), min_size=1, max_size=12))
def test_rates_by_rows_never_fall_and_keep_their_sum(values: list[float]) -> None:
    found = rising(values)
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(found))
    assert sum(found) == pytest.approx(sum(values))
    assert rising(sorted(values)) == sorted(values)
