"""Writes a report: one HTML file, a PNG a plot, the table as CSV, the record as JSON.

Knows: names of files, HTML, CSV. Does not know: what was measured, how plots are drawn.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from legato.bench.record import Record
from legato.errors import UsageError
from legato.report.draw import PALETTE, can_draw, png, svg
from legato.report.page import Page, Table, number

HTML_ENDINGS = (".html", ".htm")


def check_target(target: Path) -> None:
    """Raises `UsageError` unless a report could be written there: FILE.html, or a folder."""
    if not target.is_dir() and target.suffix.lower() not in HTML_ENDINGS:
        raise UsageError(f"--report={target} is not allowed: give a FILE.html, or a folder that exists")
    check_folder(target if target.is_dir() else target.parent, target, "--report")


def check_folder(folder: Path, target: Path, option: str) -> None:
    """Raises `UsageError` unless a file can be made in `folder`."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{option}={target}: {folder}: {reason}; choose a place that can be written") from None


def write_report(page: Page, record: Record, target: Path) -> list[Path]:
    """Writes all files that can be written, the HTML file first; without matplotlib only CSV and JSON.

    target  FILE.html, or a folder that gets WHAT_MACHINE_DATE.html; the other files lie beside it
    """
    html = target / f"{record.file_name}.html" if target.is_dir() else target
    files: dict[Path, bytes] = {}
    if can_draw():
        footer = f"legato {record.version} · {where(record)}"
        for plot in page.plots:
            files[html.with_name(f"{html.stem}-{plot.name}.png")] = png(plot, footer)
    files[html.with_suffix(".csv")] = csv_text(page.table).encode()
    files[html.with_suffix(".json")] = record.text().encode()
    if can_draw():
        files = {html: html_text(page, record, [path.name for path in files]).encode()} | files
    for path, data in files.items():
        try:
            path.write_bytes(data)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(f"{path}: {reason}; choose a place that can be written with --report") from None
    return list(files)


def html_text(page: Page, record: Record, beside: Sequence[str]) -> str:
    """The page as one HTML document that asks nothing of any network. Needs matplotlib."""
    from jinja2 import Environment
    from markupsafe import Markup

    source = resources.files("legato.report").joinpath("page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(source)
    columns = [column for column in page.table.columns if column.on_page]
    kinds = [_kind(page.table, column.key) for column in columns]
    return template.render(
        page=page,
        record=record,
        where=where(record),
        palette=PALETTE,
        drawings=[(plot, Markup(svg(plot))) for plot in page.plots],
        columns=list(zip(kinds, [column.heading for column in columns], strict=True)),
        cells=[
            list(zip(kinds, [number(row.get(c.key), c.digits) for c in columns], strict=True))
            for row in page.table.shown
        ],
        facts=list(facts(record)),
        beside=beside,
    )


def csv_text(table: Table) -> str:
    """The table with keys as headings and numbers unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in table.columns])
    for row in table.rows:
        writer.writerow(["" if row.get(c.key) is None else row[c.key] for c in table.columns])
    return out.getvalue()


def where(record: Record) -> str:
    """Model, machine and day in one line."""
    cores = record.machine.get("cpus")
    machine = f"{cores} cores of {record.machine.get('cpu')}" if cores else str(record.machine.get("cpu"))
    words = [record.settings.get("model"), machine, record.day]
    return " · ".join(str(word) for word in words if word)


def facts(record: Record) -> Iterator[tuple[str, str]]:
    """What someone needs to measure it again."""
    machine = record.machine
    yield "command", record.command
    yield "date", record.date
    yield "machine", f"{machine.get('cpu')}, {machine.get('cpus')} cores"
    if memory := machine.get("memory_bytes"):
        yield "memory", f"{memory / 2**30:.1f} GiB"
    yield "system", f"{machine.get('system')}, Python {machine.get('python')}"
    yield "legato", f"{record.version}, commit {record.commit or 'unknown'}"
    for name, value in record.settings.items():
        if value is not None and not _nested(value):
            yield name.replace("_", " "), _plain(value)


def _nested(value: Any) -> bool:
    """Whether it has parts of its own: pages show those their own way, and the JSON file has them."""
    parts = value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, Mapping) or any(isinstance(v, (Mapping, list, tuple)) for v in parts)


def _plain(value: Any) -> str:
    return ", ".join(number(v) for v in value) if isinstance(value, (list, tuple)) else number(value)


def _kind(table: Table, key: str) -> str:
    """The class of a column's cells."""
    values = [row.get(key) for row in table.rows]
    return "words" if any(isinstance(value, str) for value in values) else "numbers"
