"""`legato bench tradeoff`: latency against throughput over batch sizes.

Knows: its options and what it prints. Does not know: how it is measured or shown.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.bench.common import described, receipt, rounded, whole_numbers
from legato.cli.options import bench_options, config_of, json_lines_option, report_option, save_option
from legato.cli.terminal import Terminal

if TYPE_CHECKING:
    from legato.bench.tradeoff import TradeoffRow

WHOLE_STEPS_MS = 60_000.0  # an SLO that lets prompts be read at once; no step with a prompt is measured


@click.command("tradeoff")
@bench_options
@click.option("--batch", default="1,2,4,8,16,32", show_default=True, metavar="LIST", help="streams at once")
@click.option("--depth", type=click.IntRange(0), default=512, show_default=True, metavar="N", help="tokens before each")
@click.option("--decode", type=click.IntRange(1), default=48, show_default=True, metavar="N", help="steps a batch")
@save_option
@report_option
@json_lines_option
def command(
    batch: str, depth: int, decode: int, save: Path | None, report: Path | None, as_json: bool, **options: Any
) -> None:
    """Time between two tokens of a stream, and tokens a second of all streams, as more of them share each step."""
    from legato.bench.tradeoff import bench_tradeoff, check_batches, check_streams
    from legato.cli.loading import open_llm
    from legato.cli.saving import keeping

    config = config_of(options)
    terminal = Terminal(config.color)
    listed = whole_numbers("--batch", batch, 1, "1,4,16")
    check_streams(listed, config.max_step_tokens)
    config = replace(config, max_seqs=max(listed), itl_slo_ms=WHOLE_STEPS_MS)
    with (
        keeping("tradeoff", save, report, terminal) as kept,
        open_llm(config, terminal, capacity=True) as llm,
        terminal.bar() as bar,
    ):
        check_batches(llm, listed, depth, decode)
        kept.settings |= receipt(llm) | {"depth": depth, "decode": decode}
        terminal.dim(described(receipt(llm)))
        for row in bench_tradeoff(llm, listed, depth, decode, bar):
            kept.rows.append(rounded(asdict(row)))
            if as_json:
                terminal.json(kept.rows[-1])
            else:
                terminal.answer(_line(row))


def _line(row: TradeoffRow) -> str:
    return (
        f"streams {row.batch:>4}  between tokens {row.itl_ms:>8.2f} ms (p99 {row.itl_p99_ms:.2f})  "
        f"{row.out_tok_s:>8.1f} tok/s, {row.tok_s_each:>6.1f} each  "
        f"wall {row.wall_ms:>7.2f} ms: {100 * row.share_of_wall:.0f} % of it\n"
    )
