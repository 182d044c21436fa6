"""Tools: how a model is told of them, how it must write a call, and the grammar that makes it do so.

Knows: the forms that families of chat templates use. Does not know: how calls are read (tools_parser), protocols.

    hermes   <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>     Qwen 2.5 and 3, Hermes
    llama    {"name": ..., "parameters": {...}}                               Llama 3.x, as the whole answer
    mistral  [TOOL_CALLS][{"name": ..., "arguments": {...}}]                  Mistral up to 2024
    args     [TOOL_CALLS]name[ARGS]{...}                                      Mistral since then
    phi      <|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>   Phi-4-mini
    told     as hermes, by a text of ours in the system message               templates that have no place for tools

Sources: the chat templates published with those models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from legato.core.request import MAX_GRAMMAR, Grammar, GrammarKind
from legato.errors import RequestError
from legato.text.grammar_schema import compilable, lark_string, without_notes
from legato.text.template import SYSTEM_ROLES, lines_of

MAX_TOOLS = 128
MAX_CALLS = 16
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
_READS_TOOLS = re.compile(r"\btools\b")

_TOLD = """You may call functions. These are their signatures, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write its name and arguments as a JSON object between tags, and nothing after it:
<tool_call>
{{"name": "FUNCTION", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """One way of writing calls.

    opener, closer  around a call, or around a list of calls
    key        what the arguments are called
    listed     between opener and closer stands a list
    inline     before and after a call within opener and closer
    named      the name stands before the arguments' object
    bare       a call may begin an answer without the opener
    template   the template has a place for tools
    """

    name: str
    opener: str
    closer: str = ""
    key: str = "arguments"
    listed: bool = False
    inline: str = ""
    named: bool = False
    bare: bool = False
    template: bool = True


HERMES = ToolForm("hermes", "<tool_call>", "</tool_call>", inline="\n")
LLAMA = ToolForm("llama", "<|python_tag|>", key="parameters", bare=True)
MISTRAL = ToolForm("mistral", "[TOOL_CALLS]", listed=True)
ARGS = ToolForm("args", "[TOOL_CALLS]", named=True, listed=True)
PHI = ToolForm("phi", "<|tool_call|>", "<|/tool_call|>", listed=True)
TOLD = ToolForm("told", "<tool_call>", "</tool_call>", inline="\n", template=False)


def tool_form(template: str | None) -> ToolForm:
    """The form that a chat template's model was trained on. Raises `RequestError` for one that is not known."""
    source = template or ""
    if "<tool_call>" in source and "<function=" not in source:
        return HERMES
    if "[TOOL_CALLS]" in source:
        return ARGS if "[ARGS]" in source else MISTRAL
    if "<|tool|>" in source or "<|tool_call|>" in source:
        return PHI
    if "ipython" in source and '"parameters"' in source:
        return LLAMA
    if _READS_TOOLS.search(source):
        text = "no tools: this model's chat template writes calls in a way that is not known here"
        raise RequestError("tools", "...", text, "leave them out, or describe them in a message")
    return TOLD


@dataclass(frozen=True, slots=True)
class Tool:
    """One function, checked. `parameters` is the schema of its arguments, `given` what the caller sent."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a caller allows: `choice` is "auto", "none", "required", or "named" where `tools` holds that one alone."""

    tools: tuple[Tool, ...]
    choice: str = "auto"
    parallel: bool = True

    @property
    def forced(self) -> bool:
        return self.choice in ("required", "named")


def checked_tools(given: object) -> list[Tool]:
    """Tools as callers of chat APIs send them. Raises `RequestError` naming tools[i].field."""
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or len(given) > MAX_TOOLS:
        raise RequestError("tools", given, f"a list of at most {MAX_TOOLS} tools")
    found: dict[str, Tool] = {}
    for i, item in enumerate(given):
        tool = _checked(f"tools[{i}]", item)
        if tool.name in found:
            raise RequestError(f"tools[{i}].function.name", tool.name, "a name that no other tool has")
        found[tool.name] = tool
    return list(found.values())


def _checked(at: str, item: object) -> Tool:
    function = item.get("function") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or item.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise RequestError(at, item, 'an object with "type": "function" and "function"')
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise RequestError(f"{at}.function.name", name, "1 to 64 letters, digits, dots, - and _")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise RequestError(f"{at}.function.parameters", parameters, 'a JSON schema of "type": "object"')
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise RequestError(f"{at}.function.description", description, "a text")
    strict = function.get("strict")
    if strict not in (None, True, False):
        raise RequestError(f"{at}.function.strict", strict, "true or false")
    return Tool(name, {**parameters, "type": "object"}, bool(strict), item)


# -- telling the model --------------------------------------------------------------------------------------------


def told(
    form: ToolForm, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]] | None]:
    """(messages, tools for the template): what to render so that the model knows of `tools`."""
    given: list[Mapping[str, Any]] = [{"type": "function", **tool.given} for tool in tools]
    if form.template and form is not PHI:
        return list(messages), given or None
    messages = _with_lines(messages)
    if form is PHI:
        listed = json.dumps([tool["function"] for tool in given], ensure_ascii=False)
        head, rest = _system(messages)
        return [{"role": "system", "content": head, "tools": listed}, *rest], None
    plain = [_plain(message) for message in messages]
    if not given:
        return plain, None
    text = _TOLD.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in given))
    head, rest = _system(plain)
    return [{"role": "system", "content": f"{head}\n\n{text}" if head else text}, *rest], None


