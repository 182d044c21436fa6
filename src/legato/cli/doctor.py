"""`legato doctor`: this machine as Legato sees it, and how to mend what could be better.

Knows: how findings are shown. Does not know: how they are found (`findings`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from legato.cli.options import config_of, json_lines_option, machine_options
from legato.cli.terminal import Terminal

_COLORS = {"ok": "32", "note": "33", "bad": "31"}


@click.command("doctor")
@machine_options
@json_lines_option
def command(as_json: bool, **options: Any) -> int:
    """Look at this machine: what is used, what is not, and why; each remark with its mend."""
    from legato.cli.findings import find_all

    config = config_of(options)
    terminal = Terminal(config.color)
    findings = find_all(config)
    for finding in findings:
        if as_json:
            terminal.json(asdict(finding))
            continue
        mark = f"{finding.status:<5}"
        if terminal.styled_output():
            mark = f"\x1b[{_COLORS[finding.status]}m{mark}\x1b[0m"
        terminal.answer(f"{mark} {finding.name:<14} {finding.text}\n")
        if finding.fix:
            terminal.answer(f"{'':<20} -> {finding.fix}\n")
    return int(any(finding.status == "bad" for finding in findings))
