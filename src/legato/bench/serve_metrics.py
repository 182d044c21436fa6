"""From each request's time stamps to the figures of a load: TTFT, ITL, TPOT, E2E, goodput.

Knows: the definitions below, percentiles. Does not know: how requests were made or sent.

The same words mean different things in different tools, so these formulas stand in every table (`FORMULAS`).
Percentiles are interpolated linearly between the two nearest ranks. Only requests that ended well are counted in
latencies; tokens of the others count in nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from legato.measure.percentiles import percentile

FORMULAS = {
    "ttft": "sent -> first chunk with text",
    "itl": "every gap between chunks with text, of all requests pooled",
    "tpot": "(e2e - ttft) / (tokens - 1), a request",
    "e2e": "sent -> last event of the answer",
    "out_tok_s": "tokens of whole answers / (first request sent -> last whole answer's end)",
    "goodput": "requests a second that met every limit given",
}


QUANTILES = (0, 1, *range(5, 96, 5), 99, 100)


@dataclass(slots=True)
class Trace:
    """One request, in seconds of one clock.

    due       when it should have been sent; None: as soon as a place was free
    stamps    when each chunk with text came
    tokens    of its answer: the server's count, or the chunks' (`counted` says which)
    error     the kind of what went wrong; None: it ended well
    """

    index: int
    due: float | None = None
    sent: float = 0.0
    stamps: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    counted: str = "usage"
    prompt_tokens: int | None = None
    error: str | None = None
    problem: str = ""

    @property
    def ttft_ms(self) -> float:
        return 1e3 * ((self.stamps[0] if self.stamps else self.ended) - self.sent)

    @property
    def e2e_ms(self) -> float:
        return 1e3 * (self.ended - self.sent)

    @property
    def tpot_ms(self) -> float:
        """0 for an answer of one token: it has no pace."""
        return (self.e2e_ms - self.ttft_ms) / (self.tokens - 1) if self.tokens > 1 else 0.0

    @property
    def gaps_ms(self) -> list[float]:
        return [1e3 * (late - early) for early, late in zip(self.stamps, self.stamps[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a good request keeps to, in milliseconds; None: no limit. `itl_ms` holds for its longest gap."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: float | None = None

    def met(self, trace: Trace) -> bool:
        return all(
            limit is None or value <= limit
            for limit, value in (
                (self.ttft_ms, trace.ttft_ms),
                (self.tpot_ms, trace.tpot_ms),
                (self.itl_ms, max(trace.gaps_ms, default=0.0)),
            )
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """Of some values: mean, percentiles, largest. All 0 when there are none."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls()
        ranked = sorted(values)
        middle, high, tail = (percentile(ranked, q) for q in (50, 90, 99))
        return cls(sum(ranked) / len(ranked), middle, high, tail, ranked[-1])


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One level of load. Latencies in milliseconds.

    requests       that ended, well or not; `asked` is how many there should have been, `completed` had whole answers
    seconds        from the first request sent to the last whole answer's end
    good           of them, those that met every limit
    prompt_tokens  mean by the server's count; None: it told none
    counted        by what tokens were counted: "usage", "chunks", or "usage and chunks"
    tokens_per_chunk  1: each chunk is a token, so a gap is one token's
    quantiles      of TTFT and of gaps, at the percents of `QUANTILES`
    late_ms        of open arrivals: how much later than due a request was sent
    errors         kinds and how often; `problems` has the first words of each
    stopped        why the run ended early; None: it did not
    """

    asked: int
    requests: int
    completed: int
    seconds: float
    concurrency: int | None
    rate: float | None
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread
    out_tok_s: float
    total_tok_s: float | None
    request_s: float
    goodput: float
    good: int
    output_tokens: int
    prompt_tokens: float | None
    counted: str
    tokens_per_chunk: float
    quantiles: dict[str, list[float]]
    late_ms: Spread | None
    errors: dict[str, int]
    problems: dict[str, str]
    stopped: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    traces: Sequence[Trace],
    limits: Limits,
    *,
    asked: int,
    concurrency: int | None = None,
    rate: float | None = None,
    stopped: str | None = None,
) -> LoadResult:
    """The figures of the requests that ended."""
    done = [trace for trace in traces if trace.error is None]
    failed = [trace for trace in traces if trace.error is not None]
    seconds = max(t.ended for t in done) - min(t.sent for t in traces) if done else 0.0
    tokens, chunks = sum(t.tokens for t in done), sum(len(t.stamps) for t in done)
    read = [t.prompt_tokens for t in done if t.prompt_tokens is not None]
    good = sum(limits.met(trace) for trace in done)
    ttfts, gaps = sorted(t.ttft_ms for t in done), sorted(gap for t in done for gap in t.gaps_ms)
    late = [1e3 * (t.sent - t.due) for t in traces if t.due is not None]

    def a_second(count: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    return LoadResult(
        asked=asked,
        requests=len(traces),
        completed=len(done),
        seconds=seconds,
        concurrency=concurrency,
        rate=rate,
        ttft_ms=Spread.of(ttfts),
        itl_ms=Spread.of(gaps),
        tpot_ms=Spread.of([t.tpot_ms for t in done if t.tokens > 1]),
        e2e_ms=Spread.of([t.e2e_ms for t in done]),
        out_tok_s=a_second(tokens),
        total_tok_s=a_second(tokens + sum(read)) if done and len(read) == len(done) else None,
        request_s=a_second(len(done)),
        goodput=a_second(good),
        good=good,
        output_tokens=tokens,
        prompt_tokens=sum(read) / len(read) if read else None,
        counted=" and ".join(sorted({t.counted for t in done}, reverse=True)) or "usage",
        tokens_per_chunk=tokens / chunks if chunks else 0.0,
        quantiles={"ttft_ms": _curve(ttfts), "itl_ms": _curve(gaps)},
        late_ms=Spread.of(late) if late else None,
        errors=dict(Counter(t.error for t in failed if t.error is not None)),
        problems={t.error: t.problem for t in reversed(failed) if t.error is not None},
        stopped=stopped,
    )


def _curve(ranked: Sequence[float]) -> list[float]:
    return [percentile(ranked, q) for q in QUANTILES] if ranked else []
