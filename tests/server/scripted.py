"""A stream whose answer is written in advance, and golden files: for the exact bytes of each protocol.

Knows: what encoders ask of a stream. Does not know: any protocol.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from live import NAME

from legato.completion import Completion, Delta, Output, Receipt, Timings
from legato.core.request import SamplingParams
from legato.core.sequence import FinishReason
from legato.server.ask import Ask, Chat, Result
from legato.server.protocols import Encoder
from legato.server.reading import Part, Thought
from legato.server.service import AnswerStream
from legato.text.tools_parser import CallArguments, CallBegun, Content

GOLDEN = Path(__file__).parent.parent / "golden"
TURN: list[list[Part]] = [
    [Thought("Hm, ")],
    [Thought("weather.")],
    [Content('Let me look "it" up.\n')],
    [CallBegun(0, "call_1", "weather"), CallArguments(0, '{"city":')],
    [CallArguments(0, ' "Paris"}'), CallBegun(1, "call_2", "clock")],
    [CallArguments(1, "{}")],
]


@dataclass
class ScriptedReader:
    """Gives the next parts for each delta; all of them at once for one that ends the answer."""

    parts: list[list[Part]]
    reasoning_tokens: int = 0
    num_calls: int = 0
    given: int = field(default=0)

    def feed(self, delta: Delta) -> list[Part]:
        last = delta.finish_reason is not None and self.given == 0
        taken = self.parts[self.given :] if last else self.parts[self.given : self.given + 1]
        self.given += len(taken)
        found = [part for parts in taken for part in parts]
        self.reasoning_tokens += sum(isinstance(part, Thought) for part in found)
        self.num_calls += sum(isinstance(part, CallBegun) for part in found)
        return found


def scripted_stream(parts: Sequence[list[Part]]) -> AnswerStream:
    """What an encoder needs of a stream."""
    tokenizer = SimpleNamespace(token_text=lambda token_id: "x")
    made: Any = SimpleNamespace(
        ask=Ask((Chat([{"role": "user", "content": "?"}]),), SamplingParams(max_tokens=50)),
        service=SimpleNamespace(model=SimpleNamespace(name=NAME, tokenizer=tokenizer)),
        prompt_ids=lambda prompt: range(12),
        reader=lambda prompt=0: ScriptedReader(list(parts)),
    )
    return cast(AnswerStream, made)


def result_of(parts: Sequence[list[Part]], reason: FinishReason = FinishReason.STOP) -> Result:
    """What is known when a scripted answer has ended."""
    output = Output(0, "scripted", list(range(len(parts))), reason)
    timings = Timings(1.0, 20.0, 21.0, 50.0, 100.0, 400.0, 8)
    receipt = Receipt(NAME, "echo", 1, "slots", 1, "")
    return Result([Completion(list(range(12)), [output], timings, receipt)])


def streamed(encoder: Encoder, parts: Sequence[list[Part]], reason: FinishReason = FinishReason.STOP) -> bytes:
    """All bytes of a stream that ends well."""
    out = encoder.begin()
    for i in range(len(parts)):
        out += encoder.deltas([Delta("x", [i])])
    return out + encoder.end(result_of(parts, reason))


def masked(data: bytes) -> str:
    """Ids and times replaced: they differ from one answer to the next."""
    text = re.sub(r'"(msg|rs|fc|resp)_[0-9a-f]{24}"', r'"\1_ID"', data.decode())
    text = re.sub(r'"call_[0-9a-f]{24}"', '"call_ID"', text)
    text = re.sub(r'"created_at":"[^"]*"', '"created_at":"NOW"', text)
    text = re.sub(r'"(created_at|completed_at)":\d+', r'"\1":0', text)
    return re.sub(r'"timings":\{[^}]*\}', '"timings":{}', text)


def check_golden(name: str, data: bytes) -> None:
    """The masked bytes are those of the golden file; a file that is missing is written, for a person to read."""
    path, text = GOLDEN / name, masked(data)
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        raise AssertionError(f"{path.name} was missing and is written now: read it before you keep it")
    assert text == path.read_text(encoding="utf-8")
