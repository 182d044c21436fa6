"""Who is let in and for how long: deadlines, the queue's end, forecasts; and batches that nobody joins."""

from __future__ import annotations

import pytest
from clockwork import Clockwork, Watch, ask
from desk import ask as desk_ask
from desk import land, scheduler, shape, step

from legato.core.events import Event
from legato.core.sequence import FinishReason
from legato.engine import Engine
from legato.errors import OverloadedError
from legato.measure.step_time import StepCost, StepTimeModel
from legato.schedule.budget import Pace, WholeSteps
from legato.schedule.forecast import Job, forecast

LAW = StepCost(6.5e-3, 1e-4, 4e-4, 8e-7, 1.5e-7, 1e-4)


def ended(events: list[Event]) -> dict[str, FinishReason]:
    return {e.request_id: e.finish_reason for e in events if e.finish_reason is not None}


# -- running past a deadline ------------------------------------------------------------------------------------------


def test_an_answer_ends_at_its_deadline_with_what_there_is() -> None:
    clock, watch = Clockwork(LAW), Watch()
    engine = clock.engine()
    engine.add(ask("warm", 300, 30))
    while engine.has_work:
        watch.step(engine, clock)
    clock.law = StepCost(*(8 * getattr(LAW, name) for name in StepCost.__dataclass_fields__))  # it becomes far slower
    began = clock.now
    engine.add(ask("late", 100, 100, deadline_ms=2000))
    engine.add(ask("other", 100, 40))
    while engine.has_work:
        watch.step(engine, clock)
    assert watch.ends["late"] is FinishReason.DEADLINE and watch.ends["other"] is FinishReason.LENGTH
    assert 5 < len(watch.times["late"]) < 100
    assert began + 1.8 < watch.times["late"][-1] < began + 2.2
    stats = engine.stats()
    assert stats.num_expired == 1 and stats.kv.in_use == 0


@pytest.mark.parametrize("where", ["waiting", "parked", "running", "in flight"])
def test_a_deadline_is_kept_wherever_the_answer_is(where: str) -> None:
    sched = scheduler(max_tokens=8, max_seqs=1 if where == "waiting" else 4, num_pages=100)
    if where == "waiting":
        sched.add(desk_ask("first", 30), 0.0)
    n = 2 if where == "parked" else 1
    sched.add(desk_ask("a", 20, n=n, deadline_ms=50_000), 0.0)
    sched.commit(plan := sched.schedule(0.0), [_result(s) for s in plan.slices], 0.0)
    if where == "in flight":
        plan = sched.schedule(49.9)
        events = sched.commit(plan, [_result(s) for s in plan.slices], 50.0)
    else:
        plan = sched.schedule(50.0)
        events = land(sched, plan)
    assert [(e.index, e.finish_reason) for e in events if e.request_id == "a"] == [
        (i, FinishReason.DEADLINE) for i in range(n)
    ]
    assert all(e.usage is not None for e in events)
    sched.check()
    assert sched.cache.report().in_use == sum(len(s.pages) for s in sched._running.values())
    assert "a" not in sched._live and sched.num_expired == n


def _result(piece: object) -> object:
    from legato.core.plan import SliceResult

    return SliceResult([7] if piece.end == piece.seq.num_tokens else [])  # type: ignore[attr-defined]


def test_tokens_of_the_step_that_ran_past_the_deadline_are_kept() -> None:
    sched = scheduler()
    sched.add(desk_ask("a", 3, deadline_ms=90_000), 0.0)
    plan = sched.schedule(0.0)
    events = sched.commit(plan, [_result(s) for s in plan.slices], 91.0)  # type: ignore[misc]
    assert [e.token_ids for e in events] == [[7], []]
    assert events[-1].finish_reason is FinishReason.DEADLINE and not sched.has_work
    assert events[-1].usage is not None and events[-1].usage.num_output_tokens == 1


def test_a_deadline_that_was_met_is_forgotten() -> None:
    sched = scheduler()
    for i in range(500):
        sched.add(desk_ask(f"r{i}", 3, max_tokens=1, deadline_ms=80_000_000), 0.0)
        step(sched)
    assert len(sched._deadlines) < 150 and sched.num_expired == 0
    sched.schedule(1e9)
    assert not sched._deadlines and sched.num_expired == 0


# -- at the door ------------------------------------------------------------------------------------------------------


def busy(streams: int, answer: int, waiting: int = 0, **options: object) -> tuple[Engine, Clockwork, Watch]:
    """An engine that has learnt the law, and is at work on `streams` answers."""
    clock, watch = Clockwork(LAW), Watch()
    engine = clock.engine(**{"max_seqs": streams, **options})
    for i in range(3):
        engine.add(ask(f"warm{i}", 700, 40))
    while engine.has_work:
        watch.step(engine, clock)
    for i in range(streams + waiting):
        engine.add(ask(f"s{i}", 100, answer))
    while engine.scheduler.num_running < streams:
        watch.step(engine, clock)
    return engine, clock, watch


