"""The loop lives on: whatever fails in a step fails the sequences of that step and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from page_echo import PageEcho, plain_answer

from legato.core.events import Event
from legato.core.plan import Plan, SliceResult
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.engine import Engine
from legato.errors import EngineError, RequestError, UsageError

VOCAB = 50


def engine(runner: PageEcho | None = None, **options: object) -> Engine:
    sizes = {"num_pages": 40, "page_size": 4, "max_tokens": 16, "max_seqs": 4, "context_length": 64}
    return Engine(runner or PageEcho(40, 4, VOCAB), vocab_size=VOCAB, **{**sizes, **options})  # type: ignore[arg-type]


def ask(name: str, *ids: int, **fields: object) -> Request:
    return Request(name, ids or (1, 2, 3), SamplingParams(**{"max_tokens": 5, **fields}))  # type: ignore[arg-type]


def drain(eng: Engine) -> list[Event]:
    events: list[Event] = []
    while eng.has_work:
        events += eng.step()
    return events


def failing(at_step: int, error: BaseException) -> tuple[PageEcho, Callable[[Plan], None]]:
    runner = PageEcho(40, 4, VOCAB)

    def during(plan: Plan) -> None:
        if runner.num_steps == at_step:
            raise error

    runner.during = during
    return runner, during


def test_a_failing_step_ends_its_own_sequences_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    runner, _ = failing(2, ZeroDivisionError("secret address 0xdeadbeef"))
    eng = engine(runner, max_seqs=2)
    for name in "abc":
        eng.add(ask(name))
    events = drain(eng)
    ends = {e.request_id: e for e in events if e.finish_reason is not None}
    assert [ends[name].finish_reason for name in "abc"] == [FinishReason.ERROR, FinishReason.ERROR, FinishReason.LENGTH]
    assert ends["a"].error == "the step failed: ZeroDivisionError", "no one else's words reach a caller"
    assert [t for e in events if e.request_id == "c" for t in e.token_ids] == plain_answer(
        ask("c"), 0, VOCAB, frozenset(), 8
    )[0]
    stats = eng.stats()
    assert (stats.num_faults, stats.num_leaks, stats.kv.in_use) == (1, 0, 0) and not runner.known
    assert "secret" in caplog.text, "but the log has it all"


def test_our_own_errors_keep_their_words() -> None:
    runner, _ = failing(1, EngineError("the device is gone"))
    eng = engine(runner)
    eng.add(ask("a"))
    assert [e.error for e in drain(eng)] == ["the step failed: the device is gone"]


@pytest.mark.parametrize("results", [[], [SliceResult([1])] * 2, None, iter([SliceResult([1])])])
def test_results_that_do_not_fit_the_plan_are_a_failed_step(results: object) -> None:
    runner = PageEcho(40, 4, VOCAB)
    runner.run = lambda plan: results  # type: ignore[method-assign,assignment,return-value]
    eng = engine(runner)
    eng.add(ask("a"))
    (event,) = drain(eng)
    assert event.finish_reason is FinishReason.ERROR and eng.stats().kv.in_use == 0


def test_an_interrupt_passes_through_and_the_step_did_not_happen() -> None:
    runner, _ = failing(2, KeyboardInterrupt())
    eng = engine(runner)
    eng.add(ask("a"))
    events = eng.step()
    with pytest.raises(KeyboardInterrupt):
        eng.step()
    eng.scheduler.check()
    events += drain(eng)
    assert [t for e in events for t in e.token_ids] == plain_answer(ask("a"), 0, VOCAB, frozenset(), 8)[0]


def test_an_interrupted_request_can_be_aborted() -> None:
    runner, _ = failing(2, KeyboardInterrupt())
    eng = engine(runner)
    eng.add(ask("a"))
    eng.step()
    with pytest.raises(KeyboardInterrupt):
        eng.step()
    eng.abort("a")
    assert [e.finish_reason for e in drain(eng)] == [FinishReason.ABORT]
    assert eng.stats().kv.in_use == 0 and not runner.known


def test_a_faulty_proposer_costs_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def propose(self, seqs: object) -> dict[int, list[int]]:
            raise ValueError("no idea")

    eng = engine(proposer=Broken())
    eng.add(ask("a"))
    assert [t for e in drain(eng) for t in e.token_ids] == plain_answer(ask("a"), 0, VOCAB, frozenset(), 8)[0]
    assert "no idea" in caplog.text


def test_lost_pages_are_found_when_idle_said_aloud_and_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    eng = engine()
    eng.add(ask("a"))
    eng.step()
    eng.scheduler.cache._pool.take()
    drain(eng)
    stats = eng.stats()
    assert stats.num_leaks == 1 and stats.kv.free == stats.kv.total
    assert "no owner" in caplog.text and caplog.records[-1].levelno == logging.ERROR


def test_nothing_is_kept_of_what_has_ended() -> None:
    runner = PageEcho(40, 4, VOCAB)
    eng = engine(runner)
    runner.during = lambda plan: (
        eng.abort(plan.slices[-1].seq.request.request_id) if runner.num_steps % 5 == 0 else None
    )
    for i in range(50):
        eng.add(ask(f"r{i}", i % 7, 1, 2, n=1 + i % 3))
        if i % 4 == 0:
            eng.abort(f"r{i - 2}")
        eng.step()
    drain(eng)
    sched = eng.scheduler
    assert not (sched._waiting or sched.followers or sched._running or sched._live or sched._landing or sched._outbox)
    assert not runner.known


def test_a_step_with_nothing_to_do_does_nothing() -> None:
    runner = PageEcho(40, 4, VOCAB)
    eng = engine(runner)
    assert eng.step() == [] and not eng.has_work and runner.num_steps == 0
    eng.add(ask("a"))
    eng.abort("a")
    assert eng.has_work, "the end is still to be told"
    assert [e.finish_reason for e in eng.step()] == [FinishReason.ABORT]
    assert not eng.has_work and runner.num_steps == 0 and eng.stats().total.num_steps == 0


def test_the_door_knows_the_vocabulary_and_the_sizes() -> None:
    eng = engine()
    with pytest.raises(RequestError, match=r"prompt_ids=50 .* 0 to 49"):
        eng.add(ask("a", 50))
    with pytest.raises(UsageError, match="page_size=0"):
        engine(page_size=0)


def test_the_ledger_tells_what_the_mission_works_out_by_hand() -> None:
    """A prompt of 1,024 and 32 tokens: steps see 1,024 + ... + 1,055 positions, 33,264 in all."""
    runner = PageEcho(40, 64, VOCAB)
    eng = engine(runner, page_size=64, max_tokens=1024, context_length=2000)
    eng.add(Request("a", tuple(i % VOCAB for i in range(1024)), SamplingParams(max_tokens=32)))
    drain(eng)
    total = eng.stats().total
    assert (total.num_steps, total.prompt_tokens, total.decode_tokens, total.output_tokens) == (32, 1024, 31, 32)
    assert total.kv_tokens == 33264
    assert total.visited == 1024 * 1025 // 2 + sum(range(1025, 1056))
    assert set(total.laps) == {"schedule", "run", "commit", "propose"}
    assert 0 < sum(total.laps.values()) <= total.seconds


@pytest.mark.parametrize("num_tokens, positions", [(8, 36), (16, 136), (32, 528)])
def test_naive_decoding_computes_half_the_square(num_tokens: int, positions: int) -> None:
    runner = PageEcho(40, 4, VOCAB)
    eng = engine(runner, use_cache=False, max_tokens=64)
    eng.add(Request("a", (1,), SamplingParams(max_tokens=num_tokens)))
    drain(eng)
    assert runner.num_rows == eng.stats().total.num_tokens == positions
