"""Weights into the library's own layouts: straight from the file's bytes, in parallel, without loss.

Knows: which tensors may share one packed weight. Does not know: layouts' bytes, models.
"""

from __future__ import annotations

import ctypes as c
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from legato.errors import EngineError, UnsupportedModelError
from legato.kernels.cpu.lib import MAX_SEGMENTS, Library, PartStruct
from legato.kernels.ops import FloatArray
from legato.weights.tensor import Tensor, WeightFormat

_KINDS = {
    WeightFormat.F32: 0,
    WeightFormat.F16: 1,
    WeightFormat.BF16: 2,
    WeightFormat.Q8_0: 3,
    WeightFormat.Q4_0: 4,
    WeightFormat.Q4_1: 5,
    WeightFormat.Q5_0: 6,
    WeightFormat.Q5_1: 7,
    WeightFormat.Q4_K: 8,
    WeightFormat.Q5_K: 9,
    WeightFormat.Q6_K: 10,
}
_PLAIN, _GATE, _UP = -1, 0, 1


@dataclass(frozen=True, slots=True)
class PackedVector:
    handle: int
    size: int


@dataclass(frozen=True, slots=True)
class PackedTable:
    handle: int
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Outputs of one or more native weights, one after the other (more than one where formats differ).

    gated  gate and up lie interleaved, so that the multiplication can end with act(gate) * up
    """

    handles: tuple[int, ...]
    rows: int
    cols: int
    gated: bool


class Context:
    """Threads, an instruction set, and the weights packed for them; freed when nothing refers to it any more.

    tables  bytes that are read where they lie in the file, and so must live as long as the context
    """

    def __init__(self, library: Library, isa: str, threads: int) -> None:
        pointer = c.c_void_p()
        library["lg_context_create"](isa.encode(), threads, c.byref(pointer))
        self.library = library
        self.pointer = pointer
        self.tables: list[NDArray[np.uint8]] = []
        weakref.finalize(self, library["lg_context_free"], pointer)
        self.isa: str = library["lg_context_isa"](pointer).decode()
        self.threads: int = library["lg_context_threads"](pointer)
        self.placement: str = library["lg_context_placement"](pointer).decode()

    @property
    def weight_bytes(self) -> int:
        return int(self.library["lg_context_weight_bytes"](self.pointer))


class Packer:
    """Packs one tensor after the other, each on all threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._library = context.library

    def vector(self, values: FloatArray) -> PackedVector:
        array = np.ascontiguousarray(values, np.float32).reshape(-1)
        handle = c.c_int32()
        self._library["lg_pack_vector"](self._context.pointer, array.ctypes.data, array.size, c.byref(handle))
        return PackedVector(handle.value, array.size)

    def table(self, table: Tensor) -> PackedTable:
        data = np.ascontiguousarray(table.data)
        self._context.tables.append(data)
        handle = c.c_int32()
        self._library["lg_pack_table"](
            self._context.pointer,
            _KINDS[table.format],
            data.ctypes.data,
            data.nbytes,
            table.rows,
            table.cols,
            c.byref(handle),
        )
        return PackedTable(handle.value, table.rows, table.cols)

    def linear(self, parts: Sequence[Tensor], bias: FloatArray | None) -> PackedLinear:
        _check_columns(parts)
        runs = [list(run) for _, run in groupby(parts, key=lambda part: part.format)]
        if len(runs) > MAX_SEGMENTS:
            raise UnsupportedModelError("weights", parts[0].name, f"{len(runs)} runs of formats in one linear layer")
        handles, row = [], 0
        for run in runs:
            rows = sum(part.rows for part in run)
            handles.append(self._pack(run, [_PLAIN] * len(run), None if bias is None else bias[row : row + rows]))
            row += rows
        return PackedLinear(tuple(handles), row, parts[0].cols, gated=False)

    def gate_up(self, gate: Sequence[Tensor], up: Sequence[Tensor], bias: FloatArray | None) -> PackedLinear:
        """Interleaved when all parts have one format; otherwise gate's rows, then up's."""
        parts = [*gate, *up]
        _check_columns(parts)
        rows = sum(part.rows for part in parts)
        if 2 * sum(part.rows for part in gate) != rows:
            raise UnsupportedModelError("weights", parts[0].name, "gate and up have different numbers of rows")
        if len({part.format for part in parts}) > 1:
            return self.linear(parts, bias)
        slots = [_GATE] * len(gate) + [_UP] * len(up)
        return PackedLinear((self._pack(parts, slots, bias),), rows, parts[0].cols, gated=True)

    def _pack(self, parts: Sequence[Tensor], slots: Sequence[int], bias: FloatArray | None) -> int:
        arrays = [np.ascontiguousarray(part.data) for part in parts]
        structs = (PartStruct * len(parts))(
            *(
                PartStruct(array.ctypes.data, array.nbytes, part.rows, slot, 0)
                for array, part, slot in zip(arrays, parts, slots, strict=True)
            )
        )
        held_bias = None if bias is None else _checked_bias(bias, sum(part.rows for part in parts))
        handle = c.c_int32()
        self._library["lg_pack_linear"](
            self._context.pointer,
            _KINDS[parts[0].format],
            parts[0].cols,
            structs,
            len(parts),
            None if held_bias is None else held_bias.ctypes.data,
            c.byref(handle),
        )
        return handle.value


def _check_columns(parts: Sequence[Tensor]) -> None:
    for part in parts:
        if part.cols != parts[0].cols:
            problem = f"{part.cols} columns beside {parts[0].cols} of {parts[0].name}"
            raise UnsupportedModelError("weights", part.name, problem)


def _checked_bias(bias: FloatArray, rows: int) -> NDArray[np.float32]:
    if bias.size != rows:
        raise EngineError(f"a bias of {bias.size} numbers for {rows} outputs")
    return np.ascontiguousarray(bias, np.float32).reshape(-1)
