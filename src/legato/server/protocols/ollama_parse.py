"""Ollama's bodies to `Ask`.

Knows: fields and options of /api/chat and /api/generate, and what leaving one out would change. Does not know: bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from legato.errors import RequestError
from legato.server.ask import Ask, Text
from legato.server.jsonbody import parse
from legato.server.model import Model
from legato.server.protocols.openai.fields import ChatBody
from legato.server.protocols.turns import ask_of, capabilities, need, refused
from legato.server.service import Service

IGNORED = frozenset({"keep_alive", "truncate", "shift"})
"""Models stay loaded; a conversation that is too long is refused, not cut."""

REFUSED = {
    "images": "the model reads text",
    "suffix": "this model does not fill in the middle",
    "template": "only the model's own template is run",
    "context": "send the conversation to /api/chat",
    "width": "answers are text",
    "height": "answers are text",
    "steps": "answers are text",
}
MACHINE = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv",
        "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only", "mirostat_tau", "mirostat_eta",
    }
)  # fmt: skip
"""How another program would run a model; the context here is the whole one."""

OFF: dict[str, tuple[object, ...]] = {
    "tfs_z": (1, None),
    "typical_p": (1, 0, None),
    "mirostat": (0, None),
    "penalize_newline": (False, None),
}
"""Samplers that we do not have, and the values that turn them off."""

DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}  # what this API promises where nothing is said
RENAMED = {"repeat_penalty": "repetition_penalty"}
SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
NAMES = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
    "chat_template_kwargs": "think",
    **{name: f"options.{name}" for name in SAME},
}
KINDS: dict[str, tuple[type, ...]] = {"top_k": (int,), "seed": (int,), "stop": (str, list)}


class Shared(msgspec.Struct, kw_only=True):
    """What both bodies have."""

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None


class ChatRequest(Shared, kw_only=True):
    """`POST /api/chat`; without messages it asks whether the model is loaded."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateRequest(Shared, kw_only=True):
    """`POST /api/generate`; without a prompt it asks whether the model is loaded."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None


def parse_chat(body: bytes, service: Service) -> tuple[ChatRequest, Ask | None]:
    """None instead of an `Ask` where the model is only to be loaded."""
    asked, passed = parse(body, ChatRequest, service.limits.depth, IGNORED, REFUSED)
    if not asked.messages:
        return asked, None
    messages: list[dict[str, Any]] = []
    for i, message in enumerate(asked.messages):
        _message(messages, message, f"messages[{i}]")
    return asked, _ask(asked, messages, asked.tools, [*passed], service.model)


def parse_generate(body: bytes, service: Service) -> tuple[GenerateRequest, Ask | None]:
    """None instead of an `Ask` where the model is only to be loaded."""
    asked, passed = parse(body, GenerateRequest, service.limits.depth, IGNORED, REFUSED)
    if not asked.prompt:
        return asked, None
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    messages.append({"role": "user", "content": asked.prompt})
    if asked.raw and asked.system:
        raise RequestError("system", "...", "left out when raw is true")
    ask = _ask(asked, messages, None, [*passed], service.model)
    return asked, replace(ask, prompts=(Text(asked.prompt),)) if asked.raw else ask


def model_of(name: str) -> str:
    """A model's name without the tag that means nothing."""
    return name.removesuffix(":latest")


def _ask(
    asked: Shared, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, notes: list[str], model: Model
) -> Ask:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs", asked.top_logprobs, "left out unless logprobs is true")
    chat = ChatBody(
        messages=messages,
        model=model_of(asked.model),
        stream=asked.stream is not False,
        tools=tools or None,
        logprobs=asked.logprobs,
        top_logprobs=asked.top_logprobs,
        response_format=_format(asked.format),
        chat_template_kwargs=_think(asked.think, model),
        include=asked.include,
        **_options(asked.options or {}, notes),
    )
    return ask_of(chat, NAMES, notes, "format")


