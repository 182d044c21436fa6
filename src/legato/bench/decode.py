"""Decode speed by depth, beside the wall that memory sets.

Knows: what a decode step must read, steps' seconds. Does not know: terminals, how memory is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from legato.assemble import step_bits
from legato.bench.drive import Requests, drive
from legato.bench.walls import read_gb_s
from legato.errors import UsageError
from legato.llm import LLM
from legato.measure import cost
from legato.measure.ledger import StepRecord
from legato.weights.hub import Report


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One depth at batch 1.

    prefill_tok_s   prompt tokens over the time to the first token
    decode_ms       the median step after it; decode_tok_s: all those steps over their whole time
    bytes_per_step  weights once, and keys and values of the tokens in the middle of the run
    read_gb_s       the median of readings of memory right before and right after these steps, all threads
    wall_ms         bytes_per_step at that speed; share_of_wall: wall_ms / decode_ms
    host_share      of the steps' time, what was spent outside the backend's own call: scheduling, packing, sampling
    """

    depth: int
    prefill_tok_s: float
    ttft_ms: float
    decode_ms: float
    decode_tok_s: float
    bytes_per_step: int
    read_gb_s: float
    wall_ms: float
    share_of_wall: float
    host_share: float


def fits(depth: int, decode: int, context_length: int) -> bool:
    """Whether `decode` steps can be timed after `depth` tokens."""
    return max(depth, 1) + decode + 1 <= context_length


def check_depths(depths: Sequence[int], decode: int, context_length: int) -> None:
    """Raises `UsageError` for a depth that cannot run, before any time is spent."""
    for depth in depths:
        if not fits(depth, decode, context_length):
            raise UsageError(
                f"depth {depth} + {decode + 1} tokens to decode are more than the context of {context_length} tokens; "
                "lower --depths or --decode"
            )


def bench_decode(
    llm: LLM, depths: Sequence[int], decode: int, report: Report, read_seconds: float = 0.25
) -> Iterator[DecodeRow]:
    """A row a depth. Prompts are random tokens (one token at depth 0) that share nothing."""
    check_depths(depths, decode, llm.context_length)
    parts = llm.parts
    requests = Requests(parts.vocab_size)
    bits = step_bits(parts.config, parts.blueprint, parts.backend)
    drive(parts.engine, [requests.make(requests.tokens(8), 4)])
    for depth in depths:
        prompt = max(depth, 1)
        watch = _Watch(llm, prompt, read_seconds, report)
        report.start(prompt + decode, f"depth {depth}")
        try:
            done = drive(parts.engine, [requests.make(requests.tokens(prompt), decode + 1)], watch)
        finally:
            report.done()
        watch.read()
        first = len(done.steps) - decode
        prefill_s = sum(step.seconds for step in done.steps[:first])
        seconds = [step.seconds for step in done.steps[first:]]
        size = cost.decode_step_bytes(parts.spec, bits, parts.kv_format, prompt + (decode + 1) // 2)
        read = median(watch.rates)
        decode_ms, wall_ms = 1e3 * median(seconds), size / read / 1e6
        yield DecodeRow(
            depth=depth,
            prefill_tok_s=prompt / prefill_s,
            ttft_ms=1e3 * prefill_s,
            decode_ms=decode_ms,
            decode_tok_s=decode / sum(seconds),
            bytes_per_step=size,
            read_gb_s=read,
            wall_ms=wall_ms,
            share_of_wall=wall_ms / decode_ms,
            host_share=max(0.0, 1 - watch.backend_s / sum(seconds)),
        )


class _Watch:
    """Follows a run: progress, the backend's own time in the decode steps, and memory's speed before and after them.

    Memory is read between the last step of the prompt and the first one of the answer, outside any step's time, so
    that the wall and the steps are of the same seconds.
    """

    def __init__(self, llm: LLM, prompt: int, read_seconds: float, report: Report) -> None:
        self.rates: list[float] = []
        self._llm, self._prompt, self._read_seconds, self._report = llm, prompt, read_seconds, report
        self._laps = 0

    def __call__(self, step: StepRecord) -> None:
        self._report.advance(step.num_tokens)
        if self._prompt > 0:
            self._prompt -= step.num_tokens
            if self._prompt <= 0:
                self.read()
                self._laps = self._laps_ns()

    @property
    def backend_s(self) -> float:
        return (self._laps_ns() - self._laps) / 1e9

    def read(self) -> None:
        parts = self._llm.parts
        self.rates += read_gb_s(parts.backend, parts.executor.threads, self._read_seconds)

    def _laps_ns(self) -> int:
        return sum(self._llm.parts.executor.laps_ns().values())
