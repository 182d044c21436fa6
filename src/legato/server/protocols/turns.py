"""What the protocols beside OpenAI's own share: their fields in OpenAI's, and an answer cut into its parts.

Knows: text, thoughts and calls of an answer; how another protocol's body becomes an `Ask`. Does not know: bytes.

    a body  ->  ChatBody  ->  chat_ask  ->  Ask          what is understood, and refused, is the same for every protocol
    Delta   ->  AnswerReader  ->  Content, Thought, CallBegun, CallArguments  ->  the encoder's events
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from legato.completion import Delta, Output
from legato.core.sequence import FinishReason
from legato.errors import RequestError
from legato.server.ask import Ask
from legato.server.model import Model
from legato.server.problems import Problem
from legato.server.protocols.openai.fields import ChatBody
from legato.server.protocols.openai.parse import chat_ask
from legato.server.reading import Part, Thought
from legato.server.service import AnswerStream
from legato.text.reasoning import thinks
from legato.text.tools import tool_form
from legato.text.tools_parser import CallArguments, CallBegun, Content

_JSON_WORD = re.compile(
    r"""[{}\[\],:]|[^\s{}\[\],:"]+|
    "(?:[^"\\]|\\[^u]|\\u(?:d[89ab][0-9a-f]{2}\\u[0-9a-f]{4}|(?!d[89ab])[0-9a-f]{4}))*+(?P<closed>"?)""",
    re.IGNORECASE | re.VERBOSE,
)
"""A text without its end has none of an escape that is not whole."""


class Reader(Protocol):
    """Tells an answer's text from its thoughts and calls, as `AnswerReader` does."""

    @property
    def reasoning_tokens(self) -> int: ...

    def feed(self, delta: Delta) -> list[Part]: ...


@dataclass(slots=True)
class Block:
    """A whole part of an answer: `kind` is text, thought or call; a call has an id, a name, and its JSON as text."""

    kind: str
    text: str = ""
    id: str = ""
    name: str = ""


@dataclass(slots=True)
class Blocks:
    """Pieces put together again."""

    blocks: list[Block] = field(default_factory=list)

    def add(self, part: Part) -> None:
        match part:
            case Content(text):
                self._open("text").text += text
            case Thought(text):
                self._open("thought").text += text
            case CallBegun(_, call_id, name):
                self.blocks.append(Block("call", id=call_id, name=name))
            case CallArguments(_, text):
                self.blocks[-1].text += text

    def _open(self, kind: str) -> Block:
        if not self.blocks or self.blocks[-1].kind != kind:
            self.blocks.append(Block(kind))
        return self.blocks[-1]


def whole_blocks(stream: AnswerStream, output: Output) -> tuple[list[Block], int]:
    """(the parts of a whole answer, the tokens of its thoughts)."""
    found, reader = Blocks(), stream.reader()
    reason = output.finish_reason or FinishReason.STOP
    for part in reader.feed(Delta(output.text, output.token_ids, 0, reason, output.stop_reason)):
        found.add(part)
    if not any(block.kind == "thought" for block in found.blocks):
        return found.blocks, 0
    counter, tokenizer = stream.reader(), stream.service.model.tokenizer
    for token_id in output.token_ids:  # read token by token, for only so it is known where a thought ends
        counter.feed(Delta(tokenizer.token_text(token_id), [token_id]))
    return found.blocks, counter.reasoning_tokens


def capabilities(model: Model) -> list[str]:
    """What the model can do, in Ollama's words."""
    template = model.template.source if model.template is not None else None
    try:
        tool_form(template)
    except RequestError:
        tools = []
    else:
        tools = ["tools"]
    return ["completion", *tools, *(["thinking"] if thinks(template) else [])]


