"""`ChatTemplate`: messages to the text that a model was trained on.

Knows: what a message may be, which templates are known to be tame, how to end one that is not.
Does not know: Jinja's insides (sandbox), token ids, the engine.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from legato.errors import ModelFileError, RequestError
from legato.text import sandbox
from legato.text.child import Child

TIME_LIMIT_S = 1.0
SIZE_LIMIT = 4 << 20
SYSTEM_ROLES = ("system", "developer")  # OpenAI's API has two names for one thing
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")

# Read, and found to do work in proportion to their messages: these are rendered in this process, without a child.
TAME = frozenset(
    {
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # SmolLM2-135M-Instruct
    }
)


class _Renderer(Protocol):
    def render(self, variables: dict[str, Any]) -> str: ...

    def close(self) -> None: ...


class ChatTemplate:
    """A model's chat template. A model without one has no `ChatTemplate`; its callers say so.

    source          Jinja
    special_tokens  bos_token, eos_token, ... as the tokenizer has them, seen by the template under those names
    origin          the file it came from, for messages of errors
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        origin: str | Path = "chat template",
        time_limit: float = TIME_LIMIT_S,
        size_limit: int = SIZE_LIMIT,
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.origin = str(origin)
        self._size_limit = size_limit
        self._knows_developers = "developer" in source
        digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        self._renderer: _Renderer
        if digest in TAME:
            self._renderer = _InProcess(source, size_limit)
        else:
            self._renderer = _InChild(source, time_limit, size_limit)

    def warm(self) -> None:
        """Starts what rendering will need, without waiting for it; worth calling while weights are being read."""
        if isinstance(self._renderer, _InChild):
            self._renderer.start()

    def close(self) -> None:
        """Ends the child process, if there is one. A later `render` starts another."""
        self._renderer.close()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The text of a conversation, ready for `encode(add_special=False, parse_special=True)`.

        kwargs are further variables that a template may read (enable_thinking, ...). A developer's message is the
        system's for a template that has no such role.
        Raises `RequestError` naming messages[i].field, or quoting the template's own refusal; `ModelFileError` when
        the template is wrong or goes beyond its limits of time and size.
        """
        checked = checked_messages(messages)
        if not self._knows_developers:
            checked = [{**m, "role": "system"} if m["role"] in SYSTEM_ROLES else m for m in checked]
        variables = {
            **self.special_tokens,
            **_extra(kwargs),
            "messages": checked,
            "tools": _checked_tools(tools),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        written = sum(len(v) for message in checked for v in message.values() if isinstance(v, str))
        if written > self._size_limit:
            raise RequestError("messages", f"{written} characters", f"at most {self._size_limit} in all")
        try:
            return self._renderer.render(variables)
        except sandbox.TemplateFailure as e:
            if e.kind == "template":
                raise RequestError("messages", _outline(messages), f"the chat template refuses them: {e}") from None
            raise ModelFileError(self.origin, "chat_template", f"{_KINDS[e.kind]}: {e}") from None


_KINDS = {
    "syntax": "is not valid",
    "limit": "was stopped",
    "unsafe": "does what no template may do",
}


class _InProcess:
    """Renders here; only for templates that are known to be tame."""

    def __init__(self, source: str, size_limit: int) -> None:
        self._source, self._size_limit = source, size_limit
        self._compiled: sandbox.Render | None = None

    def render(self, variables: dict[str, Any]) -> str:
        if self._compiled is None:
            self._compiled = sandbox.compile_template(self._source, self._size_limit)
        return self._compiled(variables)

    def close(self) -> None:
        self._compiled = None


class _InChild:
    """Renders in a child process, one rendering at a time, and kills it when its time is over.

    A child is kept between renderings; one that was killed or died is replaced at the next rendering. A template that
    does not compile is not tried again.
    """

    def __init__(self, source: str, time_limit: float, size_limit: int) -> None:
        self._source, self._time_limit, self._size_limit = source, time_limit, size_limit
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._broken: sandbox.TemplateFailure | None = None

    def start(self) -> None:
        with self._lock:
            self._ensure()

    def render(self, variables: dict[str, Any]) -> str:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            child = self._ensure()
            try:
                if not child.compiled:
                    self._compile(child)
                return str(self._ask(child, variables, self._time_limit)["text"])
            except sandbox.TemplateFailure as e:
                if e.kind == "limit" or self._broken is not None:  # short of memory perhaps, or of no more use
                    self._drop()
                raise

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _ensure(self) -> Child:
        if self._child is None:
            self._child = Child(sandbox.__file__, "to render a chat template", 4 * self._size_limit)
        return self._child

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _compile(self, child: Child) -> None:
        child.wait_ready()
        try:
            self._ask(child, {"source": self._source, "size_limit": self._size_limit}, self._time_limit)
        except sandbox.TemplateFailure as e:
            if self._child is child:  # it answered, and would answer the same again
                self._broken = e
            raise
        child.compiled = True

    def _ask(self, child: Child, frame: dict[str, Any], seconds: float) -> dict[str, Any]:
        body = sandbox.packed(frame)
        if len(body) > 4 * self._size_limit:
            raise sandbox.TemplateFailure("template", f"with their tools they are {len(body)} bytes; too many")
        try:
            answer = child.exchange(body, seconds)
        except TimeoutError:
            self._drop()
            raise sandbox.TemplateFailure("limit", f"took longer than {seconds:g} s") from None
        except (OSError, ValueError):
            answer = None
        if answer is None:
            self._drop()
            raise sandbox.TemplateFailure("limit", "its process died, short of memory or of stack")
        if "error" in answer:
            raise sandbox.TemplateFailure(answer["error"], answer["message"])
        return answer


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them. Raises `RequestError` naming messages[i].field.

    content  a string; None where an assistant only calls tools; a list of text parts becomes their lines
    tool_calls  `arguments` that are JSON in a string become the object they spell
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages", messages, "a list of at least one message, each an object with role and content")
    return [_checked_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _checked_message(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not all(isinstance(key, str) for key in message):
        raise RequestError(name, message, 'an object with "role" and "content"')
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{name}.role", role, f"one of {', '.join(ROLES)}")
    out = dict(message)
    calls = message.get("tool_calls")
    if calls is not None:
        out["tool_calls"] = _checked_calls(f"{name}.tool_calls", calls)
    content = message.get("content")
    if isinstance(content, list):
        out["content"] = lines_of(f"{name}.content", content, role)
    elif not isinstance(content, str) and not (content is None and role == "assistant" and calls):
        raise RequestError(f"{name}.content", content, "a string or a list of text parts")
    for key, value in out.items():
        if not isinstance(value, str):
            _check_plain(f"{name}.{key}", value)
    return out


def lines_of(name: str, parts: Sequence[object], role: str) -> str:
    """The text of a content's parts. Raises `RequestError` naming the one that has none."""
    return "\n".join(_part(f"{name}[{i}]", part, role) for i, part in enumerate(parts))


