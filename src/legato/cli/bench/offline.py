"""`legato bench offline`: throughput of many requests.

Knows: its options and what it prints. Does not know: how it is measured.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from legato.cli.bench.common import billed, receipt, rounded
from legato.cli.options import bench_options, bill_options, config_of, json_option, save_option
from legato.cli.terminal import Terminal
from legato.config import SETTINGS

OFFLINE_ITL_MS = 60_000.0  # nobody reads along: whole steps


@click.command("offline")
@bench_options
@bill_options
@click.option("-n", "--requests", type=click.IntRange(1, 4096), default=32, show_default=True, metavar="N")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, metavar="N", help="tokens of its own")
@click.option(
    "--decode", type=click.IntRange(1), default=128, show_default=True, metavar="N", help="new tokens of each"
)
@click.option(
    "--shared-prefix", type=click.IntRange(0), default=0, metavar="P", help="cached tokens before each prompt"
)
@click.option("--max-seqs", metavar="N", help=f"{SETTINGS['max_seqs'].help} (default: all of them)")
@click.option("--static", is_flag=True, help="batches of --max-seqs that nobody joins, as a baseline")
@click.option("--vary", is_flag=True, help="answers of 1 to 2 x --decode tokens, --decode on average")
@save_option
@json_option
def command(
    requests: int,
    prompt: int,
    decode: int,
    shared_prefix: int,
    static: bool,
    vary: bool,
    save: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Throughput of N requests handed over at once."""
    from legato.bench.offline import bench_offline
    from legato.cli.loading import open_llm
    from legato.cli.saving import keeping
    from legato.measure.energy import Tab

    config = config_of(options)
    if config.sources["max_seqs"] == "default" and not (static or vary):  # all at once would be one batch either way
        config = replace(config, max_seqs=requests)
    if config.itl_slo_ms is None:
        config = replace(config, itl_slo_ms=OFFLINE_ITL_MS)
    terminal = Terminal(config.color)
    with (
        keeping("offline", save, None, terminal) as kept,
        open_llm(config, terminal, capacity=True) as llm,
        terminal.bar() as bar,
    ):
        tab = Tab(llm.rates)
        done = bench_offline(llm, requests, prompt, decode, shared_prefix, bar, static, vary)
        kept.settings.update(receipt(llm))
        shown = rounded(asdict(done) | tab.row(done.seconds, requests * decode))
        kept.rows.append(shown)
    if as_json:
        terminal.json(shown)
        return
    terminal.answer(
        f"{done.out_tok_s:.1f} output tok/s: {done.seconds:.2f} s, of it {done.prefill_s:.2f} s in steps with prompts, "
        f"{done.decode_s:.2f} s in pure decode steps\n"
    )
    if line := billed(shown):
        terminal.answer(f"{line}\n")
