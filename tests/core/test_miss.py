"""Why a prompt was not found in the cache: every cause, with the position and the tokens of both sides."""

from __future__ import annotations

import random
import time

from desk import ask, scheduler, step
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.core.miss import Miss, MissCause
from legato.core.request import Request, SamplingParams
from legato.core.sequence import Sequence
from legato.schedule.cache_manager import CacheManager
from legato.schedule.gone import GoneList
from legato.schedule.scheduler import Scheduler

SIZE = 4
TEXT = list(range(10, 23))  # three pages and one token


def usage_of(sched: Scheduler, request: Request) -> Miss | None:
    """Runs one request to its end; what it was told of its miss."""
    sched.add(request, 0.0)
    found = []
    while sched.has_work:
        found += [event.usage for event in step(sched)[1] if event.usage is not None]
    [usage] = found
    return usage.miss


def after(*earlier: list[int], num_pages: int = 100) -> Scheduler:
    sched = scheduler(page_size=SIZE, num_pages=num_pages, max_tokens=64)
    for i, ids in enumerate(earlier):
        usage_of(sched, ask(f"before{i}", ids, max_tokens=1))
    return sched


def why(sched: Scheduler, ids: list[int], **fields: object) -> Miss | None:
    return usage_of(sched, ask("now", ids, max_tokens=1, **fields))


def test_what_was_found_whole_has_no_miss() -> None:
    assert why(after(TEXT), TEXT) is None
    assert why(after(TEXT), TEXT[:9]) is None


def test_another_token_is_named_with_its_place_and_both_sides() -> None:
    assert why(after(TEXT), [*TEXT[:6], 99, *TEXT[7:]]) == Miss(MissCause.TEXT, 4, 6, 99, TEXT[6])
    assert why(after(TEXT), [99, *TEXT[1:]]) == Miss(MissCause.TEXT, 0, 0, 99, TEXT[0])


def test_the_nearest_of_several_branches_is_taken() -> None:
    other = [*TEXT[:7], 50, *TEXT[8:]]
    sched = after(TEXT, other, [*TEXT[:5], 51, 52, 53, 54])
    assert why(sched, [*TEXT[:7], 99, 1, 2]) in (
        Miss(MissCause.TEXT, 4, 7, 99, TEXT[7]),
        Miss(MissCause.TEXT, 4, 7, 99, 50),
    )


def test_what_was_never_seen_is_new() -> None:
    assert why(after(), TEXT) == Miss(MissCause.NEW, 0, 0, TEXT[0])
    sched = after(TEXT[:9])  # its last token is never computed behind the second page
    assert why(sched, [*TEXT[:8], 99, 98, 97, 96, 95]) == Miss(MissCause.TEXT, 8, 8, 99, TEXT[8])
    assert why(after(TEXT[:8]), [*TEXT[:8], 99, 98, 97, 96, 95]) == Miss(MissCause.NEW, 8, 8, 99)


def test_a_shared_end_that_fills_no_page_is_told_as_such() -> None:
    assert why(after(TEXT[:11]), TEXT) == Miss(MissCause.SHORT, 8, 11, TEXT[11])
    assert why(after(TEXT), TEXT[:3]) == Miss(MissCause.SHORT, 0, 0)
    assert why(after(TEXT[:3]), TEXT) == Miss(MissCause.SHORT, 0, 3, TEXT[3])


def test_what_was_evicted_says_when_and_for_whom() -> None:
    sched = after(TEXT, num_pages=5)
    sched.add(ask("greedy", 16, max_tokens=2), 0.0)
    sched.schedule(7.5)
    sched.abandon(sched._flying)
    sched.abort("greedy", 8.0)
    while sched.has_work:
        step(sched)
    missed = why(sched, TEXT)
    assert missed is not None and missed.cause is MissCause.EVICTED
    assert (missed.evicted_at, missed.evicted_by) == (7.5, "greedy")
    assert missed.index == 12 and missed.matched < 12
    assert why(sched, TEXT) is None, "computed again, it is no longer gone"


