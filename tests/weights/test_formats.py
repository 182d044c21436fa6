"""Formats against the gguf package's own conversions: the same bits, at every size, in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from legato.errors import ModelFileError, UsageError
from legato.weights.formats import CHUNK, dequantize, quantize, quantize_tensor
from legato.weights.tensor import Tensor, WeightFormat

gguf = pytest.importorskip("gguf")

ALL = list(WeightFormat)
WRITABLE = [WeightFormat.F16, WeightFormat.BF16, WeightFormat.Q8_0, WeightFormat.Q4_0, WeightFormat.Q4_1]
HALF_FIELDS = {"q8_0": [0], "q4_0": [0], "q5_0": [0], "q4_1": [0, 2], "q5_1": [0, 2], "q4_k": [0, 2], "q5_k": [0, 2]}


def oracle(fmt: WeightFormat, data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[fmt.value.upper()]
    rows = data.reshape(-1, fmt.row_bytes(shape[-1]))
    return np.asarray(gguf.quants.dequantize(rows, kind)).reshape(shape)


def random_bytes(fmt: WeightFormat, rows: int, cols: int, seed: int, finite: bool = True) -> np.ndarray:
    """Any bytes are a valid block; `finite` keeps the scales from being infinite or not a number."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * cols // fmt.block, fmt.block_bytes), dtype=np.uint8)
    for at in [208] if fmt is WeightFormat.Q6_K else HALF_FIELDS.get(fmt.value, []) if finite else []:
        blocks[:, at + 1] &= 0xBF
    if fmt in (WeightFormat.F16, WeightFormat.BF16, WeightFormat.F32) and finite:
        blocks[:, -1] &= 0xBF
    return blocks.reshape(-1)


@pytest.mark.parametrize("fmt", ALL)
@pytest.mark.parametrize(("rows", "cols"), [(1, 256), (3, 512), (2, CHUNK + 256), (700, 256)])
def test_dequantize_gives_the_oracles_bits(fmt: WeightFormat, rows: int, cols: int) -> None:
    data = random_bytes(fmt, rows, cols, seed=rows + cols)
    got = dequantize(fmt, data, (rows, cols))
    assert got.dtype == np.float32 and got.shape == (rows, cols) and got.flags.writeable
    assert np.array_equal(got.view(np.uint32), oracle(fmt, data, (rows, cols)).view(np.uint32))


@pytest.mark.parametrize("fmt", ALL)
def test_any_bytes_at_all_agree_with_the_oracle(fmt: WeightFormat) -> None:
    """Infinite and not-a-number scales included: damage stays visible instead of becoming a number."""
    data = random_bytes(fmt, 64, 256, seed=1, finite=False)
    with np.errstate(all="ignore"):
        assert np.array_equal(dequantize(fmt, data, (64, 256)), oracle(fmt, data, (64, 256)), equal_nan=True)


@pytest.mark.parametrize("fmt", ALL)
def test_odd_offsets_in_a_file_are_read_alike(fmt: WeightFormat) -> None:
    data = random_bytes(fmt, 2, 256, seed=2)
    shifted = np.concatenate([np.zeros(1, np.uint8), data])[1:]
    shifted.flags.writeable = False
    assert np.array_equal(dequantize(fmt, shifted, (2, 256)), dequantize(fmt, data, (2, 256)))


@pytest.mark.parametrize("fmt", ALL)
def test_leading_axes_are_only_rows(fmt: WeightFormat) -> None:
    data = random_bytes(fmt, 6, 256, seed=3)
    assert np.array_equal(dequantize(fmt, data, (2, 3, 256)).reshape(6, 256), dequantize(fmt, data, (6, 256)))
    assert dequantize(fmt, data[:0], (0, 256)).shape == (0, 256)


@pytest.mark.parametrize("fmt", [WeightFormat.Q4_1, WeightFormat.Q6_K, WeightFormat.BF16])
def test_dequantize_needs_little_memory_besides_its_result(fmt: WeightFormat) -> None:
    rows, cols = 2048, 2048
    data = random_bytes(fmt, rows, cols, seed=4)
    tracemalloc.start()
    out = dequantize(fmt, data, (rows, cols))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes + 8 * 2**20


finite_rows = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([32, 64, 96])),
    elements=st.floats(-1000, 1000, width=32) | st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 127.5, -8.0]),
)


@pytest.mark.parametrize("fmt", WRITABLE)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=finite_rows)
def test_quantize_writes_what_the_reference_quantisers_write(fmt: WeightFormat, values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[fmt.value.upper()])
    got = quantize(fmt, values)
    assert got.dtype == np.uint8 and got.ndim == 1
    if fmt is WeightFormat.Q8_0:  # a tie may fall either way by the last bit of the scaled value
        gap = got.view(np.int8).astype(int) - np.ascontiguousarray(expected).reshape(-1).view(np.int8).astype(int)
        assert np.abs(gap).max() <= 1 and (gap != 0).mean() < 0.02
    else:
        assert np.array_equal(got, np.ascontiguousarray(expected).view(np.uint8).reshape(-1))


@pytest.mark.parametrize("fmt", WRITABLE)
def test_rounding_stays_within_half_a_step(fmt: WeightFormat) -> None:
    values = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    back = dequantize(fmt, quantize(fmt, values), values.shape)
    blocks = values.reshape(-1, 32)
    spread = {
        WeightFormat.Q8_0: np.abs(blocks).max(1) / 127,
        WeightFormat.Q4_0: np.abs(blocks).max(1) / 4,  # the sign opposite to the largest has only 7 steps
        WeightFormat.Q4_1: np.ptp(blocks, axis=1) / 15,
    }
    step = spread.get(fmt, np.abs(blocks).max(1) * (2**-8 if fmt is WeightFormat.BF16 else 2**-11) * 2)
    assert (np.abs(back.reshape(-1, 32) - blocks) <= 0.5 * step[:, None] * 1.02 + 2e-3 * np.abs(blocks)).all()


@pytest.mark.parametrize("fmt", [*WRITABLE, WeightFormat.F32])
def test_written_values_survive_a_second_trip(fmt: WeightFormat) -> None:
    values = np.random.default_rng(6).standard_normal((8, 512)).astype(np.float32)
    once = dequantize(fmt, quantize(fmt, values), values.shape)
    twice = dequantize(fmt, quantize(fmt, once), values.shape)
    assert np.allclose(once, twice, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("fmt", WRITABLE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_what_cannot_be_kept_is_refused(fmt: WeightFormat, bad: float) -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 40] = bad
    with pytest.raises(OverflowError, match=fmt.value):
        quantize(fmt, values)
    tensor = Tensor("layer.weight", (2, 64), WeightFormat.F32, quantize(WeightFormat.F32, values))
    with pytest.raises(ModelFileError, match=r"layer\.weight"):
        quantize_tensor(tensor, fmt)


def test_formats_that_are_only_read_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="q6_k"):
        quantize(WeightFormat.Q6_K, np.zeros((1, 256), np.float32))


def test_a_tensor_quantised_in_chunks_equals_one_quantised_at_once() -> None:
    values = np.random.default_rng(7).standard_normal((300, 1024)).astype(np.float32)
    tensor = Tensor("w", values.shape, WeightFormat.BF16, quantize(WeightFormat.BF16, values))
    got = quantize_tensor(tensor, WeightFormat.Q8_0)
    assert got.format is WeightFormat.Q8_0 and got.shape == tensor.shape
    assert np.array_equal(got.data, quantize(WeightFormat.Q8_0, tensor.float32()))