def _with_lines(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Contents that are lists of parts as text, so that it can be put together with other text."""
    return [
        {**m, "content": lines_of(f"messages[{i}].content", m["content"], str(m.get("role")))}
        if isinstance(m, Mapping) and isinstance(m.get("content"), list)
        else m
        for i, m in enumerate(messages)
    ]


def _system(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """(the system message's text, the other messages)."""
    if messages and isinstance(messages[0], Mapping) and messages[0].get("role") in SYSTEM_ROLES:
        content = messages[0].get("content")
        if isinstance(content, str):
            return content, list(messages[1:])
    return "", list(messages)


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call, or a tool's answer, as text for templates that know neither."""
    if not isinstance(message, Mapping):
        return message
    content, calls = message.get("content"), message.get("tool_calls")
    if message.get("role") == "tool" and isinstance(content, str):
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if not isinstance(calls, Sequence) or isinstance(calls, str) or not calls:
        return message
    parts = [content] if isinstance(content, str) and content else []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            return message
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        parts.append(f'<tool_call>\n{{"name": {json.dumps(function.get("name"))}, "arguments": {text}}}\n</tool_call>')
    return {"role": message.get("role"), "content": "\n".join(parts)}


# -- making it write calls ----------------------------------------------------------------------------------------


def calls_grammar(
    form: ToolForm,
    tools: Sequence[Tool],
    *,
    forced: bool,
    parallel: bool,
    control: Callable[[str], int | None],
    answer: str | None = None,
    loose: bool = False,
) -> Grammar | None:
    """The grammar of an answer that calls `tools`; None where calls can only be read, not foreseen.

    forced    the answer is calls and nothing else; otherwise text, in which a call that is begun must be right
    parallel  several calls are allowed
    control   the id of a text that is a control token of the vocabulary
    answer    the JSON schema of an answer that calls nothing, where it must match one
    loose     arguments of tools that are not `strict` need only be an object
    Raises `RequestError` when a schema cannot be promised (without `forced`, only if the tool is `strict`).
    """
    if form.bare and not forced and answer is None:
        for tool in tools:
            if tool.strict:
                raise RequestError(
                    "tools", tool.name, "strict only when a call is required, with this model's template"
                )
        return None
    rules = [
        f"call_{i}: {_call(form, tool, forced, control, loose and not tool.strict)}" for i, tool in enumerate(tools)
    ]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    opener, closer = _literal(form.opener, control), _literal(form.closer, control)
    pad = lark_string(form.inline) if form.inline else ""
    more = MAX_CALLS - 1 if parallel else 0
    if form.listed and not form.named:
        others = _repeated('", " call', more)
        body = f'"[" call {others} "]" {closer}'
        forced_start = f"{opener} {body}"
        again = more and 1
    else:
        body = f"{pad} call {pad} {closer}"
        between = {"llama": '"; "', "args": ""}.get(form.name, '"\\n"')
        whole = "call" if form.bare else f"{opener} {body}"
        forced_start = f"{whole} " + _repeated(f"{between} {whole}", more)
        again = more
    if forced or answer is not None:
        start = forced_start if forced else f"{forced_start} | %json {answer}"
        return _lark([f"start: {start}", *rules])
    rules += [f"body: {body}", "rest: /(?s:.*)/"]
    if control(form.opener) is None:
        rules.append(f"text[lazy]: /(?s:.*){re.escape(form.opener).replace('/', chr(92) + '/')}/")
        text = "text"
    else:
        text = f"rest {opener}"
    start = f"(({text}) body)* rest" if again else f"rest | ({text}) body"
    return _lark([f"start: {start}", *rules])


def _lark(rules: Sequence[str]) -> Grammar:
    text = "\n".join(rules)
    if len(text) > MAX_GRAMMAR:
        raise RequestError("tools", f"{len(text)} characters", f"parameters of at most {MAX_GRAMMAR} characters in all")
    return Grammar(GrammarKind.LARK, text)


def _repeated(rule: str, most: int) -> str:
    return f"({rule}){{0,{most}}}" if most else ""


def _literal(text: str, control: Callable[[str], int | None]) -> str:
    if not text:
        return ""
    token_id = control(text)
    return lark_string(text) if token_id is None else f"<[{token_id}]>"


def _call(form: ToolForm, tool: Tool, forced: bool, control: Callable[[str], int | None], loose: bool) -> str:
    """One call as Lark. Without `forced`, a schema that cannot be promised only has to be an object."""
    schema: Mapping[str, Any] = {"type": "object"} if loose else without_notes(tool.parameters)
    try:
        compilable(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
    except RequestError as error:
        if forced or tool.strict:
            raise RequestError("tools", tool.name, f"tools whose parameters can be promised: {error.allowed}") from None
        schema = {"type": "object"}
    if form.named:
        return f"{lark_string(tool.name)} {_literal('[ARGS]', control)} %json {json.dumps(schema)}"
    head = lark_string(f'{{"name": {json.dumps(tool.name)}, "{form.key}": ')
    return f'{head} %json {json.dumps(schema)} "}}"'
