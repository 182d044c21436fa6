"""Streams keep their pace while a long prompt is read, and the prompt gets on: on a clock that follows a hidden law."""

from __future__ import annotations

import pytest
from clockwork import Clockwork, Watch, ask, quantile, true_seconds

from legato.engine import Engine
from legato.errors import UsageError
from legato.measure.step_time import Load, StepCost, StepTimeModel
from legato.schedule.budget import MIN_SHARE, STRETCH, Pace, WholeSteps

LAWS = {
    "a small model on two cores": StepCost(6.5e-3, 1e-4, 4e-4, 8e-7, 1.5e-7, 1e-4),
    "half as fast": StepCost(1.3e-2, 2e-4, 8e-4, 1.6e-6, 3e-7, 2e-4),
    "three times as fast": StepCost(3e-3, 1e-5, 2e-4, 4e-7, 1e-7, 5e-5),
    "no gain from many rows": StepCost(1e-2, 5e-4, 1e-5, 1e-6, 1e-7, 1e-3),
}
STREAMS, DEPTH, PROMPT = 8, 500, 8000


class Scene:
    """Eight streams at depth 500, and a prompt of 8,000 tokens that comes when they run."""

    def __init__(self, law: StepCost, noise: float = 0.0, outliers: float = 0.0, **options: object) -> None:
        self.clock, self.watch = Clockwork(law, noise, outliers), Watch()
        self.engine: Engine = self.clock.engine(**options)
        for i in range(STREAMS):
            self.engine.add(ask(f"s{i}", DEPTH - 20, 4000))
        while len(self.watch.times) < STREAMS:
            self.watch.step(self.engine, self.clock)
        for _ in range(20):
            self.watch.step(self.engine, self.clock)
        self.arrived, first = self.clock.now, len(self.clock.loads)
        self.engine.add(ask("long", PROMPT, 4))
        while not self.watch.times.get("long"):
            self.watch.step(self.engine, self.clock)
        self.ttft = self.clock.now - self.arrived
        self.steps = self.clock.loads[first:]
        self.gaps = [g for i in range(STREAMS) for g in self.watch.gaps(f"s{i}", self.arrived, self.clock.now)]

    def share(self, law: StepCost) -> float:
        """Of the time since the prompt came, the part that streams alone would not have taken."""
        depths = [DEPTH + i for i in range(len(self.steps))]
        alone = sum(true_seconds(Load.of_streams(STREAMS, depth), law) for depth in depths)
        return 1 - alone / self.ttft


def solo_ttft(law: StepCost) -> float:
    clock, watch = Clockwork(law), Watch()
    engine = clock.engine(itl_slo_ms=80)
    engine.add(ask("long", PROMPT, 4))
    begin = clock.now
    while not watch.times.get("long"):
        watch.step(engine, clock)
    return clock.now - begin


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("noise, outliers", [(0.0, 0.0), (0.05, 0.0), (0.08, 0.003)])
def test_a_long_prompt_does_not_stop_the_streams_nor_they_the_prompt(
    law: StepCost, noise: float, outliers: float
) -> None:
    scene = Scene(law, noise, outliers, itl_slo_ms=80)
    assert quantile(scene.gaps, 0.99) <= 1.25 * 0.080
    assert quantile(scene.gaps, 0.95) <= 1.05 * 0.080
    assert scene.ttft <= 1.5 * solo_ttft(law) / scene.share(law)
    assert quantile(scene.gaps, 0.5) >= 0.6 * 0.080, "what the streams can spare is used"


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_without_an_slo_streams_keep_a_quarter_of_their_pace(law: StepCost) -> None:
    scene = Scene(law, 0.03)
    alone = true_seconds(Load.of_streams(STREAMS, DEPTH + len(scene.steps)), law)
    assert quantile(scene.gaps, 0.9) < 1.15 * STRETCH * alone
    assert scene.ttft <= 1.5 * solo_ttft(law) / (1 - 1 / STRETCH)


