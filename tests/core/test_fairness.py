"""Who is served: priorities first, then tenants by what they received; a difference in service has a bound."""

from __future__ import annotations

import random

import pytest
from clockwork import Clockwork, Watch, ask
from desk import ask as desk_ask
from desk import land, scheduler, shape, step

from legato.core.request import Request
from legato.core.sequence import FinishReason, Sequence
from legato.engine import Engine
from legato.measure.step_time import StepCost
from legato.schedule.tenants import ANSWER_WEIGHT, MAX_GONE, PROMPT_WEIGHT, Tenants
from legato.schedule.waiting import WaitingQueue

# -- counters ---------------------------------------------------------------------------------------------------------


def test_prompt_tokens_count_one_and_answer_tokens_two() -> None:
    tenants = Tenants()
    tenants.join("a")
    tenants.promise("a", 10)
    assert (tenants.service("a"), tenants.claimed("a")) == (0, 10)
    tenants.serve("a", 4, 3)
    assert (tenants.service("a"), tenants.claimed("a")) == (4 + 2 * 3, 6 + 4 + 2 * 3)
    assert (PROMPT_WEIGHT, ANSWER_WEIGHT) == (1, 2)


def test_a_newcomer_starts_at_the_least_of_those_who_are_here() -> None:
    tenants = Tenants()
    tenants.join("a")
    tenants.serve("a", 0, 5)
    tenants.join("b")
    tenants.serve("b", 0, 20)
    assert (tenants.service("a"), tenants.service("b"), tenants.claimed("c")) == (10, 50, 10)


def test_absence_saves_nothing_up() -> None:
    tenants = Tenants()
    tenants.join("busy")
    tenants.serve("busy", 0, 500)
    assert tenants.claimed("new") == 1000, "where it would start"
    tenants.join("new")
    assert tenants.service("new") == 1000


def test_leaving_for_a_moment_pays_nothing_off() -> None:
    tenants = Tenants()
    for name in ("modest", "greedy"):
        tenants.join(name)
    tenants.serve("greedy", 0, 500)
    tenants.leave("greedy")
    tenants.join("greedy")
    assert (tenants.service("greedy"), tenants.service("modest")) == (1000, 0)


def test_when_all_have_left_everybody_starts_anew() -> None:
    tenants = Tenants()
    tenants.join("a")
    tenants.serve("a", 0, 500)
    tenants.leave("a")
    assert len(tenants) == 0 and tenants.claimed("a") == 0


def test_a_tenant_is_here_until_its_last_sequence_has_left() -> None:
    tenants = Tenants()
    for name in ("a", "a", "b"):
        tenants.join(name)
    tenants.serve("a", 5, 0)
    tenants.leave("a")
    assert len(tenants) == 2 and tenants.service("a") == 5


def test_tenants_that_are_gone_are_not_remembered_for_ever() -> None:
    tenants = Tenants()
    tenants.join("here")
    for i in range(5 * MAX_GONE):
        tenants.join(f"t{i}")
        tenants.serve(f"t{i}", i, 0)
        tenants.leave(f"t{i}")
    assert len(tenants._gone) <= MAX_GONE
    assert tenants.claimed(f"t{5 * MAX_GONE - 1}") == 5 * MAX_GONE - 1, (
        "those who had most are the last to be forgotten"
    )


# -- the queue --------------------------------------------------------------------------------------------------------


def waiting(*who: tuple[int, str, int]) -> tuple[WaitingQueue, Tenants, list[Sequence]]:
    """A queue of (seq_id, tenant, priority)."""
    tenants = Tenants()
    queue = WaitingQueue(tenants)
    seqs = [Sequence(i, Request(f"r{i}", (1,) * 10, tenant=t, priority=p)) for i, t, p in who]
    for seq in seqs:
        tenants.join(seq.request.tenant)
        queue.add(seq)
    return queue, tenants, seqs


def drained(queue: WaitingQueue) -> list[int]:
    ids = []
    while (seq := queue.head()) is not None:
        assert queue.remove(seq) and not queue.remove(seq)
        ids.append(seq.seq_id)
    assert len(queue) == 0 and list(queue) == []
    return ids


def test_the_queue_goes_by_priority_then_service_then_arrival() -> None:
    queue, tenants, _ = waiting((4, "a", 0), (1, "b", 0), (3, "a", 0), (2, "c", -1), (0, "b", 7))
    tenants.promise("b", 1)
    assert len(queue) == 5 and {s.seq_id for s in queue} == {0, 1, 2, 3, 4}
    assert drained(queue) == [2, 3, 4, 1, 0]


