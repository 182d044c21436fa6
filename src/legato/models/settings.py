"""A model file's settings, read key by key: each read checks type and range, and what nobody read is refused.

Knows: one flat mapping with a few nested ones, and the names that messages should use.
Does not know: what any key means.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from legato.errors import ModelFileError, UnsupportedModelError

_MAX_WHOLE = 2**31 - 1
_MAX_NUMBER = 1e38


class Settings:
    """Reads from `values`. A key with a null value counts as absent.

    shown   how a key is called in the file, where that differs (GGUF keys are read under other names)
    prefix  put before names in messages, such as "rope_scaling."
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        values: Mapping[str, object],
        shown: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        self._path, self._values, self._shown, self._prefix = path, values, shown or {}, prefix
        self._read: set[str] = set()
        self._sections: dict[str, Settings] = {}

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def name(self, key: str) -> str:
        return self._shown.get(key, self._prefix + key)

    def wrong(self, key: str, problem: str) -> ModelFileError:
        """The error for a value that makes no sense."""
        return ModelFileError(self._path, self.name(key), problem)

    def refuse(self, key: str, problem: str) -> UnsupportedModelError:
        """The error for a sound value that Legato does not run."""
        return UnsupportedModelError(self._path, self.name(key), problem)

    def raw(self, key: str) -> object:
        """The value as it is; None when absent."""
        self._read.add(key)
        return self._values.get(key)

    def whole(self, key: str, default: int | None = None, low: int = 1, high: int = _MAX_WHOLE) -> int:
        """A whole number from `low` to `high`; without a default it must be there."""
        value = self.raw(key)
        value = default if value is None else value
        if value is None:
            raise self.wrong(key, "missing")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"{_short(value)} is not a whole number from {low} to {high}")
        return value

    def optional_whole(self, key: str) -> int | None:
        """Like `whole`, but absent, null and 0 mean none."""
        return None if self.raw(key) in (None, 0) else self.whole(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0 that float32 holds; without a default it must be there."""
        value = self.raw(key)
        value = default if value is None else value
        if value is None:
            raise self.wrong(key, "missing")
        if not _is_positive(value):
            raise self.wrong(key, f"{_short(value)} is not a number above 0")
        return float(value)  # type: ignore[arg-type]

    def optional_number(self, key: str) -> float | None:
        return None if self.raw(key) is None else self.number(key)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """Exactly `length` such numbers."""
        value = self.raw(key)
        if not isinstance(value, (list, tuple)) or not all(_is_positive(x) for x in value):
            raise self.wrong(key, f"{_short(value)} is not a list of numbers above 0")
        if len(value) != length:
            raise self.wrong(key, f"holds {len(value)} numbers, expected {length}")
        return tuple(float(x) for x in value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(key, f"{_short(value)} is not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.wrong(key, "missing" if value is None else f"{_short(value)} is not a string")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or not all(isinstance(x, str) for x in value):
            raise self.wrong(key, f"{_short(value)} is not a list of strings")
        return tuple(value)

    def section(self, key: str) -> Settings | None:
        """A nested mapping, the same at every call; its unread keys are refused together with this one's."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"{_short(value)} is not an object")
        return self._sections.setdefault(key, Settings(self._path, value, prefix=f"{self.name(key)}."))

    def nothing(self, key: str) -> Settings:
        """An empty section, for what the file leaves out."""
        return Settings(self._path, {}, prefix=f"{self.name(key)}.")

    def finish(self, ignored: Mapping[str, str], only: Mapping[str, Sequence[object]]) -> None:
        """Refuses what nobody read. `ignored`: key -> why it does not matter; `only`: key -> the values we run."""
        for key, value in self._values.items():
            if key in self._read or key in ignored or value is None:
                continue
            if key not in only:
                raise self.refuse(key, f"unknown setting, {_short(value)}: what it asks for may not be supported")
            if not any(value == allowed and type(value) is type(allowed) for allowed in only[key]):
                choices = " or ".join(_short(allowed) for allowed in only[key])
                raise self.refuse(key, f"is {_short(value)}; only {choices} is supported")
        for child in self._sections.values():
            child.finish({}, {})


def _is_positive(value: object) -> bool:
    """Also within what float32 holds; a comparison, unlike a conversion, takes integers of any size."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _MAX_NUMBER


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
