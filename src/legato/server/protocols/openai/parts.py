"""What OpenAI's answers share: how a chunk begins, usage, timings, reasons, log-probabilities.

Knows: the shapes of those objects. Does not know: where in an answer they stand.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from legato.core.plan import TokenLogprobs
from legato.core.sequence import FinishReason
from legato.server.ask import Result
from legato.server.jsonbody import dumps
from legato.text.tokenizer import Tokenizer

_RECEIPT = ("receipt", "replay", "token_ids", "finish_reason", "outputs")
REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "length",
    FinishReason.ABORT: "stop",
    FinishReason.ERROR: "error",
}


class Head:
    """What every chunk of one answer begins with: `fields`, in their order."""

    def __init__(self, prefix: str, kind: str, model: str) -> None:
        self.fields: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def event(self, more: Mapping[str, Any]) -> bytes:
        """A chunk as a server-sent event."""
        return b"data: " + dumps({**self.fields, **more}) + b"\n\n"

    def fronts(self, count: int, then: bytes) -> list[bytes]:
        """Of each choice, the bytes of such an event up to `then`, which stands right after the choice's index."""
        front = b"data: " + dumps(self.fields)[:-1]
        return [front + b',"choices":[{"index":%d,%b' % (index, then) for index in range(count)]


def reason_of(reason: FinishReason | None, stop_reason: str | int | None) -> tuple[str, str | int | None]:
    """(finish_reason, stop_reason); a deadline is a kind of length."""
    if reason is None:
        return "stop", None
    return REASONS[reason], "deadline" if reason is FinishReason.DEADLINE else stop_reason


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def timings(result: Result) -> dict[str, Any]:
    """Milliseconds, rounded to a microsecond; joules and money where they are known."""
    shown = {k: v if isinstance(v, int) else round(v, 3) for k, v in asdict(result.timings).items()}
    return shown if result.bill is None else shown | result.bill.as_json()


def measured(result: Result, include: Collection[str]) -> dict[str, Any]:
    """What stands at an answer's end besides usage: timings, and what was asked for by `include`."""
    return {"timings": timings(result)} | included(result, include)


def included(result: Result, include: Collection[str]) -> dict[str, Any]:
    """What was asked for by `include`.

    receipt  all that `legato replay` needs, when saved as a file
    cache    as `generate --json` tells it: how much of the prompt was known, and why no more
    explain  as `legato explain --json` tells it: where the time went, and what would help
    Of several prompts both are lists, one entry a prompt.
    """
    shown: dict[str, Any] = {}
    told = [done.as_json() for done in result.completions] if {"receipt", "miss"} & set(include) else []
    if "receipt" in include:
        shown["receipt"] = _one_or_all([{k: each[k] for k in _RECEIPT if k in each} for each in told])
    if "miss" in include:
        shown["cache"] = _one_or_all([each["cache"] for each in told])
    if "explain" in include and result.setting is not None:
        whole = [done for done in result.completions if done.usage is not None]  # others the engine did not end
        shown["explain"] = _one_or_all([done.explain(result.setting).as_json() for done in whole])
    return shown


def _one_or_all(items: list[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    return items[0] if len(items) == 1 else items


def chat_logprobs(tokenizer: Tokenizer, found: list[TokenLogprobs], as_ids: bool) -> list[dict[str, Any]]:
    """`content` of a message's logprobs."""
    return [
        _chat_token(tokenizer, t.token_id, t.logprob, as_ids)
        | {"top_logprobs": [_chat_token(tokenizer, i, p, as_ids) for i, p in t.top]}
        for t in found
    ]


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float, as_ids: bool) -> dict[str, Any]:
    name = f"token_id:{token_id}" if as_ids else tokenizer.token_text(token_id)
    return {"token": name, "logprob": max(logprob, -9999.0), "bytes": list(tokenizer.token_bytes(token_id))}


def token_name(tokenizer: Tokenizer, token_id: int, as_ids: bool) -> str:
    """A token as the keys of a text's logprobs spell it: part of a character is shown by its bytes."""
    if as_ids:
        return f"token_id:{token_id}"
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in data)


class TextLogprobs:
    """A text completion's logprobs object, growing: offsets count characters from the text's begin.

    skip_special  control tokens are no part of the text
    """

    def __init__(self, tokenizer: Tokenizer, as_ids: bool, skip_special: bool = True) -> None:
        self._tokenizer, self._as_ids, self._skip_special = tokenizer, as_ids, skip_special
        self._offset = 0
        self._held = b""
        self.empty()

    def empty(self) -> None:
        self.tokens: list[str] = []
        self.token_logprobs: list[float | None] = []
        self.top_logprobs: list[dict[str, float] | None] = []
        self.text_offset: list[int] = []

    def first(self, token_id: int) -> None:
        """A prompt's first token, which nothing predicts."""
        self._place(token_id)
        self.token_logprobs.append(None)
        self.top_logprobs.append(None)

    def add(self, found: list[TokenLogprobs]) -> None:
        for t in found:
            self._place(t.token_id)
            self.token_logprobs.append(t.logprob)
            self.top_logprobs.append({token_name(self._tokenizer, i, self._as_ids): p for i, p in t.top} | self._own(t))

    def _own(self, t: TokenLogprobs) -> dict[str, float]:
        """The chosen token stands among the likeliest even when it is none of them."""
        return {token_name(self._tokenizer, t.token_id, self._as_ids): t.logprob} if t.top else {}

    def _place(self, token_id: int) -> None:
        self.tokens.append(token_name(self._tokenizer, token_id, self._as_ids))
        self.text_offset.append(self._offset)
        unseen = self._skip_special and self._tokenizer.is_special(token_id)
        data = self._held + (b"" if unseen else self._tokenizer.token_bytes(token_id))
        whole = data.decode("utf-8", "ignore")
        self._held = data[len(whole.encode()) :] if len(data) - len(whole.encode()) < 4 else b""
        self._offset += len(whole)

    def take(self) -> dict[str, Any]:
        """What was added since the last call."""
        taken = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.empty()
        return taken


def prompt_logprobs(
    tokenizer: Tokenizer, found: list[TokenLogprobs] | None
) -> list[dict[str, dict[str, Any]] | None] | None:
    """One entry a prompt token: ids to logprob, rank and text; None for the first."""
    if found is None:
        return None
    out: list[dict[str, dict[str, Any]] | None] = [None]
    for t in found:
        entry = {
            str(i): {"logprob": p, "rank": rank, "decoded_token": tokenizer.token_text(i)}
            for rank, (i, p) in enumerate(t.top, 1)
        }
        own = {"logprob": t.logprob, "rank": t.rank, "decoded_token": tokenizer.token_text(t.token_id)}
        out.append(entry | {str(t.token_id): own})
    return out
