"""The Anthropic API: `/v1/messages`, streamed or whole, and `/v1/messages/count_tokens`.

Knows: the order and names of its events, its errors. Does not know: fields of bodies (anthropic_parse), HTTP.

    message_start; for each block: content_block_start, deltas, content_block_stop; message_delta; message_stop
"""

from __future__ import annotations

from typing import Any

from legato.completion import Delta
from legato.core.sequence import FinishReason
from legato.server.ask import Result
from legato.server.exchange import EVENTS, Exchange
from legato.server.jsonbody import dumps
from legato.server.problems import Problem
from legato.server.protocols import Asked, generation, ignored_header
from legato.server.protocols.anthropic_parse import MessagesBody, parse_body
from legato.server.protocols.openai.parts import measured
from legato.server.protocols.turns import (
    Block,
    arguments_of,
    fresh,
    whole_blocks,
    worded,
)
from legato.server.reading import Part, Thought
from legato.server.routes import Route
from legato.server.service import AnswerStream, Service
from legato.text.tools_parser import CallArguments, CallBegun, Content

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def routes(service: Service) -> list[Route]:
    """Every route of this protocol."""

    async def count(exchange: Exchange) -> None:
        body = await exchange.body()
        service.check_open()
        _, ask = parse_body(body, service, counting=True)
        service.check_model(ask.model)
        counted = {"input_tokens": await service.count(ask)}
        await exchange.respond(200, dumps(counted), ignored_header(ask.ignored))

    about = "The next message of a conversation, as Anthropic's API words it"
    counting = "How many tokens a conversation is"
    return [
        Route(
            "POST",
            "/v1/messages",
            generation(service, parse_messages),
            error_body,
            about,
            body=MessagesBody,
            streams="text/event-stream",
        ),
        Route("POST", "/v1/messages/count_tokens", count, error_body, counting, body=MessagesBody),
    ]


def parse_messages(body: bytes, service: Service) -> Asked:
    """`POST /v1/messages`."""
    asked, ask = parse_body(body, service)
    limit = asked.max_tokens or 0
    return Asked(ask, lambda stream: MessageEncoder(stream, limit))


def error_body(problem: Problem) -> bytes:
    return dumps(_error(problem))


def _error(problem: Problem) -> dict[str, Any]:
    kind = KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    message = worded(problem)
    return {"type": "error", "error": {"type": kind, "message": message}}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), dumps({"type": name, **data}))


class MessageEncoder:
    """One message's bytes. `limit` is what max_tokens said."""

    kind = EVENTS
    ping = _event("ping", {})

    def __init__(self, stream: AnswerStream, limit: int) -> None:
        model = stream.service.model.name
        self._head = {"id": fresh("msg"), "type": "message", "role": "assistant", "model": model}
        self._stream, self._reader, self._limit = stream, stream.reader(), limit
        self._index = -1
        self._open = ""
        self._called = False

    def begin(self) -> bytes:
        usage = _usage(len(self._stream.prompt_ids(0)), 0, 0)
        none: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", {"message": {**self._head, **none, "usage": usage}})

    def deltas(self, deltas: list[Delta]) -> bytes:
        return b"".join(data for delta in deltas for part in self._reader.feed(delta) for data in self._part(part))

    def end(self, result: Result) -> bytes:
        reason, sequence = self._ended(result, self._called)
        delta = {"delta": {"stop_reason": reason, "stop_sequence": sequence}, "usage": _usage_of(result)}
        last = _event("message_delta", {**delta, **measured(result, self._stream.ask.include)})
        return b"".join([*self._close(), last, _event("message_stop", {})])

    def failed(self, problem: Problem) -> bytes:
        return b"event: error\ndata: " + error_body(problem) + b"\n\n"

    def whole(self, result: Result) -> bytes:
        blocks = whole_blocks(self._stream, result.choices[0][1])[0]
        reason, sequence = self._ended(result, any(block.kind == "call" for block in blocks))
        shown = {
            **self._head,
            "content": [_shown(block) for block in blocks],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage_of(result),
            **measured(result, self._stream.ask.include),
        }
        return dumps(shown)

    def _part(self, part: Part) -> list[bytes]:
        match part:
            case Content(text):
                return [*self._enter("text", {"type": "text", "text": ""}), self._delta(b"text_delta", b"text", text)]
            case Thought(text):
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                return [*self._enter("thinking", empty), self._delta(b"thinking_delta", b"thinking", text)]
            case CallBegun(_, call_id, name):
                self._called = True
                block: dict[str, Any] = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
                return [*self._close(), *self._enter("tool_use", block)]
            case CallArguments(_, text):
                return [self._delta(b"input_json_delta", b"partial_json", text)]

    def _enter(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        """Opens a block unless one of its kind is open."""
        if self._open == kind:
            return []
        out = self._close()
        self._open = kind
        self._index += 1
        return [*out, _event("content_block_start", {"index": self._index, "content_block": block})]

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        return [_event("content_block_stop", {"index": self._index})]

    def _delta(self, kind: bytes, name: bytes, text: str) -> bytes:
        front = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":'
        return front % (self._index, kind, name) + dumps(text) + b"}}\n\n"

    def _ended(self, result: Result, called: bool) -> tuple[str, str | None]:
        """(stop_reason, stop_sequence)."""
        output = result.choices[0][1]
        if output.finish_reason in (FinishReason.LENGTH, FinishReason.DEADLINE):
            cut = output.finish_reason is FinishReason.LENGTH and len(output.token_ids) < self._limit
            return ("model_context_window_exceeded" if cut else "max_tokens"), None
        if isinstance(output.stop_reason, str):
            return "stop_sequence", output.stop_reason
        return ("tool_use" if called else "end_turn"), None


def _shown(block: Block) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text", "text": block.text}
        case "thought":
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case _:
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": arguments_of(block.text)}


def _usage(prompt: int, cached: int, output: int) -> dict[str, int]:
    """Here `input_tokens` are those that were computed; what the cache had is counted beside them."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }


def _usage_of(result: Result) -> dict[str, int]:
    return _usage(result.prompt_tokens, result.cached_tokens, result.completion_tokens)
