"""What every step carried and where its time went, in constant memory.

Knows: plans, results, and laps of a clock that is handed in. Does not know: how anything is done, whose tokens.

    with ledger.step() as lap:
        plan = ...;      lap("schedule")      seconds since the step began, or since the last lap
        results = ...;   lap("run")
        lap.count(plan, results)

The last `keep` steps are kept one by one, all steps as one sum, which grows when whoever keeps the ledger has leisure
for it. A step left by an exception is not recorded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from legato.core.plan import Plan, SliceResult


@dataclass(slots=True)
class StepRecord:
    """One step, or the sum of many (then `num_steps` > 1).

    started        clock reading at its begin (of the first step, in a sum)
    seconds        its whole duration; `laps` are its named parts
    decode_tokens  rows that each were one stream's next token
    draft_tokens   rows that verified a guess, of which `accepted_tokens` were right
    prompt_tokens  all other rows: prompts, and what preemption or naive decoding computes again
    logit_rows     rows that went through the output head
    kv_tokens      keys and values read, a sequence's counted once: sum over slices of their end
    visited        positions that all rows looked at: sum over rows of position + 1
    output_tokens  tokens that came of it
    predicted      seconds that it was expected to take, by what earlier steps had taught
    foreseen       the same before any step was taken: by the machine's calibration, if it has one
    device         of its seconds, the device's own; attention: of those, looking back. 0 where nobody tells
    """

    started: float = 0.0
    seconds: float = 0.0
    num_steps: int = 0
    num_seqs: int = 0
    decode_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    prompt_tokens: int = 0
    logit_rows: int = 0
    kv_tokens: int = 0
    visited: int = 0
    output_tokens: int = 0
    predicted: float = 0.0
    foreseen: float = 0.0
    device: float = 0.0
    attention: float = 0.0
    laps: dict[str, float] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Rows computed."""
        return self.decode_tokens + self.draft_tokens + self.prompt_tokens

    def add(self, other: StepRecord) -> None:
        """Becomes the sum of both."""
        if not self.num_steps:
            self.started = other.started
        self.seconds += other.seconds
        self.num_steps += other.num_steps
        self.num_seqs += other.num_seqs
        self.decode_tokens += other.decode_tokens
        self.draft_tokens += other.draft_tokens
        self.accepted_tokens += other.accepted_tokens
        self.prompt_tokens += other.prompt_tokens
        self.logit_rows += other.logit_rows
        self.kv_tokens += other.kv_tokens
        self.visited += other.visited
        self.output_tokens += other.output_tokens
        self.predicted += other.predicted
        self.foreseen += other.foreseen
        self.device += other.device
        self.attention += other.attention
        for name, seconds in other.laps.items():
            self.laps[name] = self.laps.get(name, 0.0) + seconds


class Lap:
    """One running step of a ledger: call it at the end of each part, and once with what the step carried."""

    __slots__ = ("_clock", "_last", "_ledger", "record")

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger, self._clock = ledger, clock

    def __enter__(self) -> Lap:
        self._last = self._clock()
        self.record = StepRecord(self._last, num_steps=1)
        return self

    def __call__(self, name: str) -> None:
        """The time since the last lap was spent on `name`."""
        now = self._clock()
        laps = self.record.laps
        laps[name] = laps.get(name, 0.0) + now - self._last
        self._last = now

    def count(self, plan: Plan, results: Sequence[SliceResult]) -> None:
        """What the step carried, and what came of it; `results` aligned with `plan.slices`."""
        record = self.record
        for piece, result in zip(plan.slices, results, strict=True):
            start, length, num_logits, num_out = piece.start, piece.length, piece.num_logits, len(result.token_ids)
            end = start + length
            if num_logits == length and start >= len(piece.seq.request.prompt_ids):
                record.decode_tokens += 1
                record.draft_tokens += length - 1
                record.accepted_tokens += max(0, num_out - 1)
            else:
                record.prompt_tokens += length
            record.logit_rows += num_logits
            record.kv_tokens += end
            record.visited += length * (start + end + 1) // 2
            record.output_tokens += num_out
        record.num_seqs += len(plan.slices)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.record.seconds = self._clock() - self.record.started
            self._ledger.close(self.record)


class Ledger:
    """The steps of one engine. One step at a time, from one thread.

    device_laps  nanoseconds so far by kind of operation: see `Executor.laps_ns`
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        keep: int = 512,
        device_laps: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self.recent: deque[StepRecord] = deque(maxlen=keep)
        self._sum = StepRecord()
        self._unsummed: list[StepRecord] = []
        self._lap = Lap(self, clock)
        self._device_laps, self._told = device_laps, (0, 0, 0)

    def step(self) -> Lap:
        """The next step, to be entered with `with`."""
        return self._lap

    @property
    def total(self) -> StepRecord:
        """The sum of all steps."""
        total = StepRecord()
        for record in (self._sum, *self._unsummed):
            total.add(record)
        return total

    def sum_up(self) -> None:
        """Adds what was recorded lately to the sum; records must not change any more."""
        for record in self._unsummed:
            self._sum.add(record)
        self._unsummed.clear()

    def close(self, record: StepRecord) -> None:
        """Takes a finished step in. Steps that carried nothing are left out."""
        if record.num_seqs:
            if self._device_laps is not None:
                self._ask_device(record, self._device_laps())
            self.recent.append(record)
            self._unsummed.append(record)

    def _ask_device(self, record: StepRecord, laps: Mapping[str, int]) -> None:
        """What of the step was the device's. Threads' waits for each other belong to all kinds alike."""
        now = sum(laps.values()), laps.get("attention", 0), laps.get("wait", 0)
        total, attention, waits = (a - b for a, b in zip(now, self._told, strict=True))
        self._told = now
        if 0 < total <= 1e9 * record.laps.get("run", 0.0):  # else somebody has used the device beside the steps
            record.device = 1e-9 * total
            record.attention = record.device * attention / max(1, total - waits)
