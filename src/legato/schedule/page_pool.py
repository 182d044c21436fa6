"""Pages by number: who holds them, and which are free.

Knows: page ids and how many holders each has. Does not know: tokens, sequences, what a page contains.

    free      holders == 0, the id lies on the free stack
    held      holders >= 1: one for each sequence that maps it, one more when the prefix tree keeps it
"""

from __future__ import annotations

from legato.errors import EngineError


def pages_for(num_tokens: int, page_size: int) -> int:
    """How many pages `num_tokens` tokens take."""
    return -(-num_tokens // page_size)


class PagePool:
    """`num_pages` pages of `page_size` token slots each. All operations are O(1)."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._holders = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free page with one holder. The caller has looked at `num_free`."""
        page = self._free.pop()
        self._holders[page] = 1
        return page

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
            self._free.append(page)
        return left

    def check(self, expected: list[int]) -> None:
        """Raises `EngineError` unless the holders are exactly `expected` and the free stack agrees with them."""
        for page, (have, want) in enumerate(zip(self._holders, expected, strict=True)):
            if have != want:
                raise EngineError(f"page {page} counts {have} holders, but {want} hold it")
        free = set(self._free)
        if len(free) != len(self._free):
            raise EngineError("a page lies twice on the free stack")
        if free != {page for page, have in enumerate(self._holders) if have == 0}:
            raise EngineError("the free stack and the holder counts disagree")
