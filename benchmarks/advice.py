#!/usr/bin/env python3
"""Advice checked by doing it: what `legato explain` promised, against what was saved when it was followed.

    python benchmarks/advice.py --save benchmarks/
    python benchmarks/advice.py --pairs 20 --only shorter_prompt,max_tokens

Each kind is a pair of requests, as they were and as advised, run in turn so that the machine's mood is the same for
both. Promised is the median over the first ones' advice, got is the median difference of neighbours. Prompts are random
tokens, new each time, but where a cached one is the point. `threads` needs `legato calibrate`, with --threads 1 too.

Knows: requests in pairs, medians. Does not know: how advice is computed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from legato import LLM, SamplingParams
from legato.bench.record import save_record
from legato.measure.explain import Explanation

WITHIN = 0.2
SHORTER = 100
Ask = Callable[[], Explanation]


@dataclass(frozen=True, slots=True)
class Checked:
    """promised_ms and got_ms are medians over `pairs`; the two quartiles are those of what was got."""

    kind: str
    advice: str
    before_ms: float
    promised_ms: float
    got_ms: float
    got_low_ms: float
    got_high_ms: float
    off: float | None
    within: bool
    pairs: int


class Prompts:
    """Token ids that were never asked before."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size, self._random = vocab_size, random.Random(seed)

    def make(self, count: int) -> list[int]:
        return [self._random.randrange(100, self._vocab_size) for _ in range(count)]


def asker(llm: LLM, tokens: int) -> Callable[[list[int]], Explanation]:
    """Asks for exactly `tokens` greedy tokens and explains the answer."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return lambda ids: llm.explain(ids, params)


@dataclass(frozen=True, slots=True)
class Effort:
    """How many pairs, unless they take longer than so many seconds; three are made in any case."""

    pairs: int
    seconds: float

    def rounds(self) -> Iterator[int]:
        end = time.perf_counter() + self.seconds
        for i in range(self.pairs):
            if i < 3 or time.perf_counter() < end:
                yield i


def check(
    kind: str, before: Ask, after: Ask, effort: Effort, chosen: Callable[[Any], bool] = lambda a: True
) -> Checked:
    """`after` follows the advice of that kind (and of `chosen`) that `before` was given."""
    promised, got, whole, said = [], [], [], ""
    for _ in effort.rounds():
        first = before()
        advice = [a for a in first.advice if a.kind == kind and chosen(a)]
        promised.append(advice[0].saves_ms if advice else 0.0)
        said = advice[0].do if advice else said
        whole.append(first.total_ms)
        got.append(first.total_ms - after().total_ms)
    low, _, high = quantiles(got, n=4)
    p, g = median(promised), median(got)
    off = p / g - 1.0 if g > 0 else None
    return Checked(kind, said, median(whole), p, g, low, high, off, abs(p - g) <= WITHIN * abs(g), len(got))


def experiments(model: str | None, effort: Effort, kinds: list[str], seed: int) -> Iterator[Checked]:
    with ExitStack() as stack:

        def opened(**settings: Any) -> LLM:
            llm = stack.enter_context(LLM(model, **settings))
            llm.generate([[100 + i for i in range(600)]], SamplingParams(max_tokens=4))
            return llm

        llm = opened()
        prompts = Prompts(llm.parts.vocab_size, seed)
        ask = asker(llm, 8)
        if "cached_prefix" in kinds:
            yield cached(ask, prompts, effort)
        if "shorter_prompt" in kinds:
            long, short = (lambda: ask(prompts.make(700))), (lambda: ask(prompts.make(700 - SHORTER)))
            yield check("shorter_prompt", long, short, effort)
        if "max_tokens" in kinds:
            much, half = asker(llm, 128), asker(llm, 64)
            yield check("max_tokens", lambda: much(prompts.make(64)), lambda: half(prompts.make(64)), effort)
        if "kv_format" in kinds:
            wide, ids = opened(kv="bf16"), prompts.make(3000)
            before, after = asker(wide, 48), asker(llm, 48)
            before(ids), after(ids)  # from here on the prompt is cached in both
            yield check(
                "kv_format", lambda: before(ids), lambda: after(ids), effort, lambda a: a.figures["kv"] == "int8"
            )
        if "threads" in kinds:
            alone = opened(threads=1)
            if alone.setting.wider is not None:
                slow, quick = asker(alone, 32), asker(llm, 32)
                yield check("threads", lambda: slow(prompts.make(64)), lambda: quick(prompts.make(64)), effort)


def cached(ask: Callable[[list[int]], Explanation], prompts: Prompts, effort: Effort) -> Checked:
    """The same prompt twice: the second finds what the first has computed."""
    asked: list[list[int]] = []

    def first() -> Explanation:
        asked.append(prompts.make(1500))
        return ask(asked[-1])

    return check("cached_prefix", first, lambda: ask(asked[-1]), effort)


KINDS = ("cached_prefix", "shorter_prompt", "max_tokens", "kv_format", "threads")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=25.0, help="for each kind, beyond its first three pairs")
    parser.add_argument("--only", default=",".join(KINDS), metavar="KIND,...")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    kinds = given.only.split(",")
    if given.pairs < 3 or not set(kinds) <= set(KINDS):
        parser.error(f"at least 3 pairs, and kinds of {', '.join(KINDS)}")
    began, rows = time.perf_counter(), []
    for row in experiments(given.model, Effort(given.pairs, given.seconds), kinds, given.seed):
        rows.append(asdict(row))
        off = "" if row.off is None else f"{100 * row.off:+5.1f} % "
        print(
            f"{row.kind:<15} of {row.before_ms:7.1f} ms promised {row.promised_ms:7.1f}, got {row.got_ms:7.1f} "
            f"({row.got_low_ms:.1f} to {row.got_high_ms:.1f}): {off}"
            f"{'within' if row.within else 'NOT within'} {100 * WITHIN:.0f} %",
            flush=True,
        )
    print(f"{time.perf_counter() - began:.0f} s")
    if given.save is not None:
        settings = {"model": given.model, "pairs": given.pairs, "within": WITHIN, "seed": given.seed}
        print(f"saved in {save_record(given.save, 'advice', [Path(sys.argv[0]).name, *sys.argv[1:]], settings, rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
