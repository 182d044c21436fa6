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


def check_batches(llm: LLM, batches: Sequence[int], depth: int, decode: int) -> None:
    """Raises `UsageError` for what cannot run, before any time is spent."""
    parts, most = llm.parts, max(batches)
    length = _asked(llm, most, depth, decode) + depth
    if length > llm.context_length:
        raise UsageError(
            f"depth {depth} + {length - depth} tokens to decode are more than the context of {llm.context_length} "
            "tokens; lower --depth or --decode"
        )
    pages = -(-length // parts.config.page_size) * most
    if pages > parts.kv_plan.num_pages:
        needed, there = pages * parts.kv_plan.page_bytes / 1e9, parts.kv_plan.total_bytes / 1e9
        raise UsageError(
            f"{most} streams of {length} tokens need {needed:.2f} GB of cache, {there:.2f} GB are there; lower --batch "
            "or --depth, or raise --kv-memory"
        )


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
