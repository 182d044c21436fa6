"""Prompts that begin alike and arrive together: what they share is computed once, and nobody waits for nothing."""

from __future__ import annotations

from desk import Rows, ask, land, scheduler, step
from hypothesis import given, settings
from hypothesis import strategies as st
from page_echo import PageEcho, plain_answer

from legato.core.plan import SliceResult
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.engine import Engine
from legato.measure.step_time import Load, StepCost, StepTimeModel
from legato.schedule.followers import shared_pages, worth_waiting
from legato.schedule.forecast import Job
from legato.schedule.scheduler import Scheduler

SHARED = tuple(range(500, 564))  # 16 pages of 4
CHEAP_STEPS = StepTimeModel(StepCost(step=1e-9))  # waiting costs nothing
DEAR_STEPS = StepTimeModel(StepCost(step=1e3))  # nothing is worth a step


def begin(count: int, own: int = 3, **options: object) -> Scheduler:
    """`count` prompts that share SHARED and have `own` tokens each, waiting."""
    sched = scheduler(num_pages=200, max_tokens=512, **{"model": CHEAP_STEPS, **options})
    for i in range(count):
        sched.add(ask(f"r{i}", (*SHARED, *range(10 * i, 10 * i + own)), max_tokens=2), 0.0)
    return sched


def run(sched: Scheduler) -> int:
    """To the end; how many rows of prompts were computed."""
    rows = 0
    for _ in range(1000):
        if not sched.has_work:
            return rows
        plan, _ = step(sched)
        rows += sum(min(s.end, s.seq.num_prompt_tokens) - min(s.start, s.seq.num_prompt_tokens) for s in plan.slices)
    raise AssertionError("no end")


def test_eight_cold_prompts_compute_what_they_share_once() -> None:
    sched = begin(8)
    assert run(sched) == len(SHARED) + 8 * 3
    assert sched.followers.num_strangers == 7


def test_naive_decoding_and_static_batches_know_no_leaders() -> None:
    assert begin(3, continuous=False).followers.num_strangers == 0
    for options in ({"continuous": False}, {"use_cache": False}):
        sched = begin(3, **options)
        run(sched)
        assert sched.followers.num_strangers == 0


def test_nobody_waits_where_a_step_costs_more_than_the_rows() -> None:
    sched = begin(3, model=DEAR_STEPS, max_seqs=3)
    assert run(sched) > len(SHARED) + 3 * 3
    assert sched.followers.num_strangers == 0


def test_answers_to_one_prompt_share_one_prefill_whatever_a_step_costs() -> None:
    sched = scheduler(num_pages=200, max_tokens=30, model=DEAR_STEPS)
    sched.add(ask("a", 61, n=4, temperature=1.0, max_tokens=2), 0.0)
    assert run(sched) == 61 + 3 * 1, "the last token of a prompt is always computed"


def test_a_stranger_overtakes_those_who_wait_for_a_leader() -> None:
    sched = begin(3, budget=Rows(lambda planned: 20))
    sched.add(ask("x", 3), 0.0)
    plan, _ = step(sched)
    assert [s.seq.request.request_id for s in plan.slices] == ["r0", "x"]
    assert sched.num_waiting == 2 and [found for _, found in sched.followers] == [64, 64]


def test_followers_come_back_as_soon_as_their_pages_are_there() -> None:
    """Not when the leader's own long tail is done."""
    sched = scheduler(num_pages=200, max_tokens=500, model=CHEAP_STEPS, budget=Rows(lambda planned: 32))
    sched.add(ask("long", (*SHARED, *range(100)), max_tokens=2), 0.0)
    sched.add(ask("short", (*SHARED, 7), max_tokens=2), 0.0)
    step(sched)
    assert sched.num_waiting == len(sched.followers) == 1
    step(sched)
    assert sched.num_waiting == 1 and not len(sched.followers)
    sched.schedule(0.0)
    assert sched._live["short"][0].num_cached_tokens == len(SHARED)


def test_another_salt_and_a_less_important_leader_are_not_waited_for() -> None:
    prompt = (*SHARED, 1)
    for fields in ({"salt": "x"}, {"priority": -1}):
        sched = scheduler(num_pages=200, model=CHEAP_STEPS, max_tokens=500, budget=Rows(lambda planned: 16))
        sched.add(ask("a", prompt), 0.0)
        step(sched)
        sched.add(ask("b", prompt, **fields), 0.0)
        step(sched)
        assert not len(sched.followers) and sched.num_running == 2, fields


