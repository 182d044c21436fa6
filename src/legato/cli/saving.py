"""Writes a measurement's record when `--save` asked for one.

Knows: the command line that is running. Does not know: what was measured.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from legato.cli.terminal import Terminal


def save_rows(
    save: Path | None, what: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], terminal: Terminal
) -> None:
    """Does nothing without `--save`."""
    if save is None:
        return
    from legato.bench.record import save_record

    command = ["legato", *(shlex.quote(word) for word in sys.argv[1:])]
    terminal.dim(f"saved in {save_record(save, what, command, settings, rows)}")
