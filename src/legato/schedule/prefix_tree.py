"""Computed prefixes by their token ids: one node a full page, one tree a salt.

Knows: exact token tuples, the page each node keeps, and which nodes nobody uses. Does not know: sequences, holders
of pages, time.

A node is found by its parent's identity and the tuple of its page's tokens, compared in full; a dictionary's hash
only speeds that up.

Order of eviction. `_idle` lists the nodes that no sequence uses, in the order in which they were left. Whoever uses a
node uses all its ancestors, and leaves them deepest first; so a child always stands before its parent, the first
in the list is always a leaf, and it is the least recently used one. Eviction is therefore one pop, never a search.

What is evicted leaves its tokens behind for a while (`gone`), for those who ask why they were not found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from legato.errors import EngineError
from legato.schedule.gone import GoneList, Home, Key

REMEMBERED = 4096  # evicted pages: some 1 KB each
_COMPARED = 32  # branches that are looked at to find the nearest one
_SALTS_COMPARED = 64


@dataclass(slots=True, eq=False)
class Node:
    """One full page of computed tokens behind `parent` (None: it starts a sequence)."""

    key: Key
    page: int
    parent: Node | None
    salt: str
    children: dict[Key, Node] = field(default_factory=dict)
    gone: Home = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Near:
    """What comes closest to tokens that are not in the tree: the first `common` of them equal those of `key`.

    evicted_at, evicted_by  known when all of them had been there; then `common` may reach over several pages
    """

    key: Key
    common: int
    evicted_at: float | None = None
    evicted_by: str | None = None


class PrefixTree:
    """A new node counts as used. All operations are O(1) but `walk` (O(pages matched)) and `check`."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._roots: dict[str, dict[Key, Node]] = {}
        self._by_page: dict[int, Node] = {}
        self._idle: OrderedDict[int, Node] = OrderedDict()
        self._gone = GoneList(REMEMBERED)

    def __len__(self) -> int:
        return len(self._by_page)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_page.values())

    @property
    def num_idle(self) -> int:
        """Nodes that nobody uses: what eviction could give back."""
        return len(self._idle)

    @property
    def num_salts(self) -> int:
        return len(self._roots)

    def at(self, page: int) -> Node | None:
        """The node that keeps `page`, if any."""
        return self._by_page.get(page)

    def walk(self, salt: str, token_ids: list[int], num_pages: int) -> list[Node]:
        """The longest path that equals the first pages of `token_ids`, at most `num_pages` of them. Changes nothing."""
        path: list[Node] = []
        children, size = self._roots.get(salt), self._page_size
        while children and len(path) < num_pages:
            start = len(path) * size
            node = children.get(tuple(token_ids[start : start + size]))
            if node is None:
                break
            path.append(node)
            children = node.children
        return path

    def nearest(self, last: Node | None, salt: str, token_ids: list[int], start: int) -> Near | None:
        """The closest to `token_ids[start:]` behind `last`, among the latest branches: evicted, live or cut short.

        Call it where `walk` stopped. None: nothing is known there.
        """
        size = self._page_size
        ours = tuple(token_ids[start : start + size])
        live = self._roots.get(salt, {}) if last is None else last.children
        gone = self._gone.roots(salt) if last is None else last.gone
        if ours in gone:
            first, known = gone[ours], 0
            while len(ours) == size and ours in gone:
                known += size
                gone = gone[ours].behind
                ours = tuple(token_ids[start + known : start + known + size])
            return Near(first.key, known, first.since, first.by)
        best: Near | None = None
        for branches in (gone, live):
            for key in islice(reversed(branches), _COMPARED):
                common = _common(ours, key)
                if best is None or common > best.common:
                    best = Near(key, common)
        return best

    def elsewhere(self, salt: str, key: Key) -> bool:
        """Whether another salt (of the latest ones) has a sequence that begins with the page `key`."""
        return any(key in nodes for s, nodes in islice(reversed(self._roots.items()), _SALTS_COMPARED) if s != salt)

    def cut_short(self, parent: Node | None, salt: str, key: Key) -> None:
        """A sequence ended behind `parent` with `key`, which is less than a page and so cannot be kept."""
        self._gone.add(None if parent is None else parent.gone, salt, key, {}, 0.0, "")

    def insert(self, parent: Node | None, salt: str, key: Key, page: int) -> Node:
        """The node of `key` under `parent`: a new one that keeps `page`, or the one there was (see its `.page`)."""
        assert len(key) == self._page_size and page not in self._by_page
        children = self._roots.setdefault(salt, {}) if parent is None else parent.children
        node = children.get(key)
        if node is None:
            node = children[key] = self._by_page[page] = Node(key, page, parent, salt)
            node.gone = self._gone.revive(None if parent is None else parent.gone, salt, key)
        return node

    def wake(self, node: Node) -> None:
        """Somebody uses `node` (and all its ancestors), whether or not others did already."""
        self._idle.pop(node.page, None)

    def rest(self, node: Node) -> None:
        """Its last user left `node`. Called for a path's nodes deepest first."""
        assert node.page not in self._idle
        self._idle[node.page] = node

    def evict(self, now: float = 0.0, by: str = "") -> int:
        """Gives up the least recently used idle leaf for the request `by`; returns its page.

        The caller has looked at `num_idle`.
        """
        page, node = self._idle.popitem(last=False)
        self._unlink(node)
        home = None if node.parent is None else node.parent.gone
        self._gone.add(home, node.salt, node.key, node.gone, now, by)
        return page

    def remove(self, node: Node) -> None:
        """Forgets one idle leaf, whenever it was used."""
        del self._idle[node.page]
        self._unlink(node)

    def _unlink(self, node: Node) -> None:
        assert not node.children
        del self._by_page[node.page]
        siblings = self._roots[node.salt] if node.parent is None else node.parent.children
        del siblings[node.key]
        if node.parent is None and not siblings:
            del self._roots[node.salt]

    def check(self) -> None:
        """Raises `EngineError` unless links, pages and the order of eviction are consistent."""
        place = {page: i for i, page in enumerate(self._idle)}
        seen = 0
        todo: list[tuple[Node | None, str, Key, Node]] = [
            (None, salt, key, node) for salt, nodes in self._roots.items() for key, node in nodes.items()
        ]
        while todo:
            parent, salt, key, node = todo.pop()
            seen += 1
            if node.parent is not parent or node.salt != salt or node.key != key or len(key) != self._page_size:
                raise EngineError(f"the node of page {node.page} hangs in the wrong place")
            if self._by_page.get(node.page) is not node:
                raise EngineError(f"page {node.page} is kept by two nodes")
            if parent is not None and parent.page in place and place.get(node.page, len(place)) > place[parent.page]:
                raise EngineError(f"page {node.page} would be evicted after its parent, or is used while that is idle")
            todo.extend((node, salt, k, child) for k, child in node.children.items())
        if seen != len(self._by_page) or not all(self._roots.values()):
            raise EngineError(f"{len(self._by_page)} nodes are known, but {seen} can be reached")


def _common(a: Key, b: Key) -> int:
    """How many of the first tokens are equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
