"""Pages, the tree of prefixes and who owns what: eviction in exact order of use, nothing lost or shared wrongly."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.core.request import Request, SamplingParams
from legato.core.sequence import Sequence
from legato.errors import EngineError
from legato.schedule.cache_manager import CacheManager, KvReport
from legato.schedule.page_pool import RUN, PagePool, pages_for
from legato.schedule.prefix_tree import PrefixTree


class Users:
    """Sequences that compute whatever they are given at once; `cache` is checked after every action."""

    def __init__(self, num_pages: int, page_size: int, share: bool = True) -> None:
        self.cache = CacheManager(num_pages, page_size, share)
        self.live: list[Sequence] = []
        self.count = 0

    def open(self, token_ids: list[int], salt: str = "", commit: bool = True) -> Sequence | None:
        """A sequence that matched, grew and computed all its tokens; None if there were no pages."""
        seq = Sequence(self.count, Request(f"r{self.count}", tuple(token_ids), SamplingParams(), salt=salt))
        self.count += 1
        seq.num_cached_tokens = self.cache.match(seq)
        self.live.append(seq)
        if not self.cache.grow(seq, len(token_ids)):
            self.close(seq)
            return None
        seq.num_computed_tokens = len(token_ids)
        if commit:
            self.cache.commit(seq)
        self.cache.check(self.live)
        return seq

    def close(self, seq: Sequence, keep: bool = True) -> None:
        self.live.remove(seq)
        self.cache.release(seq, keep)
        self.cache.check(self.live)

    def cached(self, token_ids: list[int], salt: str = "") -> int:
        """Tokens that would be found now, without changing who was used when."""
        tree = self.cache._tree
        return len(tree.walk(salt, token_ids, len(token_ids))) * self.cache.page_size


@pytest.mark.parametrize("tokens, size, pages", [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (7, 1, 7)])
def test_pages_for_rounds_up(tokens: int, size: int, pages: int) -> None:
    assert pages_for(tokens, size) == pages


def test_the_longest_computed_prefix_is_found_page_by_page() -> None:
    users = Users(20, 4)
    first = users.open(list(range(10)))
    assert first is not None and first.num_cached_tokens == 0
    for ids, cached in (
        (list(range(10)), 8),
        (list(range(9)), 8),
        (list(range(8)), 4),  # the last token is always computed
        ([*range(7), 99, 8], 4),
        ([99, *range(1, 10)], 0),
        (list(range(4)), 0),
    ):
        seq = users.open(ids)
        assert seq is not None and seq.num_cached_tokens == cached, ids
        assert seq.pages[: cached // 4] == first.pages[: cached // 4]
        users.close(seq)


def test_equal_pages_behind_different_prefixes_are_different_pages() -> None:
    users = Users(20, 2)
    a = users.open([1, 2, 7, 7, 9])
    b = users.open([3, 4, 7, 7, 9])
    assert a is not None and b is not None and b.num_cached_tokens == 0
    assert not set(a.pages) & set(b.pages)


def test_an_unfinished_or_uncertain_page_is_never_published() -> None:
    users = Users(20, 4)
    seq = users.open([1, 2, 3, 4, 5], commit=False)
    assert seq is not None
    seq.num_computed_tokens = 3
    users.cache.commit(seq)
    assert users.cached([1, 2, 3, 4, 5]) == 0
    seq.num_computed_tokens = 5
    users.cache.commit(seq)
    assert users.cached([1, 2, 3, 4, 5]) == 4


def test_two_that_computed_the_same_at_once_end_with_one_copy() -> None:
    users = Users(20, 4)
    a, b = users.open(list(range(9)), commit=False), users.open(list(range(9)), commit=False)
    assert a is not None and b is not None and not set(a.pages) & set(b.pages)
    users.cache.commit(a)
    users.cache.commit(b)
    users.cache.check(users.live)
    assert a.pages[:2] == b.pages[:2] and a.pages[2] != b.pages[2]
    assert users.cache.report() == KvReport(free=16, cached=0, in_use=4, total=20)


def test_a_second_copy_joins_a_page_that_was_left_idle_meanwhile() -> None:
    users = Users(6, 4)
    a, b = users.open(list(range(5)), commit=False), users.open(list(range(5)), commit=False)
    assert a is not None and b is not None
    users.cache.commit(a)
    users.close(a)
    users.cache.commit(b)
    users.cache.check(users.live)
    assert users.cache.report() == KvReport(free=4, cached=0, in_use=2, total=6)


def test_salts_share_nothing_and_leave_nothing_behind() -> None:
    users = Users(4, 2)
    for salt in ["", *map(str, range(50))]:
        seq = users.open([1, 2, 3], salt)
        assert seq is not None and seq.num_cached_tokens == 0
        users.close(seq)
        assert users.cached([1, 2], salt) == 2 and users.cached([1, 2], salt + "x") == 0
    assert users.cache._tree.num_salts <= 4


def test_leaves_go_before_their_parents_and_the_least_recently_used_first() -> None:
    users = Users(6, 1)
    for ids in ([1, 2, 3, 9], [1, 5, 9], [6, 9]):  # the 9s are computed alone and published too
        seq = users.open(ids)
        assert seq is not None
        users.close(seq)
    assert users.cache.report().cached == 6  # one of the nine pages [1 2 3 9] [5 9] [6 9] was shared, two evicted
    assert users.cached([1, 2, 3, 9]) == 2 and users.cached([1, 5, 9]) == 3 and users.cached([6, 9]) == 2
    touched = users.open([1, 2, 7])
    assert touched is not None
    users.close(touched)
    assert users.cached([1, 2, 7]) == 3 and users.cached([1, 5, 9]) == 2 and users.cached([6, 9]) == 2


def test_pages_in_use_are_never_evicted_and_growing_past_the_pool_changes_nothing() -> None:
    users = Users(4, 2)
    a = users.open([1, 2, 3, 4, 5])
    assert a is not None
    pages = list(a.pages)
    assert users.open([7, 8, 9]) is None
    assert users.cache.grow(a, 9) is False and a.pages == pages
    assert users.cache.grow(a, 8) is True
    users.cache.check(users.live)


def test_forgetting_takes_only_what_nobody_else_needs() -> None:
    users = Users(12, 2)
    a, b = users.open([1, 2, 3, 4, 5, 6]), users.open([1, 2, 3, 4, 9, 9])
    assert a is not None and b is not None
    users.close(a, keep=False)
    assert users.cached([1, 2, 3, 4, 5, 6]) == 4
    users.close(b, keep=False)
    assert users.cache.report() == KvReport(12, 0, 0, 12)


def test_without_sharing_nothing_is_found_or_kept() -> None:
    users = Users(8, 2, share=False)
    for _ in range(2):
        seq = users.open([1, 2, 3, 4, 5])
        assert seq is not None and seq.num_cached_tokens == 0
    users.close(seq)
    assert users.cache.report() == KvReport(5, 0, 3, 8)


class Prefixes:
    """What a cache of `num_pages` should hold, without pages or links: when each prefix was last used."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.used: dict[tuple[int, ...], int] = {}
        self.live: list[list[int]] = []
        self.now = 0

    def pages(self, ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[:end]) for end in range(self.page_size, len(ids) + 1, self.page_size)]

    def busy(self) -> set[tuple[int, ...]]:
        return {p for ids in self.live for p in self.pages(ids)}

    def open(self, ids: list[int]) -> int | None:
        """Tokens found, or None if it does not fit."""
        self.now += 1
        path = self.pages(ids)[: (len(ids) - 1) // self.page_size]
        hit = next((i for i, p in enumerate(path) if p not in self.used), len(path))
        held = self.busy() | set(path[:hit])
        partial = sum(len(other) % self.page_size != 0 for other in self.live)
        missing = -(-len(ids) // self.page_size) - hit
        self.used |= {p: self.now for p in path[:hit]}
        if missing > self.num_pages - partial - len(held):
            return None
        while self.num_pages - partial - len(self.used) < missing:
            del self.used[min((p for p in self.used if p not in held), key=lambda p: (self.used[p], -len(p)))]
        self.live.append(ids)
        self.used |= {p: self.now for p in self.pages(ids)}
        return hit * self.page_size

    def close(self, which: int, keep: bool) -> None:
        self.now += 1
        mine = self.pages(self.live.pop(which))
        left = [p for p in mine if p not in self.busy()]
        self.used |= {p: self.now for p in left}
        for p in reversed(left):
            if not keep and not any(q[: len(p)] == p and q != p for q in self.used):
                del self.used[p]


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=9)
actions = st.lists(st.tuples(st.sampled_from(["open", "open", "close", "forget"]), prompts), max_size=40)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(actions, st.integers(1, 12), st.integers(1, 3))
def test_the_cache_is_a_set_of_prefixes_forgotten_in_order_of_use(
    script: list[tuple[str, list[int]]], num_pages: int, page_size: int
) -> None:
    users, model = Users(num_pages, page_size), Prefixes(num_pages, page_size)
    for action, ids in script:
        if action == "open":
            seq, hit = users.open(ids), model.open(ids)
            assert (None if seq is None else seq.num_cached_tokens) == hit
        elif users.live:
            which = len(ids) % len(users.live)
            users.close(users.live[which], keep=action == "close")
            model.close(which, keep=action == "close")
        assert all(users.cached(list(p)) == len(p) for p in model.used)
        assert len(users.cache._tree) == len(model.used)


# -- the checks themselves --------------------------------------------------------------------------------------------


def test_the_pool_check_sees_each_kind_of_fault() -> None:
    pool = PagePool(3, 4)
    page = pool.take()
    expected = [int(p == page) for p in range(3)]
    pool.check(expected)
    with pytest.raises(EngineError, match="holders"):
        pool.check([0, 0, 0])
    pool._num_free -= 1
    with pytest.raises(EngineError, match="counted as free"):
        pool.check(expected)
    pool._num_free += 1
    pool._free_in[0] += 1
    with pytest.raises(EngineError, match="miscounted"):
        pool.check(expected)


@given(st.integers(1, 100), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), max_size=200))
@settings(max_examples=60)
def test_every_free_page_can_be_taken_once_whatever_came_before(size: int, turns: list[tuple[int, int]]) -> None:
    pool, held = PagePool(size, 4), list[int]()
    for action, which in turns:
        if action and pool.num_free:
            held.append(pool.take(held[which % len(held)] if held and action > 1 else None))
        elif held:
            pool.drop(held.pop(which % len(held)))
        pool.check([int(page in held) for page in range(size)])
        assert len(set(held)) == len(held) == size - pool.num_free
    while pool.num_free:
        held.append(pool.take())
    assert sorted(held) == list(range(size))


