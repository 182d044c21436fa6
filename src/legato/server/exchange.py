"""`Exchange`: one HTTP request and its response, over ASGI.

Knows: bodies within their limits, headers of ours, disconnects, readers that stall. Does not know: routes, protocols.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from legato.server.ask import Result
from legato.server.limits import ServerLimits
from legato.server.log import RequestLine
from legato.server.problems import ErrorBody, Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
EVENTS = b"text/event-stream; charset=utf-8"


class Disconnected(Exception):
    """The client has gone; there is nobody to answer."""


class Exchange:
    """What a handler works with.

    request_id  the client's own if it is harmless, else one of ours; every response carries it
    tail        the part of the path that a route left open
    tenant      the name of the key that was sent
    result      of a request that was answered by the model
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: ServerLimits) -> None:
        self.scope, self._receive, self._send, self.limits = scope, receive, send, limits
        self.headers: list[Header] = scope["headers"]
        self.tail = ""
        self.tenant = ""
        self.error_body: ErrorBody
        self.started = time.perf_counter()
        self.responded = False
        self.result: Result | None = None
        given = self.header(b"x-request-id")
        good = given is not None and REQUEST_ID.fullmatch(given) is not None
        self.request_id = given.decode() if good and given is not None else f"req-{secrets.token_hex(12)}"
        client = scope.get("client")
        self.line = RequestLine(
            self.request_id, scope["method"], scope["path"][:200], client=client[0] if client else ""
        )
        self._body_read = False
        self.given_up = False
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of that (lower-case) name."""
        return next((value for own, value in self.headers if own == name), None)

    # -- the request ----------------------------------------------------------------------------------------------

    async def body(self, limit: int | None = None) -> bytes:
        """The whole body; 413 before more than the limit is kept, 408 when it takes too long to come."""
        limit = self.limits.body if limit is None else limit
        said = self.header(b"content-length")
        if said is not None and (not said.isdigit() or len(said) > 18 or int(said) > limit):
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            text = f"the body did not come within {self.limits.body_s:g} s"
            raise Problem(408, text, code="timeout", close=True) from None
        self._body_read = True
        return b"".join(parts)

    def on_disconnect(self, gone: Callable[[], None]) -> None:
        """Calls `gone` once if the client goes before the response is whole. After `body` only."""
        assert self._body_read

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not self.line.status or not self._finished:
                gone()

        self._finished = False
        self._task = asyncio.current_task()
        self._watcher = asyncio.create_task(watch())

    def give_up(self) -> None:
        """The reader takes nothing: ends the handler that waits for it. After `on_disconnect` only."""
        self.given_up = True
        self.line.problem = f"the reader took nothing for {self.limits.stall_s:g} s"
        if self._task is not None:
            self._task.cancel()

    def done(self) -> None:
        """Stops watching."""
        self._finished = True
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    # -- the response ---------------------------------------------------------------------------------------------

    async def respond(self, status: int, body: bytes, headers: Iterable[Header] = (), kind: bytes = JSON) -> None:
        """The whole response at once."""
        own = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await self._begin(status, [*own, *headers])
        await self._write(body, more=False)

    async def refuse(self, problem: Problem) -> None:
        """The response to a request that is not answered, in the words of its protocol."""
        self.line.problem = problem.message
        await self.respond(problem.status, self.error_body(problem), problem.headers())

    async def begin_stream(self, kind: bytes = EVENTS, headers: Iterable[Header] = ()) -> None:
        """200 and the headers of a stream."""
        own = [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._begin(200, [*own, *headers])

    async def write(self, data: bytes) -> None:
        """A piece of the stream."""
        await self._write(data, more=True)

    async def end_stream(self, data: bytes = b"") -> None:
        await self._write(data, more=False)

    async def _begin(self, status: int, headers: list[Header]) -> None:
        self.responded, self.line.status = True, status
        spent = b"%d" % (1e3 * (time.perf_counter() - self.started))
        ours = [(b"x-request-id", self.request_id.encode()), (b"openai-processing-ms", spent)]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *ours]})

    async def _write(self, data: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _too_large(limit: int) -> Problem:
    text = f"the body is larger than {limit} bytes; send less, or in several requests"
    return Problem(413, text, code="request_too_large", close=True)
