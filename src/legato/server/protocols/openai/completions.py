"""Bytes of `/v1/completions`: one object, or server-sent events.

Knows: the order of chunks, echo, the older form of logprobs. Does not know: where deltas come from, HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from legato.completion import Delta, Output
from legato.core.plan import TokenLogprobs
from legato.core.sequence import FinishReason
from legato.server.ask import Result
from legato.server.exchange import EVENTS
from legato.server.jsonbody import dumps
from legato.server.problems import Problem
from legato.server.protocols.openai.chat import DONE, PING
from legato.server.protocols.openai.parts import Head, TextLogprobs, measured, prompt_logprobs, reason_of, usage
from legato.server.protocols.openai.words import error_event
from legato.server.service import AnswerStream


@dataclass(frozen=True, slots=True)
class CompletionView:
    """What of an answer the client wants to see.

    echo       the prompt stands before the answer
    only_echo  no answer was asked for (max_tokens 0); the one token that was made is not shown
    """

    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False
    prompt_logprobs: bool = False
    echo: bool = False
    only_echo: bool = False


class CompletionEncoder:
    """One answer's bytes."""

    kind = EVENTS
    ping = PING

    def __init__(self, stream: AnswerStream, view: CompletionView) -> None:
        self._stream, self._view = stream, view
        self._params = stream.ask.params
        self._tokenizer = stream.service.model.tokenizer
        self._head = Head("cmpl", "text_completion", stream.service.model.name)
        count = len(stream.answers) * self._params.n
        self._prefixes = self._head.fronts(count, b'"text":')
        rich = view.continuous_usage or view.token_ids or view.prompt_logprobs or self._params.logprobs is not None
        self._plain = not rich
        skip = stream.ask.skip_special
        self._logprobs = [TextLogprobs(self._tokenizer, view.tokens_as_ids, skip) for _ in range(count)]
        self._ids: list[list[int]] = [[] for _ in range(count)]
        self._begun = [False] * count
        self._told = [False] * count
        self._cached = 0  # known at the end
        self._open = count
        self._num_tokens = 0
        self._last: dict[str, Any] | None = None

    def begin(self) -> bytes:
        return b""

    def deltas(self, deltas: list[Delta]) -> bytes:
        out: list[bytes] = []
        for delta in deltas:
            if self._view.echo and not self._begun[delta.index]:
                out.append(self._echo(delta.index))
            self._begun[delta.index] = True
            if not self._view.only_echo:
                self._num_tokens += len(delta.token_ids)
                out.append(self._text(delta))
            if delta.finish_reason is not None and delta.error is None:
                out.append(self._finish(delta))
        return b"".join(out)

    def end(self, result: Result) -> bytes:
        self._cached = result.cached_tokens
        out = [] if self._last is None else [self._chunk(self._last, measured(result, self._stream.ask.include))]
        if self._view.include_usage:
            out.append(self._head.event({"choices": [], "usage": self._usage(result)}))
        return b"".join([*out, DONE])

    def failed(self, problem: Problem) -> bytes:
        return error_event(problem)

    def whole(self, result: Result) -> bytes:
        choices = [self._whole_choice(index, output) for index, output in result.choices]
        shown = {**self._head.fields, "choices": choices, "usage": self._usage(result)}
        return dumps(shown | measured(result, self._stream.ask.include))

    def _whole_choice(self, index: int, output: Output) -> dict[str, Any]:
        view, prompt = self._view, index // self._params.n
        reason, stop_reason = self._reason(output.finish_reason, output.stop_reason)
        text = "" if view.only_echo else output.text
        if view.echo:
            text = self._prompt_text(prompt) + text
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": self._whole_logprobs(index, output.logprobs),
            "finish_reason": reason,
            "stop_reason": stop_reason,
        }
        if view.token_ids:
            choice["token_ids"] = output.token_ids
        return choice | self._of_prompt(prompt)

    def _of_prompt(self, prompt: int) -> dict[str, Any]:
        """What was asked for of the prompt's tokens."""
        shown: dict[str, Any] = {}
        if self._view.token_ids:
            shown["prompt_token_ids"] = list(self._stream.prompt_ids(prompt))
        if self._view.prompt_logprobs:
            shown["prompt_logprobs"] = prompt_logprobs(self._tokenizer, self._stream.prompt_logprobs(prompt))
        return shown

    def _reason(self, reason: FinishReason | None, stop_reason: str | int | None) -> tuple[str, str | int | None]:
        """A token that is not shown ends nothing."""
        return ("length", None) if self._view.only_echo else reason_of(reason, stop_reason)

    def _whole_logprobs(self, index: int, found: list[TokenLogprobs] | None) -> dict[str, Any] | None:
        if self._params.logprobs is None:
            return None
        logprobs = self._logprobs[index]
        if self._view.echo:
            self._add_prompt(index)
        if not self._view.only_echo:
            logprobs.add(found or [])
        return logprobs.take()

    def _add_prompt(self, index: int) -> None:
        prompt = index // self._params.n
        self._logprobs[index].first(self._stream.prompt_ids(prompt)[0])
        self._logprobs[index].add(self._stream.prompt_logprobs(prompt) or [])

    def _prompt_text(self, prompt: int) -> str:
        return self._tokenizer.decode(self._stream.prompt_ids(prompt), skip_special=self._stream.ask.skip_special)

    def _usage(self, result: Result) -> dict[str, Any]:
        made = 0 if self._view.only_echo else result.completion_tokens
        return usage(result.prompt_tokens, made, result.cached_tokens)

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A choice of a chunk; its first one tells of the prompt."""
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        if not self._told[index]:
            self._told[index] = True
            choice |= self._of_prompt(index // self._params.n)
        return choice

    def _chunk(self, choice: dict[str, Any], more: dict[str, Any] | None = None) -> bytes:
        shown = {"choices": [choice], **(more or {})}
        if self._view.continuous_usage:
            prompt_tokens = sum(len(answer.request.prompt_ids) for answer in self._stream.answers)
            shown["usage"] = usage(prompt_tokens, self._num_tokens, self._cached)
        return self._head.event(shown)

    def _echo(self, index: int) -> bytes:
        wanted = self._params.logprobs is not None
        if wanted:
            self._add_prompt(index)
        logprobs = self._logprobs[index].take() if wanted else None
        return self._chunk(self._choice(index, self._prompt_text(index // self._params.n), logprobs))

    def _text(self, delta: Delta) -> bytes:
        if self._plain:
            if not delta.text:
                return b""
            tail = b',"logprobs":null,"finish_reason":null}]}\n\n'
            return self._prefixes[delta.index] + dumps(delta.text) + tail
        index, logprobs = delta.index, self._logprobs[delta.index]
        logprobs.add(delta.logprobs or [])
        self._ids[index] += delta.token_ids
        if not delta.text and (delta.finish_reason is None or not self._ids[index]):
            return b""
        choice = self._choice(index, delta.text, logprobs.take() if self._params.logprobs is not None else None)
        if self._view.token_ids:
            choice["token_ids"], self._ids[index] = self._ids[index], []
        self._ids[index] = []
        return self._chunk(choice)

    def _finish(self, delta: Delta) -> bytes:
        """The finish chunk; the last one waits for the timings."""
        reason, stop_reason = self._reason(delta.finish_reason, delta.stop_reason)
        choice = self._choice(delta.index, "", None) | {"finish_reason": reason, "stop_reason": stop_reason}
        self._open -= 1
        if self._open:
            return self._chunk(choice)
        self._last = choice
        return b""
