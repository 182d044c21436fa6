"""What a model file says about itself, asked for by key and type.

Knows: keys, plain values, and arrays that stay in the file until they are asked for. Does not know: file layouts
(they are read in `gguf`), what any key means.
"""

from __future__ import annotations

import enum
import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from legato.errors import ModelFileError

T = TypeVar("T", int, float, bool, str)

U64 = struct.Struct("<Q")


class ValueType(enum.IntEnum):
    """Types of metadata values, by their number in a GGUF file (source: the GGUF specification)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_KINDS: dict[ValueType, str] = {ValueType.STRING: "strings", ValueType.BOOL: "booleans", ValueType.ARRAY: "arrays"}
_KINDS |= {kind: "numbers" for kind in ValueType if kind not in _KINDS}


# Where an array's items are: numbers and booleans in a view, strings in a stretch of the file, arrays in a list.
LazySource: TypeAlias = "NDArray[Any] | tuple[mmap.mmap, int, int] | list[LazyArray]"


class LazyArray(Sequence[Any]):
    """An array that still lies in the file: its bounds were checked, its items are decoded when asked for.

    A vocabulary has 50,000 to 260,000 strings; a command that does not tokenise never pays for them. `tolist()`
    decodes everything and keeps nothing; indexing decodes everything once and keeps it.
    """

    __slots__ = ("_field", "_items", "_path", "_source", "kind", "length")

    def __init__(self, path: str, field: str, kind: ValueType, length: int, source: LazySource) -> None:
        self._path, self._field, self._source = path, field, source
        self.kind, self.length = kind, length
        self._items: list[Any] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if self._items is None:
            self._items = self.tolist()
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items if self._items is not None else self.tolist())

    def __repr__(self) -> str:
        return f"<{self.length} {_KINDS[self.kind]} of {self._field}>"

    def tolist(self) -> list[Any]:
        """All items as plain Python values (nested arrays as lists)."""
        if isinstance(self._source, np.ndarray):
            return self._numbers(self._source)
        if isinstance(self._source, tuple):
            return self._strings(*self._source)
        return [item.tolist() for item in self._source]

    def _numbers(self, view: NDArray[Any]) -> list[Any]:
        if self.kind is not ValueType.BOOL:
            return list(view.tolist())
        if view.size and int(view.max()) > 1:
            raise ModelFileError(self._path, self._field, f"holds a boolean of value {int(view.max())}, not 0 or 1")
        return [value == 1 for value in view.tolist()]

    def _strings(self, buffer: mmap.mmap, start: int, end: int) -> list[str]:
        raw = buffer[start:end]
        unpack, at, items = U64.unpack_from, 0, list[str]()
        try:
            for _ in range(self.length):
                begin = at + 8
                at = begin + unpack(raw, at)[0]
                items.append(raw[begin:at].decode())
        except UnicodeDecodeError as error:
            raise ModelFileError(self._path, f"{self._field}[{len(items)}]", f"is not UTF-8 ({error.reason})") from None
        return items


class Metadata(Mapping[str, object]):
    """A read-only mapping with typed access; a missing key or a wrong type is a `ModelFileError` naming the key.

    In `get_*`, `default=None` means: the key is required. A value that is there must have the right type, default or
    not. Values are int, float, bool, str, list, or `LazyArray` for an array that is long or nested.
    """

    __slots__ = ("_values", "path")

    def __init__(self, path: str, values: Mapping[str, object]) -> None:
        self.path, self._values = path, values

    def __getitem__(self, key: str) -> object:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Metadata of {self.path}: {len(self)} keys>"

    def get_int(self, key: str, default: int | None = None) -> int:
        """A whole number (never a bool)."""
        value = self._find(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """A finite number, whole or not."""
        value = self._find(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self._wrong(key, value, "a number")
        if not math.isfinite(value):
            raise ModelFileError(self.path, key, f"is {value}, a finite number is needed")
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        value = self._find(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def get_str(self, key: str, default: str | None = None) -> str:
        value = self._find(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def get_list(self, key: str, of: type[T], default: Sequence[T] | None = None) -> list[T]:
        """A list whose items are all `of` (int, float, bool or str); whole numbers pass as floats."""
        value = self._find(key, default)
        if not isinstance(value, (LazyArray, list, tuple)):
            raise self._wrong(key, value, "a list")
        items = value.tolist() if isinstance(value, LazyArray) else list(value)
        allowed = (int, float) if of is float else (of,)
        for index, item in enumerate(items[:1] if isinstance(value, LazyArray) else items):  # all of a kind if lazy
            if type(item) not in allowed:
                raise self._wrong(f"{key}[{index}]", item, f"a value of type {of.__name__}")
        return [of(item) for item in items] if of is float else items

    def _find(self, key: str, default: object) -> object:
        if key in self._values:
            return self._values[key]
        if default is None:
            raise ModelFileError(self.path, key, "is missing")
        return default

    def _wrong(self, key: str, value: object, needed: str) -> ModelFileError:
        names: dict[type, str] = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string"}
        names |= {dict: "an object", type(None): "null"}
        return ModelFileError(self.path, key, f"is {names.get(type(value), 'a list')}, {needed} is needed")
