"""Choosing a token: every level of the native kernels against a plain sort, in random worlds."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_decoders import RandomWeights, Shape, build

from legato.kernels.choice import choose
from legato.kernels.cpu import NativeBackend
from legato.kernels.ops import Executor, FloatArray


@pytest.fixture
def executor(native: NativeBackend) -> Executor:
    return build(native, RandomWeights(Shape(layers=1)), num_pages=1)


def a_row(rng: np.random.Generator, vocab: int) -> FloatArray:
    """Flat, peaked, full of ties, or with much of it forbidden."""
    row = (rng.standard_normal(vocab) * rng.choice([0.01, 1, 5])).astype(np.float32)
    if rng.random() < 0.3:
        row = np.round(row)
    if rng.random() < 0.2:
        row[rng.random(vocab) < 0.5] = -np.inf
        row[rng.integers(vocab)] = 1.0
    return row


@pytest.mark.parametrize("vocab", [1, 2, 17, 64, 65, 1000, 49_152])
def test_native_and_plain_choose_the_same(executor: Executor, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for _ in range(150 if vocab < 2000 else 12):
        row = a_row(rng, vocab)
        temperature, top_p = float(rng.choice([0.1, 0.8, 1, 5])), float(rng.choice([1, 0.95, 0.5, 0.01]))
        top_k, min_p = int(rng.choice([0, 1, 3, 50, vocab])), float(rng.choice([0, 0.05, 0.9]))
        how = (temperature, top_k, top_p, min_p, float(rng.random()))
        assert executor.choose(row, *how) == choose(row, *how), how


def test_every_token_gets_its_share(executor: Executor) -> None:
    row = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    drawn = [executor.choose(row, 1.0, 0, 1.0, 0.0, (i + 0.5) / 1000) for i in range(1000)]
    assert np.bincount(drawn).tolist() == pytest.approx([100, 200, 300, 400], abs=1)
    assert {executor.choose(row, 1.0, 2, 1.0, 0.0, i / 100) for i in range(100)} == {2, 3}
    assert {executor.choose(row, 1.0, 0, 0.65, 0.0, i / 100) for i in range(100)} == {2, 3}
    assert {executor.choose(row, 1.0, 0, 1.0, 0.6, i / 100) for i in range(100)} == {2, 3}


def test_extremes_stay_inside(executor: Executor) -> None:
    row = np.array([0, 3, 3, -np.inf], np.float32)
    for temperature in (1e-45, 1e-30, 1e30):
        for draw in (0.0, 1 - 2**-53):
            for top_k, top_p, min_p in ((0, 1.0, 0.0), (4, 1.0, 0.0), (0, 1e-9, 0.0), (0, 1.0, 1.0), (3, 0.999, 1e-9)):
                token = executor.choose(row, temperature, top_k, top_p, min_p, draw)
                assert token == choose(row, temperature, top_k, top_p, min_p, draw) and token in (0, 1, 2)


@pytest.mark.parametrize("broken", [[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_a_broken_row_is_told(executor: Executor, broken: list[float]) -> None:
    row = np.array(broken, np.float32)
    assert executor.choose(row, 1.0, 0, 1.0, 0.0, 0.5) == choose(row, 1.0, 0, 1.0, 0.0, 0.5) == -1
