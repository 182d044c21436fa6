"""A world with a clock of its own: a step takes what a hidden law says, and noise.

Knows: a law of steps' times that no scheduler is told. Does not know: how the scheduler learns it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from legato.core.plan import Plan, SliceResult
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.engine import Engine
from legato.measure.step_time import DENSE, Load, StepCost

VOCAB = 50_000
HOST_S = 0.0002


def true_seconds(load: Load, law: StepCost) -> float:
    dense = max(0, load.rows - DENSE)
    return (
        law.step + law.row * load.rows + law.dense_row * dense + law.kv_token * load.kv_tokens
        + law.visit * load.visited + law.logit_row * load.logit_rows
    )  # fmt: skip


@dataclass
class Clockwork:
    """A runner and its clock. `noise`: relative sigma; `outliers`: share of steps that take 1.5 to 3 times as long."""

    law: StepCost
    noise: float = 0.0
    outliers: float = 0.0
    seed: int = 1
    now: float = 100.0
    loads: list[tuple[Load, float]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def clock(self) -> float:
        return self.now

    def run(self, plan: Plan) -> list[SliceResult]:
        load = Load.of_plan(plan)
        seconds = true_seconds(load, self.law) * max(0.7, self.random.gauss(1.0, self.noise)) + HOST_S
        if self.random.random() < self.outliers:
            seconds *= self.random.uniform(1.5, 3.0)
        self.loads.append((load, seconds))
        self.now += seconds
        return [SliceResult([7] if s.end == s.seq.num_tokens else []) for s in plan.slices]

    def forget(self, seq_ids: object) -> None:
        pass

    def engine(self, **options: Any) -> Engine:
        sizes = {"num_pages": 4000, "page_size": 16, "max_tokens": 512, "max_seqs": 16, "context_length": 20_000}
        return Engine(self, vocab_size=VOCAB, clock=self.clock, **{**sizes, **options})


def ask(name: str, prompt: int, answer: int, **fields: Any) -> Request:
    """`prompt` tokens that no other request has, and exactly `answer` tokens."""
    own = random.Random(name)
    ids = tuple(own.randrange(VOCAB) for _ in range(prompt))
    return Request(name, ids, SamplingParams(max_tokens=answer, ignore_eos=True), **fields)


@dataclass
class Watch:
    """When each request's tokens came, and how it ended."""

    times: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, FinishReason] = field(default_factory=dict)

    def step(self, engine: Engine, clock: Clockwork) -> None:
        for event in engine.step():
            self.times.setdefault(event.request_id, []).extend([clock.now] * len(event.token_ids))
            if event.finish_reason is not None:
                self.ends[event.request_id] = event.finish_reason

    def gaps(self, name: str, after: float = 0.0, until: float = 1e18) -> list[float]:
        times = self.times[name]
        return [b - a for a, b in pairwise(times) if after <= a and b <= until]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
