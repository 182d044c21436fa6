"""`legato bench cache`: what a KV cache is worth.

Knows: its options and what it prints. Does not know: how it is measured or shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.bench.common import check_cache, described, receipt, rounded
from legato.cli.options import bench_options, config_of, json_option, report_option, save_option
from legato.cli.terminal import Terminal
from legato.errors import UsageError

if TYPE_CHECKING:
    from legato.bench.cache import CacheResult, Point
    from legato.bench.fits import Fit
    from legato.llm import LLM

PROMPT = "Once upon a time, in a small town by the sea, there lived a clockmaker who"


@click.command("cache")
@bench_options
@click.option("--tokens", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="new tokens")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="each way")
@click.option("--prompt", metavar="TEXT", help="(default: the beginning of a story, as much of it as fits)")
@save_option
@report_option
@json_option
def command(
    tokens: int,
    runs: int,
    prompt: str | None,
    save: Path | None,
    report: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """The same answer with and without a KV cache: seconds, and whether the tokens agree."""
    from legato.bench.cache import bench_cache
    from legato.cli.loading import open_llm
    from legato.cli.saving import keeping

    if prompt == "":
        raise UsageError("--prompt is empty; give a text, or leave it out")
    config = config_of(options)
    terminal = Terminal(config.color)
    with (
        keeping("cache", save, report, terminal) as kept,
        open_llm(config, terminal) as llm,
        terminal.bar() as bar,
    ):
        ids = _prompt_ids(llm, prompt, tokens)
        if len(ids) + tokens <= llm.context_length:  # else the context is told of
            check_cache(llm, "--tokens" if prompt is None else "--tokens or shorten --prompt", len(ids) + tokens)
        kept.settings |= receipt(llm) | {"prompt": prompt or PROMPT, "tokens": tokens, "runs": runs}
        terminal.dim(described(receipt(llm)))

        def stopped(partial: CacheResult) -> None:
            kept.rows.append(_shown(partial) | {"partial": True})
            _tell(partial, kept.rows[0], terminal, as_json)
            terminal.note(f"stopped early: {partial.tokens} tokens, {partial.runs} whole runs each way")

        done = bench_cache(llm, ids, tokens, runs, bar, stopped)
        kept.rows.append(_shown(done))
    _tell(done, kept.rows[0], terminal, as_json)
    if done.first_difference is None:
        terminal.dim(f"{tokens} tokens, {runs} runs each way; all wrote the same tokens")
    else:
        terminal.note(f"the answers differ from new token {done.first_difference} on")


def _prompt_ids(llm: LLM, prompt: str | None, tokens: int) -> list[int]:
    """Our own prompt may be cut to what the context leaves, a person's may not."""
    if prompt is not None:
        return llm.tokenizer.encode(prompt)
    return llm.tokenizer.encode(PROMPT)[: max(1, llm.context_length - tokens)]


def _tell(done: CacheResult, shown: Mapping[str, Any], terminal: Terminal, as_json: bool) -> None:
    if as_json:
        terminal.json(shown)
        return
    for title, spread in (("with cache", done.cached), ("without", done.naive)):
        terminal.answer(f"{title:<11} {spread.mean_s:9.3f} s  +- {spread.std_s:.3f} s\n")
    terminal.answer(f"ratio       {done.ratio:9.2f}   (by the sums: {done.curve[-1].ratio_by_sums:.2f})\n")


def _shown(done: CacheResult) -> dict[str, Any]:
    return rounded(
        {
            "with": asdict(done.cached),
            "without": asdict(done.naive),
            "ratio": done.ratio,
            "prompt_tokens": done.prompt_tokens,
            "tokens": done.tokens,
            "runs": done.runs,
            "first_difference": done.first_difference,
            "positions": {"without": done.positions[0], "with": done.positions[1]},
            "fits": {"with_linear": _fit(done.cached_fit), "without_quadratic": _fit(done.naive_fit)},
            "read_gb_s": done.read_gb_s,
            "product_tops": done.product_tops,
            "curve": [_point(point) for point in done.curve],
        }
    )


def _fit(fit: Fit) -> dict[str, Any]:
    """Seconds = sum of costs_s[i] x tokens^i."""
    return {"costs_s": list(fit.costs), "r2": fit.r2}


def _point(point: Point) -> dict[str, Any]:
    return {
        "tokens": point.tokens,
        "with_s": point.cached.mean_s,
        "with_std_s": point.cached.std_s,
        "without_s": point.naive.mean_s,
        "without_std_s": point.naive.std_s,
        "ratio": point.ratio,
        "ratio_by_sums": point.ratio_by_sums,
        "with_wall_s": point.cached_wall_s,
        "without_wall_s": point.naive_wall_s,
    }
