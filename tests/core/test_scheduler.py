"""What one step carries, who shares what, and how an answer ends: the scheduler's promises one by one."""

from __future__ import annotations

import itertools

import pytest
from desk import EOS, Rows, ask, land, scheduler, shape, step

from legato.core.plan import SliceResult, TokenLogprobs
from legato.core.sequence import FinishReason
from legato.core.sequence import Sequence as Sequence_
from legato.schedule.scheduler import _Draft

# -- filling a step ---------------------------------------------------------------------------------------------------


def test_a_long_prompt_goes_in_chunks_and_only_its_last_row_needs_logits() -> None:
    sched = scheduler(max_tokens=16)
    sched.add(ask("a", 40), 0.0)
    shapes = [shape(step(sched)[0])[0][1:] for _ in range(4)]
    assert shapes == [(0, 16, 0), (16, 16, 0), (32, 8, 1), (40, 1, 1)]


def test_streams_go_before_prompts_and_the_rest_of_the_step_is_prompt() -> None:
    sched = scheduler(max_tokens=16)
    sched.add(ask("stream", 3), 0.0)
    step(sched)
    sched.add(ask("long", 40, priority=-5), 0.0)
    plans = [shape(step(sched)[0]) for _ in range(3)]
    assert plans == [
        [("stream", 3, 1, 1), ("long", 0, 15, 0)],
        [("stream", 4, 1, 1), ("long", 15, 15, 0)],
        [("stream", 5, 1, 1), ("long", 30, 10, 1)],
    ]


def test_the_budget_is_asked_with_the_plan_so_far_and_is_kept() -> None:
    seen = []

    def allow(planned: int) -> int:
        seen.append(planned)
        return 5 if planned else 100

    sched = scheduler(max_tokens=16, budget=Rows(allow))
    sched.add(ask("a", 2), 0.0)
    step(sched)
    sched.add(ask("b", 30), 0.0)
    assert shape(step(sched)[0]) == [("a", 2, 1, 1), ("b", 0, 5, 0)], "beside a stream: what the budget says"
    assert 1 in seen
    sched.abort("a", 0.0)
    assert shape(step(sched)[0]) == [("b", 5, 16, 0)], "alone: as much as the step holds"


def test_a_budget_of_nothing_still_lets_a_lone_prompt_advance() -> None:
    sched = scheduler(budget=Rows(lambda planned: -3))
    sched.add(ask("a", 3), 0.0)
    assert [shape(step(sched)[0]) for _ in range(2)] == [[("a", 0, 1, 0)], [("a", 1, 1, 0)]]


def test_waiting_sequences_come_by_priority_then_arrival_and_nobody_overtakes() -> None:
    sched = scheduler(max_seqs=2, num_pages=12)
    for name, length, priority in (("late", 4, 1), ("big", 38, 0), ("first", 4, 0), ("urgent", 4, -1)):
        sched.add(ask(name, length, priority=priority, max_tokens=2), 0.0)
    assert [s[0] for s in shape(step(sched)[0])] == ["urgent", "big"]
    sched = scheduler(max_seqs=8, num_pages=12)
    sched.add(ask("running", 20, max_tokens=20), 0.0)
    step(sched)
    sched.add(ask("big", 38, max_tokens=2), 0.0)
    sched.add(ask("small", 2, max_tokens=2), 0.0)
    for _ in range(5):
        assert [s[0] for s in shape(step(sched)[0])] == ["running"], "small waits behind big"


def test_every_running_sequence_gets_a_row_even_when_others_bring_many_drafts() -> None:
    sched = scheduler(max_tokens=4, max_seqs=8)
    for name in "abc":
        sched.add(ask(name, 1), 0.0)
    step(sched)
    sched.offer({seq.seq_id: [5] * 9 for seq in sched.ready})
    assert shape(sched.schedule(0.0)) == [("a", 1, 2, 2), ("b", 1, 1, 1), ("c", 1, 1, 1)]


def test_more_sequences_than_rows_wait_their_turn() -> None:
    sched = scheduler(max_tokens=2, max_seqs=8)
    for name in "abc":
        sched.add(ask(name, 1, max_tokens=2), 0.0)
    assert [s[0] for s in shape(step(sched)[0])] == ["a", "b"]
    step(sched)
    assert [s[0] for s in shape(step(sched)[0])] == ["c"]


def test_a_budget_of_nothing_beside_a_stream_is_nothing() -> None:
    sched = scheduler(budget=Rows(lambda planned: 0))
    sched.add(ask("a", 1), 0.0)
    step(sched)
    sched.add(ask("b", 3), 0.0)
    assert shape(step(sched)[0]) == [("a", 1, 1, 1)] and sched.num_waiting == 1


