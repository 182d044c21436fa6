"""The step-time model: it finds a hidden law, through noise, outliers and drift, and keeps a band that is true."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator

import pytest
from clockwork import true_seconds
from small_specs import SMOLLM2

from legato.core.plan import Plan, Slice, SliceResult
from legato.core.request import Request
from legato.core.sequence import Sequence
from legato.errors import UsageError
from legato.measure.cost import Role
from legato.measure.ledger import Ledger
from legato.measure.step_time import Load, StepCost, StepTimeModel

LAWS = {
    "as expected": StepCost(),
    "a slow machine": StepCost(3e-2, 1e-3, 2e-3, 6e-6, 8e-6, 1e-3),
    "a fast machine": StepCost(1e-3, 1e-6, 1e-5, 1e-7, 1e-8, 1e-6),
    "twenty times slower": StepCost(0.12, 1e-3, 1e-2, 3e-5, 5e-5, 2e-3),
}


def with_prompt(streams: int, depth: int, rows: int, start: int) -> Load:
    load = Load.of_streams(streams, depth)
    load.add(Slice(Sequence(0, Request("p", (1,) * (start + rows + 1))), start, rows, 0))
    return load


def day(rng: random.Random, steps: int) -> Iterator[Load]:
    """Prompts alone, prompts beside streams, and long whiles of streams only."""
    for step in range(steps):
        at = step % 60
        if at < 5:
            yield with_prompt(0, 0, 512, 512 * at)
        elif at < 20:
            yield with_prompt(8, 500 + step, rng.randint(20, 120), 3000 + 60 * (at - 5))
        else:
            yield Load.of_streams(rng.choice([1, 8, 8, 8, 16]), 500 + step)


def learn(
    law: StepCost, steps: int = 500, noise: float = 0.0, outliers: float = 0.0, model: StepTimeModel | None = None
) -> tuple[StepTimeModel, list[float]]:
    """The model, and its relative errors against the true law, step by step."""
    rng, model = random.Random(1), model or StepTimeModel()
    errors = []
    for load in day(rng, steps):
        true = true_seconds(load, law)
        errors.append(model.seconds(load) / true - 1)
        late = rng.uniform(1.5, 6.0) if rng.random() < outliers else 1.0
        model.observe(load, true * max(0.5, rng.gauss(1.0, noise)) * late)
    return model, errors


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("noise, outliers, bound", [(0.0, 0.0, 0.025), (0.05, 0.0, 0.03), (0.05, 0.02, 0.04)])
def test_a_hidden_law_is_found(law: StepCost, noise: float, outliers: float, bound: float) -> None:
    model, errors = learn(law, noise=noise, outliers=outliers)
    assert sum(map(abs, errors[100:])) / len(errors[100:]) < bound
    assert sorted(map(abs, errors[100:]))[-20] < 0.2, "all but one step in twenty"
    assert all(getattr(model.cost, name) >= 0 for name in StepCost.__dataclass_fields__)


def test_one_step_tells_how_fast_the_machine_is() -> None:
    """The first prompt shows the scale; the second step is predicted within a factor of two whatever the machine."""
    for law in LAWS.values():
        _, errors = learn(law, 2)
        assert -0.5 < errors[1] < 1.2


def test_the_first_steps_are_predicted_from_the_expectation() -> None:
    law = LAWS["a slow machine"]
    for load in day(random.Random(2), 60):
        assert math.isclose(StepTimeModel(law).seconds(load), true_seconds(load, law))


def test_a_machine_that_becomes_slower_is_followed() -> None:
    before, after = StepCost(), StepCost(*(2 * getattr(StepCost(), name) for name in StepCost.__dataclass_fields__))
    model, _ = learn(before, noise=0.03)
    _, errors = learn(after, 400, noise=0.03, model=model)
    assert errors[0] < -0.4
    assert sum(map(abs, errors[120:])) / len(errors[120:]) < 0.05


def test_what_was_learnt_of_prompts_survives_an_hour_of_streams() -> None:
    law = LAWS["a slow machine"]
    model, _ = learn(law, 300)
    for step in range(3000):
        load = Load.of_streams(8, 500 + step % 100)
        model.observe(load, true_seconds(load, law))
    load = with_prompt(8, 600, 64, 4000)
    assert abs(model.seconds(load) / true_seconds(load, law) - 1) < 0.1


def test_a_single_pause_teaches_next_to_nothing() -> None:
    law = StepCost()
    model, _ = learn(law, 300, noise=0.02)
    load = Load.of_streams(8, 600)
    before = model.seconds(load)
    model.observe(load, 50 * before)
    assert abs(model.seconds(load) / before - 1) < 0.03


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_the_band_holds_nearly_all_steps_and_is_no_wider_than_it_must(noise: float) -> None:
    law, rng = StepCost(), random.Random(3)
    model, _ = learn(law, 600, noise=noise)
    inside = late = 0
    loads = [load for load in day(rng, 600) if load.kind == 1]
    for load in loads:
        said = model.predict(load)
        assert said.low <= said.seconds <= said.high
        took = true_seconds(load, law) * rng.gauss(1.0, noise)
        inside += said.low <= took <= said.high
        late += took > said.high
        model.observe(load, took)
    assert noise == 0 or inside / len(loads) > 0.88
    assert late / len(loads) < 0.07
    assert model.band(1) < 1.05 + 3 * noise


def test_a_pause_between_steps_is_in_the_band_but_not_in_the_costs() -> None:
    law, model = StepCost(), StepTimeModel()
    load = with_prompt(8, 500, 60, 1000)
    for _ in range(100):
        seconds = true_seconds(load, law)
        model.observe(load, seconds, 1.2 * seconds)
    assert math.isclose(model.seconds(load), true_seconds(load, law), rel_tol=0.02)
    assert math.isclose(model.band(1), 1.2, rel_tol=0.02)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("start", [0, 300, 8000])
@pytest.mark.parametrize("streams", [1, 8, 40])
def test_rows_within_a_time_are_the_most_that_fit(streams: int, start: int, logits: bool) -> None:
    model, base = StepTimeModel(), Load.of_streams(streams, 500)
    for limit in (0.0, 0.02, 0.05, 0.08, 0.5, 9.0):
        n = model.rows_within(base, start, limit, 512, logits)

        def seconds(rows: int) -> float:
            load = Load.of_streams(streams, 500)
            load.add(Slice(Sequence(0, Request("p", (1,) * 9000)), start, rows, rows if logits else 0))
            return model.seconds(load)

        assert n == 0 or seconds(n) <= limit + 1e-9
        assert n == 512 or seconds(n + 1) > limit - 1e-9


def test_a_load_counts_what_the_ledger_counts() -> None:
    prompt, stream = Sequence(0, Request("p", (1,) * 50)), Sequence(1, Request("s", (1, 2, 3)))
    stream.token_ids += [4, 5]
    plan = Plan((Slice(stream, 4, 3, 3), Slice(prompt, 10, 40, 1), Slice(Sequence(2, Request("q", (1,))), 0, 1, 1)))
    ledger = Ledger()
    with ledger.step() as lap:
        lap.count(plan, [SliceResult([1])] * 3)
    load = Load.of_plan(plan)
    assert load == Load.of_record(ledger.recent[-1]) and load.kind == 1
    load.add(plan.slices[1], -1)
    assert load == Load.of_plan(Plan((plan.slices[0], plan.slices[2])))
    assert [Load.of_plan(Plan(plan.slices[i : i + 1])).kind for i in range(3)] == [0, 2, 2]


def test_nonsense_is_not_learnt_from() -> None:
    model, load = StepTimeModel(), Load.of_streams(1, 10)
    for seconds in (0.0, -1.0, math.inf, math.nan):
        model.observe(load, seconds)
    model.observe(Load(), 1.0)
    assert model.num_steps == 0 and model.error == 0


@pytest.mark.parametrize("value", [0.0, -1e-3, math.nan, math.inf, 1, "1"])
def test_an_absurd_cost_is_refused_by_name(value: object) -> None:
    with pytest.raises(UsageError, match="kv_token"):
        StepCost(kv_token=value)  # type: ignore[arg-type]


def test_the_expectation_of_a_model_has_the_right_size() -> None:
    """Of a model like SmolLM2-135M: a step near 5 to 15 ms, a prompt row in a big step near 0.2 to 1.5 ms."""
    expected = StepCost.expected(SMOLLM2, dict.fromkeys(Role, 5.0), "int8", cores=2)
    assert 0.005 < expected.step < 0.015
    assert 2e-4 < expected.row + expected.dense_row < 1.5e-3
    assert 1e-7 < expected.kv_token < 3e-6


def test_learning_from_a_step_is_cheap() -> None:
    """Measured near 16 us; the bound leaves room for a busy machine."""
    model, load = StepTimeModel(), with_prompt(8, 500, 60, 1000)
    best = 1.0
    for _ in range(20):
        start = time.process_time()
        for _ in range(50):
            model.observe(load, 0.05)
        best = min(best, (time.process_time() - start) / 50)
    assert best < 30e-6
