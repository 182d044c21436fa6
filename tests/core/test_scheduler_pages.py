"""Who gives way when pages run out, who is admitted, and who is refused at the door."""

from __future__ import annotations

import itertools

import pytest
from desk import ask, scheduler, shape, step

from legato.core.events import Event
from legato.core.sequence import FinishReason
from legato.errors import CapacityError, RequestError, UsageError
from legato.schedule.limits import Limits
from legato.schedule.scheduler import MAX_PREEMPTIONS, Scheduler

# -- when pages run out -----------------------------------------------------------------------------------------------


def preempted(sched: Scheduler) -> list[str]:
    """Steps until somebody is preempted; their names."""
    for _ in range(40):
        names = set(sched._live)
        plan, _ = step(sched)
        if sched.num_preemptions:
            return sorted(names - {s.seq.request.request_id for s in plan.slices})
    raise AssertionError("nobody was preempted")


def test_the_least_important_gives_way_then_the_cheapest_then_the_latest() -> None:
    def crowd(*who: tuple[str, int, int]) -> Scheduler:
        sched = scheduler(num_pages=24, page_size=1, max_tokens=64)
        for name, length, priority in who:
            sched.add(ask(name, length, priority=priority, max_tokens=12), 0.0)
        return sched

    assert preempted(crowd(("a", 3, 0), ("low", 9, 1), ("c", 4, 0))) == ["low"]
    assert preempted(crowd(("a", 7, 0), ("short", 3, 0), ("c", 6, 0))) == ["short"]
    last = crowd(("a", 5, 0), ("b", 5, 0), ("last", 5, 0))
    assert preempted(last) == ["last"]
    (seq,) = last._live["last"]
    assert (seq.pages, seq.num_computed_tokens, seq.num_preemptions) == ([], 0, 1)


def test_a_preempted_sequence_finds_its_full_pages_again_and_repeats_no_token() -> None:
    sched = scheduler(num_pages=11, page_size=2, max_tokens=64)
    for name in "ab":
        sched.add(ask(name, 4, max_tokens=16), 0.0)
    told: dict[str, list[int]] = {"a": [], "b": []}
    starts, count = [], itertools.count()
    usages = []
    while sched.has_work:
        waiting = sched.num_waiting
        plan, events = step(sched, lambda piece: [next(count)])
        starts += [s.start for s in plan.slices if s.seq.num_preemptions and waiting and not sched.num_waiting]
        for event in events:
            told[event.request_id] += event.token_ids
            usages += [event.usage] if event.usage else []
    assert sched.num_preemptions >= 1 and starts and starts[0] >= 2
    assert sum(usage.num_preemptions for usage in usages) == sched.num_preemptions
    assert [usage.num_cached_tokens for usage in usages] == [0, 0], "what it found of itself was never cached for it"
    assert sorted(told["a"] + told["b"]) == list(range(32))


def test_naive_decoding_starts_over_after_preemption_too() -> None:
    sched = scheduler(num_pages=10, page_size=1, max_tokens=6, use_cache=False)
    for name in "ab":
        sched.add(ask(name, 3, max_tokens=7), 0.0)
    while not sched.num_preemptions:
        step(sched)
    assert [seq.num_computed_tokens for seq in sched._waiting] == [0]
    while sched.has_work:
        step(sched)


def test_nobody_is_admitted_in_a_step_that_had_to_preempt() -> None:
    sched = scheduler(num_pages=10, page_size=1, max_tokens=64)
    for name in "ab":
        sched.add(ask(name, 3, max_tokens=7), 0.0)
    for _ in range(3):
        step(sched)
    assert sched.cache.report().in_use == 10
    sched.add(ask("urgent", 1, priority=-1, max_tokens=1), 0.0)
    assert [s[0] for s in shape(step(sched)[0])] == ["a"] and sched.num_preemptions == 1
    assert [s[0] for s in shape(step(sched)[0])] == ["a", "urgent"]


def test_a_pinned_sequence_comes_back_only_with_room_for_its_whole_life_and_then_stays() -> None:
    sched = scheduler(num_pages=10, page_size=1, max_tokens=64)
    for name in "abc":
        sched.add(ask(name, 2, max_tokens=6, priority=5 if name < "c" else 0), 0.0)
    for seq in sched._waiting:
        seq.num_preemptions = MAX_PREEMPTIONS if seq.request.priority else 0
    assert [s[0] for s in shape(step(sched)[0])] == ["c", "a"], "a and b may come to 7 pages each"
    while sched.has_work:
        plan, _ = step(sched)
        names = [s.seq.request.request_id for s in plan.slices]
        assert not ("a" in names and "b" in names) and all(s.seq.num_preemptions <= 8 for s in plan.slices)
    assert sched.num_preemptions == 1, "c gave way, important as it is: the others cannot"


