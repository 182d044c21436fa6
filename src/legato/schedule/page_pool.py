"""Pages by number: who holds them, and which are free.

Knows: page ids and how many holders each has. Does not know: tokens, sequences, what a page contains.

    free      holders == 0
    held      holders >= 1: one for each sequence that maps it, one more when the prefix tree keeps it
"""

from __future__ import annotations

from legato.errors import EngineError


def pages_for(num_tokens: int, page_size: int) -> int:
    """How many pages `num_tokens` tokens take."""
    return -(-num_tokens // page_size)


RUN = 16  # neighbouring pages that a sequence gets one after the other where it can, for memory reads best in order


class PagePool:
    """`num_pages` pages of `page_size` token slots each. All operations are O(1), one in many O(pages).

    A sequence that begins takes the first page of a run that is wholly free, and goes on in it; only when no run is
    whole are pages taken as they come.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._holders = [0] * num_pages
        self._num_free = num_pages
        self._free_in = [min(RUN, num_pages - first) for first in range(0, num_pages, RUN)]
        self._whole = list(range(num_pages // RUN - 1, -1, -1))  # runs that were wholly free once; some no longer are
        self._loose = list(range(num_pages - 1, num_pages // RUN * RUN - 1, -1))  # pages that were free once

    @property
    def num_free(self) -> int:
        return self._num_free

    def take(self, after: int | None = None) -> int:
        """A free page with one holder, behind the page `after` if may be. The caller has looked at `num_free`."""
        page = self._choose(after)
        self._holders[page] = 1
        self._free_in[page // RUN] -= 1
        self._num_free -= 1
        return page

    def _choose(self, after: int | None) -> int:
        if after is not None:
            page = after + 1
            if page % RUN and page < self.num_pages and not self._holders[page]:
                return page
        while self._whole:
            run = self._whole.pop()
            if self._free_in[run] == RUN:
                return run * RUN
        while self._loose:
            page = self._loose.pop()
            if not self._holders[page]:
                return page
        self._loose = [page for page in range(self.num_pages - 1, -1, -1) if not self._holders[page]]
        return self._loose.pop()

    def hold(self, page: int) -> None:
        """One more holder of a page that is held already."""
        assert self._holders[page] > 0, page
        self._holders[page] += 1

    def drop(self, page: int) -> int:
        """One holder fewer; returns how many are left. At 0 the page is free."""
        left = self._holders[page] - 1
        assert left >= 0, page
        self._holders[page] = left
        if left == 0:
            self._num_free += 1
            self._free_in[page // RUN] += 1
            if self._free_in[page // RUN] == RUN:
                self._whole.append(page // RUN)
            elif len(self._loose) < self.num_pages:
                self._loose.append(page)
        return left

    def check(self, expected: list[int]) -> None:
        """Raises `EngineError` unless the holders are exactly `expected` and free pages are counted rightly."""
        for page, (have, want) in enumerate(zip(self._holders, expected, strict=True)):
            if have != want:
                raise EngineError(f"page {page} counts {have} holders, but {want} hold it")
        free = [page for page, have in enumerate(self._holders) if have == 0]
        if len(free) != self._num_free:
            raise EngineError(f"{self._num_free} pages are counted as free, but {len(free)} are")
        if self._free_in != [sum(1 for p in free if p // RUN == run) for run in range(len(self._free_in))]:
            raise EngineError("the free pages of a run are miscounted")
