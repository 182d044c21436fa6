"""Reads JSON that strangers wrote: bounded in size and in structure, no key twice, no NaN.

Knows: JSON. Does not know: what a key means.
"""

from __future__ import annotations

import json
import math
import os

from legato.errors import ModelFileError
from legato.weights.filemap import shown

MAX_JSON = 64 << 20
MAX_MARKS = 1 << 21  # brackets and commas: each may become an object of some 60 bytes


def read_json(path: str | os.PathLike[str]) -> dict[str, object]:
    """The object in a JSON file of at most 64 MB; `ModelFileError` for anything else."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_JSON + 1)
    except OSError as error:
        raise ModelFileError(path, "file", f"cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_JSON:
        raise ModelFileError(path, "file", f"is larger than {MAX_JSON >> 20} MB, too much for JSON")
    return parse_object(path, "content", raw)


def parse_object(path: str | os.PathLike[str], field: str, raw: bytes) -> dict[str, object]:
    """The JSON object in `raw`. `field` names it in errors."""
    if sum(map(raw.count, (b"[", b"{", b","))) > MAX_MARKS:
        raise ModelFileError(path, field, f"is JSON with more than {MAX_MARKS} entries")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError:
        raise ModelFileError(path, field, "is JSON nested too deep") from None
    except ValueError as error:  # also malformed JSON and bad UTF-8
        raise ModelFileError(path, field, f"is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFileError(path, field, "is JSON, but not an object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {shown(key)} occurs twice")
        values[key] = value
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is too large")
    return number


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")
