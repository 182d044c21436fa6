"""Writes a GGUF file (version 3, little endian) from metadata and tensors.

Knows: the container's layout. Does not know: models, formats' contents (see `formats.quantize`).
Meant for tests and for benchmark models of random weights.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from legato.weights.gguf import DEFAULT_ALIGNMENT, FORMAT_NUMBERS
from legato.weights.metadata import ValueType
from legato.weights.tensor import Tensor

_NUMBERS = {fmt: number for number, fmt in FORMAT_NUMBERS.items()}
_LAYOUTS = {
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
}


def write_gguf(path: str | os.PathLike[str], metadata: Mapping[str, object], tensors: Iterable[Tensor]) -> None:
    """Writes the file whole or not at all (through a temporary name beside it).

    Metadata values: bool, int (the narrowest of u32, i32, u64, i64), float (f32), str, or a list or tuple of one of
    these; `general.alignment` is honoured. A tensor's `data` may be a memory map: it is written without a copy.
    """
    target = Path(path)
    ordered = list(tensors)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(ordered), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _value(value)
    offset = 0
    for tensor in ordered:
        sizes = tuple(reversed(tensor.shape))
        header += _text(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        header += struct.pack("<IQ", _NUMBERS[tensor.format], offset)
        offset += tensor.nbytes + -tensor.nbytes % alignment
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(header)
            _pad(file, len(header), alignment)
            for tensor in ordered:
                file.write(tensor.data.data)
                _pad(file, tensor.nbytes, alignment)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _pad(file: BinaryIO, written: int, alignment: int) -> None:
    file.write(bytes(-written % alignment))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _kind(values: Sequence[Any]) -> ValueType:
    """One type that holds every value; a mixture of types is the caller's mistake."""
    types = {type(value) for value in values}
    if types == {str}:
        return ValueType.STRING
    if types == {bool}:
        return ValueType.BOOL
    if types and types <= {int, float} and float in types:
        return ValueType.FLOAT32
    assert types <= {int}, f"no GGUF type holds {types}"
    low, high = min(values, default=0), max(values, default=0)
    if low >= 0:
        return ValueType.UINT32 if high < 1 << 32 else ValueType.UINT64
    return ValueType.INT32 if low >= -(1 << 31) and high < 1 << 31 else ValueType.INT64


def _packed(kind: ValueType, values: Sequence[Any]) -> bytes:
    if kind is ValueType.STRING:
        return b"".join(map(_text, values))
    layout = _LAYOUTS[kind]
    return struct.pack(f"<{len(values)}{layout[1]}", *values)


def _value(value: object) -> bytes:
    if isinstance(value, (list, tuple)):
        kind = _kind(value)
        return struct.pack("<IIQ", ValueType.ARRAY, kind, len(value)) + _packed(kind, value)
    kind = _kind([value])
    return struct.pack("<I", kind) + _packed(kind, [value])
