"""`legato bench decode`: time a token against context.

Knows: its options and what it prints. Does not know: how it is measured or shown.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.bench.common import check_cache, described, fits_cache, receipt, rounded, whole_numbers
from legato.cli.options import bench_options, bill_options, config_of, json_lines_option, report_option, save_option
from legato.cli.terminal import Terminal

if TYPE_CHECKING:
    from legato.bench.decode import DecodeRow

BILL = ("energy_j_per_token", "energy_source", "price_per_million_tokens")
DEPTHS = "0,512,2048,8000"


@click.command("decode")
@bench_options
@bill_options
@click.option(
    "--depths", metavar="LIST", help=f"tokens before the first step (default: what fits the context of {DEPTHS})"
)
@click.option("--decode", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="steps a depth")
@save_option
@report_option
@json_lines_option
def command(
    depths: str | None, decode: int, save: Path | None, report: Path | None, as_json: bool, **options: Any
) -> None:
    """Seconds of a decode step by depth, beside the time that reading its bytes must take."""
    from legato.bench.decode import bench_decode, check_depths, fits
    from legato.cli.loading import open_llm
    from legato.cli.saving import keeping
    from legato.measure.energy import Tab

    config = config_of(options)
    terminal = Terminal(config.color)
    listed = whole_numbers("--depths", DEPTHS if depths is None else depths, 0, "0,512,2048")
    with (
        keeping("decode", save, report, terminal) as kept,
        open_llm(config, terminal) as llm,
        terminal.bar() as bar,
    ):
        if depths is None:
            listed = [
                depth
                for depth in listed
                if fits(depth, decode, llm.context_length) and fits_cache(llm, max(depth, 1) + decode + 1)
            ] or [0]
        check_depths(listed, decode, llm.context_length)
        check_cache(llm, "--depths or --decode", max(*listed, 1) + decode + 1)
        kept.settings |= receipt(llm) | {"decode": decode}
        terminal.dim(described(receipt(llm)))
        tab = Tab(llm.rates)
        for row in bench_decode(llm, listed, decode, bar):
            bill = tab.row(row.decode_ms / 1e3, 1)  # of a token, at the mean power of the whole row
            shown, tab = rounded(asdict(row) | {k: v for k, v in bill.items() if k in BILL}), Tab(llm.rates)
            kept.rows.append(shown)
            if as_json:
                terminal.json(shown)
            else:
                terminal.answer(_line(row))
                if told := [f"{name} {shown[name]}" for name in BILL if name in shown]:
                    terminal.answer(f"  {', '.join(told)}\n")


def _line(row: DecodeRow) -> str:
    return (
        f"depth {row.depth:>6}  prefill {row.prefill_tok_s:>8.1f} tok/s  first {row.ttft_ms:>8.1f} ms  "
        f"decode {row.decode_ms:>7.2f} ms = {row.decode_tok_s:>6.1f} tok/s  "
        f"wall {row.wall_ms:>6.2f} ms at {row.read_gb_s:.1f} GB/s: {100 * row.share_of_wall:.0f} % of it\n"
    )