def finish_time(engine: Engine, clock: Clockwork, watch: Watch, name: str) -> float:
    began = clock.now
    while name not in watch.ends:
        watch.step(engine, clock)
    return clock.now - began


def pass_time(engine: Engine, clock: Clockwork, watch: Watch, until: float) -> None:
    while clock.now < until and engine.has_work:
        watch.step(engine, clock)
    clock.now = max(clock.now, until)


@pytest.mark.parametrize("streams, answer, waiting", [(1, 50, 0), (1, 60, 3), (4, 100, 0), (4, 60, 6), (8, 200, 30)])
def test_a_forecast_comes_true(streams: int, answer: int, waiting: int) -> None:
    engine, clock, watch = busy(streams, answer, waiting)
    said = engine.estimate(600, 80)
    engine.add(ask("asked", 600, 80))
    took = finish_time(engine, clock, watch, "asked")
    assert said.seconds == pytest.approx(took, rel=0.25)
    assert said.seconds == said.queue_s + said.prefill_s + said.decode_s


def test_an_idle_engine_makes_nobody_wait() -> None:
    engine, clock, watch = busy(1, 2)
    while engine.has_work:
        watch.step(engine, clock)
    said = engine.estimate(2000, 1)
    engine.add(ask("asked", 2000, 1))
    assert said.queue_s == 0 and said.decode_s == 0
    assert said.prefill_s == pytest.approx(finish_time(engine, clock, watch, "asked"), rel=0.15)


def test_a_deadline_that_cannot_be_met_is_refused_with_the_time_to_come_back() -> None:
    engine, clock, watch = busy(2, 300, 4)
    due = engine.estimate(100, 50).seconds
    with pytest.raises(OverloadedError, match=r"deadline_ms=500 .* ms needed") as caught:
        engine.add(ask("hurry", 100, 50, deadline_ms=500))
    assert 0.1 <= caught.value.retry_after_s <= due
    assert not any(seq.request.request_id == "hurry" for seq in engine.scheduler._waiting)
    assert engine.stats().num_refused == 1
    engine.add(ask("calm", 100, 50, deadline_ms=1500 * due))
    finish_time(engine, clock, watch, "calm")
    assert watch.ends["calm"] is FinishReason.LENGTH


def test_whoever_would_be_late_without_a_queue_too_is_told_so() -> None:
    engine, clock, watch = busy(1, 2)
    while engine.has_work:
        watch.step(engine, clock)
    with pytest.raises(OverloadedError, match="even without a queue: allow more, or ask for fewer tokens"):
        engine.add(ask("never", 100, 50, deadline_ms=1))
    engine, clock, watch = busy(2, 300, 4)
    with pytest.raises(OverloadedError) as queued:
        engine.add(ask("later", 100, 50, deadline_ms=500))
    assert "without a queue" not in str(queued.value)


def test_after_the_time_to_come_back_it_is_let_in() -> None:
    engine, clock, watch = busy(2, 300, 4)
    hurry = ask("hurry", 100, 50, deadline_ms=1500)
    with pytest.raises(OverloadedError) as caught:
        engine.add(hurry)
    until = clock.now + 1.3 * caught.value.retry_after_s
    pass_time(engine, clock, watch, until)
    engine.add(hurry)
    finish_time(engine, clock, watch, "hurry")
    assert watch.ends["hurry"] is FinishReason.LENGTH


def test_priority_and_tenant_shorten_the_wait_that_is_predicted() -> None:
    engine, _, _ = busy(2, 100, 10)
    usual, urgent = engine.estimate(10, 10), engine.estimate(10, 10, priority=-1)
    fresh = engine.estimate(10, 10, tenant="new")
    assert urgent.queue_s < usual.queue_s / 2 and fresh.queue_s < usual.queue_s / 2


def test_an_answer_is_expected_to_be_as_long_as_answers_were() -> None:
    sched = scheduler(num_pages=1000, context_length=3000, max_tokens=64)
    door = sched.door
    sched.add(desk_ask("a", 3, max_tokens=2000), 0.0)
    seq = sched._live["a"][0]
    assert door.job(seq) == Job(2, 256)
    sched.abort("a", 0.0)
    for i in range(60):
        sched.add(desk_ask(f"r{i}", 3, max_tokens=10), 0.0)
        while sched.has_work:
            step(sched)
    sched.add(desk_ask("b", 3, max_tokens=2000), 0.0)
    sched.add(desk_ask("c", 3, max_tokens=2000, ignore_eos=True), 0.0)
    sched.add(desk_ask("d", 3, max_tokens=4), 0.0)
    assert [door.job(sched._live[name][0]).answer for name in "bcd"] == [10, 2000, 4]
    while sched._live["b"][0].num_output_tokens < 15:
        step(sched)
    assert door.job(sched._live["b"][0]) == Job(0, 1), "past the usual length it may end any moment"


