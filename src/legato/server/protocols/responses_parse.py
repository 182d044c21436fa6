"""Bodies of `/v1/responses` to `Ask`.

Knows: input items, flat tools, text formats; which fields do nothing here. Does not know: bytes of answers.

Nothing is stored, so each request brings its whole conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from legato.errors import RequestError
from legato.server.ask import Ask
from legato.server.jsonbody import parse
from legato.server.protocols.openai.fields import ChatBody
from legato.server.protocols.openai.parse import effort_variables
from legato.server.protocols.openai.tooling import NAMED
from legato.server.protocols.turns import add_call, ask_of, function_tool, join_turn, need, refused
from legato.server.service import Service

IGNORED = frozenset(
    {
        "access_programs", "background_options", "client_metadata", "context_management", "max_tool_calls",
        "moderation", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
        "service_tier", "store", "truncation", "user", "input_transformations",
    }
)  # fmt: skip
"""Bookkeeping, and what tools of OpenAI's would be limited by; a conversation that is too long is refused, not cut."""

REFUSED = {
    "previous_response_id": "nothing is stored here; send the whole conversation in input",
    "conversation": "nothing is stored here; send the whole conversation in input",
    "prompt": "no prompts are stored here; send it in instructions and input",
    "background": "nothing is stored here; use stream",
    "image": "answers are text",
    "top_logprobs": "use /v1/chat/completions for log-probabilities",
}
NAMES = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "chat_template_kwargs": "reasoning",
    "messages": "input",
    NAMED: '{"type": "function", "name": one of tools}',
}
CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
RESULTS = ("function_call_output", "custom_tool_call_output")
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
LOGPROBS = "message.output_text.logprobs"


class ResponsesBody(msgspec.Struct, kw_only=True):
    """`POST /v1/responses`; `seed`, `min_tokens` and `ignore_eos` as in chats: load generators send them here too."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    seed: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None


def parse_body(body: bytes, service: Service) -> tuple[ResponsesBody, Ask | None, tuple[str, ...]]:
    """(the body, what it asks for, what was ignored). None instead of an `Ask` for a probe: an input with nothing."""
    asked, passed = parse(body, ResponsesBody, service.limits.depth, IGNORED, REFUSED)
    notes = [*passed]
    if asked.include and LOGPROBS in asked.include:
        raise refused(f"include[{LOGPROBS}]", REFUSED["top_logprobs"])
    include = [
        name for name in asked.include or () if "." not in name
    ]  # with a dot they name parts of OpenAI's answers
    if len(include) < len(asked.include or ()):
        notes.append("include")
    if asked.stream_options:
        notes.append("stream_options")
    messages = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    begun = len(messages)
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input or []
    for i, item in enumerate(items):
        _item(messages, item, f"input[{i}]", notes)
    if all(not m["content"] and "tool_calls" not in m for m in messages[begun:]):
        return asked, None, tuple(dict.fromkeys(notes))
    tools = _tools(asked.tools, notes)
    choice, tools = _choice(asked.tool_choice, tools)
    chat = ChatBody(
        messages=messages,
        model=asked.model,
        max_completion_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        stream=asked.stream,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=_format(asked.text, notes),
        chat_template_kwargs=_reasoning(asked.reasoning, notes),
        include=include,
        seed=asked.seed,
        min_tokens=asked.min_tokens,
        ignore_eos=asked.ignore_eos,
    )
    ask = ask_of(chat, NAMES, notes, "text.format", asked)
    return asked, ask, ask.ignored


def _item(messages: list[dict[str, Any]], item: Mapping[str, Any], at: str, notes: list[str]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise RequestError(f"{at}.role", role, "user, assistant, system or developer")
        text = _texts(item.get("content"), f"{at}.content")
        if role == "assistant" and messages and _only_thought(messages[-1]):
            messages[-1]["content"] = text
        else:
            join_turn(messages, "system" if role == "developer" else role, text)
    elif kind in CALLS:
        name = need(item.get("name"), str, f"{at}.name", "a text")
        given = need(item.get(CALLS[kind]), str, f"{at}.{CALLS[kind]}", "a text")
        arguments = given if kind == "function_call" else msgspec.json.encode({"input": given}).decode()
        add_call(messages, need(item.get("call_id"), str, f"{at}.call_id", "a text"), name, arguments)
    elif kind in RESULTS:
        call_id = need(item.get("call_id"), str, f"{at}.call_id", "a text")
        messages.append(
            {"role": "tool", "tool_call_id": call_id, "content": _texts(item.get("output"), f"{at}.output")}
        )
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        thought = _texts(parts, f"{at}.content")
        if thought:
            messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
        else:
            notes.append("reasoning.encrypted_content")
    else:
        raise refused(f"{at}.type", f"{str(kind)[:40]!r}; send messages, function calls and their outputs")


def _only_thought(message: Mapping[str, Any]) -> bool:
    return "reasoning_content" in message and not message["content"] and "tool_calls" not in message


def _texts(given: object, at: str) -> str:
    """A text, or a list of parts that are texts."""
    if isinstance(given, str):
        return given
    texts = []
    for i, part in enumerate(need(given, list, at, "a text or a list of text parts")):
        need(part, dict, f"{at}[{i}]", "an object with a type")
        kind = part.get("type")
        if kind == "refusal":
            texts.append(need(part.get("refusal"), str, f"{at}[{i}].refusal", "a text"))
        elif kind in TEXTS:
            texts.append(need(part.get("text"), str, f"{at}[{i}].text", "a text"))
        else:
            raise refused(f"{at}[{i}].type", f"{str(kind)[:40]!r}; the model reads text")
    return "\n".join(texts)


def _tools(given: list[dict[str, Any]] | None, notes: list[str]) -> list[dict[str, Any]]:
    """Functions; tools that OpenAI's servers would run are left out and named, as agents always send them along."""
    tools = []
    for i, tool in enumerate(given or ()):
        at = f"tools[{i}]"
        if tool.get("type") != "function":
            notes.append(at)
            continue
        made = function_tool(tool.get("name"), tool.get("description"), tool.get("parameters"), at, tool.get("strict"))
        tools.append(made)
    return tools