def test_tenants_that_had_the_same_come_by_arrival() -> None:
    queue, _, _ = waiting((2, "a", 0), (1, "b", 0), (0, "a", 1))
    assert drained(queue) == [1, 2, 0]


def test_who_is_ahead_of_a_newcomer() -> None:
    queue, tenants, _ = waiting(*[(i, "busy", 0) for i in range(5)], (5, "calm", 0), (6, "busy", -1), (7, "busy", 3))
    ahead = sorted(seq.seq_id for seq in queue.ahead_of(0, "busy"))
    assert ahead == [0, 1, 2, 3, 4, 5, 6], "its own, all of higher priority, and who has had less"
    ahead = sorted(seq.seq_id for seq in queue.ahead_of(0, "calm"))
    assert ahead == [0, 1, 5, 6], "of others only as much as it gets itself before"
    tenants.promise("busy", 100)
    assert sorted(seq.seq_id for seq in queue.ahead_of(0, "calm")) == [5, 6], "whoever was promised more comes later"
    assert sorted(seq.seq_id for seq in queue.ahead_of(-2, "calm")) == []


# -- admission and rows -----------------------------------------------------------------------------------------------


def test_tenants_are_admitted_in_turn_not_in_the_order_of_arrival() -> None:
    sched = scheduler(max_seqs=4)
    for i in range(6):
        sched.add(desk_ask(f"a{i}", 3, tenant="a"), 0.0)
    for i in range(2):
        sched.add(desk_ask(f"b{i}", 3, tenant="b"), 0.0)
    assert [s[0] for s in shape(step(sched)[0])] == ["a0", "b0", "a1", "b1"]


def test_two_tenants_prompts_are_read_side_by_side() -> None:
    sched = scheduler(max_tokens=8)
    sched.add(desk_ask("a", 60, tenant="a"), 0.0)
    sched.add(desk_ask("b", 60, tenant="b"), 0.0)
    rows, names = {"a": 0, "b": 0}, []
    for _ in range(14):
        for name, _, length, _ in shape(step(sched)[0]):
            rows[name] += length
            names.append(name)
        assert abs(rows["a"] - rows["b"]) <= 8, "one step's rows"
    assert names == ["a", "b"] * 7


def test_a_short_prompt_of_one_who_had_less_does_not_wait_for_a_long_one_to_be_read() -> None:
    sched = scheduler(max_tokens=8)
    for name in "ab":
        sched.add(desk_ask(name, 2, tenant=name, max_tokens=1), 0.0)
    sched.add(desk_ask("long", 100, tenant="a"), 0.0)
    sched.add(desk_ask("stay", 1, tenant="b"), 0.0)
    for _ in range(4):
        step(sched)
    sched.add(desk_ask("short", 6, tenant="b"), 0.0)
    assert [s[0] for s in shape(step(sched)[0])] == ["stay", "short", "long"]


def test_an_urgent_prompt_is_read_before_one_that_runs() -> None:
    sched = scheduler(max_tokens=8)
    sched.add(desk_ask("long", 100), 0.0)
    step(sched)
    sched.add(desk_ask("urgent", 6, priority=-1), 0.0)
    sched.add(desk_ask("later", 6), 0.0)
    assert [s[:3] for s in shape(step(sched)[0])] == [("urgent", 0, 6), ("long", 8, 2)]


def test_priority_comes_before_fairness() -> None:
    sched = scheduler(max_seqs=1)
    sched.add(desk_ask("a", 3, tenant="a", priority=-1, max_tokens=2), 0.0)
    sched.add(desk_ask("b", 3, tenant="b"), 0.0)
    sched.add(desk_ask("a2", 3, tenant="a", priority=-1), 0.0)
    for _ in range(2):
        step(sched)
    assert [s[0] for s in shape(step(sched)[0])] == ["a2"]


def test_cached_and_repeated_tokens_cost_nothing() -> None:
    sched = scheduler(num_pages=60, max_tokens=64)
    sched.add(desk_ask("warm", range(100, 140), tenant="x", max_tokens=1), 0.0)
    step(sched)
    sched.add(desk_ask("other", 1, tenant="y", max_tokens=50), 0.0)
    step(sched)
    before = sched.tenants.claimed("z")
    sched.add(desk_ask("hit", [*range(100, 136), 1, 2], tenant="z", max_tokens=30), 0.0)
    step(sched)
    assert sched.tenants.service("z") - before == 2 * PROMPT_WEIGHT + ANSWER_WEIGHT
    (seq,) = sched._live["hit"]
    assert seq.num_cached_tokens == 36 and sched.tenants.claimed("z") == sched.tenants.service("z")