def test_logits_that_are_wanted_are_not_waited_for() -> None:
    """Prompt logprobs need every row, so there is nothing to find."""
    sched = scheduler(num_pages=200, model=CHEAP_STEPS, max_tokens=500, budget=Rows(lambda planned: 16))
    sched.add(ask("a", (*SHARED, 1)), 0.0)
    step(sched)
    sched.add(ask("b", (*SHARED, 2), prompt_logprobs=0), 0.0)
    step(sched)
    assert not len(sched.followers) and sched.num_running == 2


def test_when_the_leader_goes_the_next_one_leads() -> None:
    """It is aborted, fails, passes its deadline or gives way: in every case the others go on, led by one of them."""

    def abort(sched: Scheduler) -> None:
        sched.abort("r0", 0.0)

    def fail(sched: Scheduler) -> None:
        plan = sched.schedule(0.0)
        sched.commit(plan, [SliceResult(error="on purpose") for _ in plan.slices], 0.0)

    def abort_in_flight(sched: Scheduler) -> None:
        plan = sched.schedule(0.0)
        sched.abort("r0", 0.0)
        land(sched, plan)

    for leave in (abort, fail, abort_in_flight):
        sched = begin(4, budget=Rows(lambda planned: 16))
        step(sched)
        assert len(sched.followers) == 3
        leave(sched)
        assert not len(sched.followers) and sched.num_waiting == 3
        rows = run(sched)
        assert rows <= len(SHARED) + 3 * 3, "what is left is computed once more at most"
        assert sched.followers.num_strangers == 5


def test_a_leader_past_its_deadline_lets_the_others_go() -> None:
    sched = scheduler(num_pages=200, model=CHEAP_STEPS, max_tokens=500, budget=Rows(lambda planned: 16))
    sched.add(ask("late", (*SHARED, 1), deadline_ms=1e6), 0.0)
    sched.add(ask("next", (*SHARED, 2), max_tokens=1), 0.0)
    step(sched)
    assert len(sched.followers) == 1
    plan = sched.schedule(2000.0)
    assert [s.seq.request.request_id for s in plan.slices] == ["next"] and plan.slices[0].start == 16
    land(sched, plan)


def test_a_leader_that_gives_way_takes_nobody_with_it() -> None:
    """An important stream takes its pages; leader and follower queue again, and both come to their ends."""
    sched = scheduler(num_pages=24, model=CHEAP_STEPS, max_tokens=500, budget=Rows(lambda planned: 1))
    sched.add(ask("vip", 2, max_tokens=80), 0.0)
    for _ in range(3):
        step(sched)
    for name, last in (("a", 1), ("b", 2)):
        sched.add(ask(name, (*SHARED, last), max_tokens=2, priority=1), 0.0)
    leader, preempted = sched._live["a"][0], 0
    while sched.has_work:
        plan = sched.schedule(0.0)
        if leader.num_preemptions > preempted:
            preempted = leader.num_preemptions
            assert not len(sched.followers) and sched.num_waiting == 2
        elif 0 < leader.num_computed_tokens < len(SHARED):
            assert len(sched.followers) == 1
        land(sched, plan)
    assert preempted


def test_a_follower_can_be_aborted_and_can_be_late() -> None:
    sched = begin(2, budget=Rows(lambda planned: 16))
    step(sched)
    sched.abort("r1", 0.0)
    assert not len(sched.followers)
    _, events = step(sched)
    assert [(e.request_id, e.finish_reason) for e in events] == [("r1", FinishReason.ABORT)]
    sched = begin(1, budget=Rows(lambda planned: 16))
    step(sched)
    sched.add(ask("late", (*SHARED, 1), deadline_ms=1e6), 0.0)
    step(sched)
    assert len(sched.followers) == 1
    plan = sched.schedule(2000.0)
    assert not len(sched.followers)
    events = land(sched, plan)
    assert [(e.request_id, e.finish_reason) for e in events] == [("late", FinishReason.DEADLINE)]


def test_those_who_share_more_with_each_other_follow_one_another() -> None:
    """A tree of prompts: every distinct page is computed once."""
    sched = scheduler(num_pages=200, max_tokens=64, model=CHEAP_STEPS)
    deep = (*SHARED, *range(600, 632))
    for i, ids in enumerate([(*SHARED, 1), (*deep, 2), (*deep, 3), (*SHARED, 4), (*deep, *range(700, 708), 5)]):
        sched.add(ask(f"r{i}", ids, max_tokens=1), 0.0)
    assert run(sched) == len(SHARED) + 32 + 1 + 1 + 1 + 1 + 9


