"""The reference backend's operations against slow sums in float64, and sequences that must not feel their company."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from folders import CONFIG, write
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import PAGE_SIZE, Reader, load, one_step

from legato.core.spec import Activation, AttentionSpec, NormKind, NormSpec, RopeSpec
from legato.kernels import reference
from legato.kernels.ops import FloatArray, IntArray, KvFormat


@st.composite
def attention_specs(draw: st.DrawFn) -> AttentionSpec:
    dim = draw(st.sampled_from([2, 8, 16, 80]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    turned = draw(st.integers(0, dim // 2))
    rope = RopeSpec(tuple(1.5**-i for i in range(turned)), draw(st.sampled_from([1.0, 1.2]))) if turned else None
    return AttentionSpec(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=dim,
        scale=draw(st.sampled_from([dim**-0.5, 0.3])),
        rope=rope,
        window=draw(st.sampled_from([None, 1, 3, 7])),
        softcap=draw(st.sampled_from([None, 2.0])),
        qk_norm=draw(st.sampled_from([None, NormSpec(NormKind.RMS, 1e-3)])),
    )


def slow_attention(qkv: FloatArray, spec: AttentionSpec, w: FloatArray | None) -> FloatArray:
    """One sequence from its start, number by number: the definition, in float64."""
    tokens = len(qkv)
    heads = qkv.astype(np.float64).reshape(tokens, -1, spec.head_dim)
    q, k, v = np.split(heads, [spec.num_heads, spec.num_heads + spec.num_kv_heads], axis=1)

    def prepared(head: np.ndarray, position: int) -> np.ndarray:
        if spec.qk_norm is not None and w is not None:
            head = head / math.sqrt(float(np.mean(head**2)) + spec.qk_norm.eps) * w
        out = head.copy()
        if spec.rope is not None:
            half = len(spec.rope.inv_freq)
            for i, freq in enumerate(spec.rope.inv_freq):
                cos, sin = math.cos(position * freq) * spec.rope.scale, math.sin(position * freq) * spec.rope.scale
                out[i] = head[i] * cos - head[half + i] * sin
                out[half + i] = head[half + i] * cos + head[i] * sin
        return out

    result = np.zeros((tokens, spec.num_heads, spec.head_dim))
    for t in range(tokens):
        first = 0 if spec.window is None else max(0, t - spec.window + 1)
        for h in range(spec.num_heads):
            query = prepared(q[t, h], t)
            scores = np.array([query @ prepared(k[s, h // spec.group], s) for s in range(first, t + 1)]) * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * np.tanh(scores / spec.softcap)
            share = np.exp(scores - scores.max())
            result[t, h] = share / share.sum() @ v[first : t + 1, h // spec.group]
    return result.reshape(tokens, -1).astype(np.float32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(spec=attention_specs(), tokens=st.integers(1, 9), cut=st.integers(0, 9), seed=st.integers(0, 99))
def test_attention_is_its_definition_through_any_pages(spec: AttentionSpec, tokens: int, cut: int, seed: int) -> None:
    """The step is cut in two anywhere: the second part finds the first part's keys in the pages."""
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((tokens, spec.q_size + 2 * spec.kv_size)).astype(np.float32)
    w = rng.standard_normal(spec.head_dim).astype(np.float32) if spec.qk_norm is not None else None
    layer = reference._pages(spec, num_pages=5, page_size=3)
    pages = rng.permutation(5).astype(np.int32)
    parts = []
    for start, stop in ((0, min(cut, tokens)), (min(cut, tokens), tokens)):
        if start < stop:
            step = reference._Step(one_step([([0] * (stop - start), start, pages)], 3), [layer])
            parts.append(step.attention(qkv[start:stop], spec, 0, w, w))
    np.testing.assert_allclose(np.concatenate(parts), slow_attention(qkv, spec, w), atol=2e-5)


def test_long_queries_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AttentionSpec(2, 1, 4, 0.5, window=5)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((20, heads, 4)).astype(np.float32) for heads in (2, 1, 1))
    positions: IntArray = np.arange(20, dtype=np.int32)
    whole = reference.attend(q, k, v, positions, spec)
    monkeypatch.setattr(reference, "_MAX_SCORES", 120)  # three rows at a time
    np.testing.assert_allclose(reference.attend(q, k, v, positions, spec), whole, atol=1e-6)


@pytest.mark.parametrize("kind", NormKind)
def test_norms(kind: NormKind) -> None:
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((3, 7)), rng.standard_normal(7), rng.standard_normal(7)
    spec = NormSpec(kind, 1e-2)
    expected = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-2) * w
    if kind is NormKind.LAYER:
        expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-2) * w + b
    f = np.float32
    got = reference.normalize(x.astype(f), spec, w.astype(f), b.astype(f) if kind is NormKind.LAYER else None)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "meaning"),
    [
        (Activation.SILU, lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0),
        (Activation.GELU, lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        (Activation.GELU_TANH, lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_activations_hold_at_the_far_ends(activation: Activation, meaning: object) -> None:
    x = np.array([-1e4, -100, -80, -5, -0.3, 0, 1e-6, 0.7, 6, 100, 1e4], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        got = reference.activate(x, activation)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [meaning(float(v)) for v in x], rtol=1e-5, atol=1e-6)  # type: ignore[operator]


def test_sequences_in_one_step_do_not_feel_each_other(tmp_path: Path) -> None:
    """Three sequences at different places in one step: each row's logits are those of its sequence alone."""
    executor = load(write(tmp_path, CONFIG))
    rng = np.random.default_rng(5)
    ids = [[int(t) for t in rng.integers(0, 32, n)] for n in (20, 3, 9)]
    alone = [Reader(executor, seed=2).feed(tokens) for tokens in ids]
    pages = rng.permutation(40).astype(np.int32)
    own = [pages[:4], pages[4:8], pages[8:12]]
    done = [12, 0, 8]
    for tokens, table, count in zip(ids, own, done, strict=True):
        if count:
            executor.run(one_step([(tokens[:count], 0, table)], PAGE_SIZE))
    rows = [(tokens[count:], count, table) for tokens, table, count in zip(ids, own, done, strict=True)]
    together = executor.run(one_step(rows, PAGE_SIZE))
    expected = np.concatenate([logits[count:] for logits, count in zip(alone, done, strict=True)])
    np.testing.assert_allclose(together, expected, atol=1e-5)


def test_rows_without_logits_and_argmax(tmp_path: Path) -> None:
    executor = load(write(tmp_path, CONFIG))
    assert isinstance(executor, reference.ReferenceExecutor)
    assert (executor.name, executor.isa, executor.kv_format) == ("reference", "numpy", KvFormat.F32)
    batch = one_step([([1, 2, 3], 0, np.arange(4, dtype=np.int32))], PAGE_SIZE)
    batch.logit_rows_R.resize(0, refcheck=False)
    assert executor.run(batch).shape == (0, 32) and executor.argmax() == []
    executor._logits_RV = np.array([[1, 3, 3, 2], [0, np.nan, 9, 0]], np.float32)
    assert executor.argmax() == [1, -1]
    executor.close()
    executor.close()
