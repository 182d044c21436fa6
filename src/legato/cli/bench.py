"""`legato bench`: decode, cache, offline.

Knows: their options and what they print. Does not know: how anything is measured (`legato.bench`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from legato.cli.options import bench_options, config_of, json_option, save_option
from legato.cli.terminal import Terminal
from legato.errors import UsageError

OFFLINE_ITL_MS = 60_000.0  # nobody reads along: whole steps
PROMPT = "Once upon a time, in a small town by the sea, there lived a clockmaker who"

DEPTHS = "0,512,2048,8000"


@click.group("bench")
def command() -> None:
    """Measure speed: decode, cache, offline."""


def _depths(text: str) -> list[int]:
    try:
        depths = [int(word) for word in text.split(",")]
    except ValueError:
        depths = [-1]
    if min(depths) < 0:
        raise UsageError(f"--depths={text} is not allowed: whole numbers from 0, such as 0,512,2048")
    return depths


@command.command("decode")
@bench_options
@click.option(
    "--depths", metavar="LIST", help=f"tokens before the first step (default: what fits the context of {DEPTHS})"
)
@click.option("--decode", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="steps a depth")
@save_option
@json_option
def decode(depths: str | None, decode: int, save: Path | None, as_json: bool, **options: Any) -> None:
    """Seconds of a decode step by depth, beside the time that reading its bytes must take."""
    from legato.bench.decode import bench_decode, check_depths, fits
    from legato.cli.loading import open_llm
    from legato.cli.saving import save_rows

    config = config_of(options)
    terminal, rows = Terminal(config.color), []
    listed = _depths(depths or DEPTHS)
    with open_llm(config, terminal) as llm, terminal.bar() as bar:
        if depths is None:
            listed = [depth for depth in listed if fits(depth, decode, llm.context_length)] or [0]
        check_depths(listed, decode, llm.context_length)
        receipt = {"isa": llm.parts.executor.isa, "threads": llm.parts.executor.threads, "kv": llm.parts.kv_format}
        terminal.dim(f"{llm.name}, {', '.join(f'{k} {v}' for k, v in receipt.items())}")
        for row in bench_decode(llm, listed, decode, bar):
            shown = _rounded(asdict(row))
            rows.append(shown)
            if as_json:
                terminal.json(shown)
            else:
                terminal.answer(
                    f"depth {row.depth:>6}  prefill {row.prefill_tok_s:>8.1f} tok/s  first {row.ttft_ms:>8.1f} ms  "
                    f"decode {row.decode_ms:>7.2f} ms = {row.decode_tok_s:>6.1f} tok/s  "
                    f"wall {row.wall_ms:>6.2f} ms at {row.read_gb_s:.1f} GB/s: {100 * row.share_of_wall:.0f} % of it\n"
                )
    settings = {"model": llm.name, "decode": decode, **receipt}
    save_rows(save, "decode", settings, rows, terminal)


@command.command("cache")
@bench_options
@click.option("--tokens", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="new tokens")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="each way")
@click.option("--prompt", default=PROMPT, metavar="TEXT")
@save_option
@json_option
def cache(tokens: int, runs: int, prompt: str, save: Path | None, as_json: bool, **options: Any) -> None:
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
    shown = _rounded(
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


@command.command("offline")
@bench_options
@click.option("-n", "--requests", type=click.IntRange(1, 4096), default=32, show_default=True, metavar="N")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, metavar="N", help="tokens of its own")
@click.option(
    "--decode", type=click.IntRange(1), default=128, show_default=True, metavar="N", help="new tokens of each"
)
@click.option(
    "--shared-prefix", type=click.IntRange(0), default=0, metavar="P", help="cached tokens before each prompt"
)
@click.option("--static", is_flag=True, help="batches of max_seqs that nobody joins, as a baseline")
@save_option
@json_option
def offline(
    requests: int,
    prompt: int,
    decode: int,
    shared_prefix: int,
    static: bool,
    save: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Throughput of N requests handed over at once."""
    from legato.bench.offline import bench_offline
    from legato.cli.loading import open_llm
    from legato.cli.saving import save_rows

    config = config_of(options)
    if config.sources["max_seqs"] == "default":
        config = replace(config, max_seqs=requests)
    if config.itl_slo_ms is None:
        config = replace(config, itl_slo_ms=OFFLINE_ITL_MS)
    terminal = Terminal(config.color)
    with open_llm(config, terminal, capacity=True) as llm, terminal.bar() as bar:
        done = bench_offline(llm, requests, prompt, decode, shared_prefix, bar, static)
        settings = {"model": llm.name, "threads": llm.parts.executor.threads, "kv": llm.parts.kv_format}
    shown = _rounded(asdict(done))
    save_rows(save, "offline", settings, [shown], terminal)
    if as_json:
        terminal.json(shown)
        return
    terminal.answer(
        f"{done.out_tok_s:.1f} output tok/s: {done.seconds:.2f} s, of it {done.prefill_s:.2f} s in steps with prompts, "
        f"{done.decode_s:.2f} s in pure decode steps\n"
    )


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Five significant digits."""
    return {
        name: _rounded(v) if isinstance(v, dict) else float(f"{v:.5g}") if isinstance(v, float) else v
        for name, v in values.items()
    }
