"""A pool far too small for what is asked of it still serves everyone, and never stands still."""

from __future__ import annotations

import itertools
import random
from functools import partial

import pytest
from page_echo import PageEcho, plain_answer

from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.engine import Engine

NUM_PAGES, PAGE_SIZE, VOCAB = 64, 4, 500


@pytest.mark.parametrize("count", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_thousands_of_requests_at_ten_times_the_demand_all_end(count: int) -> None:
    """40 sequences run at once that each come to 16 or so pages: 640 wanted, 64 there."""
    rng = random.Random(5)
    runner = PageEcho(NUM_PAGES, PAGE_SIZE, VOCAB)
    sizes = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE, "max_tokens": 48, "max_seqs": 40}
    engine = Engine(runner, **sizes, context_length=128, vocab_size=VOCAB)
    shared = [tuple(rng.randrange(VOCAB) for _ in range(12)) for _ in range(20)]
    requests: dict[str, Request] = {}
    told: dict[str, list[int]] = {}
    answers: dict[str, list[int]] = {}
    while len(answers) < count:
        while len(requests) < count and len(requests) - len(answers) < 60:
            request_id = f"r{len(requests)}"
            prompt = (*rng.choice(shared)[: rng.randint(1, 12)], rng.randrange(VOCAB))
            params = SamplingParams(max_tokens=64 - len(prompt) if rng.random() < 0.2 else rng.randint(1, 30))
            priority, tenant = rng.choice([0, 0, 1]), rng.choice("abc")
            requests[request_id] = Request(request_id, prompt, params, priority, tenant=tenant)
            engine.add(requests[request_id])
        rows = runner.num_rows
        for event in engine.step():
            told.setdefault(event.request_id, []).extend(event.token_ids)
            if event.finish_reason is not None:
                assert event.finish_reason is FinishReason.LENGTH and event.usage is not None
                assert event.usage.num_preemptions <= 8
                answers[event.request_id] = told.pop(event.request_id)
        assert runner.num_rows > rows, "a step without progress"
        if runner.num_steps % 16 == 0:
            engine.scheduler.check()
    stats = engine.stats()
    assert stats.num_preemptions > 50 and stats.kv.in_use == 0 and not engine.has_work
    for name, request in requests.items():
        length = len(request.prompt_ids) + (request.params.max_tokens or 0)
        assert answers[name] == plain_answer(request, 0, VOCAB, frozenset(), length)[0]


def test_two_that_want_sixty_percent_each_take_turns() -> None:
    engine = Engine(
        PageEcho(10, 1, 7), num_pages=10, page_size=1, max_tokens=8, max_seqs=2, context_length=50, vocab_size=7
    )
    requests = [Request(name, (1, 2), SamplingParams(max_tokens=6)) for name in "ab"]
    for request in requests:
        engine.add(request)
    told: dict[str, list[int]] = {"a": [], "b": []}
    for _ in range(60):
        for event in engine.step():
            told[event.request_id] += event.token_ids
        engine.scheduler.check()
    for request in requests:
        assert told[request.request_id] == plain_answer(request, 0, 7, frozenset(), 8)[0]


def test_a_sequence_preempted_eight_times_is_pinned_and_finishes() -> None:
    """Whenever an unimportant sequence runs, an important one comes that wants its pages; eight times it gets them."""
    runner = PageEcho(64, 1, 500)
    steady = partial(next, itertools.count(step=0.001))  # how much a step takes in must not hang on this machine's pace
    sizes = {"num_pages": 64, "page_size": 1, "max_tokens": 64, "max_seqs": 4}
    engine = Engine(runner, **sizes, context_length=99, vocab_size=500, clock=steady)
    low = Request("low", (1, 2), SamplingParams(max_tokens=50), priority=5)
    told: dict[str, list[int]] = {"low": []}
    requests = {"low": low}
    engine.add(low)
    worst = 0
    for _ in range(600):
        kv = engine.stats().kv
        if engine.scheduler.num_running == 1 and engine.scheduler.num_waiting == 0 and kv.free + kv.cached > 4:
            prompt = tuple(len(requests) + i for i in range(kv.free + kv.cached - 3))
            name = f"high{len(requests)}"
            requests[name], told[name] = Request(name, prompt, SamplingParams(max_tokens=6)), []
            engine.add(requests[name])
        for event in engine.step():
            told[event.request_id] += event.token_ids
            if event.usage is not None and event.request_id == "low":
                worst = event.usage.num_preemptions
        engine.scheduler.check()
        if not engine.has_work:
            break
    assert worst == 8 and not engine.has_work
    for name, request in requests.items():
        length = len(request.prompt_ids) + (request.params.max_tokens or 0)
        assert told[name] == plain_answer(request, 0, 500, frozenset(), length)[0]
