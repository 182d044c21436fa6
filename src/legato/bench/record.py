"""Dated records of measurements: what, on which machine, from which commit, by which command.

Knows: JSON files, git's answer about this package. Does not know: what was measured.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from legato import __version__
from legato.errors import UsageError
from legato.measure.machine import cpu_name, describe


def save_record(
    target: Path, what: str, command: Sequence[str], settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes one JSON object; into a folder, the file is named WHAT_MACHINE_DATE.json. Returns the file's path."""
    now = datetime.now(UTC)
    record = {
        "what": what,
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(command),
        "version": __version__,
        "commit": commit(),
        "machine": describe(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
    path = target / f"{what}_{slug(cpu_name())}_{now:%Y-%m-%d}.json" if target.is_dir() else target
    try:
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
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
