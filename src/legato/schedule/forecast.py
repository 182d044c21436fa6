"""When a request would be answered: how long it waits, reads its prompt and writes, as things stand.

Knows: what everybody has left to do in tokens, predicted seconds of steps. Does not know: pages, sequences, the clock.

Answers are given in rounds: each job holds one of `slots` for as many steps as it has answer tokens to go, and the
queue takes slots as they come free. Prompt rows are done beside that, as many a step as the budget lets through, and
each makes its step longer. Nobody who comes later counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple

from legato.measure.step_time import Load, StepTimeModel
from legato.schedule.budget import Budget


class Job(NamedTuple):
    """Tokens to go: of the prompt (computed again or for the first time), and of the answer as far as one can tell."""

    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds expected from now: in the queue, then to the first token, then to the last one."""

    queue_s: float
    prefill_s: float
    decode_s: float

    @property
    def seconds(self) -> float:
        return self.queue_s + self.prefill_s + self.decode_s


def forecast(
    model: StepTimeModel,
    budget: Budget,
    slots: int,
    max_tokens: int,
    depth: int,
    running: SequenceOf[Job],
    ahead: SequenceOf[Job],
    job: Job,
) -> Forecast:
    """Of `job` behind those `running` and `ahead` of it, in steps of at most `max_tokens` rows.

    depth  tokens that a stream has behind it, on average
    """
    streams = Load.of_streams(min(slots, len(running) + len(ahead) + 1), depth)
    step_s = model.seconds(streams)
    others = Load.of_streams(streams.rows - 1, depth)
    most = max(1, max_tokens - others.rows)
    budget.begin(others)
    half = max(depth, job.prompt) // 2
    rows = max(1, min(most, budget.rows(others, half, most)))
    mixed = Load(others.rows + rows, rows, others.kv_tokens + half, others.visited + rows * half, others.logit_rows)
    row_s = max(0.0, model.seconds(mixed) - model.seconds(others)) / rows
    waited, before = _steps_until_a_slot(slots, running, ahead), sum(j.prompt for j in (*running, *ahead))
    steps = max(waited, before / rows)
    return Forecast(
        queue_s=steps * step_s + before * row_s if steps else 0.0,
        prefill_s=math.ceil(job.prompt / rows) * model.seconds(others) + job.prompt * row_s,
        decode_s=max(0, job.answer - 1) * step_s,
    )


def _steps_until_a_slot(slots: int, running: SequenceOf[Job], ahead: SequenceOf[Job]) -> int:
    """Steps until all of `ahead` have had a slot and one more is free."""
    ends = [job.answer for job in running]
    ends += [0] * (slots - len(ends))
    heapq.heapify(ends)
    for job in ahead:
        heapq.heapreplace(ends, ends[0] + job.answer)
    return ends[0]
