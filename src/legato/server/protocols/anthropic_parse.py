"""Anthropic's bodies to `Ask`.

Knows: the fields of messages, blocks, tools and thinking, and which do nothing here. Does not know: bytes of answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from legato.errors import RequestError
from legato.server.ask import Ask
from legato.server.jsonbody import parse
from legato.server.problems import Problem
from legato.server.protocols.openai.fields import ChatBody
from legato.server.protocols.openai.tooling import NAMED
from legato.server.protocols.turns import add_call, ask_of, function_tool, join_turn, need, refused
from legato.server.service import Service

IGNORED = frozenset(
    {
        "metadata", "service_tier", "cache_control", "speed", "inference_geo", "user_profile_id", "workspace_id",
        "diagnostics", "context_management", "betas",
    }
)  # fmt: skip
"""They change billing, places, speed or bookkeeping; an answer without them is still a right answer."""

REFUSED = {
    "container": "nothing is executed here",
    "mcp_servers": "no other server is called; give their tools in tools",
}
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "chat_template_kwargs": "thinking",
    "reasoning_effort": "output_config.effort",
    NAMED: '{"type": "tool", "name": one of tools}',
}
# Its value changes with every request of an agent, so with it in front no prompt would ever be found in the cache.
BILLING = re.compile(r"^x-anthropic-billing-header:[^\n]*\n?", re.MULTILINE)


class MessagesBody(msgspec.Struct, kw_only=True):
    """`POST /v1/messages`. `max_tokens` must be there; counting tokens needs none."""

    messages: list[dict[str, Any]]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    include: list[str] | None = None


def parse_body(body: bytes, service: Service, counting: bool = False) -> tuple[MessagesBody, Ask]:
    """The body, and what it asks for."""
    asked, passed = parse(body, MessagesBody, service.limits.depth, IGNORED, REFUSED)
    if asked.max_tokens is None and not counting:
        text = "max_tokens is needed: how many tokens the answer may have at most"
        raise Problem(400, text, param="max_tokens", code="missing_parameter")
    notes = [*passed]
    messages = _system(asked.system)
    for i, message in enumerate(asked.messages):
        _message(messages, message, f"messages[{i}]", notes)
    if messages and messages[-1]["role"] == "assistant":
        text = "end with a turn of the user; an answer that is already begun cannot be continued here"
        raise RequestError("messages", "...", text)
    choice, parallel = _choice(asked.tool_choice)
    grammar, grammar_field = _format(asked, notes)
    chat = ChatBody(
        messages=messages,
        model=asked.model,
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop=asked.stop_sequences,
        stream=asked.stream,
        tools=_tools(asked.tools, notes),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=grammar,
        chat_template_kwargs=_thinking(asked.thinking, notes),
        include=asked.include,
    )
    return asked, ask_of(chat, NAMES, notes, grammar_field, asked)


def _system(given: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if given is None:
        return []
    texts = [given] if isinstance(given, str) else [_text(b, f"system[{i}]") for i, b in enumerate(given)]
    text = "\n\n".join(kept for kept in (BILLING.sub("", text) for text in texts) if kept)
    return [{"role": "system", "content": text}] if text else []


def _text(block: object, at: str) -> str:
    if not isinstance(block, Mapping) or block.get("type") != "text":
        raise RequestError(at, block, 'a text block, {"type": "text", "text": ...}')
    text: str = need(block.get("text"), str, f"{at}.text", "a text")
    return text


def _message(messages: list[dict[str, Any]], message: Mapping[str, Any], at: str, notes: list[str]) -> None:
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise RequestError(f"{at}.role", role, "user or assistant")
    content = message.get("content")
    if isinstance(content, str):
        join_turn(messages, role, content)
        return
    blocks = need(content, list, f"{at}.content", "a text or a list of blocks")
    begun = len(messages)
    for j, block in enumerate(blocks):
        where = f"{at}.content[{j}]"
        need(block, dict, where, "an object with a type")
        kind = block.get("type")
        if kind == "text":
            join_turn(messages, role, _text(block, where))
        elif kind == "tool_use" and role == "assistant":
            arguments = json.dumps(need(block.get("input"), dict, f"{where}.input", "an object"), ensure_ascii=False)
            name = need(block.get("name"), str, f"{where}.name", "a text")
            add_call(messages, need(block.get("id"), str, f"{where}.id", "a text"), name, arguments)
        elif kind == "tool_result" and role == "user":
            call_id = need(block.get("tool_use_id"), str, f"{where}.tool_use_id", "a text")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": _tool_result(block, where)})
        elif kind == "thinking" and role == "assistant":
            _think(messages, need(block.get("thinking"), str, f"{where}.thinking", "a text"), begun)
        elif kind == "redacted_thinking" and role == "assistant":
            notes.append("redacted_thinking")
        elif kind == "document":
            join_turn(messages, role, _document(block, where))
        else:
            raise refused(f"{where}.type", f"{str(kind)[:40]!r} of {role}; send text, tool_use and tool_result")


def _think(messages: list[dict[str, Any]], thought: str, begun: int) -> None:
    """What was thought belongs to the turn that it opens; templates of models that think read it."""
    if len(messages) == begun or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + thought


def _tool_result(block: Mapping[str, Any], at: str) -> str:
    content = block.get("content")
    if content is None:
        text = ""
    elif isinstance(content, str):
        text = content
    else:
        parts = need(content, list, f"{at}.content", "a text or a list of text blocks")
        text = "\n".join(_text(part, f"{at}.content[{i}]") for i, part in enumerate(parts))
    return f"Error: {text}" if block.get("is_error") else text


def _document(block: Mapping[str, Any], at: str) -> str:
    source = block.get("source")
    if not isinstance(source, Mapping) or source.get("type") != "text" or not isinstance(source.get("data"), str):
        raise refused(f"{at}.source", "only documents of plain text can be read")
    citations = block.get("citations")
    if citations is not None and need(citations, dict, f"{at}.citations", "an object").get("enabled"):
        raise refused(f"{at}.citations", "answers cite nothing; leave it out")
    about = [need(block.get(name) or "", str, f"{at}.{name}", "a text") for name in ("title", "context")]
    return "\n".join([*filter(None, about), source["data"]])


def _tools(given: list[dict[str, Any]] | None, notes: list[str]) -> list[dict[str, Any]] | None:
    """Those that the client runs; tools that a server of Anthropic would run are left out and named."""
    tools = []
    for i, tool in enumerate(given or ()):
        at = f"tools[{i}]"
        if tool.get("type") not in (None, "custom"):
            notes.append(at)
            continue
        schema = need(tool.get("input_schema"), dict, f"{at}.input_schema", "a JSON schema")
        tools.append(function_tool(tool.get("name"), tool.get("description"), schema, at, tool.get("strict")))
    return tools or None


def _choice(given: Mapping[str, Any] | None) -> tuple[str | dict[str, Any] | None, bool]:
    """(tool_choice, parallel_tool_calls)."""
    if given is None:
        return None, True
    kind, parallel = given.get("type"), not given.get("disable_parallel_tool_use")
    if kind == "tool":
        name = need(given.get("name"), str, "tool_choice.name", "a tool's name")
        return {"type": "function", "function": {"name": name}}, parallel
    simple = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in simple:
        raise RequestError("tool_choice.type", kind, "auto, any, tool or none")
    return simple[kind], parallel


def _thinking(given: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any] | None:
    """A variable that templates of models that can do both look at; the others think as they always do."""
    if given is None:
        return None
    kind = given.get("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError("thinking.type", kind, "enabled, disabled or adaptive")
    notes += [f"thinking.{name}" for name in ("budget_tokens", "display") if name in given]
    return {"enable_thinking": kind != "disabled"}


def _format(asked: MessagesBody, notes: list[str]) -> tuple[dict[str, Any] | None, str]:
    """(response_format, the field it came from)."""
    config = asked.output_config or {}
    for name in config:
        if name not in ("format", "effort", "task_budget"):
            raise RequestError(f"output_config.{name[:60]}", "...", "left out; format and effort are understood")
        if name != "format":
            notes.append(f"output_config.{name}")
    name = "output_config.format" if config.get("format") is not None else "output_format"
    given = config.get("format") or asked.output_format
    if given is None:
        return None, ""
    if not isinstance(given, Mapping) or given.get("type") != "json_schema":
        raise RequestError(f"{name}.type", given, "json_schema")
    schema = need(given.get("schema"), dict, f"{name}.schema", "a JSON schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}, name
