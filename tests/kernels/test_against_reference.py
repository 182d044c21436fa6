"""The native backend against the reference, whole decoders at a time: every format, shape and architecture, at every
level that this machine has.

The differences allowed are those of 8-bit activations and of the keys' and values' format, as a share of the logits'
spread; anything wired wrongly is off by a whole spread.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny_decoders import LAYER, RandomWeights, Shape, World, build, random_ids

from legato.core.spec import Activation
from legato.kernels.cpu import NativeBackend
from legato.kernels.ops import FloatArray, KvFormat
from legato.kernels.reference import ReferenceBackend
from legato.weights.tensor import WeightFormat as W

TOKENS = 70
# Root mean square difference over the logits' standard deviation.
FLOAT_WEIGHTS, QUANTIZED_WEIGHTS = 0.006, 0.03

ARCHITECTURES = {
    "one kv head, group of 8": Shape(heads=8, kv_heads=1, head_dim=64),
    "no groups": Shape(heads=3, kv_heads=3, head_dim=64),
    "group of 7, head of 128": Shape(heads=7, kv_heads=1, head_dim=128),
    "head of 80": Shape(head_dim=80),
    "head of 96": Shape(head_dim=96, heads=6),
    "head of 256": Shape(head_dim=256, heads=2, kv_heads=1),
    "head of 16": Shape(head_dim=16, heads=8),
    "vocabulary of 17": Shape(vocab=17),
    "mlp of odd blocks": Shape(mlp=96, fmt=W.Q8_0),
    "windows, two rope bases, post norms, q/k norm": Shape(
        windows=(24, None), post_norm=True, qk_norm=True, embed_scale=11.3, layers=3, activation=Activation.GELU_TANH
    ),
    "soft caps": Shape(softcap=2.0, logit_softcap=1.5),
    "biases": Shape(bias=True),
    "partial rotary": Shape(rotary=0.5),
    "learned positions, layer norms, plain mlp, biases": Shape(
        norm=LAYER, gated=False, bias=True, rotary=0.0, positions=90, activation=Activation.GELU_TANH
    ),
    "exact gelu": Shape(activation=Activation.GELU),
    "plain mlp with silu": Shape(gated=False, activation=Activation.SILU),
    "plain mlp with exact gelu": Shape(gated=False, activation=Activation.GELU),
    "gate and up of two formats": Shape(formats={"gate": W.Q4_0, "up": W.Q8_0}),
    "gate and up of two formats, gelu": Shape(formats={"up": W.Q8_0}, activation=Activation.GELU_TANH, bias=True),
    "q, k and v of three formats": Shape(formats={"q": W.Q4_1, "k": W.Q5_0, "v": W.F16}, bias=True),
    "outputs that are not whole blocks": Shape(
        d_model=96, heads=3, kv_heads=1, head_dim=24, mlp=72, vocab=41, formats={"out": W.F16, "down": W.BF16}
    ),
    "float rows of odd width": Shape(d_model=48, heads=3, kv_heads=1, head_dim=16, mlp=72, fmt=W.F32),
}


def both(shape: Shape, native: NativeBackend, kv: KvFormat = KvFormat.BF16) -> tuple[FloatArray, FloatArray]:
    weights, ids = RandomWeights(shape), [random_ids(shape.vocab, TOKENS, 1)]
    got = World(build(native, weights, kv=kv), ids, 16, 128).whole(0)
    want = World(build(ReferenceBackend(), weights), ids, 16, 128).whole(0)
    return got, want


def difference(got: FloatArray, want: FloatArray) -> float:
    assert got.shape == want.shape and np.isfinite(got).all()
    return float(np.sqrt(np.mean(np.square(got - want))) / want.std())


@pytest.mark.parametrize("fmt", list(W))
def test_every_weight_format(native: NativeBackend, fmt: W) -> None:
    shape = Shape(d_model=256, heads=4, mlp=512, layers=1, fmt=fmt)
    limit = FLOAT_WEIGHTS if fmt in (W.F32, W.F16, W.BF16) else QUANTIZED_WEIGHTS
    assert difference(*both(shape, native)) < limit


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture(native: NativeBackend, name: str) -> None:
    assert difference(*both(ARCHITECTURES[name], native)) < QUANTIZED_WEIGHTS


@pytest.mark.parametrize(("kv", "limit"), [(KvFormat.BF16, 0.01), (KvFormat.INT8, 0.03), (KvFormat.INT4, 0.3)])
def test_every_kv_format(native: NativeBackend, kv: KvFormat, limit: float) -> None:
    for head_dim in (64, 80, 128):
        got, want = both(Shape(fmt=W.F32, head_dim=head_dim, layers=1), native, kv)
        assert difference(got, want) < limit, head_dim


def test_argmax_is_that_of_the_logits(native: NativeBackend) -> None:
    shape = Shape(vocab=1003, layers=1)
    executor = build(native, RandomWeights(shape))
    world = World(executor, [random_ids(shape.vocab, 40, 2)], 16, 128)
    logits = world.whole(0)
    assert executor.argmax() == logits.argmax(axis=-1).tolist()
