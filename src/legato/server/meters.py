"""`Meters`: what is counted while serving, at less than a microsecond a token.

Knows: histograms, and what each moment of a request adds to which. Does not know: names in any system, HTTP.

Everything is added on the event loop, so nothing is locked. Times are seconds of the service's clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from legato.core.events import Event, Usage
from legato.core.miss import MissCause
from legato.core.sequence import FinishReason
from legato.errors import CapacityError, EngineAwayError, LegatoError, OverloadedError
from legato.measure.ledger import StepRecord

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
TOKEN_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
LAG_SECONDS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
BYTES = (1e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11)
TOKENS = (1.0, 8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 32768.0, 131072.0)
ANSWERS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
NO_ROUTE = "none"
REFUSALS = ("queue", "key", "deadline", "length", "away", "invalid")


class Histogram:
    """Counts by upper bound, the last one without; and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Meters:
    """All that one server has counted.

    itl         between two pieces of one answer, as they reach the event loop
    working     prefill and decode together
    choices     answers that one prompt asked for; allowed: the most tokens that each of them may have
    refusals    requests that were turned away: no room in the queue or for this key, a deadline that cannot be met,
                more tokens than fit, no engine at the moment, or not sound
    step_tokens, read_bytes, wall_share  of single steps: those seen when somebody looked, a few times a second
    """

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {(NO_ROUTE, "4xx"): 0}
        self.answers = dict.fromkeys(FinishReason, 0)
        self.misses = dict.fromkeys(MissCause, 0)
        self.refusals = dict.fromkeys(REFUSALS, 0)
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.queue, self.ttft, self.prefill = Histogram(SECONDS), Histogram(SECONDS), Histogram(SECONDS)
        self.decode, self.working, self.whole = Histogram(SECONDS), Histogram(SECONDS), Histogram(SECONDS)
        self.itl, self.tpot = Histogram(TOKEN_SECONDS), Histogram(TOKEN_SECONDS)
        self.prompt_sizes, self.answer_sizes, self.allowed = Histogram(TOKENS), Histogram(TOKENS), Histogram(TOKENS)
        self.choices = Histogram(ANSWERS)
        self.lag = Histogram(LAG_SECONDS)
        self.step_tokens = Histogram(TOKENS)
        self.read_bytes, self.wall_share = Histogram(BYTES), Histogram(SHARES)
        self._last: dict[int, float] = {}
        self._seen = 0.0

    def request(self, path: str, status: int) -> None:
        """One response. `path` is a route's own, never what a client sent."""
        kind = "gone" if status == 499 else f"{status // 100}xx" if 100 <= status < 600 else "none"
        key = path, kind
        self.requests[key] = self.requests.get(key, 0) + 1

    def refuse(self, error: LegatoError) -> None:
        """A prompt that was not admitted."""
        reason = "invalid"
        if isinstance(error, OverloadedError):
            reason = error.reason
        elif isinstance(error, CapacityError):
            reason = "length"
        elif isinstance(error, EngineAwayError) or getattr(error, "status", 0) == 503:
            reason = "away"
        self.refusals[reason] += 1

    def asked(self, answers: int, tokens: int) -> None:
        """A prompt that was admitted, with so many answers of so many tokens at most."""
        self.choices.add(answers)
        self.allowed.add(tokens)

    def step(self, events: Sequence[Event], now: float) -> None:
        """What one step told. Answers that waited equally long, as all of a batch did, are added at once."""
        last = self._last
        waits: dict[float, int] = {}
        for event in events:
            if event.token_ids:
                before = last.get(event.seq_id)
                if before is not None:
                    waits[before] = waits.get(before, 0) + 1
                last[event.seq_id] = now
            if event.finish_reason is not None:
                last.pop(event.seq_id, None)
                self.answers[event.finish_reason] += 1
                if event.usage is not None:
                    self._ended(event.index, event.usage)
        for before, times in waits.items():
            self.itl.add(now - before, times)

    def forget(self) -> None:
        """The engine has ended: no answer goes on."""
        self._last.clear()

    def look(self, records: Sequence[StepRecord], weight_bytes: int, kv_bytes_per_token: int, read_gb_s: float) -> None:
        """The latest steps. Those that only made tokens are held against the time that reading takes."""
        for record in records:
            if record.started <= self._seen:
                continue
            self._seen = record.started
            nbytes = weight_bytes + kv_bytes_per_token * record.kv_tokens
            self.read_bytes.add(nbytes)
            self.step_tokens.add(record.prompt_tokens + record.decode_tokens + record.draft_tokens)
            if not record.prompt_tokens and record.seconds > 0:
                self.wall_share.add(nbytes / (1e9 * read_gb_s) / record.seconds)

    def _ended(self, index: int, usage: Usage) -> None:
        marks = usage.marks
        self.output_tokens += usage.num_output_tokens
        self.answer_sizes.add(usage.num_output_tokens)
        if index == 0:
            self.prompt_tokens += usage.num_prompt_tokens
            self.cached_tokens += usage.num_cached_tokens
            self.prompt_sizes.add(usage.num_prompt_tokens)
            if usage.miss is not None:
                self.misses[usage.miss.cause] += 1
        arrived, scheduled, first = marks.get("arrived"), marks.get("scheduled"), marks.get("first_token")
        finished = marks.get("finished")
        if arrived is not None and scheduled is not None:
            self.queue.add(scheduled - arrived)
        if arrived is not None and finished is not None:
            self.whole.add(finished - arrived)
        if arrived is None or scheduled is None or first is None:
            return
        self.ttft.add(first - arrived)
        self.prefill.add(first - scheduled)
        if finished is not None:
            self.decode.add(finished - first)
            self.working.add(finished - scheduled)
            if usage.num_output_tokens > 1:
                self.tpot.add((finished - first) / (usage.num_output_tokens - 1))
