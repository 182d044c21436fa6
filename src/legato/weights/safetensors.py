"""Reads a safetensors file: tensors as views of the mapped file, nothing copied, nothing believed.

Knows: the container's layout. Does not know: which tensors a model needs, shards (see `source`).
Source: the format section of the safetensors project's README.

    u64 header length | JSON header {name: {dtype, shape, data_offsets: [begin, end]}} | data

The data is covered exactly: no holes, no overlaps, nothing beyond. As with GGUF, all is checked against the file's
size in Python's own integers first, and the file must not be shortened while a tensor lives.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from legato.errors import ModelFileError, UnsupportedModelError
from legato.weights.filemap import map_file, shown
from legato.weights.jsonfile import parse_object
from legato.weights.metadata import U64
from legato.weights.tensor import Tensor, WeightFormat

MAX_HEADER = 100_000_000  # the format's own limit
MAX_DIMS = 8

_FORMATS = {"F32": WeightFormat.F32, "F16": WeightFormat.F16, "BF16": WeightFormat.BF16}
_OTHER_BITS: dict[str, int] = {
    **{"F64": 64, "C64": 64, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8},
    **{"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}


@dataclass(frozen=True, slots=True)
class Refused:
    """A sound tensor of a dtype that we do not read, and the file it lies in."""

    path: str
    dtype: str


class TensorMap(Mapping[str, Tensor]):
    """Names to tensors. A tensor of an unreadable or unknown dtype is listed too, but asking for it is an error.

    So a checkpoint that carries an unused integer buffer loads, and one whose weights are float8 is refused by name.
    """

    __slots__ = ("_tensors", "refused")

    def __init__(self, tensors: dict[str, Tensor], refused: dict[str, Refused]) -> None:
        self._tensors, self.refused = tensors, refused

    def __getitem__(self, name: str) -> Tensor:
        if name in self.refused:
            problem = f"has dtype {self.refused[name].dtype}, supported are {', '.join(_FORMATS)}"
            raise UnsupportedModelError(self.refused[name].path, f"tensor {shown(name)}", problem)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self.refused

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self.refused

    def __len__(self) -> int:
        return len(self._tensors) + len(self.refused)

    @property
    def readable(self) -> dict[str, Tensor]:
        """The tensors that can be asked for."""
        return self._tensors


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A safetensors file, mapped. `header_bytes`: everything before the tensors' data."""

    path: str
    tensors: TensorMap
    header_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor's entry in the header; begin and end are counted from the beginning of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: str | os.PathLike[str]) -> TensorMap:
    """The tensors of one file by name; a scalar comes in shape (1,). `ModelFileError` names the field at fault."""
    return open_safetensors(path).tensors


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """As `read_safetensors`, with what the header took."""
    name = os.fspath(path)
    buffer, size = map_file(name)
    if size < 8:
        raise ModelFileError(name, "header length", f"needs 8 bytes, the file has {size}")
    length = U64.unpack_from(buffer, 0)[0]
    if length > MAX_HEADER:
        raise ModelFileError(name, "header length", f"is {length}, at most {MAX_HEADER} are possible")
    if length > size - 8:
        raise ModelFileError(name, "header length", f"is {length}, but only {size - 8} bytes follow")
    start = 8 + int(length)
    raw = buffer[8:start]
    if raw[:1] != b"{":
        raise ModelFileError(name, "header", f"begins with {raw[:1]!r}, not with an object")
    header = parse_object(name, "header", raw)
    _check_notes(name, header.pop("__metadata__", {}))
    entries = [_entry(name, key, value) for key, value in header.items()]
    _check_places(name, entries, size - start)
    base = np.frombuffer(buffer, dtype=np.uint8)
    tensors: dict[str, Tensor] = {}
    refused: dict[str, Refused] = {}
    for e in entries:
        if e.dtype in _FORMATS:
            data = base[start + e.begin : start + e.end]
            tensors[e.name] = Tensor(e.name, e.shape or (1,), _FORMATS[e.dtype], data)
        else:
            refused[e.name] = Refused(name, e.dtype)
    return SafetensorsFile(name, TensorMap(tensors, refused), start)


def _check_notes(path: str, notes: object) -> None:
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ModelFileError(path, "__metadata__", "is not an object of strings")


def _sizes(path: str, field: str, value: object) -> tuple[int, ...]:
    """A list of whole numbers from 0 to 2^63."""
    ok = isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
    if not ok or not isinstance(value, list):
        raise ModelFileError(path, field, "is not a list of whole numbers from 0 to 2^63")
    return tuple(value)


def _entry(path: str, name: str, value: object) -> _Entry:
    field = f"tensor {shown(name)}"
    if not isinstance(value, dict):
        raise ModelFileError(path, field, "is not an object")
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in value]
    if missing:
        raise ModelFileError(path, field, f"has no {missing[0]}")
    dtype = value["dtype"]
    if not isinstance(dtype, str):
        raise ModelFileError(path, f"{field}: dtype", "is not a string")
    shape = _sizes(path, f"{field}: shape", value["shape"])
    offsets = _sizes(path, f"{field}: data_offsets", value["data_offsets"])
    if len(shape) > MAX_DIMS:
        raise ModelFileError(path, f"{field}: shape", f"has {len(shape)} dimensions, at most {MAX_DIMS} are possible")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFileError(path, f"{field}: data_offsets", f"{list(offsets)[:4]} are not a begin and an end")
    bits = _FORMATS[dtype].block_bytes * 8 if dtype in _FORMATS else _OTHER_BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (offsets[1] - offsets[0]) * 8:
        problem = f"{list(shape)} of {dtype} is {math.prod(shape) * bits // 8} bytes, data_offsets give"
        raise ModelFileError(path, f"{field}: shape", f"{problem} {offsets[1] - offsets[0]}")
    return _Entry(name, shown(dtype), shape, offsets[0], offsets[1])


def _check_places(path: str, entries: list[_Entry], data_bytes: int) -> None:
    """The tensors cover the data exactly, in some order."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        field = f"tensor {shown(entry.name)}: data_offsets"
        if entry.end > data_bytes:
            problem = f"end at {entry.end}, but the data has {data_bytes} bytes (is the file truncated?)"
            raise ModelFileError(path, field, problem)
        if entry.begin != end:
            what = "overlap the tensor before" if entry.begin < end else f"leave a hole of {entry.begin - end} bytes"
            raise ModelFileError(path, field, what)
        end = entry.end
    if end != data_bytes:
        raise ModelFileError(path, "data", f"has {data_bytes} bytes, the tensors take {end}")
