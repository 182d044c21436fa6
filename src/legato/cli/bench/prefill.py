"""`legato bench prefill`: time to the first token against the prompt's length.

Knows: its options and what it prints. Does not know: how it is measured or shown.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.bench.common import check_cache, described, fits_cache, receipt, rounded, whole_numbers
from legato.cli.options import bench_options, config_of, json_lines_option, report_option, save_option
from legato.cli.terminal import Terminal

if TYPE_CHECKING:
    from legato.bench.prefill import PrefillRow

PROMPTS = "64,128,256,512,1024,2048,4096,8000"


@click.command("prefill")
@bench_options
@click.option("--prompts", metavar="LIST", help=f"lengths in tokens (default: what fits the context of {PROMPTS})")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="of each length")
@save_option
@report_option
@json_lines_option
def command(
    prompts: str | None, runs: int, save: Path | None, report: Path | None, as_json: bool, **options: Any
) -> None:
    """Time to the first token by length of the prompt, beside the time that its matrix products must take."""
    from legato.bench.prefill import bench_prefill, check_prompts
    from legato.cli.loading import open_llm
    from legato.cli.saving import keeping

    config = config_of(options)
    terminal = Terminal(config.color)
    listed = whole_numbers("--prompts", PROMPTS if prompts is None else prompts, 1, "64,512,4096")
    with (
        keeping("prefill", save, report, terminal) as kept,
        open_llm(config, terminal) as llm,
        terminal.bar() as bar,
    ):
        if prompts is None:
            listed = [p for p in listed if p < llm.context_length and fits_cache(llm, p + 1)] or [1]
        check_prompts(listed, llm.context_length)
        check_cache(llm, "--prompts", max(listed) + 1)
        kept.settings |= receipt(llm) | {"runs": runs, "rows_per_step": config.max_step_tokens}
        terminal.dim(described(receipt(llm)))
        for row in bench_prefill(llm, listed, runs, bar):
            kept.rows.append(rounded(asdict(row)))
            if as_json:
                terminal.json(kept.rows[-1])
            else:
                terminal.answer(_line(row))


def _line(row: PrefillRow) -> str:
    return (
        f"prompt {row.prompt:>6}  first token {row.ttft_ms:>9.1f} ms +- {row.ttft_std_ms:.1f}  "
        f"{row.prompt_tok_s:>8.1f} tok/s  looking back {100 * row.attention_share:>4.1f} % of operations  "
        f"wall {row.wall_ms:>8.1f} ms: {100 * row.share_of_wall:.0f} % of it\n"
    )
