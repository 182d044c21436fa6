"""`legato bench cache`: what a KV cache is worth.

Knows: its options and what it prints. Does not know: how it is measured or shown.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from legato.cli.bench.common import rounded
from legato.cli.options import bench_options, config_of, json_option, save_option
from legato.cli.terminal import Terminal
from legato.errors import UsageError

PROMPT = "Once upon a time, in a small town by the sea, there lived a clockmaker who"


@click.command("cache")
@bench_options
@click.option("--tokens", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="new tokens")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="each way")
@click.option("--prompt", default=PROMPT, metavar="TEXT")
@save_option
@json_option
def command(tokens: int, runs: int, prompt: str, save: Path | None, as_json: bool, **options: Any) -> None:
    """The same answer with and without a KV cache: seconds, and whether the tokens agree."""
    from legato.bench.cache import bench_cache
    from legato.cli.loading import open_llm
    from legato.cli.saving import save_rows

    config = config_of(options)
    terminal = Terminal(config.color)
    with open_llm(config, terminal) as llm, terminal.bar() as bar:
        if not prompt:
            raise UsageError("--prompt is empty; give a text, or leave it out")
        done = bench_cache(llm, llm.tokenizer.encode(prompt), tokens, runs, bar)
        name = llm.name
    shown = rounded(
        {
            "with": asdict(done.cached),
            "without": asdict(done.naive),
            "ratio": done.ratio,
            "prompt_tokens": done.prompt_tokens,
            "tokens": done.tokens,
            "runs": done.runs,
            "first_difference": done.first_difference,
        }
    )
    save_rows(save, "cache", {"model": name, "prompt": prompt}, [shown], terminal)
    if as_json:
        terminal.json(shown)
    else:
        for title, spread in (("with cache", done.cached), ("without", done.naive)):
            terminal.answer(f"{title:<11} {spread.mean_s:9.3f} s  +- {spread.std_s:.3f} s\n")
        terminal.answer(f"ratio       {done.ratio:9.2f}\n")
    if done.first_difference is None:
        terminal.dim(f"{tokens} tokens, {runs} runs each way; all wrote the same tokens")
    else:
        terminal.note(f"the answers differ from new token {done.first_difference} on")
