"""The ledger: sums that agree with their parts, in constant memory, for next to nothing."""

from __future__ import annotations

import time

import pytest

from legato.core.plan import Plan, Slice, SliceResult
from legato.core.request import Request
from legato.core.sequence import Sequence
from legato.measure.ledger import Ledger, StepRecord


class Clock:
    """Every reading is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


SEQ = Sequence(0, Request("a", (1, 2, 3)))
DECODE = Plan((Slice(SEQ, 7, 3, 3),)), [SliceResult([5, 6])]
PROMPT = Plan((Slice(SEQ, 0, 3, 1),)), [SliceResult([4])]
AGAIN = Plan((Slice(SEQ, 2, 4, 1),)), [SliceResult([4])]


def one(ledger: Ledger, step: tuple[Plan, list[SliceResult]]) -> StepRecord:
    with ledger.step() as lap:
        lap("schedule")
        lap("run")
        lap.count(*step)
    return ledger.recent[-1]


def test_a_step_is_its_counts_and_its_laps() -> None:
    ledger = Ledger(Clock())
    record = one(ledger, DECODE)
    assert (record.decode_tokens, record.draft_tokens, record.accepted_tokens, record.prompt_tokens) == (1, 2, 1, 0)
    assert (record.logit_rows, record.kv_tokens, record.visited, record.output_tokens) == (3, 10, 8 + 9 + 10, 2)
    assert (record.started, record.laps, record.seconds) == (1.0, {"schedule": 1.0, "run": 1.0}, 3.0)
    assert one(ledger, PROMPT).prompt_tokens == 3
    assert one(ledger, AGAIN).prompt_tokens == 4, "what is computed again counts as prompt"


def test_the_total_is_the_sum_of_all_steps_also_those_forgotten() -> None:
    ledger = Ledger(Clock(), keep=3)
    records = [one(ledger, step) for step in (PROMPT, DECODE, DECODE, AGAIN, DECODE)]
    assert list(ledger.recent) == records[-3:]
    for name in ("num_tokens", "num_steps", "num_seqs", "logit_rows", "kv_tokens", "visited", "output_tokens"):
        assert getattr(ledger.total, name) == sum(getattr(r, name) for r in records), name
    assert ledger.total.laps == {"schedule": 5.0, "run": 5.0} and ledger.total.started == records[0].started


def test_steps_that_carried_nothing_or_failed_are_left_out() -> None:
    ledger = Ledger(Clock())
    with ledger.step() as lap:
        lap.count(Plan(), [])
    with pytest.raises(KeyError), ledger.step() as lap:
        lap.count(*DECODE)
        raise KeyError
    assert not ledger.recent and ledger.total == StepRecord()


def test_a_step_costs_a_few_microseconds() -> None:
    """Measured around 4 us for all of it; the bound leaves room for a busy machine."""
    ledger = Ledger()
    best = 1.0
    for _ in range(20):
        start = time.process_time()
        for _ in range(200):
            with ledger.step() as lap:
                lap("schedule")
                lap("run")
                lap("commit")
                lap("propose")
                lap.count(*DECODE)
        best = min(best, (time.process_time() - start) / 200)
    assert best < 20e-6
