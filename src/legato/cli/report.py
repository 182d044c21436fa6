"""`legato report`: a saved record as a report, once more or for the first time.

Knows: its options and what it prints. Does not know: experiments, how a report is made.
"""

from __future__ import annotations

from pathlib import Path

import click

from legato.cli.options import report_option
from legato.cli.terminal import Terminal
from legato.errors import UsageError


@click.command("report")
@click.argument("record", type=click.Path(path_type=Path))
@report_option
def command(record: Path, report: Path | None) -> None:
    """Show RECORD, a JSON file that --save or --report wrote, as an HTML file (beside it, if --report is left out)."""
    from legato.bench.record import read_record
    from legato.report.draw import HOW_TO_DRAW, can_draw
    from legato.report.pages import page_of
    from legato.report.write import check_target, write_report

    terminal, found = Terminal(), read_record(record)
    target = report if report is not None else record.with_suffix(".html")
    if not can_draw():
        raise UsageError(HOW_TO_DRAW)
    check_target(target)
    first, *others = write_report(page_of(found), found, target)
    terminal.dim(f"report in {first} (and {len(others)} files beside it)")