def test_one_short_answer_moves_what_is_expected_by_a_tenth() -> None:
    sched = scheduler(num_pages=1000, context_length=3000, max_tokens=64)
    sched.add(desk_ask("a", 3, max_tokens=16), 0.0)
    while sched.has_work:
        step(sched)
    sched.add(desk_ask("b", 3, max_tokens=2000), 0.0)
    assert sched.door.job(sched._live["b"][0]).answer == 256 - (256 - 16) // 10


def test_waiting_requests_can_be_cancelled() -> None:
    engine, clock, watch = busy(2, 60, 3)
    engine.abort("s4")
    engine.add(ask("more", 10, 10))
    watch.step(engine, clock)
    assert watch.ends["s4"] is FinishReason.ABORT and not watch.times["s4"]
    assert engine.stats().num_waiting == 3


def test_slots_come_free_one_by_one() -> None:
    model = StepTimeModel(StepCost(0.01, 1e-9, 1e-9, 1e-12, 1e-12, 1e-9))

    def queue_s(slots: int, running: list[int], ahead: list[int]) -> float:
        jobs = [[Job(0, answer) for answer in answers] for answers in (running, ahead)]
        return forecast(model, WholeSteps(), slots, 512, 100, jobs[0], jobs[1], Job(10, 10)).queue_s

    assert queue_s(4, [50, 60], []) == 0
    assert queue_s(2, [50, 60], []) == pytest.approx(0.5, rel=1e-3)
    assert queue_s(2, [50, 60], [100]) == pytest.approx(0.6, rel=1e-3)
    assert queue_s(2, [50, 60], [5, 100]) == pytest.approx(0.6, rel=1e-3)
    assert queue_s(2, [50, 60], [30, 100]) == pytest.approx(0.8, rel=1e-3)
    assert queue_s(1, [10], [20, 30]) == pytest.approx(0.6, rel=1e-3)


def test_prompts_ahead_take_their_time() -> None:
    jobs = [Job(2000, 5)], [Job(1000, 5)]
    behind = [forecast(StepTimeModel(), WholeSteps(), 4, 512, 100, running, [], Job(9, 9)) for running in ([], jobs[0])]
    assert behind[0].queue_s == 0 and behind[1].queue_s > 0.5


# -- static batching --------------------------------------------------------------------------------------------------


def test_a_static_batch_runs_to_its_end_before_anybody_joins() -> None:
    sched = scheduler(max_seqs=3, max_tokens=8, continuous=False)
    for i, answer in enumerate((2, 6, 4, 1, 1)):
        sched.add(desk_ask(f"r{i}", 6, max_tokens=answer), 0.0)
    together: list[list[str]] = []
    while sched.has_work:
        names = sorted({s[0] for s in shape(step(sched)[0])})
        together.append(names)
        sched.check()
    first = [names for names in together if "r3" not in names and "r4" not in names]
    assert together[: len(first)] == first and ["r0", "r1", "r2"] in first and first[-1] == ["r1"]
    assert together[len(first) :] == [["r3", "r4"], ["r4"]]


def test_continuous_batching_takes_fewer_steps_than_static() -> None:
    def steps(continuous: bool) -> int:
        sched, count = scheduler(max_seqs=4, num_pages=400, continuous=continuous), 0
        for i in range(20):
            sched.add(desk_ask(f"r{i}", 3, max_tokens=1 + 7 * i % 40), 0.0)
        while sched.has_work:
            step(sched)
            count += 1
        return count

    assert steps(True) < 0.75 * steps(False)


def test_a_static_batch_takes_back_whoever_had_to_give_way() -> None:
    sched = scheduler(num_pages=18, page_size=1, max_tokens=64, max_seqs=4, continuous=False)
    for name, answer in (("a", 6), ("b", 12), ("c", 6)):
        sched.add(desk_ask(name, 3, max_tokens=answer), 0.0)
    events, beside = [], 0
    while sched.has_work:
        plan, new = step(sched)
        events += new
        beside += len(plan.slices) > 1 and any(s.seq.num_preemptions for s in plan.slices)
    assert beside > 0, "it runs beside the others again"
    assert sched.num_preemptions > 0 and ended(events) == dict.fromkeys("abc", FinishReason.LENGTH)


def test_a_prompt_beside_streams_is_expected_to_be_read_at_the_pace_that_they_leave() -> None:
    model, running = StepTimeModel(), [Job(0, 50)] * 3
    slow, fast = (
        forecast(model, budget, 4, 512, 100, running, [], Job(2000, 1)).prefill_s
        for budget in (Pace(model, 0.02), WholeSteps())
    )
    assert slow > 1.05 * fast
