"""Reads a GGUF file: metadata and tensors, nothing copied, nothing believed.

Knows: the container's layout (versions 2 and 3, little endian). Does not know: what keys mean, models, kernels.
Source: the GGUF specification (docs/gguf.md of the ggml project).

    "GGUF" | u32 version | u64 tensors | u64 keys | keys: string, u32 type, value | tensors: string, u32 dimensions,
    u64 sizes (fastest first), u32 type, u64 offset | padding to the alignment | data, each tensor at an aligned offset

Every count, length and offset is compared with the file's size, in Python's own integers, before anything is
allocated or read; so a lying file costs what its honest bytes cost. The file stays mapped while a tensor lives, and
must not be shortened meanwhile.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from legato.errors import ModelFileError, UnsupportedModelError
from legato.weights.filemap import map_file, shown
from legato.weights.metadata import U64, LazyArray, LazySource, Metadata, ValueType
from legato.weights.tensor import Tensor, WeightFormat

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ITEMS = 1 << 22  # of all arrays together
MAX_NAME = 1 << 16  # bytes of a key (the specification's limit) or a tensor's name
MAX_TEXT = 1 << 26  # bytes of all keys, names and strings outside arrays together
MAX_NESTED = 1 << 12  # arrays within arrays, together: each becomes an object
SHORT = 256  # items of an array that is decoded at once, into a plain list
MAX_DEPTH = 4  # arrays of arrays
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32

_SCALARS: dict[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<B"),
    ValueType.UINT64: U64,
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}

FORMAT_NUMBERS: dict[int, WeightFormat] = {
    0: WeightFormat.F32,
    1: WeightFormat.F16,
    2: WeightFormat.Q4_0,
    3: WeightFormat.Q4_1,
    6: WeightFormat.Q5_0,
    7: WeightFormat.Q5_1,
    8: WeightFormat.Q8_0,
    12: WeightFormat.Q4_K,
    13: WeightFormat.Q5_K,
    14: WeightFormat.Q6_K,
    30: WeightFormat.BF16,
}

# (values, bytes) of a block of types that are not run, for who only counts.
_OTHER_BLOCKS: dict[int, tuple[int, int]] = {
    **{10: (256, 84), 11: (256, 110), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50)},
    **{20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8)},
    **{28: (1, 8), 29: (256, 56), 34: (256, 54), 35: (256, 66), 39: (32, 17)},
}

_OTHER_TYPES: dict[int, str] = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"},
    **{18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"},
    **{26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
_TYPE_NUMBERS_END = 256  # room for types that ggml adds later; a number beyond is damage


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file, mapped. `header_bytes`: everything before the tensors' data."""

    path: str
    version: int
    metadata: Metadata
    tensors: dict[str, Tensor]
    header_bytes: int


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """A tensor as the header tells of it; `format` is ggml's name for its type in lower case."""

    name: str
    shape: tuple[int, ...]
    format: str
    bits: float | None  # a value, scales included; None: of a type too new to be known here

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the tensors' data."""

    path: str
    metadata: Metadata
    tensors: tuple[HeaderTensor, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a header says of a tensor; `sizes` in the file's order, fastest first."""

    field: str
    name: str
    sizes: list[int]
    type: int
    start: int


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor's entry in the header; `start` is counted from the beginning of the data."""

    name: str
    shape: tuple[int, ...]
    format: WeightFormat
    start: int
    nbytes: int


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Maps the file and checks all of its header; raises `ModelFileError` naming the field at fault.

    `UnsupportedModelError` for a tensor of a ggml type that is not in `WeightFormat`. Tensors' shapes are row-major
    (the reverse of the file's order) and their data read-only views.
    """
    name = os.fspath(path)
    buffer, size = map_file(name)
    cursor = _Cursor(name, buffer, size)
    version, num_tensors, num_keys = _read_start(cursor)
    metadata = Metadata(name, _read_metadata(cursor, num_keys))
    alignment = _alignment(metadata)
    infos = _read_infos(cursor, num_tensors, alignment)
    data_start = -(-cursor.pos // alignment) * alignment
    _check_places(name, infos, size - data_start)
    base = np.frombuffer(buffer, dtype=np.uint8)
    tensors = {
        i.name: Tensor(i.name, i.shape, i.format, base[data_start + i.start : data_start + i.start + i.nbytes])
        for i in infos
    }
    return GgufFile(name, version, metadata, tensors, min(data_start, size))


def read_gguf_header(path: str | os.PathLike[str]) -> GgufHeader:
    """The header alone: nothing is asked of the data, which may be missing, and types that are not run are named too.

    Raises `ModelFileError` naming the field at fault, also where the file ends within the header.
    """
    name = os.fspath(path)
    buffer, size = map_file(name)
    cursor = _Cursor(name, buffer, size)
    _, num_tensors, num_keys = _read_start(cursor)
    metadata = Metadata(name, _read_metadata(cursor, num_keys))
    return GgufHeader(name, metadata, tuple(map(_header_tensor, _read_entries(cursor, num_tensors))))


class _Cursor:
    """Walks the header; nothing is read before its bytes were seen to be there."""

    __slots__ = ("buffer", "items_left", "nested_left", "path", "pos", "size", "text_left")

    def __init__(self, path: str, buffer: mmap.mmap, size: int) -> None:
        self.path, self.buffer, self.size, self.pos = path, buffer, size, 0
        self.items_left, self.nested_left, self.text_left = MAX_ITEMS, MAX_NESTED, MAX_TEXT

    def bad(self, field: str, problem: str) -> ModelFileError:
        return ModelFileError(self.path, field, problem)

    def left(self) -> int:
        return self.size - self.pos

    def skip(self, nbytes: int, field: str) -> int:
        """Where the next `nbytes` begin, after making sure that they exist."""
        if nbytes > self.left():
            raise self.bad(field, f"needs {nbytes} bytes at offset {self.pos}, but the file ends at {self.size}")
        start = self.pos
        self.pos += nbytes
        return start

    def scalar(self, kind: ValueType, field: str) -> Any:
        layout = _SCALARS[kind]
        return layout.unpack_from(self.buffer, self.skip(layout.size, field))[0]

    def u32(self, field: str) -> int:
        return int(self.scalar(ValueType.UINT32, field))

    def u64(self, field: str) -> int:
        return int(self.scalar(ValueType.UINT64, field))

    def text(self, field: str, limit: int = MAX_TEXT) -> str:
        length = self.u64(f"{field}: length")
        limit = min(limit, self.text_left)
        if length > limit:
            raise self.bad(field, f"is {length} bytes long, at most {limit} are possible here")
        start = self.skip(length, field)
        self.text_left -= length
        raw = self.buffer[start : start + length]
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.bad(field, f"is not UTF-8 ({error.reason} at byte {error.start})") from None

    def count(self, field: str, most: int, least_bytes: int) -> int:
        """A count of things that take `least_bytes` or more each."""
        number = self.u64(field)
        if number > most:
            raise self.bad(field, f"is {number}, at most {most} are possible")
        if number * least_bytes > self.left():
            raise self.bad(field, f"is {number}, but only {self.left()} bytes follow")
        return number

    def value_type(self, field: str) -> ValueType:
        number = self.u32(f"{field}: type")
        if number not in ValueType.__members__.values():
            raise self.bad(f"{field}: type", f"is {number}, no GGUF type")
        return ValueType(number)

    def value(self, field: str) -> object:
        kind = self.value_type(field)
        if kind is ValueType.STRING:
            return self.text(field)
        if kind is ValueType.ARRAY:
            array = self.array(field, 1)
            return array.tolist() if len(array) <= SHORT and array.kind is not ValueType.ARRAY else array
        value = self.scalar(kind, field)
        if kind is ValueType.BOOL:
            if value > 1:
                raise self.bad(field, f"is a boolean of value {value}, not 0 or 1")
            return value == 1
        return value

    def array(self, field: str, depth: int) -> LazyArray:
        if depth > MAX_DEPTH:
            raise self.bad(field, f"nests arrays more than {MAX_DEPTH} deep")
        kind = self.value_type(f"{field}: items")
        least_bytes = {ValueType.STRING: 8, ValueType.ARRAY: 12}.get(kind) or _SCALARS[kind].size
        most = self.nested_left if kind is ValueType.ARRAY else self.items_left
        length = self.count(f"{field}: length", most, least_bytes)
        source: LazySource
        if kind is ValueType.STRING:
            self.items_left -= length
            source = self._strings(field, length)
        elif kind is ValueType.ARRAY:
            self.nested_left -= length
            source = [self.array(f"{field}[{index}]", depth + 1) for index in range(length)]
        else:
            self.items_left -= length
            start = self.skip(length * least_bytes, field)
            source = np.frombuffer(self.buffer, dtype=_SCALARS[kind].format, count=length, offset=start)
        return LazyArray(self.path, field, kind, length, source)

    def _strings(self, field: str, length: int) -> tuple[mmap.mmap, int, int]:
        """Steps over strings without decoding them; this loop runs once for each token of a vocabulary."""
        buffer, unpack, pos, last = self.buffer, U64.unpack_from, self.pos, self.size - 8
        for index in range(length):
            if pos > last:
                raise self.bad(f"{field}[{index}]", f"begins at offset {pos}, but the file ends at {self.size}")
            pos += 8 + unpack(buffer, pos)[0]
        if pos > self.size:
            raise self.bad(f"{field}[{length - 1}]", f"ends at offset {pos}, but the file ends at {self.size}")
        start, self.pos = self.pos, pos
        return buffer, start, pos


def _read_start(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.buffer[:4]
    if magic != b"GGUF":
        raise cursor.bad("magic", f"is {magic!r}, a GGUF file begins with b'GGUF'")
    cursor.pos = 4
    version = cursor.u32("version")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModelError(cursor.path, "version", "the file is big-endian; convert it to little-endian")
    if version == 1:
        raise UnsupportedModelError(cursor.path, "version", "is 1, supported are 2 and 3; convert the model anew")
    if version not in (2, 3):
        raise cursor.bad("version", f"is {version}, supported are 2 and 3")
    num_tensors = cursor.count("tensor count", MAX_TENSORS, 32)
    num_keys = cursor.count("metadata count", MAX_KEYS, 13)
    return version, num_tensors, num_keys


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, object]:
    values: dict[str, object] = {}
    for index in range(num_keys):
        key = cursor.text(f"metadata key {index}", MAX_NAME)
        if not key or key in values:
            raise cursor.bad(f"metadata key {index}", f"{shown(key)} occurs twice" if key else "is empty")
        values[key] = cursor.value(shown(key))
    return values


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.get_int("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 8 or alignment > 1 << 20 or alignment & (alignment - 1):
        problem = f"is {alignment}, a power of two from 8 to {1 << 20} is needed"
        raise ModelFileError(metadata.path, "general.alignment", problem)
    return alignment


def _read_infos(cursor: _Cursor, num_tensors: int, alignment: int) -> list[_Info]:
    return [_checked(cursor, entry, alignment) for entry in _read_entries(cursor, num_tensors)]


def _read_entries(cursor: _Cursor, num_tensors: int) -> Iterator[_Entry]:
    names: set[str] = set()
    for index in range(num_tensors):
        name = cursor.text(f"name of tensor {index}", MAX_NAME)
        if not name or name in names:
            raise cursor.bad(f"name of tensor {index}", f"{shown(name)} occurs twice" if name else "is empty")
        names.add(name)
        yield _read_entry(cursor, name)


def _read_entry(cursor: _Cursor, name: str) -> _Entry:
    field = f"tensor {shown(name)}"
    num_dims = cursor.u32(f"{field}: dimensions")
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.bad(f"{field}: dimensions", f"are {num_dims}, 1 to {MAX_DIMS} are possible")
    sizes = [cursor.u64(f"{field}: size {axis}") for axis in range(num_dims)]
    number = cursor.u32(f"{field}: type")
    start = cursor.u64(f"{field}: offset")
    if number >= _TYPE_NUMBERS_END:
        raise cursor.bad(f"{field}: type", f"is {number}, no ggml type")
    if not 0 < math.prod(sizes) < 1 << 63:
        raise cursor.bad(f"{field}: shape", f"{sizes} holds {math.prod(sizes)} values")
    return _Entry(field, name, sizes, number, start)


def _checked(cursor: _Cursor, entry: _Entry, alignment: int) -> _Info:
    field, sizes = entry.field, entry.sizes
    fmt = FORMAT_NUMBERS.get(entry.type)
    if fmt is None:
        known = _OTHER_TYPES.get(entry.type, f"number {entry.type}")
        problem = f"is ggml's {known}, supported are {', '.join(fmt.name for fmt in WeightFormat)}"
        raise UnsupportedModelError(cursor.path, f"{field}: type", problem)
    if sizes[0] % fmt.block:
        raise cursor.bad(f"{field}: shape", f"{sizes[0]} columns are not whole {fmt.name} blocks of {fmt.block}")
    if entry.start % alignment:
        raise cursor.bad(f"{field}: offset", f"{entry.start} is not a multiple of the alignment {alignment}")
    nbytes = math.prod(sizes) // fmt.block * fmt.block_bytes
    return _Info(entry.name, tuple(reversed(sizes)), fmt, entry.start, nbytes)


def _header_tensor(entry: _Entry) -> HeaderTensor:
    fmt = FORMAT_NUMBERS.get(entry.type)
    block, nbytes = (fmt.block, fmt.block_bytes) if fmt else _OTHER_BLOCKS.get(entry.type, (0, 0))
    word = str(fmt) if fmt else _OTHER_TYPES.get(entry.type, f"type {entry.type}").lower()
    return HeaderTensor(entry.name, tuple(reversed(entry.sizes)), word, 8 * nbytes / block if block else None)


def _check_places(path: str, infos: list[_Info], data_bytes: int) -> None:
    """Every tensor lies within the data, and no two share a byte."""
    end, before = 0, ""
    for info in sorted(infos, key=lambda info: info.start):
        stop = info.start + info.nbytes
        if stop > data_bytes:
            problem = f"needs {stop} bytes of data, the file has {max(0, data_bytes)} (is it truncated?)"
            raise ModelFileError(path, f"tensor {shown(info.name)}", problem)
        if info.start < end:
            raise ModelFileError(path, f"tensor {shown(info.name)}", f"overlaps tensor {shown(before)}")
        end, before = stop, info.name