def test_a_sequence_gets_neighbouring_pages_beside_others_that_grow_with_it() -> None:
    pool = PagePool(8 * RUN, 4)
    users: list[list[int]] = [[] for _ in range(4)]
    for _ in range(2 * RUN):
        for pages in users:
            pages.append(pool.take(pages[-1] if pages else None))
    for pages in users:
        for first in (0, RUN):
            assert pages[first : first + RUN] == list(range(pages[first], pages[first] + RUN))
    for pages in users:
        for page in reversed(pages):
            pool.drop(page)
    again = pool.take()
    assert [pool.take(again + i) for i in range(RUN - 1)] == list(range(again + 1, again + RUN))


def test_what_a_long_prompt_takes_from_the_cache_comes_in_order() -> None:
    users = Users(num_pages=2 * RUN, page_size=1)
    users.close(users.open(list(range(1, 2 * RUN + 1))))
    seq = users.open(list(range(1001, 1001 + RUN)))
    assert seq is not None
    assert seq.pages == sorted(seq.pages) and seq.pages[-1] - seq.pages[0] == RUN - 1


def test_the_tree_check_sees_each_kind_of_fault() -> None:
    def tree() -> PrefixTree:
        made = PrefixTree(1)
        parent = made.insert(None, "", (1,), 0)
        child = made.insert(parent, "", (2,), 1)
        made.rest(child)
        made.rest(parent)
        made.check()
        return made

    broken = tree()
    broken._idle.move_to_end(1)
    with pytest.raises(EngineError, match="evicted after"):
        broken.check()
    broken = tree()
    broken._by_page[1].salt = "x"
    with pytest.raises(EngineError, match="wrong place"):
        broken.check()
    broken = tree()
    broken._by_page[0].children.clear()
    with pytest.raises(EngineError, match="can be reached"):
        broken.check()