def test_rows_of_a_sequence_taken_out_of_a_plan_are_free_again() -> None:
    draft, (a, b) = _Draft(10), (Sequence_(i, ask("x", 9)) for i in range(2))
    draft.add(a, 4)
    draft.add(b, 2)
    assert draft.left == 4
    draft.add(a, 5)
    assert draft.left == 3
    draft.drop(a)
    draft.drop(a)
    assert draft.left == 8 and list(draft.slices) == [1]


def test_a_sequence_that_does_not_fit_is_not_looked_up_again_until_pages_come_free() -> None:
    sched = scheduler(num_pages=20, page_size=4)
    sched.add(ask("running", 40, max_tokens=30), 0.0)
    step(sched)
    sched.add(ask("waiting", 40, max_tokens=2), 0.0)
    looked, match = [], sched.cache.match
    sched.cache.match = lambda seq: looked.append(seq) or match(seq)  # type: ignore[method-assign,func-returns-value]
    for _ in range(10):
        step(sched)
    assert len(looked) == 1 and sched.num_waiting == 1
    sched.abort("running", 0.0)
    assert [s[0] for s in shape(step(sched)[0])] == ["waiting"]


# -- drafts -----------------------------------------------------------------------------------------------------------


def test_accepted_drafts_advance_and_failed_ones_are_rewound() -> None:
    sched = scheduler()
    sched.add(ask("a", 3), 0.0)
    step(sched)
    (seq,) = sched.ready
    sched.offer({seq.seq_id: [10, 11, 12]})
    plan, events = step(sched, lambda piece: [10, 11, 50])
    assert shape(plan) == [("a", 3, 4, 4)]
    assert events[0].token_ids == [10, 11, 50]
    assert (seq.num_computed_tokens, len(seq.token_ids), seq.draft_ids) == (6, 7, [])


def test_drafts_never_reach_past_the_answers_end() -> None:
    sched = scheduler()
    sched.add(ask("a", 3, max_tokens=4), 0.0)
    step(sched)
    (seq,) = sched.ready
    sched.offer({seq.seq_id: [5] * 9, 12345: [1]})
    assert seq.draft_ids == [5, 5]
    _, events = step(sched, lambda piece: [5, 5, 5])
    assert events[0].finish_reason is FinishReason.LENGTH and events[0].token_ids == [5, 5, 5]


def test_a_sequence_with_one_token_left_takes_no_drafts() -> None:
    sched = scheduler()
    sched.add(ask("a", 3, max_tokens=3), 0.0)
    step(sched)
    assert len(sched.ready) == 1
    step(sched)
    assert sched.ready == []


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 5])
def test_what_was_computed_past_the_end_is_not_published(page_size: int) -> None:
    sched = scheduler(page_size=page_size)
    sched.add(ask("a", range(100, 103)), 0.0)
    step(sched)
    sched.offer({0: [EOS, 7, 7, 7, 7]})
    step(sched, lambda piece: [EOS, 7, 7, 7, 7, 7])
    assert sched.cache.report().cached == 5 // page_size


def test_tokens_accepted_past_a_stop_are_dropped_with_their_logprobs() -> None:
    sched = scheduler()
    sched.add(ask("a", 3, logprobs=0), 0.0)
    step(sched)
    sched.offer({0: [10, EOS, 12]})
    plan = sched.schedule(0.0)
    logprobs = [TokenLogprobs(t, -1.0, 1) for t in (10, EOS, 12, 13)]
    (event,) = sched.commit(plan, [SliceResult([10, EOS, 12, 13], logprobs)], 0.0)
    assert event.token_ids == [10, EOS] and event.logprobs == logprobs[:2]
    assert (event.finish_reason, event.stop_token_id) == (FinishReason.STOP, EOS)
    sched.check()


def test_drafts_give_way_before_anybody_is_preempted() -> None:
    sched = scheduler(num_pages=7, page_size=1, max_tokens=16)
    for name in "ab":
        sched.add(ask(name, 2, max_tokens=5), 0.0)
    step(sched)
    sched.offer({seq.seq_id: [5, 5, 5] for seq in sched.ready})
    assert shape(sched.schedule(0.0)) == [("a", 2, 2, 2), ("b", 2, 1, 1)]
    assert sched.num_preemptions == 0


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_siblings_wait_for_the_prompt_and_then_share_its_full_pages() -> None:
    sched = scheduler(max_tokens=8)
    sched.add(ask("a", 17, n=3, temperature=1.0), 0.0)
    sched.add(ask("b", 2), 0.0)
    plans = [shape(step(sched)[0]) for _ in range(3)]
    assert plans[0] == [("a", 0, 8, 0)]
    assert plans[1] == [("a", 8, 8, 0)]
    assert plans[2] == [("a", 16, 1, 1), ("a", 16, 1, 1), ("a", 16, 1, 1), ("b", 0, 2, 1)]
    report = sched.cache.report()
    assert report.in_use == 4 + 3 + 1, "four pages shared by three, one of its own each, one of b's"


