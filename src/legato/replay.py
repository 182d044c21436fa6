"""Receipts as files: what was asked and answered, and whether this machine answers the same.

Knows: the JSON of `generate --json` and `--save-receipt`, engines, the first difference. Does not know: terminals.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from legato.completion import Receipt
from legato.core.request import Grammar, GrammarKind, Request, SamplingParams
from legato.errors import RequestError, SessionError, UsageError
from legato.llm import LLM

_MOST_BYTES = 64 << 20
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Asked(msgspec.Struct, frozen=True):
    prompt_ids: list[int]
    params: dict[str, Any]


class _Output(msgspec.Struct, frozen=True):
    token_ids: list[_TokenId]
    finish_reason: str | None = None


class _File(msgspec.Struct, frozen=True):
    receipt: Receipt
    replay: _Asked
    token_ids: list[_TokenId]
    finish_reason: str | None = None
    outputs: list[_Output] | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """A receipt with what it is for: the prompt, the choices, and each answer's tokens."""

    receipt: Receipt
    prompt_ids: list[int]
    params: SamplingParams
    answers: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.answers))


@dataclass(frozen=True, slots=True)
class Difference:
    """The first one: token `index` of answer `answer` was `was` and is `now` (None: the answer ended before it)."""

    answer: int
    index: int
    was: int | None
    now: int | None


def read_receipt(path: Path) -> Recorded:
    """Raises `UsageError` naming what is wrong with the file."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give a file that --save-receipt wrote") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path}: is larger than {_MOST_BYTES} bytes; give a file that --save-receipt wrote")
    try:
        found = msgspec.json.decode(data, type=_File)
        params = _params(found.replay.params)
        Request("replay", tuple(found.replay.prompt_ids), params)
    except (msgspec.MsgspecError, RequestError, RecursionError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: is no receipt: {error}; give a file that --save-receipt wrote") from None
    outputs = found.outputs or [_Output(found.token_ids, found.finish_reason)]
    if len(outputs) != params.n:
        raise UsageError(f"{path}: is no receipt: {len(outputs)} answers where n is {params.n}")
    return Recorded(found.receipt, found.replay.prompt_ids, params, [output.token_ids for output in outputs])


def check_target(path: Path) -> None:
    """`UsageError` unless a receipt could be written there: asked before an answer is waited for."""
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        if path.exists() and not path.is_file():  # a device or a pipe
            return
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(f"--save-receipt={path}: {said}; give a file in a folder that can be written") from None


def write_receipt(path: Path, completion_json: dict[str, Any]) -> None:
    """Replaces the file at `path` as a whole; into a device or a pipe it just writes.

    completion_json  what `Completion.as_json` gives
    """
    text = msgspec.json.format(msgspec.json.encode(completion_json), indent=1) + b"\n"
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            target.write_bytes(text)
        else:
            replace_file(target, text)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise SessionError(f"{path}: cannot be written: {said}; give another --save-receipt") from None


def replace_file(target: Path, text: bytes) -> None:
    """Whatever happens, the file is what it was or all of `text`. Raises `OSError`."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text)
        os.replace(temporary, target)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replay(llm: LLM, recorded: Recorded) -> Difference | None:
    """Answers again, as far as the recorded answers go. None: the same tokens.

    Raises `RequestError` for what this model cannot have been asked, or cannot have answered.
    """
    longest = max(map(len, recorded.answers))
    if longest == 0:
        return None
    worst = max(token for answer in recorded.answers for token in answer)
    if worst >= llm.parts.vocab_size:
        raise RequestError("token_ids", worst, f"token ids from 0 to {llm.parts.vocab_size - 1}")
    params = replace(
        recorded.params,
        max_tokens=longest,
        min_tokens=min(recorded.params.min_tokens, longest),
        logprobs=None,
        prompt_logprobs=None,
    )
    [done] = llm.generate([recorded.prompt_ids], params)
    for output, was in zip(done.outputs, recorded.answers, strict=True):
        now = output.token_ids[: len(was)]
        if now != was:
            index = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), len(now))
            return Difference(output.index, index, was[index], now[index] if index < len(now) else None)
    return None


def check_same_model(recorded: Recorded, digest: str, name: str) -> None:
    """`UsageError` unless the files are those of the receipt."""
    if digest != recorded.receipt.digest:
        raise UsageError(
            f"{name} is not the model of this receipt ({recorded.receipt.model}): its files have digest {digest}, "
            f"not {recorded.receipt.digest}; give the right one with -m"
        )


def _params(given: dict[str, Any]) -> SamplingParams:
    known = {f.name for f in fields(SamplingParams)}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise RequestError("params", unknown[0], f"one of {', '.join(sorted(known))}")
    values = dict(given)
    grammar = values.pop("grammar", None)
    if isinstance(grammar, dict):
        values["grammar"] = Grammar(GrammarKind(str(grammar.get("kind"))), grammar.get("text", ""))
    biases = values.get("logit_bias")
    if isinstance(biases, dict):
        if not all(key.isdecimal() for key in biases):
            raise RequestError("logit_bias", next(k for k in biases if not k.isdecimal()), "token ids from 0")
        values["logit_bias"] = {int(key): bias for key, bias in biases.items()}
    return SamplingParams(**values)