def test_what_is_gone_behind_a_page_computed_again_is_still_known() -> None:
    sched = after(TEXT, num_pages=5)
    usage_of(sched, ask("greedy", 17, max_tokens=2))
    usage_of(sched, ask("first page only", TEXT[:5], max_tokens=1))
    missed = why(sched, TEXT)
    assert missed is not None
    assert (missed.cause, missed.matched, missed.index) == (MissCause.EVICTED, 4, 12)


def test_another_salt_is_named_without_a_word_of_its_content() -> None:
    missed = why(after(TEXT), TEXT, salt="other")
    assert missed == Miss(MissCause.SALT, 0, 0, TEXT[0])
    assert missed.for_strangers() == Miss(MissCause.NEW, 0, 0, TEXT[0])


def test_prompt_logprobs_compute_everything_and_say_so() -> None:
    assert why(after(TEXT), TEXT, prompt_logprobs=0) == Miss(MissCause.LOGPROBS, 0, 0)


def test_a_strangers_eviction_does_not_name_them() -> None:
    assert Miss(MissCause.EVICTED, 0, 8, 1, None, 7.5, "them").for_strangers().evicted_by is None


def test_what_is_remembered_is_bounded_and_leaves_no_salt_behind() -> None:
    gone = GoneList(50)
    for i in range(500):
        gone.add(None, str(i), (i,), {}, float(i), "x")
        assert len(gone) <= 50 and gone.num_salts <= 50
    for i in range(450, 500):
        assert gone.revive(None, str(i), (i,)) == {}
    assert len(gone) == gone.num_salts == 0


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=14)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(prompts, st.booleans()), min_size=1, max_size=25), st.integers(1, 4), st.integers(3, 9))
def test_what_is_said_is_true(script: list[tuple[list[int], bool]], size: int, num_pages: int) -> None:
    """Against a plain list of everything that was ever computed."""
    cache = CacheManager(num_pages, size)
    computed: list[list[int]] = []
    for number, (ids, keep) in enumerate(script):
        seq = Sequence(number, Request(f"r{number}", tuple(ids)))
        cache.now = float(number)
        matched = cache.match(seq)
        miss = cache.explain(seq)
        usable = (len(ids) - 1) // size * size
        common = max((common_length(ids, other) for other in computed), default=0)
        if miss is None:
            assert matched == usable > 0
        else:
            assert miss.matched == matched
            assert miss.index <= common, "nothing was ever computed that far"
            if miss.cause is MissCause.NEW:
                assert miss.index == matched
            if miss.cause is MissCause.TEXT:
                assert miss.token_id == ids[miss.index] != miss.other_id
                assert any(o[: miss.index + 1] == [*ids[: miss.index], miss.other_id] for o in computed)
            if miss.cause is MissCause.EVICTED:
                assert miss.index >= matched + size and miss.evicted_at is not None and miss.evicted_at < number
        if cache.grow(seq, len(ids)):
            seq.num_computed_tokens = len(ids)
            cache.commit(seq)
            computed.append(ids)
        cache.release(seq, keep=keep)
        cache.check([])


def common_length(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_asking_is_quick() -> None:
    """On a tree of 6,000 pages with a thousand branches at one place."""
    rng, cache = random.Random(1), CacheManager(6000, 16)
    system = [rng.randrange(50_000) for _ in range(512)]
    for i in range(1000):
        seq = Sequence(i, Request(f"r{i}", (*system, *(rng.randrange(50_000) for _ in range(60))), SamplingParams()))
        cache.match(seq)
        assert cache.grow(seq, 572)
        seq.num_computed_tokens = 572
        cache.commit(seq)
        cache.release(seq)
    seq = Sequence(1000, Request("r", (*system, *range(60))))
    assert cache.match(seq) == 512
    best = 1.0
    for _ in range(200):
        start = time.process_time()
        miss = cache.explain(seq)
        best = min(best, time.process_time() - start)
    assert miss is not None and miss.cause is MissCause.TEXT
    print(f"{1e6 * best:.1f} us")
    assert best < 50e-6
