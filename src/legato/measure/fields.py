"""A model's settings read by name, each checked for type and range, for counting.

Knows: one flat mapping from a file, and how its keys are called there. Does not know: what any key means.

Unlike `models.settings`, which refuses whatever it does not understand because it would be computed wrongly, nothing
here is refused for being unknown: only what is asked for counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from legato.errors import ModelFileError, UnsupportedModelError

_MOST = 2**31 - 1


class Fields:
    """Reads from `values`; a null counts as absent. Several names mean: the first that is there.

    shown  how a key is called in the file, where that differs
    """

    def __init__(
        self, path: str | os.PathLike[str], values: Mapping[str, object], shown: Mapping[str, str] | None = None
    ) -> None:
        self.path, self._values, self._shown = path, values, shown or {}

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def filled(self, defaults: Mapping[str, object], values: Mapping[str, object]) -> Fields:
        """The same file's fields with other values, on top of what is meant where it says nothing."""
        return Fields(self.path, {**defaults, **values}, self._shown)

    def values(self) -> Mapping[str, object]:
        return self._values

    def raw(self, *names: str) -> object:
        return next((value for name in names if (value := self._values.get(name)) is not None), None)

    def wrong(self, name: str, problem: str) -> ModelFileError:
        return ModelFileError(self.path, self._shown.get(name, name), problem)

    def refuse(self, name: str, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(self.path, self._shown.get(name, name), problem)

    def whole(self, *names: str, default: int | None = None, low: int = 1, high: int = _MOST) -> int:
        """A whole number; without a default it must be there."""
        value = self.raw(*names)
        if value is None:
            if default is None:
                raise self.wrong(names[0], "missing; the size cannot be counted without it")
            return default
        name = next(name for name in names if name in self)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, f"{_short(value)} is not a whole number from {low} to {high}")
        return value

    def optional(self, *names: str) -> int | None:
        """Like `whole`, but absent, null and 0 mean none."""
        return None if self.raw(*names) in (None, 0, False) else self.whole(*names)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"{_short(value)} is not true or false")
        return value

    def text(self, *names: str, default: str = "") -> str:
        value = self.raw(*names)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(names[0], f"{_short(value)} is not a string")
        return value

    def texts(self, name: str, length: int) -> tuple[str, ...] | None:
        """A list of exactly `length` strings, or nothing."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or not all(isinstance(x, str) for x in value):
            raise self.wrong(name, f"{_short(value)} is not a list of strings")
        if len(value) != length:
            raise self.wrong(name, f"names {len(value)} layers, but there are {length}")
        return tuple(value)

    def section(self, name: str) -> Mapping[str, object]:
        """A nested mapping; empty when absent."""
        value = self.raw(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, f"{_short(value)} is not an object")
        return value


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