def test_the_manager_check_sees_pages_mapped_wrongly() -> None:
    def pair() -> tuple[Users, Sequence, Sequence]:
        users = Users(9, 2)
        a, b = users.open([1, 2, 3]), users.open([5, 6, 7])
        assert a is not None and b is not None
        return users, a, b

    users, a, b = pair()
    a.pages[1] = b.pages[1]
    with pytest.raises(EngineError, match="mapped twice"):
        users.cache.check(users.live)
    users, a, b = pair()
    a.pages[0], b.pages[0] = b.pages[0], a.pages[0]
    with pytest.raises(EngineError, match="other tokens"):
        users.cache.check(users.live)
    users, a, b = pair()
    a.pages.pop()
    with pytest.raises(EngineError, match="holders"):
        users.cache.check(users.live)


def test_a_reset_forgets_everything() -> None:
    users = Users(6, 2)
    seq = users.open([1, 2, 3])
    assert seq is not None
    users.close(seq)
    users.cache.reset()
    users.cache.check([])
    assert users.cached([1, 2, 3]) == 0 and users.cache.report() == KvReport(free=6, cached=0, in_use=0, total=6)


def test_eviction_does_not_search() -> None:
    """The time of an eviction does not grow with the tree: 16 times the pages, less than 4 times the time each."""

    def seconds_each(num_pages: int) -> float:
        users = Users(num_pages, 1)
        cache, best, count = users.cache, 1.0, num_pages
        for i in range(num_pages):
            seq = Sequence(i, Request("r", (i,)))
            assert cache.grow(seq, 1)
            seq.num_computed_tokens = 1
            cache.commit(seq)
            cache.release(seq)
        for _ in range(5):
            start = time.process_time()
            for _ in range(200):
                count += 1
                seq = Sequence(count, Request("r", (count,)))
                cache.grow(seq, 1)
                seq.num_computed_tokens = 1
                cache.commit(seq)
                cache.release(seq)
            best = min(best, (time.process_time() - start) / 200)
        return best

    assert seconds_each(32_000) < 4 * seconds_each(2_000)