def test_the_forecast_counts_followers_for_what_they_have_to_compute() -> None:
    """They are ahead of a new request, but not with the tokens that they will find."""
    job = Job(8, 8)
    alone, led, apart = begin(1, max_seqs=2), begin(5, max_seqs=2), scheduler(num_pages=200, max_tokens=512, max_seqs=2)
    for i in range(5):
        apart.add(ask(f"r{i}", len(SHARED) + 3, max_tokens=2), 0.0)
    for sched in (alone, led, apart):
        sched.schedule(0.0)
    assert len(led.followers) == 4 and len(apart._waiting) == 3
    waits = [sched.forecast(job).queue_s for sched in (alone, led, apart)]
    assert waits[0] < waits[1] < waits[2]


def test_naive_decoding_lets_all_answers_run_at_once() -> None:
    sched = scheduler(max_tokens=64, use_cache=False)
    sched.add(ask("a", 20, n=2, temperature=1.0), 0.0)
    step(sched)
    assert sched.num_running == 2


def test_waiting_is_worth_it_when_the_rows_cost_more_than_a_step() -> None:
    tiny = 1e-12
    rows = StepTimeModel(StepCost(10.0, 1.0, tiny, tiny, tiny, tiny))
    for start, end, pays in ((0, 9, False), (0, 11, True), (20, 29, False), (20, 31, True), (5, 5, False)):
        assert worth_waiting(rows, Load(3, 3, 3, 6, 1), start, end) == pays, (start, end)
    visits = StepTimeModel(StepCost(9.5, tiny, tiny, tiny, 1.0, tiny))
    for start, end, pays in ((0, 4, True), (0, 3, False), (8, 9, False), (9, 10, True)):
        assert worth_waiting(visits, Load(), start, end) == pays, (start, end)


def test_shared_pages_counts_whole_pages_of_both() -> None:
    a = list(range(20))
    for b, most, pages in (
        (a, 99, 5), (a, 3, 3), (a[:11], 99, 2), ([*a[:9], 0], 99, 2), ([9, *a[1:]], 99, 0), ([], 99, 0), (a, 0, 0)
    ):  # fmt: skip
        assert shared_pages(a, b, 4, most) == shared_pages(b, a, 4, most) == pages, (b, most)
    for count in range(21):
        assert shared_pages(a, [*a[:count], -1, *a[count:]], 1, 99) == count


prompts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=9
)


@given(
    prompts,
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 3, 16, 64, 500]),
    st.sampled_from([1, 2, 8]),
    st.sets(st.integers(0, 8), max_size=3),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_every_distinct_page_is_computed_once_whoever_comes_when(
    prompts: list[tuple[int, int, int, int]], page_size: int, max_tokens: int, max_seqs: int, aborted: set[int]
) -> None:
    """Random families of prompts, arriving at random steps, in steps of random size; without aborts the count is exact.

    Each prompt ends in tokens of its own. All that others computed before it, or compute beside it, is found.
    """
    runner = PageEcho(4000 // page_size, page_size, 5000)
    engine = Engine(
        runner, num_pages=4000 // page_size, page_size=page_size, max_tokens=max_tokens, max_seqs=max_seqs,
        context_length=400, vocab_size=5000, step_cost=StepCost(step=1e-12),
    )  # fmt: skip
    requests, told, distinct, tails, late = [], {}, set(), 0, []
    for i, (family, shared, own, when) in enumerate(prompts):
        ids = (*range(100 * family, 100 * family + shared), *range(1000 + 10 * i, 1000 + 10 * i + own))
        requests.append(Request(f"r{i}", ids, SamplingParams(max_tokens=1 + i % 3)))
        most = (len(ids) - 1) // page_size
        distinct |= {ids[: (k + 1) * page_size] for k in range(most)}
        tails += len(ids) - most * page_size
        late.append(when)
    for now in range(5000):
        for i, request in enumerate(requests):
            if late[i] == now:
                engine.add(request)
            if i in aborted and late[i] + 2 == now:
                engine.abort(request.request_id)
        for event in engine.step():
            told.setdefault(event.request_id, []).extend(event.token_ids)
        engine.scheduler.check()
        if now > max(late) and not engine.has_work:
            break
    assert not engine.has_work
    for i, request in enumerate(requests):
        right, _, _ = plain_answer(request, 0, 5000, frozenset(), len(request.prompt_ids) + 1 + i % 3)
        assert told[request.request_id] == right or i in aborted
    prompt_rows = engine.stats().total.prompt_tokens
    if not aborted:
        assert prompt_rows == len(distinct) * page_size + tails
