"""The API of Ollama: one JSON object a line, times in nanoseconds.

Knows: its routes and the bytes of its answers. Does not know: fields of bodies (ollama_parse), HTTP.

Models are neither fetched nor made through it: there is the one that is served, and it stays loaded.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import msgspec

from legato import __version__
from legato.completion import Delta, Output
from legato.core.plan import TokenLogprobs
from legato.core.sequence import FinishReason
from legato.server.ask import Ask, Result
from legato.server.exchange import Exchange
from legato.server.jsonbody import dumps, parse
from legato.server.model import Model
from legato.server.problems import Problem
from legato.server.protocols import Asked, Ready, generation, ignored_header
from legato.server.protocols.ollama_parse import ChatRequest, GenerateRequest, model_of, parse_chat, parse_generate
from legato.server.protocols.openai.parts import chat_logprobs, included
from legato.server.protocols.turns import Block, Blocks, arguments_of, capabilities, whole_blocks, worded
from legato.server.reading import Thought
from legato.server.routes import Route
from legato.server.service import AnswerStream, Service
from legato.text.tools_parser import Content

LINES = b"application/x-ndjson"
# The version of the API that is spoken here: clients look for features by it, and refuse to talk to old ones.
SPOKEN = "0.13.0"
FAR = "2318-01-01T00:00:00Z"  # when the model will be unloaded: never


class ShowRequest(msgspec.Struct, kw_only=True):
    """`POST /api/show`; older clients say `name`."""

    model: str | None = None
    name: str | None = None


def routes(service: Service) -> list[Route]:
    """Every route of this protocol."""

    async def version(exchange: Exchange) -> None:
        await exchange.respond(200, dumps({"version": SPOKEN, "legato": __version__}))

    async def tags(exchange: Exchange) -> None:
        model = service.model
        await exchange.respond(200, dumps({"models": [_card(model)]}))

    async def running(exchange: Exchange) -> None:
        model = service.model
        more = {"expires_at": FAR, "size_vram": 0, "context_length": model.context_length}
        await exchange.respond(200, dumps({"models": [_card(model) | more]}))

    async def show(exchange: Exchange) -> None:
        body, passed = parse(await exchange.body(), ShowRequest, service.limits.depth, ("verbose", "system", "options"))
        service.check_model(model_of(body.model or body.name or ""))
        await exchange.respond(200, dumps(_shown_model(service.model)), ignored_header(passed))

    async def embed(exchange: Exchange) -> None:
        text = f"model {service.model.name!r} generates text and makes no embeddings; serve one that does"
        raise Problem(501, text, code="not_supported")

    def post(path: str, handle: Any, about: str, body: Any = None) -> Route:
        kind = LINES.decode() if body in (ChatRequest, GenerateRequest) else ""
        return Route("POST", path, handle, error_body, about, body=body, streams=kind)

    return [
        Route("GET", "/api/version", version, error_body, "The version of Ollama's API that is spoken"),
        Route("GET", "/api/tags", tags, error_body, "The models that there are"),
        Route("GET", "/api/ps", running, error_body, "The models that are loaded"),
        post("/api/show", show, "One model", ShowRequest),
        post("/api/chat", generation(service, chat), "The next message of a conversation", ChatRequest),
        post("/api/generate", generation(service, generate), "The answer to a prompt", GenerateRequest),
        post("/api/embed", embed, "Not offered by models that generate text"),
        post("/api/embeddings", embed, "Not offered by models that generate text"),
    ]


def error_body(problem: Problem) -> bytes:
    message = worded(problem)
    return dumps({"error": message})


def chat(body: bytes, service: Service) -> Asked | Ready:
    """`POST /api/chat`."""
    asked, ask = parse_chat(body, service)
    return _asked(asked.model, ask, service, in_message=True)


def generate(body: bytes, service: Service) -> Asked | Ready:
    """`POST /api/generate`."""
    asked, ask = parse_generate(body, service)
    return _asked(asked.model, ask, service, in_message=False)


def _asked(name: str, ask: Ask | None, service: Service, in_message: bool) -> Asked | Ready:
    if ask is None:
        service.check_model(model_of(name))
        shown = {"model": name, "created_at": _now(), **_content(in_message, ""), "done": True, "done_reason": "load"}
        return Ready(dumps(shown) + b"\n")
    return Asked(ask, lambda stream: LineEncoder(name, stream, in_message))


class LineEncoder:
    """One answer's lines. `in_message`: text comes in a message, else in `response`."""

    kind = LINES
    ping = b""

    def __init__(self, name: str, stream: AnswerStream, in_message: bool) -> None:
        self._name, self._stream, self._in_message = name, stream, in_message
        self._reader = stream.reader()
        self._tokenizer = stream.service.model.tokenizer
        self._with_logprobs = stream.ask.params.logprobs is not None
        self._logprobs: list[TokenLogprobs] = []
        self._calls = Blocks()

    def begin(self) -> bytes:
        return b""

    def deltas(self, deltas: list[Delta]) -> bytes:
        return b"".join(line for delta in deltas for line in self._lines(delta))

    def end(self, result: Result) -> bytes:
        last = self._line({**_content(self._in_message, ""), **self._rest(), "done": True, **self._ending(result)})
        return self._called() + last

    def failed(self, problem: Problem) -> bytes:
        return error_body(problem) + b"\n"

    def whole(self, result: Result) -> bytes:
        output = result.choices[0][1]
        blocks, _ = whole_blocks(self._stream, output)
        text = "".join(block.text for block in blocks if block.kind == "text")
        thought = "".join(block.text for block in blocks if block.kind == "thought")
        calls = [_call(block) for block in blocks if block.kind == "call"]
        content = _content(self._in_message, text, thought, calls)
        self._logprobs = list(output.logprobs or ())
        return self._line({**content, **self._rest(), "done": True, **self._ending(result)})

    def _lines(self, delta: Delta) -> list[bytes]:
        self._logprobs += delta.logprobs or ()
        out: list[bytes] = []
        for part in self._reader.feed(delta):
            match part:
                case Content(text):
                    out += (self._called(), self._line({**_content(self._in_message, text), **self._rest()} | OPEN))
                case Thought(text):
                    shown = _content(self._in_message, "", text)
                    out += (self._called(), self._line({**shown, **self._rest()} | OPEN))
                case _:  # a call is told as a whole, once its input is
                    self._calls.add(part)
        return out

    def _called(self) -> bytes:
        calls, self._calls = [_call(block) for block in self._calls.blocks], Blocks()
        return self._line(_content(self._in_message, "", "", calls) | OPEN) if calls else b""

    def _rest(self) -> dict[str, Any]:
        """The log-probabilities since the last line."""
        taken, self._logprobs = self._logprobs, []
        return {"logprobs": chat_logprobs(self._tokenizer, taken, False)} if self._with_logprobs and taken else {}

    def _ending(self, result: Result) -> dict[str, Any]:
        return _ending(result) | included(result, self._stream.ask.include)

    def _line(self, shown: dict[str, Any]) -> bytes:
        return dumps({"model": self._name, "created_at": _now(), **shown}) + b"\n"


