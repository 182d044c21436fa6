"""`Route`: what is served, and under which conditions. The table of them is all that there is to reach.

Knows: methods, paths, who may come without a key, how errors are worded. Does not know: what a handler does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from legato.server.exchange import Exchange
from legato.server.problems import ErrorBody, Problem

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    path     exact; or ending in "/{name}", which takes the rest of the path into `Exchange.tail`
    open     needs no key
    words    how this protocol words a problem
    summary  one line for the API's description
    body     the type of the JSON body, None where there is none
    answers  the content type of a 200
    streams  that of one in pieces, where the body can ask for it
    """

    method: str
    path: str
    handle: Handler
    words: ErrorBody
    summary: str
    open: bool = False
    body: Any = None
    answers: str = "application/json"
    streams: str = ""

    @property
    def stem(self) -> str | None:
        """The path up to what it leaves open; None for an exact one."""
        return self.path[: self.path.index("{")] if self.path.endswith("}") else None


class RouteTable:
    """All routes. Two for the same method and path are a mistake of ours."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._stems: dict[str, dict[str, Route]] = {}
        for route in routes:
            table, key = (self._exact, route.path) if route.stem is None else (self._stems, route.stem)
            methods = table.setdefault(key, {})
            assert route.method not in methods, f"{route.method} {route.path} is there twice"
            methods[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route | None, str, tuple[str, ...]]:
        """(the route, the open rest of the path, the methods that this path has)."""
        methods, tail = self._exact.get(path), ""
        if methods is None:
            for stem, found in self._stems.items():
                if path.startswith(stem) and len(path) > len(stem):
                    methods, tail = found, path[len(stem) :]
                    break
        if methods is None:
            return None, "", ()
        route = methods.get(method)
        if route is None and method == "HEAD":
            route = methods.get("GET")
        return route, tail, tuple(methods)

    def words(self, path: str, otherwise: ErrorBody) -> ErrorBody:
        """How the protocol that owns `path` words a problem, whatever the method.

        A path that nobody has belongs to whom the rest of its folder belongs: a client that asks Ollama's API for what
        is not here reads the answer as Ollama's.
        """
        for methods in (self._exact.get(path), *(m for s, m in self._stems.items() if path.startswith(s))):
            if methods:
                return next(iter(methods.values())).words
        folder = path[: path.rfind("/") + 1]
        owners = {route.words for route in self.routes if len(folder) > 1 and route.path.startswith(folder)}
        return owners.pop() if len(owners) == 1 else otherwise


def missing(path: str, methods: Sequence[str]) -> Problem:
    """404 or 405."""
    if methods:
        allow = ", ".join(methods)
        return Problem(405, f"this path takes {allow}", code="method_not_allowed", allow=allow)
    return Problem(404, f"there is nothing at {path[:120]!r}; /openapi.json lists what there is", code="not_found")
