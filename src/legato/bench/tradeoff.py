"""Latency against throughput: the same decode steps with more and more streams in them.

Knows: a batch's bytes and operations, steps' seconds. Does not know: terminals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from legato.bench.beside import Beside
from legato.bench.drive import Requests, drive
from legato.errors import UsageError
from legato.llm import LLM
from legato.measure.ledger import StepRecord
from legato.weights.hub import Report

MOST_STREAMS = 4096  # as of `max_seqs`


@dataclass(frozen=True, slots=True)
class TradeoffRow:
    """One number of streams, of equal depth, all decoding.

    depth            tokens of each stream's prompt; context: those of a stream in the middle of the measured steps
    itl_ms           the median step, which is each stream's time between two tokens; itl_p99_ms: of 100 steps the 99th
    out_tok_s        tokens of all streams over the steps' whole time; tok_s_each: of one stream
    bytes_per_step   weights once, each stream's keys and values
    wall_ms          reading them, or the products at their best rate, whichever is longer (see `Beside`)
    """

    batch: int
    depth: int
    context: int
    steps: int
    itl_ms: float
    itl_p99_ms: float
    out_tok_s: float
    tok_s_each: float
    bytes_per_step: int
    read_gb_s: float
    product_tops: float | None
    wall_ms: float
    wall_tok_s: float
    share_of_wall: float


def check_streams(batches: Sequence[int], rows_per_step: int) -> None:
    """Raises `UsageError` for more streams than one step can hold; needs no model."""
    most, largest = max(batches), min(MOST_STREAMS, rows_per_step)
    if most > largest:
        raise UsageError(f"--batch={most} is not allowed: at most {largest} streams share a step; lower --batch")


def check_batches(llm: LLM, batches: Sequence[int], depth: int, decode: int) -> None:
    """Raises `UsageError` for what cannot run, before any time is spent."""
    check_streams(batches, llm.config.max_step_tokens)
    parts, most = llm.parts, max(batches)
    length = _length(llm, most, depth, decode)
    if length > llm.context_length:
        least = {"--batch": (1, depth, decode), "--depth": (most, 0, decode), "--decode": (most, depth, 1)}
        helps = [name for name, less in least.items() if _length(llm, *less) <= llm.context_length]
        raise UsageError(
            f"{most} streams of {length} tokens each, {depth} of them before the first step, are more than the context "
            f"of {llm.context_length} tokens; lower {' or '.join(helps) or ' and '.join(least)}"
        )
    pages = -(-length // parts.config.page_size) * most
    if pages > parts.kv_plan.num_pages:
        needed, there = sizes(pages * parts.kv_plan.page_bytes, parts.kv_plan.total_bytes)
        raise UsageError(
            f"{most} streams of {length} tokens need {needed} of cache, {there} are there; lower --batch "
            "or --depth, or raise --kv-memory"
        )


def sizes(more: int, less: int) -> tuple[str, str]:
    """Two unequal numbers of bytes, in a unit and with as many digits as show both and that they differ."""
    unit, name = (1e9, "GB") if less >= 1e9 else (1e6, "MB") if less >= 1e6 else (1e3, "kB")
    digits = next(d for d in range(2, 10) if f"{more / unit:.{d}f}" != f"{less / unit:.{d}f}")
    return f"{more / unit:,.{digits}f} {name}", f"{less / unit:,.{digits}f} {name}"


def bench_tradeoff(llm: LLM, batches: Sequence[int], depth: int, decode: int, report: Report) -> Iterator[TradeoffRow]:
    """A row a batch: `decode` steps in which all of its streams take part. Needs max_seqs of the largest batch."""
    check_batches(llm, batches, depth, decode)
    requests, engine, prompt = Requests(llm.parts.vocab_size), llm.parts.engine, max(depth, 1)
    drive(engine, [requests.make(requests.tokens(8), 4)])
    with Beside(llm) as beside:
        for batch in batches:
            beside.measure(afresh=True)
            watch, asked = _Watch(batch, decode, report), _asked(llm, batch, depth, decode)
            report.start(batch * prompt + batch * decode, f"{batch} streams")
            try:
                drive(
                    engine, [requests.make(requests.tokens(prompt), asked) for _ in range(batch)], watch, watch.enough
                )
            finally:
                report.done()
            beside.measure()
            yield _row(batch, depth, watch.steps, beside)


def _length(llm: LLM, batch: int, depth: int, decode: int) -> int:
    """Tokens of a stream at its longest."""
    return max(depth, 1) + _asked(llm, batch, depth, decode)


def _asked(llm: LLM, batch: int, depth: int, decode: int) -> int:
    """Tokens that each stream asks for: it also writes while the prompts of others are still read."""
    return decode + 2 + 2 * (batch + batch * max(depth, 1) // llm.config.max_step_tokens)


class _Watch:
    """Keeps the steps in which all streams decode and nobody reads a prompt."""

    def __init__(self, batch: int, wanted: int, report: Report) -> None:
        self.steps: list[StepRecord] = []
        self._batch, self._wanted, self._report = batch, wanted, report

    def __call__(self, step: StepRecord) -> None:
        self._report.advance(step.num_tokens)
        if step.decode_tokens == self._batch and not step.prompt_tokens:
            self.steps.append(step)

    def enough(self) -> bool:
        return len(self.steps) >= self._wanted


def _row(batch: int, depth: int, steps: list[StepRecord], beside: Beside) -> TradeoffRow:
    if not steps:
        raise UsageError(f"{batch} streams never decoded together; raise --decode or lower --batch")
    seconds, context = [step.seconds for step in steps], steps[len(steps) // 2].kv_tokens // batch
    contexts = (context,) * batch
    itl, wall = median(seconds), beside.step_s(batch, batch, contexts)
    rate = batch * len(seconds) / sum(seconds)
    return TradeoffRow(
        batch=batch,
        depth=depth,
        context=context,
        steps=len(seconds),
        itl_ms=1e3 * itl,
        itl_p99_ms=1e3 * (quantiles(seconds, n=100, method="inclusive")[-1] if len(seconds) > 1 else itl),
        out_tok_s=rate,
        tok_s_each=rate / batch,
        bytes_per_step=beside.step_bytes(batch, batch, contexts),
        read_gb_s=beside.read_gb_s,
        product_tops=beside.tops,
        wall_ms=1e3 * wall,
        wall_tok_s=batch / wall,
        share_of_wall=wall / itl,
    )
