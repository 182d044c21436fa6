"""Other programs' settings files: ours put in, and taken out again, with everything else left as it is.

Knows: JSON objects, and blocks of lines between two marks. Does not know: which program wants what.

The first writing keeps the file as it was beside it, in `NAME.before-legato` (empty where there was none). Writing
again changes only what is ours. Taking back puts the old values where ours are; if nothing else has changed since,
the file is again what it was, byte for byte. A file that cannot be read as what it should be is never touched.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legato.errors import UsageError

BEGIN, END = "# >>> legato", "# <<< legato"
_BLOCK = re.compile(rf"(?:^|(?<=\n))\n?{re.escape(BEGIN)}\n.*?{re.escape(END)}\n", re.DOTALL)
_LEFT_OUT = object()


@dataclass(frozen=True, slots=True)
class JsonEdit:
    """Values at paths of a JSON object."""

    values: Mapping[tuple[str, ...], Any]

    def put(self, text: str, path: Path) -> str:
        """The file's text with ours in it."""
        found = _object(text, path)
        for keys, value in self.values.items():
            _set(found, keys, value, path)
        return _dumped(found)

    def take(self, text: str, before: str, path: Path) -> str:
        """The file's text without ours; "" when nothing is left."""
        found, old = _object(text, path), _object(before, path)
        for keys in self.values:
            value = _get(old, keys)
            if value is _LEFT_OUT:
                _remove(found, keys, old)
            else:
                _set(found, keys, value, path)
        if found == old:
            return before
        return _dumped(found)


@dataclass(frozen=True, slots=True)
class BlockEdit:
    """Lines at the end of a text file. `check` says what is wrong with a text, or "" for nothing."""

    lines: tuple[str, ...]
    check: Callable[[str], str]

    def put(self, text: str, path: Path) -> str:
        """The file's text with ours in it."""
        self._sound(text, path)
        own = "\n".join([BEGIN, *self.lines, END]) + "\n"
        rest = _BLOCK.sub("", text)
        if rest and not rest.endswith("\n"):
            rest += "\n"
        made = f"{rest}\n{own}" if rest else own
        self._sound(made, path, "with ours in it ")
        return made

    def take(self, text: str, before: str, path: Path) -> str:
        """The file's text without ours; "" when nothing is left."""
        rest = _BLOCK.sub("", text)
        return before if rest.rstrip("\n") == before.rstrip("\n") else rest

    def _sound(self, text: str, path: Path, how: str = "") -> None:
        problem = self.check(text)
        if problem:
            raise UsageError(
                f"{path} {how}cannot be read, so it is left as it is: {problem}; put the settings in by hand"
            )


Edit = JsonEdit | BlockEdit


def write(path: Path, edit: Edit) -> bool:
    """Puts ours in; False when they were there already."""
    path, text = _read(path)
    made = edit.put(text, path)
    kept = _backup(path)
    if not kept.exists():
        _replace(kept, text, path)
    if made == text:
        return False
    _replace(path, made, path)
    return True


def undo(path: Path, edit: Edit) -> bool:
    """Takes ours out; False when nothing was written here before."""
    path, text = _read(path)
    kept = _backup(path)
    if not kept.exists():
        return False
    before = kept.read_text(encoding="utf-8")
    left = edit.take(text, before, path)
    if left:
        _replace(path, left, path)
    elif path.exists():
        path.unlink()
    kept.unlink()
    return True


def toml_problem(text: str) -> str:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return str(error)
    return ""


def yaml_problem(listed: bool) -> Callable[[str], str]:
    """A check for files that are plain lists, or plain mappings, of YAML at their first level, each key once."""
    item = re.compile(r"- |-$" if listed else r"(?:[\w.-]+|\"[^\"]*\"):(?: |$)|- |-$")

    def problem(text: str) -> str:
        keys = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or line[0] in "# \t" or line == "---":
                continue
            if not item.match(line):
                return f"line {number} is no {'entry of a list' if listed else 'setting'}"
            keys.append(line.split(":")[0])
        again = [key for key in keys if not key.startswith("-") and keys.count(key) > 1]
        return f"{again[0]} is there twice" if again and not listed else ""

    return problem


def _backup(path: Path) -> Path:
    return path.with_name(path.name + ".before-legato")


def _read(path: Path) -> tuple[Path, str]:
    """(the file itself, its text); links are followed, so that they stay links."""
    path = Path(os.path.realpath(path))
    try:
        return path, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return path, ""
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{path} cannot be read, so it is left as it is: {what}") from None


def _replace(path: Path, text: str, like: Path) -> None:
    """Whole or not at all, and for the owner's eyes only unless the file was open to others: keys are in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = like.stat().st_mode & 0o777 if like.exists() else 0o600
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None


def _object(text: str, path: Path) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        text = "is no plain JSON object, so it is left as it is; put the settings in by hand"
        raise UsageError(f"{path} {text}")
    return found


def _dumped(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n" if found else ""


def _get(found: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            return _LEFT_OUT
        found = found[key]
    return found


def _set(found: dict[str, Any], keys: tuple[str, ...], value: Any, path: Path) -> None:
    for key in keys[:-1]:
        inner = found.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{path} has a {key!r} that is no object, so it is left as it is")
        found = inner
    found[keys[-1]] = value


def _remove(found: dict[str, Any], keys: tuple[str, ...], old: dict[str, Any]) -> None:
    """Takes a value out, and what is empty without it unless it was there before."""
    holders = [found]
    for key in keys[:-1]:
        inner = holders[-1].get(key)
        if not isinstance(inner, dict):
            return
        holders.append(inner)
    holders[-1].pop(keys[-1], None)
    for depth in range(len(keys) - 1, 0, -1):
        if holders[depth] or _get(old, keys[:depth]) is not _LEFT_OUT:
            return
        del holders[depth - 1][keys[depth - 1]]
