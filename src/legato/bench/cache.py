"""What a KV cache is worth: the same greedy answer with it and without it.

Knows: two engines on one model, seconds, statistics. Does not know: terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from legato.bench.beside import Beside
from legato.bench.drive import Requests, drive
from legato.bench.fits import Fit, costs_of, fit_rising
from legato.errors import UsageError
from legato.llm import LLM
from legato.measure import cost
from legato.measure.ledger import StepRecord
from legato.weights.hub import Report

POINTS = 100  # of a curve that are kept
NEW, NAIVE = 0, 1  # the two ways, as places in pairs: only what is new, or everything again


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of some runs: mean and sample standard deviation (0 for a single run)."""

    mean_s: float
    std_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds until so many tokens were written, each way; `wall`: what this machine allows at best (see `Beside`).

    ratio_by_sums  what the closed-form sums say, once the first half of the tokens has told what each count costs
    """

    tokens: int
    cached: Spread
    naive: Spread
    ratio: float
    ratio_by_sums: float
    cached_wall_s: float
    naive_wall_s: float


@dataclass(frozen=True, slots=True)
class CacheResult:
    """`ratio` is without over with. `first_difference`: the first of the new tokens on which the two disagree.

    tokens, runs   as far as both ways came
    cached_fit     a line through the seconds with cache against tokens; naive_fit: a parabola through those without
    positions      computed without cache, and with it
    """

    prompt_tokens: int
    tokens: int
    runs: int
    cached: Spread
    naive: Spread
    ratio: float
    first_difference: int | None
    cached_fit: Fit
    naive_fit: Fit
    positions: tuple[int, int]
    read_gb_s: float
    product_tops: float | None
    curve: tuple[Point, ...]


@dataclass(slots=True)
class CacheRuns:
    """What has been measured: for each way and run, seconds from the first step's begin to each new token."""

    seconds: tuple[list[list[float]], list[list[float]]] = field(default_factory=lambda: ([], []))
    answers: list[list[int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How far both ways came."""
        return min(max((len(run) for run in way), default=0) for way in self.seconds)

    def spread(self, way: int, tokens: int) -> Spread:
        """Of the runs that came so far."""
        return _spread([run[tokens - 1] for run in self.seconds[way] if len(run) >= tokens])


def check_cache(llm: LLM, prompt: int, tokens: int) -> None:
    """Raises `UsageError` for what does not fit the context."""
    if prompt + tokens > llm.context_length:
        raise UsageError(
            f"{prompt} prompt tokens + {tokens} new ones are more than the context of "
            f"{llm.context_length} tokens; lower --tokens"
        )


def bench_cache(
    llm: LLM,
    prompt_ids: list[int],
    tokens: int,
    runs: int,
    report: Report,
    tell: Callable[[CacheResult], None] = lambda result: None,
) -> CacheResult:
    """`tokens` greedy tokens after the prompt, `runs` times each way in turn; nothing is shared between runs.

    tell  called with what there is when an error or Ctrl-C ends it early, if both ways wrote a token
    """
    check_cache(llm, len(prompt_ids), tokens)
    requests, engines = Requests(llm.parts.vocab_size), (llm.parts.engine, llm.parts.naive_engine())
    rows = len(prompt_ids) + tokens - 1
    naive_rows = cost.decode_positions(len(prompt_ids), tokens)
    drive(engines[NEW], [requests.make(prompt_ids, 2)])
    found = CacheRuns()
    report.start(runs * (rows + naive_rows), f"{tokens} tokens with and without cache, {runs} runs")
    with Beside(llm) as beside:
        try:
            for _ in range(runs):
                for way, engine in enumerate(engines):
                    beside.measure()
                    request, watch = requests.make(prompt_ids, tokens), _Watch(report)
                    found.seconds[way].append(watch.seconds)
                    done = drive(engine, [request], watch)
                    found.answers.append(done.token_ids[request.request_id])
        except BaseException:
            if found.tokens:
                tell(_result(len(prompt_ids), found, beside))
            raise
        finally:
            report.done()
            llm.parts.engine.scheduler.cache.reset()  # the naive engine wrote over pages that it still lists
        beside.measure()
        return _result(len(prompt_ids), found, beside)


class _Watch:
    """Notes when each token of one request was there."""

    def __init__(self, report: Report) -> None:
        self.seconds: list[float] = []
        self._report, self._started = report, 0.0

    def __call__(self, step: StepRecord) -> None:
        self._report.advance(step.num_tokens)
        self._started = self._started or step.started
        self.seconds += [step.started + step.seconds - self._started] * step.output_tokens


def _result(prompt: int, found: CacheRuns, beside: Beside) -> CacheResult:
    tokens = found.tokens
    cached, naive = found.spread(NEW, tokens), found.spread(NAIVE, tokens)
    curve = _curve(prompt, found, beside)
    lengths = [point.tokens for point in curve]
    return CacheResult(
        prompt_tokens=prompt,
        tokens=tokens,
        runs=min(sum(len(run) >= tokens for run in way) for way in found.seconds),
        cached=cached,
        naive=naive,
        ratio=naive.mean_s / cached.mean_s,
        first_difference=first_difference(found.answers),
        cached_fit=fit_rising(lengths, [point.cached.mean_s for point in curve], 1),
        naive_fit=fit_rising(lengths, [point.naive.mean_s for point in curve], 2),
        positions=(cost.decode_positions(prompt, tokens), prompt + tokens - 1),
        read_gb_s=beside.read_gb_s,
        product_tops=beside.tops,
        curve=tuple(curve),
    )


def _curve(prompt: int, found: CacheRuns, beside: Beside) -> list[Point]:
    tokens = found.tokens
    lengths = [*range(tokens, 0, -tokens // POINTS)][::-1]
    spreads = [(found.spread(NEW, n), found.spread(NAIVE, n)) for n in lengths]
    ratios = ratios_by_sums(prompt, lengths, [s[NEW].mean_s for s in spreads], [s[NAIVE].mean_s for s in spreads])
    walls = _walls(prompt, tokens, beside)
    return [
        Point(n, cached, naive, naive.mean_s / cached.mean_s, ratio, *(wall[n - 1] for wall in walls))
        for n, (cached, naive), ratio in zip(lengths, spreads, ratios, strict=True)
    ]


def ratios_by_sums(prompt: int, lengths: Sequence[int], cached: Sequence[float], naive: Sequence[float]) -> list[float]:
    """Seconds without over seconds with, as sums of steps, rows and comparisons say at each length.

    What a step, a row and a comparison cost is fitted to the first half of the lengths (to all, when they are few);
    the sums then say the rest. Each way has its own costs, since a row alone and a row among hundreds differ.
    """
    told = len(lengths) if len(lengths) < 8 else len(lengths) // 2

    def said(counts: list[tuple[float, ...]], seconds: Sequence[float]) -> list[float]:
        costs = costs_of(counts[:told], seconds[:told])
        return [sum(c * x for c, x in zip(costs, row, strict=True)) for row in counts]

    within = said([_counts_cached(prompt, n) for n in lengths], cached)
    without = said([_counts_naive(prompt, n) for n in lengths], naive)
    return [b / a if a > 0 else 0.0 for a, b in zip(within, without, strict=True)]


def _counts_cached(prompt: int, tokens: int) -> tuple[float, ...]:
    """Once the prompt; then steps of one row, which look back at everything before them."""
    return 1, tokens - 1, cost.decode_positions(prompt + 1, tokens - 1)


def _counts_naive(prompt: int, tokens: int) -> tuple[float, ...]:
    """Steps; rows, all of a step's again; comparisons of those rows with what is before each."""
    comparisons = sum(cost.attention_comparisons(prompt + k) for k in range(tokens))
    return tokens, cost.decode_positions(prompt, tokens), comparisons


def _walls(prompt: int, tokens: int, beside: Beside) -> tuple[list[float], list[float]]:
    """Least seconds until each token, with cache and without."""
    cached, naive = [beside.step_s(prompt, 1, (prompt,))], [beside.step_s(prompt, 1, (prompt,))]
    for context in range(prompt + 1, prompt + tokens):
        cached.append(cached[-1] + beside.step_s(1, 1, (context,)))
        naive.append(naive[-1] + beside.step_s(context, 1, (context,)))
    return cached, naive


def first_difference(answers: list[list[int]]) -> int | None:
    """The first place where not all answers agree."""
    for place, tokens in enumerate(zip(*answers, strict=True)):
        if len(set(tokens)) > 1:
            return place
    return None


def _spread(seconds: list[float]) -> Spread:
    return Spread(mean(seconds), stdev(seconds) if len(seconds) > 1 else 0.0)