def test_what_is_computed_again_after_preemption_is_not_paid_twice() -> None:
    sched = scheduler(num_pages=12, page_size=1, max_tokens=64)
    for name in "ab":
        sched.add(desk_ask(name, 4, tenant=name, max_tokens=8), 0.0)
    paid: dict[str, int] = {}
    while sched.has_work:
        for name in list(sched._live):
            paid[name] = sched.tenants.service(name)
        step(sched)
    assert sched.num_preemptions > 0
    assert paid == {"a": 4 + 2 * 7, "b": 4 + 2 * 7}, "all but the last step of each, whoever was preempted"


def test_a_promise_to_one_who_leaves_is_taken_back() -> None:
    sched = scheduler(max_tokens=8)
    sched.add(desk_ask("stay", 3, tenant="t"), 0.0)
    sched.add(desk_ask("leave", 40, tenant="t"), 0.0)
    step(sched)
    assert sched.tenants.claimed("t") - sched.tenants.service("t") == 40 - 5
    plan = sched.schedule(0.0)
    sched.abort("leave", 0.0)
    land(sched, plan)
    assert sched.tenants.claimed("t") == sched.tenants.service("t")


def test_the_report_counts_everybody() -> None:
    sched = scheduler(max_seqs=2)
    for name, tenant in (("a", "x"), ("b", "x"), ("c", "x"), ("d", "y")):
        sched.add(desk_ask(name, 3, tenant=tenant, n=2 if name == "d" else 1), 0.0)
    step(sched)
    report = {name: (r.num_waiting, r.num_running) for name, r in sched.by_tenant().items()}
    assert report == {"x": (2, 1), "y": (1, 1)}
    assert sched.by_tenant()["x"].service == 3 + 2


# -- the bound --------------------------------------------------------------------------------------------------------


def served(engine: Engine, name: str) -> int:
    return engine.scheduler.tenants.service(name)


@pytest.mark.parametrize("seed", range(4))
def test_service_of_two_that_always_wait_never_differs_by_more_than_what_runs(seed: int) -> None:
    """One asks for long prompts and short answers, the other for the opposite; the bound is independent of time."""
    rng = random.Random(seed)
    slots, most_prompt, most_answer = 6, 300, 120
    clock, watch = Clockwork(StepCost()), Watch()
    engine = clock.engine(max_seqs=slots, num_pages=400, context_length=1000)
    sizes = {"long prompts": (most_prompt, 10), "long answers": (20, most_answer)}
    count = 0
    worst, at_end = 0, []
    bound = 2 * slots * (PROMPT_WEIGHT * most_prompt + ANSWER_WEIGHT * most_answer)
    for _ in range(1500):
        report = engine.stats().tenants
        for tenant, (prompt, answer) in sizes.items():
            while tenant not in report or report[tenant].num_waiting < 4:
                name = f"{tenant}{count}"
                engine.add(ask(name, rng.randint(1, prompt), rng.randint(1, answer), tenant=tenant))
                count, report = count + 1, engine.stats().tenants
        watch.step(engine, clock)
        worst = max(worst, abs(served(engine, "long prompts") - served(engine, "long answers")))
        at_end.append(worst)
    total = served(engine, "long prompts")
    assert worst <= bound
    assert worst <= bound / 4, "in truth far less"
    assert at_end[-1] <= at_end[300] + bound / 8, "and it does not grow with time"
    assert total > 2 * bound, "long enough to tell"


def test_a_flood_of_one_tenant_hardly_delays_another() -> None:
    clock, watch = Clockwork(StepCost()), Watch()
    engine = clock.engine(max_seqs=4)
    for i in range(200):
        engine.add(ask(f"flood{i}", 100, 50, tenant="flood"))
    for _ in range(100):
        watch.step(engine, clock)
    engine.add(ask("calm", 100, 10, tenant="calm"))
    began = clock.now
    while "calm" not in watch.ends:
        watch.step(engine, clock)
    assert watch.ends["calm"] is FinishReason.LENGTH
    assert clock.now - began < 2.0 and sum(name.startswith("flood") for name in watch.ends) < 20
