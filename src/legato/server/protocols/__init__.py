"""Protocols: each parses bodies into one `Ask`, and encodes one stream of `Delta`s and one `Result`.

Knows: how a protocol is plugged in. Does not know: any of them.

A protocol that answers prompts is two things and a route:

    def parse(body: bytes, service: Service) -> Asked            JSON to (Ask, what its encoder has to know)
        Refuse by raising `Problem(status, message, param=...)` or `RequestError`; both reach the client in the words
        of the protocol. `jsonbody.parse(body, Struct, depth, ignored, refused)` does types, unknown fields and depth.
        It runs beside the event loop when the body is large, so it must not touch the service's streams.
        Model names are checked later (by `Service.begin`): put the client's into `Ask.model`.

    class Encoder                                                 one for each request, made by `Asked.encoder(stream)`
        kind: bytes                          content type of a stream, such as exchange.EVENTS
        ping: bytes                          what is sent after 15 s of silence; b"" for nothing
        begin() -> bytes                     first bytes; the engine has admitted the request, 200 is certain now
        deltas(list[Delta]) -> bytes         what one step brought (`Delta.index` is the choice); may be b""
        end(Result) -> bytes                 last bytes
        failed(Problem) -> bytes             last bytes when the answer could not be finished, in mid-stream
        whole(Result) -> bytes               the answer to a request without `stream`

    Route("POST", "/v1/...", generation(service, parse), words, "summary", body=Struct)
        `words(Problem) -> bytes` is the protocol's form of an error. The route table gives every route the same
        limits (`limits.ServerLimits`), key check, request id, log line and disconnect handling; nothing of that is
        a protocol's business. A route that does not generate takes `async def handle(exchange: Exchange) -> None`
        instead: `await exchange.body()`, then `await exchange.respond(status, body, headers, kind)`.

A `parse` that can answer by itself, without the model, returns `Ready` instead of `Asked`.

Protocols are listed in `lifecycle.all_routes(service)`: add one line there.
A page's files are routes too: Route("GET", "/", handle, words, "...", open=True) with `kind=b"text/html"`.
`service.encode((prompt,))` gives token ids (for counting); `service.model` the model's facts; both raise what to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from legato.completion import Delta
from legato.server.ask import Ask, Result
from legato.server.exchange import JSON, Disconnected, Exchange, Header
from legato.server.problems import Problem, problem_of
from legato.server.routes import Handler
from legato.server.service import AnswerStream, Service

LARGE_BODY = 64 << 10  # bodies from here on are parsed beside the event loop


class Encoder(Protocol):
    """See above."""

    kind: bytes
    ping: bytes

    def begin(self) -> bytes: ...

    def deltas(self, deltas: list[Delta]) -> bytes: ...

    def end(self, result: Result) -> bytes: ...

    def failed(self, problem: Problem) -> bytes: ...

    def whole(self, result: Result) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What `parse` made of a body: the request, and how to make its encoder once it is admitted."""

    ask: Ask
    encoder: Callable[[AnswerStream], Encoder]


@dataclass(frozen=True, slots=True)
class Ready:
    """What `parse` returns for a body that needs no answer of the model's."""

    body: bytes
    kind: bytes = JSON
    ignored: tuple[str, ...] = ()


Parse = Callable[[bytes, Service], Asked | Ready]


def generation(service: Service, parse: Parse) -> Handler:
    """The handler of a route that answers prompts."""

    async def handle(exchange: Exchange) -> None:
        body = await exchange.body()
        service.check_open()
        asked = await _parsed(service, parse, body)
        del body
        if isinstance(asked, Ready):
            await exchange.respond(200, asked.body, ignored_header(asked.ignored), asked.kind)
            return
        stream = await service.begin(asked.ask, exchange.tenant)
        exchange.on_disconnect(stream.abort)
        stream.on_stall = exchange.give_up
        encoder = asked.encoder(stream)
        headers = ignored_header(asked.ask.ignored) + old_name_header(asked.ask.grammar_field)
        try:
            if asked.ask.stream:
                await _stream(exchange, stream, encoder, headers)
            else:
                await _whole(exchange, stream, encoder, headers)
        finally:
            exchange.result = stream.result()
            exchange.line.note(exchange.result)
            stream.abort()

    return handle


async def _parsed(service: Service, parse: Parse, body: bytes) -> Asked | Ready:
    if len(body) < LARGE_BODY:
        return parse(body, service)
    asked = await service.aside(lambda: parse(body, service))
    assert isinstance(asked, Asked | Ready)
    return asked


async def _whole(exchange: Exchange, stream: AnswerStream, encoder: Encoder, headers: list[Header]) -> None:
    async for _ in stream:
        if stream.aborted:
            raise Disconnected
    if stream.aborted:
        raise Disconnected
    result = stream.result()
    problem = _fault_of(result)
    if problem is not None:
        raise problem
    timings = result.timings
    measured = [
        (b"x-engine-queue-ms", b"%.3f" % timings.queue_ms),
        (b"x-engine-ttft-ms", b"%.3f" % timings.ttft_ms),
    ]
    await exchange.respond(200, encoder.whole(result), [*headers, *measured])


async def _stream(exchange: Exchange, stream: AnswerStream, encoder: Encoder, headers: list[Header]) -> None:
    await exchange.begin_stream(encoder.kind, headers)
    first = encoder.begin()
    if first:
        await exchange.write(first)
    try:
        async for deltas in stream:
            if stream.aborted:
                raise Disconnected
            data = encoder.deltas(deltas) if deltas else encoder.ping
            if data:
                await exchange.write(data)
            if any(delta.error is not None for delta in deltas):
                break
        if stream.aborted:
            raise Disconnected
        result = stream.result()
        fault = _fault_of(result)
        last = encoder.end(result) if fault is None else encoder.failed(fault)
    except Disconnected:
        raise
    except Exception as error:
        fault = problem_of(error)
        exchange.line.problem = fault.message
        last = encoder.failed(fault)
    await exchange.end_stream(last)


def _fault_of(result: Result) -> Problem | None:
    """The engine's own words on a fault of one request are meant for its client."""
    return None if result.error is None else Problem(500, result.error, code="engine_error")


def ignored_header(ignored: tuple[str, ...]) -> list[Header]:
    """Names the fields that did nothing."""
    return [(b"x-ignored-params", ",".join(ignored).encode("ascii", "replace"))] if ignored else []


def old_name_header(field: str) -> list[Header]:
    """Says of a constraint that was asked for by a name that other servers do not hear any more."""
    if not field.startswith("guided_"):
        return []
    text = f'299 - "{field} is an old name: use structured_outputs.{field.removeprefix("guided_")}"'
    return [(b"warning", text.encode("ascii", "replace"))]
