"""Who waits for another's prompt: what two sequences share is computed by the first, and found by the second.

Knows: pairs of sequences, how many pages one is to compute for the other, predicted seconds. Does not know: order, the
cache, what else a step carries.

A follower holds no pages and no place; its leader runs, or waits for its first turn. Whoever lets a leader end, or go
back to the queue, lets its followers go: so nobody waits for one who is not coming, and no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from legato.core.sequence import Sequence
from legato.measure.step_time import Load, StepTimeModel


def shared_pages(a: list[int], b: list[int], page_size: int, most: int) -> int:
    """The number of full pages, at most `most`, that two lists of tokens begin with alike."""
    most = min(most, len(a) // page_size, len(b) // page_size)
    if most < 1 or a[:page_size] != b[:page_size]:
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if a[low * page_size : middle * page_size] == b[low * page_size : middle * page_size]:
            low = middle
        else:
            high = middle - 1
    return low


def leader_of(seq: Sequence, running: Iterable[Sequence], page_size: int) -> tuple[Sequence | None, int]:
    """Who is computing the longest prefix that `seq` could use, and how many pages of it; None and 0 if nobody is.

    Only one who is at least as important: its rows must not come after those of the follower.
    """
    best, pages, most = None, 0, seq.first_logit_row // page_size
    for other in running:
        if (
            other.num_computed_tokens < len(other.token_ids) - 1
            and other.request.salt == seq.request.salt
            and other.request.priority <= seq.request.priority
        ):
            common = shared_pages(other.token_ids, seq.token_ids, page_size, most)
            if common > pages:
                best, pages = other, common
    if best is not None and pages * page_size <= best.num_computed_tokens:
        return None, 0  # it is there already
    return best, pages


def worth_waiting(model: StepTimeModel, load: Load, start: int, end: int) -> bool:
    """Whether a step that carries `load` would take longer for positions [start, end) too than a step costs by itself.

    A leader takes all the rows that steps have room for; only its last step could have carried its followers too. So
    waiting costs at most the fixed part of one more step.
    """
    rows = end - start
    if rows <= 0:
        return False
    visited = load.visited + rows * (start + end + 1) // 2
    both = Load(load.rows + rows, load.prompt_rows + rows, load.kv_tokens, visited, load.logit_rows)
    return model.seconds(both) - model.seconds(load) > model.seconds(Load())


class Followers:
    """Followers by their leader's seq_id, each with the pages that the leader is to compute for it."""

    __slots__ = ("_by_leader", "_page_size", "num_strangers")

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._by_leader: dict[int, list[tuple[Sequence, int]]] = {}
        self.num_strangers = 0  # that followed somebody, since the start

    def __len__(self) -> int:
        return sum(len(pairs) for pairs in self._by_leader.values())

    def __iter__(self) -> Iterator[tuple[Sequence, int]]:
        """Each with the tokens that it is to find rather than compute."""
        for pairs in self._by_leader.values():
            for seq, pages in pairs:
                yield seq, pages * self._page_size

    def park(self, seq: Sequence, leader: Sequence, pages: int) -> None:
        """`seq` waits until `leader` has computed its first `pages` pages."""
        assert seq is not leader and pages > 0
        self._by_leader.setdefault(leader.seq_id, []).append((seq, pages))
        self.num_strangers += seq.request is not leader.request

    def let_go(self, leader: Sequence) -> list[Sequence]:
        """Those who need not wait for `leader` any longer; all, once it has ended or runs no more."""
        pairs = self._by_leader.get(leader.seq_id)
        if pairs is None:
            return []
        there = leader.num_computed_tokens // self._page_size
        return self._take(leader, [seq for seq, pages in pairs if leader.finished or pages <= there])

    def let_go_strangers(self, leader: Sequence) -> list[Sequence]:
        """`leader` goes back to the queue: only answers of its own request, which it precedes there, go on waiting."""
        pairs = self._by_leader.get(leader.seq_id, ())
        return self._take(leader, [seq for seq, _ in pairs if seq.request is not leader.request])

    def remove(self, seq: Sequence) -> None:
        """Takes one out that waits here."""
        for leader_id, pairs in self._by_leader.items():
            kept = [pair for pair in pairs if pair[0] is not seq]
            if len(kept) < len(pairs):
                self._keep(leader_id, kept)
                return
        raise AssertionError(f"sequence {seq.seq_id} follows nobody")

    def _take(self, leader: Sequence, gone: list[Sequence]) -> list[Sequence]:
        if gone:
            ids = {seq.seq_id for seq in gone}
            self._keep(leader.seq_id, [pair for pair in self._by_leader[leader.seq_id] if pair[0].seq_id not in ids])
        return gone

    def _keep(self, leader_id: int, kept: list[tuple[Sequence, int]]) -> None:
        if kept:
            self._by_leader[leader_id] = kept
        else:
            del self._by_leader[leader_id]