def ask_of(
    body: ChatBody,
    names: Mapping[str, str],
    passed: Iterable[str] = (),
    grammar_field: str = "",
    given: object = None,
) -> Ask:
    """The `Ask` of a body in OpenAI's fields.

    names  what the client calls those fields, and whole phrases of messages about them
    given  the client's own body: a field that is refused is shown as it came
    """
    try:
        ask = chat_ask(body, tuple(dict.fromkeys(passed)))
    except RequestError as error:
        name = renamed(error.field, names)
        allowed, fix = _worded_for(error.allowed, names), _worded_for(error.fix, names)
        raise RequestError(name, getattr(given, name, error.value), allowed, fix) from None
    except Problem as problem:
        if problem.param is None or problem.param not in names:
            raise
        text = problem.message.replace(problem.param, names[problem.param])
        raise Problem(problem.status, text, param=names[problem.param], code=problem.code) from None
    return replace(ask, grammar_field=grammar_field) if ask.params.grammar is not None and grammar_field else ask


def _worded_for(text: str, names: Mapping[str, str]) -> str:
    """`text` in the client's words; names that are words of English too are left alone."""
    ours = "|".join(re.escape(name) for name in names if "_" in name or " " in name)
    return re.sub(rf"(?<!\w)({ours})(?!\w)", lambda found: names[found[0]], text) if ours else text


def renamed(name: str, names: Mapping[str, str]) -> str:
    """`name`, its first word by the client's name for it; tools are flat where this is needed."""
    name = name.replace(".function.", ".")
    first = re.split(r"[.\[]", name, maxsplit=1)[0]
    return names[first] + name[len(first) :] if first in names else name


def refused(name: str, why: str) -> Problem:
    return Problem(400, f"{name} is not supported: {why}", param=name, code="unsupported_parameter")


def worded(problem: Problem) -> str:
    """For protocols whose errors have no place for the field's name."""
    named = problem.param is None or problem.param in problem.message
    return problem.message if named else f"{problem.param}: {problem.message}"


def need(value: object, kind: type, name: str, allowed: str) -> Any:
    """`value`, which must be of `kind`."""
    if not isinstance(value, kind):
        raise RequestError(name, value, allowed)
    return value


def fresh(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{secrets.token_hex(12)}"


def join_turn(messages: list[dict[str, Any]], role: str, text: str) -> None:
    """Adds text to the conversation; two texts of one speaker in a row become one turn."""
    last = messages[-1] if messages else None
    if last is not None and last["role"] == role and "tool_calls" not in last and isinstance(last["content"], str):
        last["content"] = f"{last['content']}\n\n{text}" if last["content"] else text
    else:
        messages.append({"role": role, "content": text})


def add_call(messages: list[dict[str, Any]], call_id: str, name: str, arguments: str) -> None:
    """Adds a call to the assistant's last turn, which begins with it if need be."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages[-1].setdefault("tool_calls", []).append(call)


def function_tool(
    name: object, description: object, parameters: object, at: str, strict: object = None
) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    function: dict[str, Any] = {"name": need(name, str, f"{at}.name", "a text")}
    if description is not None:
        function["description"] = need(description, str, f"{at}.description", "a text")
    function["parameters"] = {} if parameters is None else need(parameters, dict, f"{at}.parameters", "a JSON schema")
    if strict is not None:
        function["strict"] = need(strict, bool, f"{at}.strict", "true or false")
    return {"type": "function", "function": function}


def arguments_of(text: str) -> dict[str, Any]:
    """A call's input as an object; of an answer cut short, as much of it as came."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return _begun(text)
    return value if isinstance(value, dict) else {"value": value}


def _begun(text: str) -> dict[str, Any]:
    """What can be read of an object that was cut: texts as far as they came, but no number that may have gone on."""
    closers: list[str] = []
    end, quote, is_key = 0, "", False
    for found in _JSON_WORD.finditer(text):
        word = found[0]
        if word in ("{", "["):
            closers.append("}" if word == "{" else "]")
            is_key, end = word == "{", found.end()
        elif word in ("}", "]"):
            if not closers or closers.pop() != word:
                return {}
            end = found.end()
        elif word == ",":  # what stands before it is whole
            is_key, end = closers[-1:] == ["}"], found.start()
        elif word == ":":
            is_key = False
        elif word[0] == '"':
            is_open = found["closed"] != '"'
            if not is_key:
                end, quote = found.end(), '"' if is_open else ""
            if is_open:
                break
    try:
        value = json.loads(text[:end] + quote + "".join(reversed(closers)), strict=False)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
