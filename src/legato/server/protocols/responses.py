"""`/v1/responses`: one object, or events with a name and a sequence number.

Knows: items of an answer, the order of events. Does not know: fields of bodies (responses_parse), HTTP.

    response.created, response.in_progress
    each item:  response.output_item.added, what it is made of, response.output_item.done
                a text: content_part.added, output_text.delta ..., output_text.done, content_part.done
    response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

import time
from typing import Any

from legato.completion import Delta
from legato.core.sequence import FinishReason
from legato.server.ask import Ask, Result
from legato.server.exchange import EVENTS
from legato.server.jsonbody import dumps
from legato.server.problems import Problem
from legato.server.protocols import Asked, Ready, generation
from legato.server.protocols.openai.parts import measured
from legato.server.protocols.openai.words import error_body
from legato.server.protocols.responses_parse import ResponsesBody, parse_body
from legato.server.protocols.turns import Block, Blocks, Reader, fresh, whole_blocks
from legato.server.reading import Part, Thought
from legato.server.routes import Route
from legato.server.service import AnswerStream, Service
from legato.text.tools_parser import CallArguments, CallBegun, Content

KINDS = {Content: "text", Thought: "thought", CallBegun: "call", CallArguments: "call"}
IDS = {"text": "msg", "thought": "rs", "call": "fc"}


def routes(service: Service) -> list[Route]:
    """The one route of this protocol."""
    about = "The next items of a conversation"
    handle, kind = generation(service, parse), "text/event-stream"
    return [Route("POST", "/v1/responses", handle, error_body, about, body=ResponsesBody, streams=kind)]


def parse(body: bytes, service: Service) -> Asked | Ready:
    """`POST /v1/responses`."""
    asked, ask, ignored = parse_body(body, service)
    if ask is None:
        service.check_model(asked.model or "")
        return _nothing(asked, service.model.name, ignored)
    found: Ask = ask
    return Asked(found, lambda stream: ResponseEncoder(asked, service.model.name, stream, stream.reader()))


def _nothing(asked: ResponsesBody, model: str, ignored: tuple[str, ...]) -> Ready:
    """Clients ask with an empty input whether anybody is there."""
    encoder = ResponseEncoder(asked, model)
    done = encoder.response("completed", [], _usage(0, 0, 0))
    if not asked.stream:
        return Ready(dumps(done), ignored=ignored)
    return Ready(encoder.begin() + encoder.event("response.completed", {"response": done}), EVENTS, ignored)


class ResponseEncoder:
    """One response's bytes. Without a stream there is nothing to read."""

    kind = EVENTS
    ping = b": ping\n\n"

    def __init__(
        self, asked: ResponsesBody, model: str, stream: AnswerStream | None = None, reader: Reader | None = None
    ) -> None:
        self._asked, self._model, self._stream, self._reader = asked, model, stream, reader
        self._id, self._created = fresh("resp"), int(time.time())
        self._include = frozenset[str]() if stream is None else stream.ask.include
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._parts = Blocks()
        self._open: Block | None = None
        self._item_id = ""

    # -- a stream -------------------------------------------------------------------------------------------------

    def begin(self) -> bytes:
        begun = {"response": self.response("in_progress", [], None)}
        return self.event("response.created", begun) + self.event("response.in_progress", begun)

    def deltas(self, deltas: list[Delta]) -> bytes:
        assert self._reader is not None
        return b"".join(data for delta in deltas for part in self._reader.feed(delta) for data in self._part(part))

    def end(self, result: Result) -> bytes:
        out = [] if self._items or self._open is not None else self._enter(Block("text"))
        status, why = _status(result)
        thought = 0 if self._reader is None else self._reader.reasoning_tokens
        out += self._leave("completed" if why is None else "incomplete")
        shown = self.response(status, self._items, _usage_of(result, thought), incomplete=why)
        shown |= measured(result, self._include)
        return b"".join([*out, self.event(f"response.{status}", {"response": shown})])

    def failed(self, problem: Problem) -> bytes:
        closed = self._leave("incomplete")
        fault = {"code": "server_error", "message": problem.message}
        shown = self.response("failed", self._items, None, error=fault)
        return b"".join([*closed, self.event("response.failed", {"response": shown})])

    def event(self, name: str, data: dict[str, Any]) -> bytes:
        numbered = {"type": name, "sequence_number": self._number, **data}
        self._number += 1
        return b"event: %s\ndata: %s\n\n" % (name.encode(), dumps(numbered))

    def _part(self, part: Part) -> list[bytes]:
        kind = KINDS[type(part)]
        begins = isinstance(part, CallBegun) or self._open is None or self._open.kind != kind
        out = self._leave("completed") if begins else []
        self._parts.add(part)
        if begins:
            out += self._enter(self._parts.blocks[-1])
        match part:
            case Content(text):
                out.append(self._text_delta(text))
            case Thought(text):
                out.append(self.event("response.reasoning_text.delta", self._place() | {"delta": text}))
            case CallArguments(_, text):
                out.append(self.event("response.function_call_arguments.delta", self._at() | {"delta": text}))
            case CallBegun():
                pass
        return out

    def _text_delta(self, text: str) -> bytes:
        """What comes with every token: nothing but numbers and the text is new in it."""
        number, self._number = self._number, self._number + 1
        front = (
            'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":'
            f'{number},"item_id":"{self._item_id}","output_index":{len(self._items)},"content_index":0,"delta":'
        )
        return front.encode() + dumps(text) + b',"logprobs":[]}\n\n'

    def _enter(self, block: Block) -> list[bytes]:
        """The item that `block` will be, without what it holds."""
        self._open, self._item_id = block, fresh(IDS[block.kind])
        empty = _item(Block(block.kind, id=block.id, name=block.name), self._item_id, "in_progress", whole=False)
        out = [self.event("response.output_item.added", {"output_index": len(self._items), "item": empty})]
        if block.kind != "call":
            part = _content(Block(block.kind))
            out.append(self.event("response.content_part.added", self._place() | {"part": part}))
        return out

    def _leave(self, status: str) -> list[bytes]:
        """The open item, whole."""
        block = self._open
        if block is None:
            return []
        out = []
        if block.kind == "call":
            done = self._at() | {"name": block.name, "arguments": block.text}
            out.append(self.event("response.function_call_arguments.done", done))
        else:
            name = "output_text" if block.kind == "text" else "reasoning_text"
            more: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
            out.append(self.event(f"response.{name}.done", self._place() | {"text": block.text} | more))
            out.append(self.event("response.content_part.done", self._place() | {"part": _content(block)}))
        item = _item(block, self._item_id, status)
        out.append(self.event("response.output_item.done", {"output_index": len(self._items), "item": item}))
        self._items.append(item)
        self._open = None
        return out

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self._items)}

    def _place(self) -> dict[str, Any]:
        return self._at() | {"content_index": 0}

    # -- whole ----------------------------------------------------------------------------------------------------

    def whole(self, result: Result) -> bytes:
        assert self._stream is not None
        blocks, thought = whole_blocks(self._stream, result.choices[0][1])
        blocks = blocks or [Block("text")]
        status, why = _status(result)
        ends = ["completed"] * (len(blocks) - 1) + ["completed" if why is None else "incomplete"]
        items = [_item(b, fresh(IDS[b.kind]), end) for b, end in zip(blocks, ends, strict=True)]
        shown = self.response(status, items, _usage_of(result, thought), incomplete=why)
        return dumps(shown | measured(result, self._include))

    def response(
        self,
        status: str,
        items: list[dict[str, Any]],
        usage: dict[str, Any] | None,
        *,
        incomplete: str | None = None,
        error: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The response object: what was asked is echoed in it."""
        asked = self._asked
        reasoning = asked.reasoning or {}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": None if incomplete is None else {"reason": incomplete},
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": asked.metadata or {},
            "model": self._model,
            "output": items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning.get("effort"), "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": asked.text or {"format": {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [tool for tool in asked.tools or () if tool.get("type") == "function"],
            "top_logprobs": 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": usage,
        }


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "thought":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _item(block: Block, item_id: str, status: str, whole: bool = True) -> dict[str, Any]:
    """An item of `output`; begun ones have no content yet."""
    match block.kind:
        case "text":
            shown = {"type": "message", "role": "assistant", "content": [_content(block)] if whole else []}
        case "thought":
            shown = {"type": "reasoning", "summary": [], "content": [_content(block)] if whole else []}
        case _:
            shown = {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": block.text}
    return {"id": item_id, "status": status, **shown}


def _status(result: Result) -> tuple[str, str | None]:
    """(status, why it is incomplete)."""
    if result.choices[0][1].finish_reason in (FinishReason.LENGTH, FinishReason.DEADLINE):
        return "incomplete", "max_output_tokens"
    return "completed", None


def _usage(prompt: int, cached: int, output: int, thought: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + output,
    }


def _usage_of(result: Result, thought: int) -> dict[str, Any]:
    return _usage(result.prompt_tokens, result.cached_tokens, result.completion_tokens, thought)
