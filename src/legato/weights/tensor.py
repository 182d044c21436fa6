"""A weight as it lies in a file: name, shape, format and bytes, nothing copied.

Knows: formats' block sizes and how to make float32 of them (through `formats`). Does not know: models, devices.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class WeightFormat(enum.StrEnum):
    """How numbers are stored. `block` values share one record of `block_bytes` bytes; rows are whole blocks.

    Source: the GGUF specification and ggml's block definitions; F32/F16/BF16 also as in safetensors.
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    Q5_0 = "q5_0"
    Q5_1 = "q5_1"
    Q4_K = "q4_k"
    Q5_K = "q5_k"
    Q6_K = "q6_k"

    @property
    def block(self) -> int:
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        return _BLOCKS[self][1]

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` values (a whole number of blocks)."""
        assert cols % self.block == 0, (self, cols)
        return cols // self.block * self.block_bytes


_BLOCKS: dict[WeightFormat, tuple[int, int]] = {
    WeightFormat.F32: (1, 4),
    WeightFormat.F16: (1, 2),
    WeightFormat.BF16: (1, 2),
    WeightFormat.Q8_0: (32, 34),
    WeightFormat.Q4_0: (32, 18),
    WeightFormat.Q4_1: (32, 20),
    WeightFormat.Q5_0: (32, 22),
    WeightFormat.Q5_1: (32, 24),
    WeightFormat.Q4_K: (256, 144),
    WeightFormat.Q5_K: (256, 176),
    WeightFormat.Q6_K: (256, 210),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` is row-major (rows first); `data` is a uint8 view of the file, one row after the other."""

    name: str
    shape: tuple[int, ...]
    format: WeightFormat
    data: NDArray[np.uint8]

    @property
    def rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64)) if len(self.shape) > 1 else 1

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def row_view(self) -> NDArray[np.uint8]:
        """(rows, bytes a row), no copy."""
        return self.data.reshape(self.rows, self.format.row_bytes(self.cols))

    def take(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a 2-D tensor, no copy."""
        assert len(self.shape) == 2 and 0 <= start <= stop <= self.shape[0], (self.name, self.shape, start, stop)
        row = self.format.row_bytes(self.cols)
        data = self.data[start * row : stop * row]
        return Tensor(f"{self.name}[{start}:{stop}]", (stop - start, self.cols), self.format, data)

    def reorder(self, order: NDArray[np.int64]) -> Tensor:
        """The rows in another order (a copy); for Q/K rows stored for interleaved rope."""
        return Tensor(self.name, self.shape, self.format, np.ascontiguousarray(self.row_view()[order]).reshape(-1))

    def float32(self) -> NDArray[np.float32]:
        """The exact values of the format's definition, as float32, in `shape`."""
        from legato.weights.formats import dequantize

        return dequantize(self.format, self.data, self.shape)