@pytest.mark.parametrize("prompt, shared", [(1, 0), (4, 0), (5, 4), (16, 12), (17, 16), (18, 16)])
def test_siblings_wait_for_exactly_what_they_can_share(prompt: int, shared: int) -> None:
    sched = scheduler(max_tokens=6)
    sched.add(ask("a", prompt, n=2), 0.0)
    computed, first, second = 0, *sched._live["a"]
    while not second.pages:
        computed = first.num_computed_tokens
        step(sched)
    assert second.num_cached_tokens == shared <= computed < shared + 6
    assert shared or not computed, "nothing to share, nothing to wait for"


def test_siblings_of_an_aborted_first_answer_go_on_without_it() -> None:
    sched = scheduler(max_tokens=8)
    sched.add(ask("a", 17, n=2, max_tokens=1), 0.0)
    step(sched)
    sched.abort("a", 0.0, index=0)
    events = [event for _ in range(3) for event in step(sched)[1]]
    assert [(e.index, e.finish_reason) for e in events] == [(0, FinishReason.ABORT), (1, FinishReason.LENGTH)]


@pytest.mark.parametrize("salt, cached", [("", 8), ("other", 0)])
def test_the_next_turn_of_a_chat_finds_prompt_and_answer_but_not_under_another_salt(salt: str, cached: int) -> None:
    sched = scheduler()
    sched.add(ask("a", range(100, 105), max_tokens=5), 0.0)
    while sched.has_work:
        step(sched)
    sched.add(ask("b", [*range(100, 105), 7, 7, 7, 7, 7, 200], max_tokens=1, salt=salt), 0.0)
    _, (event,) = step(sched)
    assert event.usage is not None and event.usage.num_cached_tokens == cached


def test_a_prompt_wholly_in_the_cache_still_computes_its_last_token() -> None:
    sched = scheduler()
    for name in "ab":
        sched.add(ask(name, range(100, 108), max_tokens=1), 0.0)
        plan, _ = step(sched)
    assert shape(plan) == [("b", 4, 4, 1)]


def test_prompt_logprobs_need_every_row_once() -> None:
    sched = scheduler(max_tokens=6)
    sched.add(ask("warm", range(100, 110), max_tokens=1), 0.0)
    step(sched), step(sched)
    sched.add(ask("a", range(100, 110), prompt_logprobs=0, n=2, max_tokens=3), 0.0)
    got, shapes = [], []
    for _ in range(3):
        plan = sched.schedule(0.0)
        results = []
        for s in plan.slices:
            rows = [r for r in range(s.end - s.num_logits, s.end) if r + 1 < 10]
            prompt = [TokenLogprobs(s.seq.token_ids[r + 1], -1.0, 1) for r in rows]
            results.append(SliceResult([7] if s.end == s.seq.num_tokens else [], prompt_logprobs=prompt))
        shapes.append(shape(plan))
        for event in sched.commit(plan, results, 0.0):
            got += [(event.index, p.token_id) for p in event.prompt_logprobs or []]
    assert shapes == [[("a", 0, 6, 6)], [("a", 6, 4, 4)], [("a", 10, 1, 1), ("a", 8, 2, 1)]]
    assert got == [(0, t) for t in range(101, 110)], "of the first answer, each position once"


def test_naive_decoding_visits_every_position_again() -> None:
    """36 positions for 8 tokens, as the sum T(T+1)/2 says, and nothing is ever shared."""
    sched = scheduler(use_cache=False)
    sched.add(ask("a", 1, max_tokens=8), 0.0)
    shapes = []
    while sched.has_work:
        shapes += shape(step(sched)[0])
    assert [s[1:] for s in shapes] == [(0, k, 1) for k in range(1, 9)]
    assert sum(s[2] for s in shapes) == 36
    assert sched.cache.report().free == 100


# -- how an answer ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, token, reason",
    [
        ({}, EOS, FinishReason.STOP),
        ({"ignore_eos": True}, EOS, None),
        ({"stop_token_ids": (5,)}, 5, FinishReason.STOP),
        ({"stop_token_ids": (5,), "ignore_eos": True}, 5, FinishReason.STOP),
        ({"stop_token_ids": (5,), "min_tokens": 1}, 5, None),
        ({"min_tokens": 1}, EOS, None),
        ({"max_tokens": 1}, 6, FinishReason.LENGTH),
        ({"max_tokens": 1}, EOS, FinishReason.STOP),
    ],
)
def test_the_first_token_ends_the_answer_or_does_not(
    fields: dict[str, object], token: int, reason: FinishReason | None
) -> None:
    sched = scheduler()
    sched.add(ask("a", 3, **fields), 0.0)
    _, (event,) = step(sched, lambda piece: [token])
    assert event.finish_reason is reason and event.token_ids == [token]
    assert event.stop_token_id == (token if reason is FinishReason.STOP else None)
    assert (event.usage is None) == (reason is None)