@pytest.mark.parametrize("num_pages, together", [(14, True), (13, False)])
def test_pinned_sequences_run_together_if_their_whole_lives_fit(num_pages: int, together: bool) -> None:
    sched = scheduler(num_pages=num_pages, page_size=1, max_tokens=64)
    for name in "ab":
        sched.add(ask(name, 2, max_tokens=6), 0.0)
    for seq in sched._waiting:
        seq.num_preemptions = MAX_PREEMPTIONS
    assert len(step(sched)[0].slices) == 1 + together


def test_others_may_run_beside_a_pinned_sequence_as_long_as_there_are_pages() -> None:
    sched = scheduler(num_pages=13, page_size=1, max_tokens=64)
    for name in "ab":
        sched.add(ask(name, 2, max_tokens=6), 0.0)
    next(iter(sched._waiting)).num_preemptions = MAX_PREEMPTIONS
    assert len(step(sched)[0].slices) == 2


# -- at the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, max_tokens, needed, available",
    [(200, None, 201, 200), (500, 1, 501, 200), (90, 71, 40 + 0, 39), (199, None, 50, 39), (10, 190, 50, 39)],
)
def test_what_can_never_fit_is_refused_with_both_numbers(
    prompt: int, max_tokens: int | None, needed: int, available: int
) -> None:
    sched = scheduler(num_pages=39)
    with pytest.raises(CapacityError) as caught:
        sched.add(ask("a", prompt, max_tokens=max_tokens), 0.0)
    assert (caught.value.needed, caught.value.available) == (needed, available)
    assert str(needed) in str(caught.value) and str(available) in str(caught.value) and "\n" not in str(caught.value)
    assert not sched.has_work


@pytest.mark.parametrize("prompt, max_tokens", [(156, 1), (1, 156), (156, None), (90, 67)])
def test_what_just_fits_is_served_to_its_end(prompt: int, max_tokens: int | None) -> None:
    sched = scheduler(num_pages=39, max_tokens=200)
    sched.add(ask("a", prompt, max_tokens=max_tokens), 0.0)
    total = prompt
    while sched.has_work:
        _, events = step(sched)
        total += sum(len(e.token_ids) for e in events)
    assert total == 157


def test_without_max_tokens_an_answer_may_fill_the_cache_and_ends_there() -> None:
    sched = scheduler(num_pages=10, page_size=4, context_length=200)
    sched.add(ask("a", 5), 0.0)
    events: list[Event] = []
    while sched.has_work:
        events += step(sched)[1]
    assert events[-1].finish_reason is FinishReason.LENGTH and len(events) == 41 - 5


def test_an_id_in_flight_is_refused_and_free_again_afterwards() -> None:
    sched = scheduler()
    sched.add(ask("a", 3, max_tokens=1), 0.0)
    with pytest.raises(RequestError, match="request_id"):
        sched.add(ask("a", 3), 0.0)
    step(sched)
    sched.add(ask("a", 3), 0.0)


@pytest.mark.parametrize("field", ["num_pages", "page_size", "max_tokens", "max_seqs", "context_length"])
@pytest.mark.parametrize("value", [0, -1, 2**40, True, 1.5, "8", None])
def test_absurd_sizes_are_refused(field: str, value: object) -> None:
    sizes = {"num_pages": 8, "page_size": 8, "max_tokens": 8, "max_seqs": 8, "context_length": 8}
    with pytest.raises(UsageError, match=field):
        Limits(**{**sizes, field: value})  # type: ignore[arg-type]


def test_a_context_without_room_for_an_answer_is_refused() -> None:
    Limits(1, 1, 1, 1, context_length=2)
    with pytest.raises(UsageError, match="context_length=1"):
        Limits(1, 1, 1, 1, context_length=1)


@pytest.mark.parametrize("rows", [16, 64, 512])
def test_a_prefix_that_many_bring_at_once_is_computed_once(rows: int) -> None:
    """Nobody has it yet; whoever is first computes it, and the others find it page by page."""
    num, shared, own, answer = 12, 128, 8, 3
    sched = scheduler(num_pages=2000, page_size=16, max_tokens=rows, max_seqs=32, context_length=400)
    for i in range(num):
        prompt = [*range(shared), *range(1000 * i + 1000, 1000 * i + 1000 + own)]
        sched.add(ask(f"r{i}", prompt, max_tokens=answer), 0.0)
    total = 0
    while sched.has_work:
        plan, _ = step(sched)
        total += plan.num_tokens
    least = shared + num * (own + answer - 1)
    first_together = (-(-rows // (shared + own)) - 1) * shared  # admitted in the first step, when no page is full yet
    assert total <= least + first_together