def test_an_slo_that_streams_alone_miss_still_leaves_prompts_their_share() -> None:
    law = LAWS["half as fast"]
    scene = Scene(law, itl_slo_ms=5)
    for i, (load, seconds) in enumerate(scene.steps[:-1]):
        alone = true_seconds(Load.of_streams(STREAMS, DEPTH + i), law)
        read_again = law.kv_token * (load.kv_tokens - STREAMS * (DEPTH + i))
        assert load.prompt_rows >= 1 and seconds < (1 + 1.5 * MIN_SHARE) * alone + read_again + 0.004
    rows = sum(load.prompt_rows for load, _ in scene.steps) / sum(seconds for _, seconds in scene.steps)
    assert rows * solo_ttft(law) / PROMPT > MIN_SHARE / 3, "of the pace that the prompt has alone"


def test_a_prompt_alone_gets_whole_steps() -> None:
    clock, watch = Clockwork(LAWS["half as fast"]), Watch()
    engine = clock.engine(itl_slo_ms=20)
    engine.add(ask("long", 2048, 2))
    while engine.has_work:
        watch.step(engine, clock)
    assert [load.rows for load, _ in clock.loads] == [512, 512, 512, 512, 1]


def test_a_machine_that_slows_down_meanwhile_is_followed() -> None:
    """A neighbour takes half of the machine in the middle of the prompt: gaps come back under the limit."""
    law = LAWS["three times as fast"]
    clock, watch = Clockwork(law, 0.03), Watch()
    engine = clock.engine(itl_slo_ms=60)
    for i in range(STREAMS):
        engine.add(ask(f"s{i}", DEPTH, 4000))
    while len(watch.times) < STREAMS:
        watch.step(engine, clock)
    engine.add(ask("long", PROMPT, 4))
    for _ in range(30):
        watch.step(engine, clock)
    clock.law = StepCost(*(2 * getattr(law, name) for name in StepCost.__dataclass_fields__))
    for _ in range(25):
        watch.step(engine, clock)
    since = clock.now
    while not watch.times.get("long"):
        watch.step(engine, clock)
    gaps = [g for i in range(STREAMS) for g in watch.gaps(f"s{i}", since, clock.now)]
    assert len(gaps) > 20 * STREAMS and quantile(gaps, 0.95) <= 1.1 * 0.060


def test_stats_tell_how_far_predictions_are_off() -> None:
    scene = Scene(LAWS["half as fast"], 0.05, itl_slo_ms=80)
    stats = scene.engine.stats()
    assert 0.01 < stats.step_error < 0.15
    recent = list(scene.engine.ledger.recent)
    assert sum(r.predicted for r in recent) == pytest.approx(sum(r.seconds for r in recent), rel=0.05)
    assert stats.total.predicted > 0


@pytest.mark.parametrize("slo", [0.0, -1.0, 600_001.0, float("nan"), float("inf")])
def test_an_impossible_slo_is_refused_by_name(slo: float) -> None:
    with pytest.raises(UsageError, match="itl_slo_ms"):
        Clockwork(StepCost()).engine(itl_slo_ms=slo)


def test_the_first_prompt_that_asks_gets_a_row_whatever_the_time() -> None:
    pace, streams = Pace(StepTimeModel(), 1e-6), Load.of_streams(4, 100)
    pace.begin(streams)
    assert pace.rows(streams, 8000, 64) >= 1
    assert pace.rows(streams, 8000, 64) == 0
    assert WholeSteps().rows(streams, 8000, 64) == 64


def test_the_limit_of_a_step_with_streams_does_not_outlive_it() -> None:
    pace = Pace(StepTimeModel(), 0.02)
    pace.begin(Load.of_streams(4, 100))
    assert pace.rows(Load.of_streams(4, 100), 0, 512) < 512
    pace.begin(Load())
    assert pace.rows(Load(), 0, 512) == 512
