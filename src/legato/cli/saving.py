"""Keeps what a command measures: a dated record for `--save`, a report for `--report`, whatever ends the measuring.

Knows: the command line that is running, which file goes where. Does not know: what was measured.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from legato.cli.terminal import Terminal
from legato.errors import LegatoError, UsageError


@dataclass(slots=True)
class Kept:
    """What has been measured so far: append to `rows`, add to `settings`. `partial`: why there is not more."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    partial: str | None = None


@contextmanager
def keeping(what: str, save: Path | None, report: Path | None, terminal: Terminal) -> Iterator[Kept]:
    """Measure inside: what is in `rows` when the block ends, or is left by an error, is saved and reported.

    Targets that cannot be written are refused (`UsageError`) before the block begins.
    """
    _check(save, report, terminal)
    kept = Kept()
    try:
        yield kept
    except (Exception, KeyboardInterrupt) as error:
        stopped = "stopped by Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        kept.partial = " ".join(stopped.split())
        _keep_partial(what, save, report, terminal, kept)
        raise
    _keep(what, save, report, terminal, kept)


def _check(save: Path | None, report: Path | None, terminal: Terminal) -> None:
    if save is None and report is None:
        return
    from legato.report.draw import HOW_TO_DRAW, can_draw
    from legato.report.write import check_folder, check_target

    if save is not None:
        check_folder(save if save.is_dir() else save.parent, save, "--save")
    if report is not None:
        check_target(report)
        if not can_draw():
            terminal.note(f"{HOW_TO_DRAW}; without it only CSV and JSON are written")


def _keep_partial(what: str, save: Path | None, report: Path | None, terminal: Terminal, kept: Kept) -> None:
    """An error here must not hide the one that ended the measuring."""
    if not kept.rows or (save is None and report is None):
        return
    terminal.note(f"partial results are kept ({kept.partial})")
    try:
        _keep(what, save, report, terminal, kept)
    except LegatoError as error:
        terminal.note(f"they could not all be written: {error}")


def _keep(what: str, save: Path | None, report: Path | None, terminal: Terminal, kept: Kept) -> None:
    if save is None and report is None:
        return
    from legato.bench.record import make_record, write_record

    record = make_record(what, command_line(sys.argv[1:]), kept.settings, kept.rows, kept.partial)
    if save is not None:
        terminal.dim(f"saved in {write_record(save, record)}")
    if report is not None:
        from legato.report.pages import page_of
        from legato.report.write import write_report

        if not record.rows:
            raise UsageError(f"{what}: nothing was measured, so there is nothing to report")
        first, *others = write_report(page_of(record), record, report)
        terminal.dim(f"report in {first}" + (f" (and {len(others)} files beside it)" if others else ""))


def command_line(given: Sequence[str]) -> list[str]:
    """What was typed, for records and reports, which are for other eyes too: without keys."""
    words = ["legato"]
    for before, word in pairwise(["", *given]):
        secret = "--api-key=..." if word.startswith("--api-key=") else "..." if before == "--api-key" else word
        words.append(shlex.quote(secret) if secret is word else secret)
    return words