def test_an_answer_ends_at_the_contexts_end_whatever_was_asked() -> None:
    for max_tokens in (None, 10**6):
        sched = scheduler(context_length=20)
        sched.add(ask("a", 15, max_tokens=max_tokens), 0.0)
        events = [event for _ in range(5) for event in step(sched)[1]]
        assert [e.finish_reason for e in events] == [None] * 4 + [FinishReason.LENGTH]


def test_marks_tell_when_things_happened() -> None:
    sched = scheduler(max_tokens=4)
    clock = itertools.count(1)
    sched.add(ask("a", 6, max_tokens=2), next(clock))
    while sched.has_work:
        plan = sched.schedule(next(clock))
        results = [SliceResult([7] if s.end == s.seq.num_tokens else []) for s in plan.slices]
        events = sched.commit(plan, results, next(clock))
    assert events[0].usage is not None
    assert events[0].usage.marks == {"arrived": 1, "scheduled": 2, "first_token": 5, "finished": 7}


def test_an_error_ends_its_own_sequence_and_takes_its_pages_out_of_the_cache() -> None:
    """What a broken sequence computed may be broken too: a retry must not find it."""
    sched = scheduler()
    sched.add(ask("good", 9), 0.0)
    sched.add(ask("bad", range(100, 106)), 0.0)
    step(sched)
    plan = sched.schedule(0.0)
    events = sched.commit(plan, [SliceResult([7]), SliceResult(error="not a number")], 0.0)
    assert [(e.request_id, e.finish_reason, e.error) for e in events] == [
        ("good", None, None),
        ("bad", FinishReason.ERROR, "not a number"),
    ]
    sched.check()
    sched.add(ask("again", range(100, 106), max_tokens=1), 0.0)
    _, events = step(sched)
    assert [e.usage.num_cached_tokens for e in events if e.usage is not None] == [0]


def test_a_slice_that_should_have_brought_a_token_and_did_not_is_an_error() -> None:
    sched = scheduler()
    sched.add(ask("a", 3), 0.0)
    _, (event,) = step(sched, lambda piece: [])
    assert event.finish_reason is FinishReason.ERROR and event.error


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_abort_while_waiting_running_parked_and_in_flight_frees_everything() -> None:
    sched = scheduler(max_tokens=8, max_seqs=1)
    sched.add(ask("run", 20, n=3), 0.0)
    sched.add(ask("wait", 3), 0.0)
    step(sched)
    assert (sched.num_running, sched.num_waiting) == (1, 3)
    sched.abort("wait", 0.0)
    plan = sched.schedule(0.0)
    sched.abort("run", 0.0)
    sched.abort("run", 0.0)
    sched.abort("nobody", 0.0)
    sched.check()
    assert sched.cache.report().in_use > 0, "the step in flight still writes these pages"
    events = land(sched, plan)
    assert sorted((e.request_id, e.index) for e in events) == [("run", 0), ("run", 1), ("run", 2), ("wait", 0)]
    assert {e.finish_reason for e in events} == {FinishReason.ABORT}
    assert sched.cache.report().in_use == 0 and not sched.has_work


def test_an_abort_can_name_one_answer_and_another_reason() -> None:
    sched = scheduler()
    sched.add(ask("a", 3, n=2, max_tokens=2), 0.0)
    step(sched)
    sched.abort("a", 0.0, index=1, reason=FinishReason.STOP)
    _, events = step(sched)
    assert sorted((e.index, e.finish_reason) for e in events) == [(0, FinishReason.LENGTH), (1, FinishReason.STOP)]


def test_ids_that_begin_alike_are_different_ids() -> None:
    sched = scheduler()
    for name in ("a", "ab", "abc"):
        sched.add(ask(name, 3), 0.0)
    sched.abort("a", 0.0)
    assert [s[0] for s in shape(step(sched)[0])] == ["ab", "abc"]


def test_an_abandoned_step_leaves_everything_where_it_was() -> None:
    sched = scheduler(max_tokens=8)
    sched.add(ask("a", 20), 0.0)
    step(sched)
    plan = sched.schedule(0.0)
    before = shape(plan)
    sched.abandon(plan)
    sched.check()
    assert shape(step(sched)[0]) == before == [("a", 8, 8, 0)]