def _choice(
    given: str | Mapping[str, Any] | None, tools: list[dict[str, Any]]
) -> tuple[str | dict[str, Any] | None, list[dict[str, Any]]]:
    """(tool_choice, the tools that it leaves). Where none is left, `tools_of` refuses a choice that needs one."""
    if given is None or isinstance(given, str):
        return given, tools
    kind = given.get("type")
    if kind == "function":
        name = need(given.get("name"), str, "tool_choice.name", "a tool's name")
        return {"type": "function", "function": {"name": name}}, tools
    if kind == "allowed_tools":
        allowed = need(given.get("tools"), list, "tool_choice.tools", "a list of tools")
        names = {tool.get("name") for tool in allowed if isinstance(tool, Mapping)}
        mode = need(given.get("mode", "auto"), str, "tool_choice.mode", "auto or required")
        return mode, [tool for tool in tools if tool["function"]["name"] in names]
    raise refused("tool_choice.type", f"{str(kind)[:40]!r}; send auto, required, none or a function")


def _format(given: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any] | None:
    for name in given or ():
        if name == "verbosity":
            notes.append("text.verbosity")
        elif name != "format":
            raise RequestError(f"text.{name[:60]}", "...", "left out; format and verbosity are understood")
    form = (given or {}).get("format")
    if form is None:
        return None
    kind = need(form, dict, "text.format", "an object with a type").get("type")
    if kind != "json_schema":
        return {"type": kind}
    need(form.get("schema"), dict, "text.format.schema", "a JSON schema")
    return {"type": kind, kind: {name: value for name, value in form.items() if name != "type"}}


def _reasoning(given: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any] | None:
    """Variables that templates of models that think look at."""
    for name in given or ():
        if name != "effort":
            notes.append(f"reasoning.{'summary' if name in ('summary', 'generate_summary') else 'other'}")
    effort = (given or {}).get("effort")
    return effort_variables(effort, "reasoning.effort") or None
