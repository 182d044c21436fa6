"""Dated records of measurements: what, on which machine, from which commit, by which command.

Knows: JSON files, git's answer about this package. Does not know: what was measured.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from legato import __version__
from legato.errors import ModelFileError, UsageError
from legato.measure.machine import describe


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement, as it is kept.

    what      names the experiment: `cache`, `decode`, ...
    rows      what was measured; `settings`: what was asked for
    date      ISO 8601, UTC
    commit    of the tree that measured; None outside one
    machine   see `measure.machine.describe`
    partial   why rows are missing; None when all are there
    """

    what: str
    date: str
    command: str
    version: str
    commit: str | None
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    partial: str | None = None

    @property
    def day(self) -> str:
        return self.date[:10]

    @property
    def file_name(self) -> str:
        """WHAT_MACHINE_DATE, without an ending."""
        return f"{self.what}_{slug(str(self.machine.get('cpu', '')))}_{self.day}"

    def as_json(self) -> dict[str, Any]:
        """`partial` only where there is something to say."""
        values = {name: getattr(self, name) for name in _FIELDS}
        values |= {"settings": dict(self.settings), "rows": [dict(row) for row in self.rows]}
        return values | ({"partial": self.partial} if self.partial else {})

    def text(self) -> str:
        return json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n"


_FIELDS = ("what", "date", "command", "version", "commit", "machine", "settings", "rows")


def make_record(
    what: str,
    command: Sequence[str],
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    partial: str | None = None,
) -> Record:
    """A record of this moment, this machine and this tree."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(what, now, " ".join(command), __version__, commit(), describe(), settings, rows, partial)


def read_record(path: Path) -> Record:
    """A saved record. Raises `UsageError` when the file cannot be read, `ModelFileError` when it is no record."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give a JSON file that --save or --report wrote") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(path, "JSON", f"{error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(path, "record", "not an object; give a file that --save or --report wrote")
    kinds: dict[str, Any] = dict.fromkeys(_FIELDS, str) | {
        "commit": (str, type(None)),
        "machine": dict,
        "settings": dict,
        "rows": list,
    }
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise ModelFileError(path, name, "missing or of the wrong kind; give a file that --save or --report wrote")
    if not all(isinstance(row, dict) for row in found["rows"]):
        raise ModelFileError(path, "rows", "not all of them are objects")
    return Record(**{name: found[name] for name in _FIELDS}, partial=found.get("partial"))


def _refused(number: str) -> float:
    raise ValueError(f"{number} is no measurement")


def save_record(
    target: Path, what: str, command: Sequence[str], settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes one JSON object; into a folder, the file is named WHAT_MACHINE_DATE.json. Returns the file's path."""
    return write_record(target, make_record(what, command, settings, rows))


def write_record(target: Path, record: Record) -> Path:
    """The same of a record that is there already."""
    path = target / f"{record.file_name}.json" if target.is_dir() else target
    try:
        path.write_text(record.text(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; choose a place that can be written with --save") from None
    return path


def slug(text: str) -> str:
    """A name for files: lower case letters and digits, dashes between."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "unknown"


def commit() -> str | None:
    """The commit of the tree that holds this package, "-dirty" added when its files differ; None when not in one."""
    here = Path(__file__).resolve().parents[1]
    if _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # perhaps inside somebody else's tree, but no part of it
    head = _git(here, "rev-parse", "--short=12", "HEAD")
    changed = _git(here, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}-dirty" if head and changed else head


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