OPEN = {"done": False}


def _content(
    in_message: bool, text: str, thought: str = "", calls: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    more: dict[str, Any] = ({"thinking": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})
    return {"message": {"role": "assistant", "content": text, **more}} if in_message else {"response": text, **more}


def _call(block: Block) -> dict[str, Any]:
    return {"id": block.id, "function": {"name": block.name, "arguments": arguments_of(block.text)}}


def _ending(result: Result) -> dict[str, Any]:
    """Why it ended, and how long it took."""
    output: Output = result.choices[0][1]
    long = output.finish_reason in (FinishReason.LENGTH, FinishReason.DEADLINE)
    timings = result.timings
    return {
        "done_reason": "length" if long else "stop",
        "total_duration": _ns(timings.ttft_ms + timings.decode_ms),
        "load_duration": 0,
        "prompt_eval_count": result.prompt_tokens,
        "prompt_eval_duration": _ns(timings.prefill_ms),
        "eval_count": result.completion_tokens,
        "eval_duration": _ns(timings.decode_ms),
    }


def _ns(ms: float) -> int:
    return int(1e6 * ms)


def _now() -> str:
    return _date(time.time())


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


def _card(model: Model) -> dict[str, Any]:
    """`digest` names the file by its name and size; the bytes are not read for it."""
    facts = model.facts
    named = f"{facts.file} {facts.size_bytes}".encode()
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _date(model.created),
        "size": facts.size_bytes,
        "digest": hashlib.sha256(named).hexdigest(),
        "details": _details(model),
    }


def _details(model: Model) -> dict[str, Any]:
    facts, millions = model.facts, model.facts.parameters / 1e6
    return {
        "parent_model": "",
        "format": facts.kind,
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": f"{millions / 1e3:.1f}B" if millions >= 1e3 else f"{millions:.2f}M",
        "quantization_level": facts.weights,
    }


def _shown_model(model: Model) -> dict[str, Any]:
    facts = model.facts
    return {
        "modelfile": f"FROM {facts.file}\n",
        "parameters": f"num_ctx {model.context_length}",
        "template": model.tokenizer.chat_template or "",
        "details": _details(model),
        "model_info": {
            "general.architecture": facts.family,
            "general.parameter_count": facts.parameters,
            f"{facts.family}.context_length": model.context_length,
        },
        "capabilities": capabilities(model),
        "modified_at": _date(model.created),
    }
