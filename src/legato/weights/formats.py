"""What the bytes of a weight mean: `dequantize` to float32, `quantize` from it.

Knows: the block records of each `WeightFormat`. Does not know: files, tensors' names, kernels' own layouts.

Sources: ggml's block definitions (ggml-common.h) and reference conversions (ggml-quants.c), little endian.
A block's numbers are (q has the format's bits, all scales of a block float16 unless said otherwise):

    Q8_0  32   d, int8 q[32]                        d * q
    Q4_0  32   d, nibbles[16]                       d * (q - 8)              byte i holds values i (low) and i + 16
    Q4_1  32   d, m, nibbles[16]                    d * q + m
    Q5_0  32   d, bit 4 of each [4], nibbles[16]    d * (q - 16)
    Q5_1  32   d, m, bit 4 of each [4], nibbles     d * q + m
    Q4_K  256  d, dmin, 8 x 6-bit (s, m) [12], nibbles[128]     (d * s) * q - dmin * m, s and m for 32 values each
    Q5_K  256  as Q4_K with bit 4 of each [32] before the nibbles
    Q6_K  256  low nibbles [128], bits 4-5 [64], int8 s[16], d  (d * s) * (q - 32), s for 16 values each
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from legato.errors import ModelFileError, UsageError
from legato.weights.tensor import Tensor, WeightFormat

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Records = NDArray[np.void]

CHUNK = 1 << 17  # values worked on at once: temporaries stay within a core's cache, whatever the tensor's size

_RECORDS: dict[WeightFormat, np.dtype[np.void]] = {
    WeightFormat.F32: np.dtype([("q", "<f4", (1,))]),
    WeightFormat.F16: np.dtype([("q", "<f2", (1,))]),
    WeightFormat.BF16: np.dtype([("q", "<u2", (1,))]),
    WeightFormat.Q8_0: np.dtype([("d", "<f2"), ("q", "i1", (32,))]),
    WeightFormat.Q4_0: np.dtype([("d", "<f2"), ("q", "u1", (16,))]),
    WeightFormat.Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", (16,))]),
    WeightFormat.Q5_0: np.dtype([("d", "<f2"), ("high", "u1", (4,)), ("q", "u1", (16,))]),
    WeightFormat.Q5_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "u1", (4,)), ("q", "u1", (16,))]),
    WeightFormat.Q4_K: np.dtype([("d", "<f2"), ("m", "<f2"), ("s", "u1", (12,)), ("q", "u1", (4, 32))]),
    WeightFormat.Q5_K: np.dtype(
        [("d", "<f2"), ("m", "<f2"), ("s", "u1", (12,)), ("high", "u1", (32,)), ("q", "u1", (4, 32))]
    ),
    WeightFormat.Q6_K: np.dtype([("q", "u1", (2, 2, 32)), ("high", "u1", (2, 32)), ("s", "i1", (16,)), ("d", "<f2")]),
}


def dequantize(fmt: WeightFormat, data: Bytes, shape: tuple[int, ...]) -> Floats:
    """The exact float32 values in `shape` (row-major, last axis whole blocks). Always a new, writable array.

    Besides the result it needs a few megabytes, however large the tensor. Not-a-number scales pass through.
    """
    count = math.prod(shape)
    assert data.dtype == np.uint8 and data.size * fmt.block == count * fmt.block_bytes, (fmt, data.size, shape)
    records = np.ascontiguousarray(data).reshape(-1).view(_RECORDS[fmt])
    out = np.empty((records.size, fmt.block), dtype=np.float32)
    decode = _DECODERS[fmt]
    step = CHUNK // fmt.block
    with np.errstate(all="ignore"):
        for start in range(0, records.size, step):
            decode(records[start : start + step], out[start : start + step])
    return out.reshape(shape)


def quantize(fmt: WeightFormat, values: Floats) -> Bytes:
    """Rounds (rows, cols) float32 to `fmt` as ggml's reference quantisers do: flat bytes, row after row.

    Raises `UsageError` for a format that is read but never written, `OverflowError` where a value (or a block's
    scale) is not a number or too large for the format.
    """
    encode = _ENCODERS.get(fmt)
    if encode is None:
        raise UsageError(f"cannot quantise to {fmt}: possible are {', '.join(_ENCODERS)}")
    assert values.dtype == np.float32 and values.ndim == 2 and values.shape[1] % fmt.block == 0, (fmt, values.shape)
    blocks = np.ascontiguousarray(values).reshape(-1, fmt.block)
    out = np.empty(len(blocks), dtype=_RECORDS[fmt])
    step = CHUNK // fmt.block
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            encode(blocks[start : start + step], out[start : start + step])
    return out.view(np.uint8)


def quantize_tensor(tensor: Tensor, fmt: WeightFormat) -> Tensor:
    """The same tensor in `fmt`, row chunk by row chunk; `ModelFileError` names it if a value does not fit."""
    row = tensor.format.row_bytes(tensor.cols)
    step = max(1, CHUNK // max(1, tensor.cols))
    out = np.empty((tensor.rows, fmt.row_bytes(tensor.cols)), dtype=np.uint8)
    source = tensor.data.reshape(tensor.rows, row)
    for start in range(0, tensor.rows, step):
        chunk = source[start : start + step]
        values = dequantize(tensor.format, chunk, (len(chunk), tensor.cols))
        try:
            out[start : start + step] = quantize(fmt, values).reshape(len(chunk), -1)
        except OverflowError as error:
            raise ModelFileError(tensor.name, "values", f"{error}; keep this tensor in its own format") from None
    return Tensor(tensor.name, tensor.shape, fmt, out.reshape(-1))


# ---------------------------------------------------------------- reading


def _wide(half: NDArray[np.float16]) -> Floats:
    """Float16 scales of n blocks as an (n, 1) float32 column."""
    return half.astype(np.float32)[:, None]


def _plain(r: Records, out: Floats) -> None:
    out[:] = r["q"]


def _bf16(r: Records, out: Floats) -> None:
    np.left_shift(r["q"].astype(np.uint32), 16, out=out.view(np.uint32))


def _q8_0(r: Records, out: Floats) -> None:
    out[:] = r["q"]
    out *= _wide(r["d"])


def _nibbles(q: Bytes, out: Floats) -> None:
    """Byte i of a block of 32 holds values i (low nibble) and i + 16 (high nibble)."""
    out[:, :16] = q & 15
    out[:, 16:] = q >> 4


def _q4_0(r: Records, out: Floats) -> None:
    _nibbles(r["q"], out)
    out -= 8
    out *= _wide(r["d"])


def _q4_1(r: Records, out: Floats) -> None:
    _nibbles(r["q"], out)
    out *= _wide(r["d"])
    out += _wide(r["m"])


def _five_bits(r: Records, out: Floats) -> None:
    bits = np.unpackbits(r["high"], axis=1, bitorder="little") << 4
    out[:, :16] = (r["q"] & 15) | bits[:, :16]
    out[:, 16:] = (r["q"] >> 4) | bits[:, 16:]


def _q5_0(r: Records, out: Floats) -> None:
    _five_bits(r, out)
    out -= 16
    out *= _wide(r["d"])


def _q5_1(r: Records, out: Floats) -> None:
    _five_bits(r, out)
    out *= _wide(r["d"])
    out += _wide(r["m"])


def k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight 6-bit scales and eight 6-bit minimums in the 12 bytes of a Q4_K or Q5_K block: (n, 8) each.

    Bytes 0-3 and 4-7 hold scales 0-3 and minimums 0-3 in their low six bits; bytes 8-11 the low nibbles of
    scales 4-7 (low) and minimums 4-7 (high), whose top two bits are the spare bits of bytes 0-3 and 4-7.
    """
    first, second, last = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (last & 15) | (first >> 6 << 4)], axis=1)
    minimums = np.concatenate([second & 63, (last >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minimums


def _k_finish(r: Records, out: Floats) -> None:
    scales, minimums = k_scales(r["s"])
    by_scale = out.reshape(-1, 8, 32)
    by_scale *= (_wide(r["d"]) * scales)[:, :, None]
    by_scale -= (_wide(r["m"]) * minimums)[:, :, None]


def _q4_k(r: Records, out: Floats) -> None:
    pairs = out.reshape(-1, 4, 2, 32)  # 32 bytes hold two groups of 32: low nibbles, then high nibbles
    pairs[:, :, 0] = r["q"] & 15
    pairs[:, :, 1] = r["q"] >> 4
    _k_finish(r, out)


def _q5_k(r: Records, out: Floats) -> None:
    pairs = out.reshape(-1, 4, 2, 32)
    for pair in range(4):  # bit g of byte i is bit 4 of value i of group g
        low, high = r["q"][:, pair] & 15, r["q"][:, pair] >> 4
        pairs[:, pair, 0] = low | (r["high"] >> (2 * pair) & 1) << 4
        pairs[:, pair, 1] = high | (r["high"] >> (2 * pair + 1) & 1) << 4
    _k_finish(r, out)


def _q6_k(r: Records, out: Floats) -> None:
    # Each half of 128 values: 64 bytes of nibbles (low: groups 0 and 1, high: groups 2 and 3), and 32 bytes whose
    # bit pairs 0-1, 2-3, 4-5, 6-7 belong to groups 0, 1, 2, 3.
    groups = out.reshape(-1, 2, 4, 32)
    for group in range(4):
        low = r["q"][:, :, group % 2] >> (4 * (group // 2)) & 15
        groups[:, :, group] = low | (r["high"] >> (2 * group) & 3) << 4
    out -= 32
    by_scale = out.reshape(-1, 16, 16)
    by_scale *= (_wide(r["d"]) * r["s"])[:, :, None]


_DECODERS: dict[WeightFormat, Callable[[Records, Floats], None]] = {
    WeightFormat.F32: _plain,
    WeightFormat.F16: _plain,
    WeightFormat.BF16: _bf16,
    WeightFormat.Q8_0: _q8_0,
    WeightFormat.Q4_0: _q4_0,
    WeightFormat.Q4_1: _q4_1,
    WeightFormat.Q5_0: _q5_0,
    WeightFormat.Q5_1: _q5_1,
    WeightFormat.Q4_K: _q4_k,
    WeightFormat.Q5_K: _q5_k,
    WeightFormat.Q6_K: _q6_k,
}


# ---------------------------------------------------------------- writing


def _check_finite(values: NDArray[np.floating], what: str) -> None:
    if not np.isfinite(values).all():
        raise OverflowError(f"a value is not a number or too large for {what}")


def _write_f32(x: Floats, r: Records) -> None:
    r["q"] = x


def _write_f16(x: Floats, r: Records) -> None:
    r["q"] = x
    _check_finite(r["q"], "f16")


def _write_bf16(x: Floats, r: Records) -> None:
    _check_finite(x, "bf16")
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # half to even; finite values cannot wrap around
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise OverflowError("a value is not a number or too large for bf16")
    r["q"] = rounded


def _inverse(d: Floats) -> Floats:
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _write_q8_0(x: Floats, r: Records) -> None:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    r["d"] = d[:, 0]
    _check_finite(r["d"], "q8_0")
    scaled = x * _inverse(d)
    r["q"] = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))


def _pack_nibbles(scaled: Floats) -> Bytes:
    q = np.minimum(scaled, 15).astype(np.uint8)  # truncation: the half that rounds was added before
    packed: Bytes = np.bitwise_or(q[:, :16], q[:, 16:] << 4)
    return packed


def _write_q4_0(x: Floats, r: Records) -> None:
    furthest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = furthest / np.float32(-8)  # so that the value furthest from zero becomes q = 0 exactly
    r["d"] = d[:, 0]
    _check_finite(r["d"], "q4_0")
    r["q"] = _pack_nibbles(x * _inverse(d) + np.float32(8.5))


def _write_q4_1(x: Floats, r: Records) -> None:
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(15)
    r["d"], r["m"] = d[:, 0], low[:, 0]
    _check_finite(r["d"], "q4_1")
    _check_finite(r["m"], "q4_1")
    r["q"] = _pack_nibbles((x - low) * _inverse(d) + np.float32(0.5))


_ENCODERS: dict[WeightFormat, Callable[[Floats, Records], None]] = {
    WeightFormat.F32: _write_f32,
    WeightFormat.F16: _write_f16,
    WeightFormat.BF16: _write_bf16,
    WeightFormat.Q8_0: _write_q8_0,
    WeightFormat.Q4_0: _write_q4_0,
    WeightFormat.Q4_1: _write_q4_1,
}