def _part(name: str, part: object, role: str) -> str:
    """An assistant may have refused before; to the model those are words like others."""
    kinds = ("text", "refusal") if role == "assistant" else ("text",)
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(kind) if isinstance(part, Mapping) and kind in kinds else None
    if not isinstance(text, str):
        raise RequestError(name, part, 'a text part, {"type": "text", "text": ...}')
    return text


def _checked_calls(name: str, calls: object) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise RequestError(name, calls, "a list of tool calls")
    out: list[dict[str, Any]] = []
    for i, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise RequestError(f"{name}[{i}]", call, "an object")
        copy = dict(call)
        function = copy.get("function")
        if isinstance(function, Mapping):
            copy["function"] = {**function, "arguments": _arguments(function.get("arguments"))}
        out.append(copy)
    return out


def _arguments(arguments: object) -> object:
    """Templates print arguments as an object; callers of chat APIs send them as JSON in a string."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError("tools", tools, "a list of tools")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RequestError(f"tools[{i}]", tool, "an object")
        _check_plain(f"tools[{i}]", tool)
    return [dict(tool) for tool in tools] or None


def _extra(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, value in kwargs.items():
        _check_plain(f"chat_template_kwargs.{name}", value)
    return kwargs


def _check_plain(name: str, value: object) -> None:
    """Only what JSON can say may reach a template."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(
            name, value, "made of JSON's objects, lists, strings, numbers, true, false and null"
        ) from None


def _outline(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(message.get("role")) for message in messages[:12])