def _options(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The fields of a `ChatBody` that they stand for."""
    chosen: dict[str, Any] = dict(DEFAULTS)
    for name, value in given.items():
        at = f"options.{name[:40]}"
        if name in MACHINE:
            notes.append(at)
        elif name in OFF:
            if value not in OFF[name]:
                raise refused(at, "the sampler has no such rule; leave it out")
            notes.append(at)
        elif name == "num_predict":
            if value is None:
                continue
            if need(value, int, at, "a whole number; -1 is no limit") not in (-1, -2):
                chosen["max_tokens"] = value
        elif name == "repeat_last_n":
            _check_last_n(value, given, at)
            notes.append(at)
        elif name in SAME or name in RENAMED:
            _check_kind(value, name, at)
            if value is not None:
                chosen[RENAMED.get(name, name)] = value
        else:
            known = sorted([*SAME, *RENAMED, "num_predict"])
            raise RequestError(at, "...", f"one of {', '.join(known)}")
    if chosen.get("seed") == -1:
        del chosen["seed"]
    return chosen


def _check_kind(value: object, name: str, at: str) -> None:
    kinds = KINDS.get(name, (int, float))
    if value is None or (isinstance(value, kinds) and not isinstance(value, bool)):
        return
    raise RequestError(at, value, "a text or a list of texts" if str in kinds else "a number")


def _check_last_n(value: object, given: Mapping[str, Any], at: str) -> None:
    """Our penalties look at the whole text, so a window matters as soon as one of them is on."""
    penalised = given.get("repeat_penalty") not in (None, 1, 1.0)
    penalised |= any(given.get(name) not in (None, 0, 0.0) for name in ("presence_penalty", "frequency_penalty"))
    if penalised and value not in (-1, None):
        raise refused(at, "penalties look at the whole text; leave it out, or send -1")


def _format(given: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given == "":
        return None
    if given == "json":
        return {"type": "json_object"}
    if isinstance(given, str):
        raise RequestError("format", given, '"json" or a JSON schema')
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(given)}}


def _think(given: bool | str | None, model: Model) -> dict[str, Any] | None:
    if given is None:
        return None
    if given and "thinking" not in capabilities(model):
        raise refused("think", f"model {model.name!r} does not think before it answers")
    if isinstance(given, str):
        if given not in ("low", "medium", "high"):
            raise RequestError("think", given, "true, false, low, medium or high")
        return {"enable_thinking": True, "reasoning_effort": given}
    return {"enable_thinking": given}


def _message(messages: list[dict[str, Any]], message: Mapping[str, Any], at: str) -> None:
    """A message in OpenAI's form; calls get the ids that this protocol has none of."""
    if message.get("images"):
        raise refused(f"{at}.images", "the model reads text")
    out: dict[str, Any] = {"role": message.get("role"), "content": message.get("content") or ""}
    if message.get("thinking"):
        out["reasoning_content"] = need(message["thinking"], str, f"{at}.thinking", "a text")
    calls = need(message.get("tool_calls") or [], list, f"{at}.tool_calls", "a list of calls")
    if calls:
        out["tool_calls"] = [_call(call, f"{at}.tool_calls[{k}]", len(messages), k) for k, call in enumerate(calls)]
    if message.get("role") == "tool":
        name = need(message.get("tool_name") or message.get("name") or "", str, f"{at}.tool_name", "a text")
        out |= {"name": name, "tool_call_id": _id_of(messages, name)}
    messages.append(out)


def _call(call: object, at: str, turn: int, number: int) -> dict[str, Any]:
    function = need(need(call, dict, at, "an object").get("function"), dict, f"{at}.function", "an object")
    name = need(function.get("name"), str, f"{at}.function.name", "a text")
    arguments = need(function.get("arguments") or {}, dict, f"{at}.function.arguments", "an object")
    call_id = f"call_{turn}_{number}"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _id_of(messages: list[dict[str, Any]], name: str) -> str:
    """The id of the last turn's call of this tool that has no result yet."""
    answered = {m["tool_call_id"] for m in messages if m["role"] == "tool"}
    turns = [m["tool_calls"] for m in messages if "tool_calls" in m]
    left = [call for call in (turns[-1] if turns else []) if call["id"] not in answered]
    named = [call for call in left if call["function"]["name"] == name] or left
    return str(named[0]["id"]) if named else ""
