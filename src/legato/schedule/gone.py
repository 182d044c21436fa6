"""What the prefix tree has given up, remembered for a while, so that a miss can say why.

Knows: exact token tuples, when they were given up and for whom. Does not know: pages, live nodes, sequences.

A `Gone` is a page of tokens that was evicted, or fewer than a page where a sequence ended in the middle of one (those
are never shared). It hangs where it hung in the tree: `home` is the dictionary of its parent, live or gone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

Key = tuple[int, ...]
Home = dict[Key, "Gone"]


@dataclass(slots=True, eq=False)
class Gone:
    """`since` and `by` say when it went, and for whose pages.

    behind     what had been given up behind it
    root_salt  whose beginning it is; None: it hangs behind another page
    """

    key: Key
    home: Home
    behind: Home
    since: float
    by: str
    root_salt: str | None


class GoneList:
    """At most `most` of them; the oldest is forgotten first. All operations are O(1)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._order: OrderedDict[Gone, None] = OrderedDict()
        self._roots: dict[str, Home] = {}

    def __len__(self) -> int:
        return len(self._order)

    @property
    def num_salts(self) -> int:
        return len(self._roots)

    def roots(self, salt: str) -> Home:
        """What was given up at the beginning of sequences; not to be changed."""
        return self._roots.get(salt, {})

    def add(self, home: Home | None, salt: str, key: Key, behind: Home, since: float, by: str) -> None:
        """`home` None: it began a sequence."""
        root_salt = salt if home is None else None
        if home is None:
            home = self._roots.setdefault(salt, {})
        before = home.pop(key, None)
        if before is not None:
            del self._order[before]
        gone = home[key] = Gone(key, home, behind, since, by, root_salt)
        self._order[gone] = None
        if len(self._order) > self._most:
            oldest, _ = self._order.popitem(last=False)
            self._unlink(oldest)

    def revive(self, home: Home | None, salt: str, key: Key) -> Home:
        """`key` is computed again: no longer gone. Returns what is still gone behind it."""
        gone = (self.roots(salt) if home is None else home).get(key)
        if gone is None:
            return {}
        del self._order[gone]
        self._unlink(gone)
        return gone.behind

    def _unlink(self, gone: Gone) -> None:
        del gone.home[gone.key]
        if not gone.home and gone.root_salt is not None:
            del self._roots[gone.root_salt]
