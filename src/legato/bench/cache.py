"""What a KV cache is worth: the same greedy answer with it and without it.

Knows: two engines on one model, seconds, statistics. Does not know: terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, stdev

from legato.bench.drive import Requests, drive
from legato.errors import UsageError
from legato.llm import LLM
from legato.measure import cost
from legato.weights.hub import Report


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of some runs: mean and sample standard deviation (0 for a single run)."""

    mean_s: float
    std_s: float


@dataclass(frozen=True, slots=True)
class CacheResult:
    """`ratio` is without over with. `first_difference`: the first of the new tokens on which the two disagree."""

    prompt_tokens: int
    tokens: int
    runs: int
    cached: Spread
    naive: Spread
    ratio: float
    first_difference: int | None


def bench_cache(llm: LLM, prompt_ids: list[int], tokens: int, runs: int, report: Report) -> CacheResult:
    """`tokens` greedy tokens after the prompt, `runs` times each way in turn; nothing is shared between runs."""
    if len(prompt_ids) + tokens > llm.context_length:
        raise UsageError(
            f"{len(prompt_ids)} prompt tokens + {tokens} new ones are more than the context of "
            f"{llm.context_length} tokens; lower --tokens"
        )
    requests, engines = Requests(llm.parts.vocab_size), (llm.parts.engine, llm.parts.naive_engine())
    seconds: tuple[list[float], list[float]] = ([], [])
    written: tuple[list[list[int]], list[list[int]]] = ([], [])
    rows = len(prompt_ids) + tokens - 1
    naive_rows = cost.decode_positions(len(prompt_ids), tokens)
    drive(engines[0], [requests.make(prompt_ids, 2)])
    report.start(runs * (rows + naive_rows), f"{tokens} tokens with and without cache, {runs} runs")
    try:
        for _ in range(runs):
            for way, engine in enumerate(engines):
                request = requests.make(prompt_ids, tokens)
                done = drive(engine, [request], lambda step: report.advance(step.num_tokens))
                seconds[way].append(done.seconds)
                written[way].append(done.token_ids[request.request_id])
    finally:
        report.done()
        llm.parts.engine.scheduler.cache.reset()  # the naive engine wrote over pages that it still lists
    cached, naive = _spread(seconds[0]), _spread(seconds[1])
    return CacheResult(
        prompt_tokens=len(prompt_ids),
        tokens=tokens,
        runs=runs,
        cached=cached,
        naive=naive,
        ratio=naive.mean_s / cached.mean_s,
        first_difference=first_difference(written[0] + written[1]),
    )


def first_difference(answers: list[list[int]]) -> int | None:
    """The first place where not all answers agree."""
    for place, tokens in enumerate(zip(*answers, strict=True)):
        if len(set(tokens)) > 1:
            return place
    return None


def _spread(seconds: list[float]) -> Spread:
    return Spread(mean(seconds), stdev(seconds) if len(seconds) > 1 else 0.0)
