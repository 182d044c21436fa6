"""Which pages belong to which sequence, and which computed pages are shared.

Knows: sequences' tokens and pages, the pool, the tree. Does not know: budgets, priorities, what a page contains.

    seq.pages   |-- published: a path of the tree --|-- own: this sequence alone may write them --|
    tokens      0 ......................... full pages of num_computed_tokens ......... grown ahead

A page is published only when it is full, computed and committed; it is never written again. Two sequences that
computed the same page at the same time end up with one: the second gives its own back and maps the first's.
So `seq.pages` may change at any commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from legato.core.miss import Miss, MissCause
from legato.core.sequence import Sequence
from legato.errors import EngineError
from legato.schedule.page_pool import PagePool, pages_for
from legato.schedule.prefix_tree import Node, PrefixTree


@dataclass(frozen=True, slots=True)
class KvReport:
    """Pages by state. free + cached + in_use == total.

    cached  computed, kept for whoever comes with the same prefix, and given up when pages are needed
    in_use  mapped by a sequence
    """

    free: int
    cached: int
    in_use: int
    total: int


class CacheManager:
    """`share=False`: nothing is published and nothing matches; every sequence has its pages to itself.

    now  clock reading that evictions are dated with; whoever schedules sets it
    """

    def __init__(self, num_pages: int, page_size: int, share: bool = True) -> None:
        self._share, self.now = share, 0.0
        self.num_pages, self.page_size = num_pages, page_size
        self._pool = PagePool(num_pages, page_size)
        self._tree = PrefixTree(page_size)

    @property
    def shares(self) -> bool:
        """Whether anything is ever found again."""
        return self._share

    @property
    def num_available(self) -> int:
        """Pages that can be had without taking any from a sequence: free ones and cached ones."""
        return self._pool.num_free + self._tree.num_idle

    def found(self, seq: Sequence) -> int:
        """How many tokens `match` would map, without mapping them."""
        return len(self._path(seq)) * self.page_size

    def match(self, seq: Sequence) -> int:
        """Maps the longest computed prefix into `seq`, which holds no pages; returns its length in tokens.

        Never reaches past the first token whose logits are wanted, so at least one token is left to compute.
        """
        assert not seq.pages
        for node in self._path(seq):
            self._use(node)
            seq.pages.append(node.page)
        seq.num_computed_tokens = len(seq.pages) * self.page_size
        return seq.num_computed_tokens

    def _path(self, seq: Sequence) -> list[Node]:
        most = seq.first_logit_row // self.page_size
        return self._tree.walk(seq.request.salt, seq.token_ids, most)

    def explain(self, seq: Sequence) -> Miss | None:
        """Why `match` found no more for `seq`, or None when it found all it may use. Call it right after `match`."""
        size, matched, ids = self.page_size, len(seq.pages) * self.page_size, seq.token_ids
        if not self._share or 0 < seq.first_logit_row // size * size <= matched:
            return None
        if seq.first_logit_row < size:
            cause = MissCause.SHORT if len(ids) <= size else MissCause.LOGPROBS
            return Miss(cause, matched, matched)
        last = self._tree.at(seq.pages[-1]) if seq.pages else None
        near = self._tree.nearest(last, seq.request.salt, ids, matched)
        common = near.common if near is not None else 0
        ours = ids[matched + common] if matched + common < len(ids) else None
        if not matched + common and self._tree.elsewhere(seq.request.salt, tuple(ids[:size])):
            return Miss(MissCause.SALT, 0, 0, ours)
        if near is None:
            return Miss(MissCause.NEW, matched, matched, ours)
        if near.evicted_by is not None:
            return Miss(MissCause.EVICTED, matched, matched + common, ours, None, near.evicted_at, near.evicted_by)
        if common == len(near.key):
            return Miss(MissCause.SHORT, matched, matched + common, ours)
        return Miss(MissCause.TEXT, matched, matched + common, ours, near.key[common])

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Pages for the first `num_tokens` tokens, evicting cached ones where needed; False (no change) if short."""
        if num_tokens <= len(seq.pages) * self.page_size:
            return True
        missing = pages_for(num_tokens, self.page_size) - len(seq.pages)
        if missing > self.num_available:
            return False
        for _ in range(missing - self._pool.num_free):  # all of them first, so that those taken can be neighbours
            self._pool.drop(self._tree.evict(self.now, seq.request.request_id))
        for _ in range(missing):
            seq.pages.append(self._pool.take(seq.pages[-1] if seq.pages else None))
        return True

    def commit(self, seq: Sequence) -> None:
        """Publishes the pages of `seq` that have become full of computed tokens. Call it when those are certain."""
        full = seq.num_computed_tokens // self.page_size
        if not self._share or full == 0 or self._tree.at(seq.pages[full - 1]) is not None:
            return
        first = full - 1
        while first > 0 and self._tree.at(seq.pages[first - 1]) is None:
            first -= 1
        parent = self._tree.at(seq.pages[first - 1]) if first else None
        for i in range(first, full):
            key = tuple(seq.token_ids[i * self.page_size : (i + 1) * self.page_size])
            own = seq.pages[i]
            parent = self._tree.insert(parent, seq.request.salt, key, own)
            if parent.page == own:
                self._pool.hold(own)
            else:
                self._use(parent)
                seq.pages[i] = parent.page
                seq.num_remaps += 1
                self._pool.drop(own)

    def release(self, seq: Sequence, keep: bool = True) -> None:
        """Takes all pages from `seq`; published ones stay cached. `keep=False` forgets those nobody else needs."""
        if self._share and keep:
            self._note_tail(seq)
        for page in reversed(seq.pages):
            node = self._tree.at(page)
            left = self._pool.drop(page)
            if node is not None and left == 1:
                self._tree.rest(node)
                if not keep and not node.children:
                    self._tree.remove(node)
                    self._pool.drop(page)
        seq.num_remaps += 1
        seq.pages.clear()
        seq.num_computed_tokens = 0

    def _note_tail(self, seq: Sequence) -> None:
        """The computed tokens that fill no page are lost with `seq`; what they were is remembered."""
        whole = seq.num_computed_tokens // self.page_size
        parent = self._tree.at(seq.pages[whole - 1]) if whole else None
        tail = tuple(seq.token_ids[whole * self.page_size : seq.num_computed_tokens])
        if tail and (parent is not None or not whole):
            self._tree.cut_short(parent, seq.request.salt, tail)

    def reset(self) -> None:
        """Forgets every page. Only while no sequence holds any."""
        self._pool = PagePool(self.num_pages, self.page_size)
        self._tree = PrefixTree(self.page_size)

    def report(self) -> KvReport:
        free, cached, total = self._pool.num_free, self._tree.num_idle, self._pool.num_pages
        return KvReport(free, cached, total - free - cached, total)

    def _use(self, node: Node) -> None:
        """One more sequence maps the page of `node`."""
        self._tree.wake(node)
        self._pool.hold(node.page)

    def check(self, seqs: Iterable[Sequence]) -> None:
        """Raises `EngineError` unless every page is accounted for, given all sequences that hold any. O(pages)."""
        self._tree.check()
        holders = [0] * self.num_pages
        for node in self._tree:
            holders[node.page] += 1
        for seq in seqs:
            self._check_path(seq)
            for page in seq.pages:
                holders[page] += 1
                if holders[page] > 1 and self._tree.at(page) is None:
                    raise EngineError(f"page {page} is mapped twice without being published")
        self._pool.check(holders)
        idle = sum(1 for node in self._tree if holders[node.page] == 1)
        if idle != self._tree.num_idle:
            raise EngineError(f"{self._tree.num_idle} nodes are listed as idle, but {idle} are")

    def _check_path(self, seq: Sequence) -> None:
        parent, published = None, True
        for i, page in enumerate(seq.pages):
            node = self._tree.at(page)
            published = published and node is not None
            if node is None:
                continue
            end = (i + 1) * self.page_size
            if not published or node.parent is not parent or node.salt != seq.request.salt:
                raise EngineError(f"sequence {seq.seq_id} maps page {page} off its path")
            if tuple(seq.token_ids[end - self.page_size : end]) != node.key:
                raise EngineError(f"sequence {seq.seq_id} maps page {page}, which holds other tokens")
            parent = node
