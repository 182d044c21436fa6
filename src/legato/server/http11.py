"""HTTP/1.1 as uvicorn speaks it, with an end to how long and how large a request's head may be.

Knows: uvicorn's protocols. Does not know: requests that came whole.

The application sees a request only when its head is complete; without this a head without end would take memory
without end, and a connection that never finishes its head would stay for ever.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from legato.server.problems import Problem
from legato.server.protocols.openai.words import error_body

MAX_HEAD = 128 << 10  # bytes; past the application's own, smaller limit, which is answered in the protocol's words
HEAD_S = 30.0
UNREADABLE = Problem(400, "this is no HTTP/1.1 request; send a method, a path and one host header", code="invalid_http")
HEAD_TOO_LARGE = Problem(
    431, "the head of this request is too large; send fewer or shorter headers", code="headers_too_large"
)


def protocol_class(max_head: int = MAX_HEAD, head_s: float = HEAD_S) -> Any:
    """The class that uvicorn makes for each connection; plain h11, which has its own bound, where httptools is not."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class Bounded(_constant(HttpToolsProtocol)):  # type: ignore[misc]
        """Counts what comes before a head is complete, and how long it takes."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._head_timer is not None:
                self._head_bytes += len(data)
                if self._head_bytes > max_head and not self.transport.is_closing():
                    self._refuse(HEAD_TOO_LARGE)

        def send_400_response(self, msg: str) -> None:
            self._refuse(UNREADABLE)

        def _refuse(self, problem: Problem) -> None:
            """What cannot be read has no path, so nobody's words but the common ones."""
            if self.transport.is_closing():
                return
            self.transport.write(refusal(problem))
            self.transport.close()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._head_timer is None:
                self._await_head()

        def on_headers_complete(self) -> None:
            self._head_came()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head_bytes = 0
            self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(head_s, self._too_late)

        def _head_came(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _too_late(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return Bounded


def _constant(kind: Any) -> Any:
    """The class that takes no notice of other protocols which a request offers (RFC 9110, 7.8)."""
    import httptools

    class Constant(kind):  # type: ignore[misc]
        """The parser stops behind the head of such a request, whatever follows it. Another one reads on, behind a head
        that says no more than how the body is framed."""

        _reads_on = False  # the parser reads that head

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            unread: bytes | None = data
            while unread is not None:
                unread = self._feed(unread)

        def _feed(self, data: bytes) -> bytes | None:
            """What is left to be fed."""
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                framing = [h for h in self.headers if h[0] in (b"content-length", b"transfer-encoding")]
                lines = b"".join(b"%s: %s\r\n" % header for header in framing)
                self.parser: Any = httptools.HttpRequestParser(self)
                self._reads_on = True
                return b"POST / HTTP/1.1\r\n%s\r\n%s" % (lines, data[offer.args[0] :])
            except httptools.HttpParserError:
                self.send_400_response("")
            return None

        def on_message_begin(self) -> None:
            if not self._reads_on:
                super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            if not self._reads_on:
                super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._reads_on:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if not self._reads_on:
                super().on_headers_complete()
            self._reads_on = False

        def on_message_complete(self) -> None:
            if not self.parser.should_upgrade():
                super().on_message_complete()

    return Constant


def refusal(problem: Problem) -> bytes:
    """The whole response, for a request that no application saw."""
    body = error_body(problem)
    head = (
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
