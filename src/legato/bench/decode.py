"""Decode speed by depth, beside the wall that memory sets.

Knows: what a decode step must read, steps' seconds. Does not know: terminals, how the wall's GB/s were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from legato.assemble import step_bits
from legato.bench.drive import Requests, drive
from legato.errors import UsageError
from legato.llm import LLM
from legato.measure import cost
from legato.weights.hub import Report


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One depth at batch 1.

    prefill_tok_s   prompt tokens over the time to the first token
    decode_ms       the median step after it; decode_tok_s: all those steps over their whole time
    bytes_per_step  weights once, and keys and values of the tokens in the middle of the run
    wall_ms         bytes_per_step at the machine's measured reading speed; share_of_wall: wall_ms / decode_ms
    """

    depth: int
    prefill_tok_s: float
    ttft_ms: float
    decode_ms: float
    decode_tok_s: float
    bytes_per_step: int
    wall_ms: float
    share_of_wall: float


def check_depths(depths: Sequence[int], decode: int, context_length: int) -> None:
    """Raises `UsageError` for a depth that cannot run, before any time is spent."""
    for depth in depths:
        if max(depth, 1) + decode + 1 > context_length:
            raise UsageError(
                f"depth {depth} + {decode + 1} tokens to decode are more than the context of {context_length} tokens; "
                "lower --depths or --decode"
            )


def bench_decode(llm: LLM, depths: Sequence[int], decode: int, read_gb_s: float, report: Report) -> Iterator[DecodeRow]:
    """A row a depth. Prompts are random tokens (one token at depth 0) that share nothing."""
    check_depths(depths, decode, llm.context_length)
    parts = llm.parts
    requests = Requests(parts.vocab_size)
    bits = step_bits(parts.config, parts.blueprint, parts.backend)
    drive(parts.engine, [requests.make(requests.tokens(8), 4)])
    for depth in depths:
        prompt = max(depth, 1)
        report.start(prompt + decode, f"depth {depth}")
        try:
            done = drive(
                parts.engine,
                [requests.make(requests.tokens(prompt), decode + 1)],
                lambda step: report.advance(step.num_tokens),
            )
        finally:
            report.done()
        first = len(done.steps) - decode
        prefill_s = sum(step.seconds for step in done.steps[:first])
        seconds = [step.seconds for step in done.steps[first:]]
        size = cost.decode_step_bytes(parts.spec, bits, parts.kv_format, prompt + (decode + 1) // 2)
        decode_ms, wall_ms = 1e3 * median(seconds), size / read_gb_s / 1e6
        yield DecodeRow(
            depth=depth,
            prefill_tok_s=prompt / prefill_s,
            ttft_ms=1e3 * prefill_s,
            decode_ms=decode_ms,
            decode_tok_s=decode / sum(seconds),
            bytes_per_step=size,
            wall_ms=wall_ms,
            share_of_wall=wall_ms / decode_ms,
        )
