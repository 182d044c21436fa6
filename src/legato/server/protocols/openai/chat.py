"""Bytes of `/v1/chat/completions`: one object, or server-sent events.

Knows: the order of chunks and their fields. Does not know: where deltas come from, HTTP.

    role chunks, one a choice; content chunks; a finish chunk a choice, the last with timings; usage if asked; [DONE]

Chunks that carry text alone are a fixed prefix, the text as JSON, and a fixed suffix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from legato.completion import Delta, Output
from legato.core.plan import TokenLogprobs
from legato.core.sequence import FinishReason
from legato.server.ask import Result
from legato.server.exchange import EVENTS
from legato.server.jsonbody import dumps
from legato.server.problems import Problem
from legato.server.protocols.openai.parts import Head, chat_logprobs, measured, prompt_logprobs, reason_of, usage
from legato.server.protocols.openai.words import error_event
from legato.server.reading import Part, Thought
from legato.server.service import AnswerStream
from legato.text.tools_parser import CallArguments, CallBegun, Content

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


@dataclass(frozen=True, slots=True)
class ChatView:
    """What of an answer the client wants to see."""

    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False
    step_times: bool = False


class ChatEncoder:
    """One answer's bytes."""

    kind = EVENTS
    ping = PING

    def __init__(self, stream: AnswerStream, view: ChatView) -> None:
        self._stream, self._view = stream, view
        self._params = stream.ask.params
        self._tokenizer = stream.service.model.tokenizer
        self._head = Head("chatcmpl", "chat.completion.chunk", stream.service.model.name)
        self._prefixes = self._head.fronts(self._params.n, b'"delta":{"content":')
        self._readers = [stream.reader() for _ in range(self._params.n)]
        self._parted = self._readers[0].needed
        self._told_tokens = view.token_ids or self._params.logprobs is not None
        self._waits = self._params.prompt_logprobs is not None  # first chunks tell what is known after the prompt
        self._plain = not (self._told_tokens or view.continuous_usage or view.step_times or self._parted)
        self._began, self._at = stream.idle_since, 0.0  # nothing was read yet: when the stream was made
        self._logprobs: list[list[TokenLogprobs]] = [[] for _ in range(self._params.n)]
        self._ids: list[list[int]] = [[] for _ in range(self._params.n)]
        self._arguments: list[list[str]] = [[] for _ in range(self._params.n)]  # of each choice's last call
        self._begun = [False] * self._params.n
        self._open = self._params.n
        self._num_tokens = self._cached = 0  # of the cache it is known at the end
        self._last: dict[str, Any] | None = None

    def begin(self) -> bytes:
        return b"" if self._waits else b"".join(self._role(i) for i in range(self._params.n))

    def deltas(self, deltas: list[Delta]) -> bytes:
        out: list[bytes] = []
        for delta in deltas:
            if not self._begun[delta.index]:
                out.append(self._role(delta.index))
            self._num_tokens += len(delta.token_ids)
            self._at = delta.at
            if self._plain:
                if delta.text:
                    out += (
                        self._prefixes[delta.index],
                        dumps(delta.text),
                        b'},"logprobs":null,"finish_reason":null}]}\n\n',
                    )
            elif self._parted:
                out += self._parts(delta)
            else:
                out.append(self._rich(delta))
            if delta.finish_reason is not None and delta.error is None:
                out.append(self._finish(delta))
        return b"".join(out)

    def end(self, result: Result) -> bytes:
        self._cached = result.cached_tokens
        out = [] if self._last is None else [self._chunk(self._last, measured(result, self._stream.ask.include))]
        if self._view.include_usage:
            thought = sum(reader.reasoning_tokens for reader in self._readers)
            counts = usage(result.prompt_tokens, result.completion_tokens, result.cached_tokens, thought)
            out.append(self._head.event({"choices": [], "usage": counts}))
        return b"".join([*out, DONE])

    def failed(self, problem: Problem) -> bytes:
        return error_event(problem)

    def whole(self, result: Result) -> bytes:
        choices = []
        for index, output in result.choices:
            message = self._message(index, output)
            reason, stop_reason = self._reason(index, output.finish_reason, output.stop_reason)
            choice: dict[str, Any] = {
                "index": index,
                "message": message,
                "logprobs": self._logprobs_of(output.logprobs),
                "finish_reason": reason,
                "stop_reason": stop_reason,
            }
            if self._view.token_ids:
                choice["token_ids"] = output.token_ids
            choices.append(choice)
        shown: dict[str, Any] = {
            **self._head.fields,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(
                result.prompt_tokens,
                result.completion_tokens,
                result.cached_tokens,
                sum(reader.reasoning_tokens for reader in self._readers),
            ),
            **measured(result, self._stream.ask.include),
        }
        return dumps(shown | self._of_prompt())

    def _of_prompt(self) -> dict[str, Any]:
        """What was asked for of the prompt's tokens."""
        shown: dict[str, Any] = {}
        if self._params.prompt_logprobs is not None:
            shown["prompt_logprobs"] = prompt_logprobs(self._tokenizer, self._stream.prompt_logprobs(0))
        if self._view.token_ids:
            shown["prompt_token_ids"] = list(self._stream.prompt_ids(0))
        return shown

    def _role(self, index: int) -> bytes:
        """A choice's first chunk; the first choice's tells of the prompt, whose log-probabilities come with it."""
        self._begun[index] = True
        choice = self._choice(index, {"role": "assistant", "content": ""}, None)
        return self._chunk(choice, None if index else self._of_prompt())

    def _choice(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _chunk(self, choice: dict[str, Any], more: dict[str, Any] | None = None) -> bytes:
        shown: dict[str, Any] = {"choices": [choice]}
        if self._view.step_times and self._at:
            shown["timings"] = {"at_ms": round(1e3 * (self._at - self._began), 3)}
        shown |= more or {}
        if self._view.continuous_usage:
            shown["usage"] = usage(len(self._stream.prompt_ids(0)), self._num_tokens, self._cached)
        return self._head.event(shown)

    def _rich(self, delta: Delta) -> bytes:
        """A chunk with more than text; tokens whose text is held back come with the next text."""
        index = delta.index
        self._logprobs[index] += delta.logprobs or []
        self._ids[index] += delta.token_ids
        if not delta.text and (delta.finish_reason is None or not self._ids[index]):
            return b""
        return self._with_tokens(index, {"content": delta.text})

    def _parts(self, delta: Delta) -> list[bytes]:
        """Chunks of an answer that may hold thoughts and calls; tokens come with the first chunk after them."""
        index = delta.index
        self._logprobs[index] += delta.logprobs or []
        self._ids[index] += delta.token_ids
        parts = self._readers[index].feed(delta)
        self._follow(index, parts)
        shown = [_shown(part) for part in parts]
        if not shown and delta.finish_reason is not None and self._told_tokens and self._ids[index]:
            shown = [{}]  # the last tokens have no text to come with
        return [self._with_tokens(index, each) for each in shown]

    def _with_tokens(self, index: int, shown: dict[str, Any]) -> bytes:
        """A chunk with the tokens since the last one."""
        choice = self._choice(index, shown, self._logprobs_of(self._logprobs[index]))
        if self._view.token_ids:
            choice["token_ids"] = self._ids[index]
        self._logprobs[index], self._ids[index] = [], []
        return self._chunk(choice)

    def _follow(self, index: int, parts: list[Part]) -> None:
        """Keeps the last call's arguments: whether they are whole is looked at once, at the end."""
        for part in parts:
            if isinstance(part, CallBegun):
                self._arguments[index] = []
            elif isinstance(part, CallArguments):
                self._arguments[index].append(part.text)

    def _message(self, index: int, output: Output) -> dict[str, Any]:
        """A whole answer's message. Thoughts come under both of the names that clients look for."""
        if not self._parted:
            return {"role": "assistant", "content": output.text, "refusal": None}
        count = self._readers[index]  # reads token by token, to count those of the thought
        for token_id in output.token_ids:
            count.feed(Delta(self._tokenizer.token_text(token_id), [token_id], index))
        counted = count.reasoning_tokens
        reader = self._readers[index] = self._stream.reader()
        parts = reader.feed(Delta(output.text, output.token_ids, index, output.finish_reason or FinishReason.STOP))
        reader.count_thought(counted)
        self._follow(index, parts)
        calls: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, CallBegun):
                function = {"name": part.name, "arguments": ""}
                calls.append({"id": part.call_id, "type": "function", "function": function})
            elif isinstance(part, CallArguments):
                calls[part.index]["function"]["arguments"] += part.text
        content = "".join(part.text for part in parts if isinstance(part, Content))
        thought = "".join(part.text for part in parts if isinstance(part, Thought))
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if thought:
            message |= {"reasoning_content": thought, "reasoning": thought}
        if calls:
            message["tool_calls"] = calls
        return message

    def _reason(
        self, index: int, reason: FinishReason | None, stop_reason: str | int | None
    ) -> tuple[str, str | int | None]:
        """A whole call that was chosen is the reason; one that was named by the client is not."""
        word, stop = reason_of(reason, stop_reason)
        use = self._stream.ask.tools
        called = self._readers[index].num_calls and use is not None and use.choice != "named"
        if word == "stop" and called and _is_json("".join(self._arguments[index])):
            return "tool_calls", stop
        return word, stop

    def _finish(self, delta: Delta) -> bytes:
        """The finish chunk; the last one waits for the timings."""
        reason, stop_reason = self._reason(delta.index, delta.finish_reason, delta.stop_reason)
        choice = {"index": delta.index, "delta": {}, "finish_reason": reason, "stop_reason": stop_reason}
        self._open -= 1
        if self._open:
            return self._chunk(choice)
        self._last = choice
        return b""

    def _logprobs_of(self, found: list[TokenLogprobs] | None) -> dict[str, Any] | None:
        if self._params.logprobs is None or found is None:
            return None
        return {"content": chat_logprobs(self._tokenizer, found, self._view.tokens_as_ids)}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _shown(part: Part) -> dict[str, Any]:
    """A chunk's `delta`."""
    match part:
        case Thought(text):
            return {"reasoning_content": text}
        case CallBegun(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case Content(text):
            return {"content": text}
