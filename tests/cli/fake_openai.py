"""A server of OpenAI's API that follows a script: good answers, odd ones, and every fault on purpose.

Knows: asyncio streams, the bytes of answers. Does not know: what is asked of the load generator.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Act = Callable[["Answer"], Awaitable[None]]


def chunk(text: str, **more: Any) -> bytes:
    return event({"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": text, **more}]})


def event(data: object) -> bytes:
    return b"data: " + (data.encode() if isinstance(data, str) else json.dumps(data).encode()) + b"\n\n"


DONE = event("[DONE]")


def usage(prompt: int, made: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": made}})


@dataclass
class Answer:
    """One request, and the means to answer it."""

    body: dict[str, Any]
    number: int
    writer: asyncio.StreamWriter
    server: FakeServer

    def write(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def begin(self, kind: str = "text/event-stream", status: str = "200 OK") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    def drop(self) -> None:
        self.writer.transport.abort()

    @property
    def words(self) -> int:
        return len(str(self.body.get("prompt") or self.body["messages"][0]["content"]).split())


async def good(answer: Answer) -> None:
    """A chunk a token, each in a packet of its own, then finish, usage, `[DONE]`."""
    answer.begin()
    for _ in range(answer.body["max_tokens"]):
        await asyncio.sleep(answer.server.pace)
        answer.write(chunk(" word"))
    answer.write(chunk("", finish_reason="length"))
    if "stream_options" in answer.body:
        answer.write(usage(answer.words, answer.body["max_tokens"]))
    answer.write(DONE)
    answer.end()


def refused(status: str, message: str) -> Act:
    async def act(answer: Answer) -> None:
        answer.begin("application/json", status)
        answer.write(json.dumps({"error": {"message": message, "type": "t", "code": 1}}).encode())
        answer.end()

    return act


async def dropped(answer: Answer) -> None:
    answer.begin()
    answer.write(chunk(" word"))
    await answer.writer.drain()
    await asyncio.sleep(0.01)
    answer.drop()


async def garbage(answer: Answer) -> None:
    answer.begin()
    answer.write(b'data: {"choices": [{"ind\n\n')
    answer.end()


async def not_http(answer: Answer) -> None:
    answer.writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def cut(answer: Answer) -> None:
    """Ends well as HTTP, but never says why."""
    answer.begin()
    answer.write(chunk(" word"))
    answer.end()


async def error_event(answer: Answer) -> None:
    answer.begin()
    answer.write(chunk(" word") + event({"error": {"message": "out of pages", "code": 500}}))
    answer.end()


async def stalled(answer: Answer) -> None:
    answer.begin()
    answer.write(chunk(" word"))
    await asyncio.sleep(3600)


async def closing(answer: Answer) -> None:
    """A good answer whose end is the connection's."""
    answer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    for _ in range(answer.body["max_tokens"]):
        answer.writer.write(chunk(" word"))
    answer.writer.write(chunk("", finish_reason="length") + DONE)
    await answer.writer.drain()
    answer.writer.close()


async def leaves_after(answer: Answer) -> None:
    """A good answer; the connection, that seemed to stay, is closed right after."""
    await good(answer)
    await answer.writer.drain()
    answer.writer.close()


async def whole(answer: Answer) -> None:
    """No stream, whatever was asked."""
    answer.begin("application/json")
    told = {"choices": [{"text": "all at once", "finish_reason": "stop"}]}
    answer.write(json.dumps(told | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode())
    answer.end()


async def chatty(answer: Answer) -> None:
    """Role chunk, nulls, comments, CRLF, thoughts, two tokens a chunk, usage in each chunk, no `[DONE]`."""
    answer.begin()

    def delta(made: int, **fields: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": fields}], "usage": {"prompt_tokens": 9, "completion_tokens": made}}

    answer.write(b": ping\r\n\r\n" + event(delta(0, role="assistant", content="")).replace(b"\n", b"\r\n"))
    answer.write(b"event: x\nid: 7\n" + event(delta(2, reasoning_content="hm hm")))
    await asyncio.sleep(0.002)
    for part in (b"data: " + json.dumps(delta(4, content="two more")).encode()[:30], b""):
        answer.write(part or json.dumps(delta(4, content="two more")).encode()[30:] + b"\n\n")
        await asyncio.sleep(0.002)
    answer.write(event({"choices": None, "usage": None}) + event({"choices": [None, {"delta": None}]}))
    answer.write(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    answer.end()


@dataclass
class FakeServer:
    """`script` says how the n-th request for an answer is met; the first one is the load generator's trial."""

    script: Callable[[int], Act] = field(default=lambda number: good)
    pace: float = 0.001
    tokenize: str | None = "prompt"
    refuses: tuple[str, ...] = ()
    key: str = ""
    dies_at: int | None = None
    port: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    together: int = 0
    most_together: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                _, path, _ = head.split(b"\r\n")[0].decode().split()
                headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
                body = await reader.readexactly(int(headers.get(b"content-length", 0)))
                if self.key and headers.get(b"authorization") != f"bearer {self.key}".encode():
                    await self._respond(writer, "401 Unauthorized", {"error": "no key"})
                else:
                    await self._route(path, json.loads(body) if body else {}, writer)
                await writer.drain()

    async def _route(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            return await self._respond(writer, "200 OK", {"data": [{"id": "fake"}]})
        if path == "/tokenize" and self.tokenize is not None and self.tokenize in body:
            field_ = body[self.tokenize]
            text = field_[0]["content"] if isinstance(field_, list) else field_
            ids = [i for i, word in enumerate(text.split()) for _ in range(2 if word == "money" else 1)]
            return await self._respond(writer, "200 OK", {"tokens": [0, *ids]})
        if not path.endswith("/completions"):
            return await self._respond(writer, "404 Not Found", {"error": "no such route"})
        for name in self.refuses:
            if name in body:
                return await self._respond(writer, "400 Bad Request", {"error": {"message": f"unknown {name}"}})
        number = len(self.asked)
        if self.dies_at is not None and number >= self.dies_at:
            self.die()
            return
        self.asked.append(body | {"path": path})
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            await self.script(number)(Answer(body, number, writer, self))
        finally:
            self.together -= 1

    async def _respond(self, writer: asyncio.StreamWriter, status: str, told: object) -> None:
        data = json.dumps(told).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)

    def die(self) -> None:
        """Nobody listens any more, and every connection is cut."""
        self._listening.close()
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, ready: threading.Event) -> None:
        self._writers: list[asyncio.StreamWriter] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            with suppress(asyncio.CancelledError):  # the test is over
                await self.handle(reader, writer)

        self._listening = await asyncio.start_server(handle, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        self._over = asyncio.Event()
        ready.set()
        await self._over.wait()
        self.die()


@contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    """The server in a thread, until the block ends."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    def life() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(server.serve(ready))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=life, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(server._over.set)
        thread.join(10)
        loop.close()
