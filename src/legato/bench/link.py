"""A thin HTTP/1.1 client, made to cost little beside the server that it loads.

Knows: connections and their reuse, HTTP framing (httptools), when bytes came. Does not know: what an answer means.

A byte's time is read once, when the event loop hands it over; a receiver is called from there, so a chunk costs no task
switch. A link whose answer ended is kept for the next request, unless the server said otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httptools

from legato.errors import LegatoError, UsageError

CONNECT_S = 10.0
Clock = Callable[[], float]


class LinkError(LegatoError):
    """A request that got no whole answer. `kind` is a word or two to count by."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        super().__init__(text)


REFUSED, DROPPED, STALLED, NOT_HTTP = "connection refused", "connection dropped", "stalled", "not HTTP"


class Receiver(Protocol):
    """Who hears of an answer while it comes."""

    def head(self, status: int, content_type: str) -> None:
        """Status and headers are there."""

    def body(self, data: bytes, at: float) -> None:
        """Bytes of the body, and when they came."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens, and the path before every path on it."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises `UsageError` for what is no http URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or "@" in parts.netloc
            or parts.query
            or parts.fragment
        ):
            shown = url.rpartition("@")[2][:100]  # what stands before may be a password
            raise UsageError(f"--url={shown!r} is not allowed: http://HOST:PORT, such as http://127.0.0.1:8000")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def local(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")


class Link(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, clock: Clock) -> None:
        self.reusable = self.used = False
        self.last_byte = clock()
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._done: asyncio.Future[None] | None = None
        self._status = self._bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    async def ask(self, data: bytes, receiver: Receiver) -> None:
        """Sends a whole request; returns at the end of its answer. Raises `LinkError`."""
        assert self._transport is not None
        self._receiver, self._done = receiver, asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._type, self._framed, self.reusable, self._bytes = "", False, False, 0
        self.last_byte = self._clock()
        self._transport.write(data)
        try:
            await self._done
        finally:
            self._receiver = self._done = None
            self.used = True

    @property
    def silent(self) -> bool:
        """Whether not a byte of this request's answer came."""
        return not self._bytes

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: LinkError) -> None:
        """Ends the request in flight."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
        self.close()

    def data_received(self, data: bytes) -> None:
        self.last_byte = self._now = self._clock()
        self._bytes += len(data)
        if self._done is None or self._done.done():  # bytes that nobody asked for
            return self.close()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            known = cause if isinstance(cause, LinkError) else None
            self.fail(known or LinkError(NOT_HTTP, f"the answer is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if self._status and not self._framed and self._type:  # a body without length ends with its connection
            return self._done.set_result(None)
        at = f"after {self._bytes} bytes" if self._bytes else "before the answer began"
        self._done.set_exception(LinkError(DROPPED, f"the connection was closed {at}"))

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._type = self._type or "unknown"
        assert self._receiver is not None
        self._receiver.head(self._status, self._type)

    def on_body(self, body: bytes) -> None:
        if self._receiver is not None:
            self._receiver.body(body, self._now)

    def on_message_complete(self) -> None:
        if self._status == 100:
            return
        self.reusable = self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class Client:
    """Links to one server. `timeout_s`: for a whole answer of `json`; `send` waits as long as its caller."""

    def __init__(
        self,
        origin: Origin,
        api_key: str | None = None,
        clock: Clock = time.perf_counter,
        timeout_s: float = 30.0,
    ) -> None:
        self.origin, self.timeout_s = origin, timeout_s
        self.links: set[Link] = set()
        self._clock = clock
        self._idle: list[Link] = []
        self._tls = ssl.create_default_context() if origin.tls else None
        lines = [f"Host: {origin.authority}", "Accept: text/event-stream, application/json", "User-Agent: legato-bench"]
        if api_key:
            lines.append(f"Authorization: Bearer {api_key}")
        self._head = "".join(f"{line}\r\n" for line in lines)

    async def send(self, method: str, path: str, body: bytes | None, receiver: Receiver) -> None:
        """One request to the end of its answer. Raises `LinkError`.

        A kept link that turns out to be closed before any byte of the answer is replaced once.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._head}"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        data = head.encode("latin-1") + b"\r\n" + (body or b"")
        while True:
            link = await self._link()
            again = link.used
            try:
                await link.ask(data, receiver)
            except LinkError as error:
                link.close()
                if again and link.silent and error.kind == DROPPED:
                    continue
                raise
            except BaseException:
                link.close()
                raise
            finally:
                self.links.discard(link)
            if link.reusable:
                self._idle.append(link)
            else:
                link.close()
            return

    async def _link(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if link._transport is not None and not link._transport.is_closing():
                break
        else:
            link = await self._connect()
        self.links.add(link)
        return link

    async def _connect(self) -> Link:
        origin, loop = self.origin, asyncio.get_running_loop()
        made = loop.create_connection(lambda: Link(self._clock), origin.host, origin.port, ssl=self._tls)
        try:
            _, link = await asyncio.wait_for(made, CONNECT_S)
        except TimeoutError:
            raise LinkError(REFUSED, f"no connection within {CONNECT_S:g} s") from None
        except ssl.SSLError as error:
            raise LinkError(REFUSED, f"TLS: {error.reason or error}") from None
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError) or "refused" in str(error)  # of several addresses
            number = error.errno or 0  # below 0: of a name that is not known
            told = os.strerror(number).lower() if number > 0 else error.strerror or str(error)
            why = REFUSED if refused else told
            raise LinkError(REFUSED, why) from None
        return link

    async def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, the answer as JSON or None). Raises `LinkError`."""
        whole = _Whole()
        data = None if body is None else json.dumps(body).encode()
        try:
            await asyncio.wait_for(self.send(method, path, data, whole), self.timeout_s)
        except TimeoutError:
            raise LinkError(STALLED, f"no answer to {method} {path} within {self.timeout_s:g} s") from None
        with suppress(ValueError):
            return whole.status, json.loads(b"".join(whole.parts))
        return whole.status, None

    def close(self) -> None:
        for link in [*self._idle, *self.links]:
            link.close()
        self._idle.clear()


class _Whole:
    """Keeps an answer's body."""

    def __init__(self) -> None:
        self.status, self.parts = 0, list[bytes]()

    def head(self, status: int, content_type: str) -> None:
        self.status = status

    def body(self, data: bytes, at: float) -> None:
        self.parts.append(data)
