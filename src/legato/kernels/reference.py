"""The reference backend: every operation in plain numpy float32, to be read and trusted rather than raced.

Knows: the meaning of each operation of `Ops`, and float32 keys and values in pages.
Does not know: families, files, how any fast backend lays things out.

Keys and values are always kept as float32, whatever format was asked for (`ReferenceExecutor.kv_format` says so):
this backend is the oracle, and an oracle does not round.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from legato.core.spec import Activation, ArchSpec, AttentionSpec, NormKind, NormSpec, RopeSpec
from legato.kernels.choice import choose
from legato.kernels.ops import Act, Batch, ByteArray, FloatArray, IntArray, KvFormat, Ops
from legato.kernels.reading import read_seconds
from legato.weights.tensor import Tensor

# Scores of one block of query rows stay under this many numbers, so that long contexts fit in memory.
_MAX_SCORES = 1 << 24

_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x @ weight_ND.T + bias_N. A gated pair is the rows of gate, then the rows of up."""

    weight_ND: FloatArray
    bias_N: FloatArray | None


@dataclass(frozen=True, slots=True)
class KvPages:
    """One layer's keys and values, (pages, page_size, K, E)."""

    keys_PSKE: FloatArray
    values_PSKE: FloatArray

    def write(self, slots_T: IntArray, k_TKE: FloatArray, v_TKE: FloatArray) -> None:
        page_size = self.keys_PSKE.shape[1]
        self.keys_PSKE[slots_T // page_size, slots_T % page_size] = k_TKE
        self.values_PSKE[slots_T // page_size, slots_T % page_size] = v_TKE

    def read(self, page_ids: IntArray, length: int) -> tuple[FloatArray, FloatArray]:
        """Keys and values (length, K, E) of the first `length` tokens held by these pages."""
        _, page_size, heads, dim = self.keys_PSKE.shape
        used = page_ids[: -(-length // page_size)]
        keys = self.keys_PSKE[used].reshape(-1, heads, dim)[:length]
        values = self.values_PSKE[used].reshape(-1, heads, dim)[:length]
        return keys, values


class ReferenceBackend:
    """Dequantises weights to float32 at load. Embedding tables stay packed; rows are dequantised when read."""

    name = "reference"

    def read_seconds(self, nbytes: int, threads: int, passes: int) -> list[float]:
        """Numpy's own way of reading."""
        return read_seconds(nbytes, threads, passes)

    def supports(self, spec: ArchSpec) -> str | None:
        """Always None: whatever a spec can say, this backend runs."""
        return None

    def pack_vector(self, values: FloatArray) -> FloatArray:
        return np.ascontiguousarray(values, dtype=np.float32)

    def pack_linear(self, parts: Sequence[Tensor], bias: FloatArray | None) -> Linear:
        weight = np.concatenate([part.float32() for part in parts]) if len(parts) > 1 else parts[0].float32()
        return Linear(np.ascontiguousarray(weight), bias)

    def pack_gate_up(self, gate: Sequence[Tensor], up: Sequence[Tensor], bias: FloatArray | None) -> Linear:
        return self.pack_linear([*gate, *up], bias)

    def pack_table(self, table: Tensor) -> Tensor:
        return table

    def page_bytes(self, spec: ArchSpec, page_size: int, kv_format: KvFormat) -> int:
        """Keys and values as float32, whatever `kv_format` says."""
        return page_size * spec.kv_elements_per_token * 4

    def build(
        self,
        spec: ArchSpec,
        forward: Callable[[Ops], Act],
        *,
        num_pages: int,
        page_size: int,
        kv_format: KvFormat,
        max_tokens: int,
        max_seqs: int,
    ) -> ReferenceExecutor:
        """`kv_format`, `max_tokens` and `max_seqs` need no preparation here: pages are always float32."""
        return ReferenceExecutor(spec, forward, num_pages, page_size)


class ReferenceExecutor:
    """Runs each step at once, operation by operation. Pages live as long as the executor."""

    name = "reference"
    isa = "numpy"
    kv_format = KvFormat.F32

    def __init__(self, spec: ArchSpec, forward: Callable[[Ops], Act], num_pages: int, page_size: int) -> None:
        self.threads = os.cpu_count() or 1  # numpy's linear algebra takes all it finds
        self._forward = forward
        self._layers = [_pages(layer.attention, num_pages, page_size) for layer in spec.layers]
        self._logits_RV: FloatArray = np.zeros((0, spec.vocab_size), np.float32)
        self._forward_ns = 0

    def run(self, batch: Batch) -> FloatArray:
        start = time.perf_counter_ns()
        self._logits_RV = self._forward(_Step(batch, self._layers))
        self._forward_ns += time.perf_counter_ns() - start
        return self._logits_RV

    def choose(
        self, logits_V: FloatArray, temperature: float, top_k: int, top_p: float, min_p: float, draw: float
    ) -> int:
        return choose(logits_V, temperature, top_k, top_p, min_p, draw)

    def laps_ns(self) -> dict[str, int]:
        """All in one: numpy's operations are not told apart."""
        return {"forward": self._forward_ns}

    def argmax(self) -> list[int]:
        best = np.argmax(self._logits_RV, axis=-1)
        best[np.isnan(self._logits_RV).any(axis=-1)] = -1
        found: list[int] = best.tolist()
        return found

    def read_pages(self, page_ids: Sequence[int]) -> ByteArray:
        ids = np.asarray(page_ids, np.int64)
        arrays = [a for pages in self._layers for a in (pages.keys_PSKE, pages.values_PSKE)]
        parts = [a[ids].reshape(len(ids), a[0].size) for a in arrays]
        return np.concatenate(parts, axis=1).view(np.uint8)

    def write_pages(self, page_ids: Sequence[int], data_NB: ByteArray) -> None:
        ids = np.asarray(page_ids, np.int64)
        numbers, at = np.ascontiguousarray(data_NB).view(np.float32), 0
        for array in (a for pages in self._layers for a in (pages.keys_PSKE, pages.values_PSKE)):
            size = array[0].size
            array[ids] = numbers[:, at : at + size].reshape(len(ids), *array.shape[1:])
            at += size

    def touch_pages(self) -> None:
        for array in (a for pages in self._layers for a in (pages.keys_PSKE, pages.values_PSKE)):
            array.reshape(-1).view(np.uint8)[::4096] |= 0

    def close(self) -> None:
        self._layers = []


def _pages(spec: AttentionSpec, num_pages: int, page_size: int) -> KvPages:
    shape = (num_pages, page_size, spec.num_kv_heads, spec.head_dim)
    return KvPages(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


@dataclass(frozen=True, slots=True)
class _Step:
    """`Ops` for one batch: computes as it is called."""

    batch: Batch
    layers: list[KvPages]

    def embed(self, table: Tensor, scale: float, positions: Tensor | None) -> FloatArray:
        x_TD = _rows(table, self.batch.input_ids_T) * np.float32(scale)
        return x_TD if positions is None else x_TD + _rows(positions, self.batch.positions_T)

    def norm(self, x: FloatArray, spec: NormSpec, weight: FloatArray, bias: FloatArray | None) -> FloatArray:
        return normalize(x, spec, weight, bias)

    def linear(self, h: FloatArray, w: Linear) -> FloatArray:
        y_TN = h @ w.weight_ND.T
        return y_TN if w.bias_N is None else y_TN + w.bias_N

    def attention(
        self, qkv: FloatArray, spec: AttentionSpec, layer: int, q_norm: FloatArray | None, k_norm: FloatArray | None
    ) -> FloatArray:
        q_THE, k_TKE, v_TKE = _split_heads(qkv, spec)
        if spec.qk_norm is not None:
            assert q_norm is not None and k_norm is not None
            q_THE, k_TKE = normalize(q_THE, spec.qk_norm, q_norm, None), normalize(k_TKE, spec.qk_norm, k_norm, None)
        if spec.rope is not None:
            q_THE = rotate(q_THE, self.batch.positions_T, spec.rope)
            k_TKE = rotate(k_TKE, self.batch.positions_T, spec.rope)
        pages = self.layers[layer]
        pages.write(self.batch.slot_mapping_T, k_TKE, v_TKE)
        out_THE = np.empty_like(q_THE)
        for s, length in enumerate(self.batch.seq_lens_S):
            rows = slice(self.batch.cu_seqlens_q_S1[s], self.batch.cu_seqlens_q_S1[s + 1])
            keys, values = pages.read(self.batch.page_table_SP[s], int(length))
            out_THE[rows] = attend(q_THE[rows], keys, values, self.batch.positions_T[rows], spec)
        return out_THE.reshape(len(qkv), spec.q_size)

    def add(self, x: FloatArray, y: FloatArray) -> FloatArray:
        return x + y

    def gated(self, gate_up: FloatArray, activation: Activation) -> FloatArray:
        gate, up = np.split(gate_up, 2, axis=-1)
        return activate(gate, activation) * up

    def activate(self, h: FloatArray, activation: Activation) -> FloatArray:
        return activate(h, activation)

    def logits(self, h: FloatArray, head: Linear, softcap: float | None) -> FloatArray:
        return _softcap(self.linear(h[self.batch.logit_rows_R], head), softcap)


def normalize(x: FloatArray, spec: NormSpec, weight: FloatArray, bias: FloatArray | None) -> FloatArray:
    """Over the last axis: x * w / rms(x), or (x - mean) / std * w + b."""
    if spec.kind is NormKind.LAYER:
        x = x - x.mean(axis=-1, keepdims=True)
    y: FloatArray = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(spec.eps)) * weight
    return y if bias is None else y + bias


def rotate(x_THE: FloatArray, positions_T: IntArray, rope: RopeSpec) -> FloatArray:
    """Rotates the first `rope.dim` numbers of each head, half against half. Angles are float64 up to cos and sin."""
    half = len(rope.inv_freq)
    inv_freq = np.asarray(rope.inv_freq, np.float32).astype(np.float64)
    angle_T1F = (positions_T[:, None] * inv_freq)[:, None, :]
    cos, sin = (np.cos(angle_T1F) * rope.scale).astype(np.float32), (np.sin(angle_T1F) * rope.scale).astype(np.float32)
    a, b, rest = x_THE[..., :half], x_THE[..., half : 2 * half], x_THE[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def attend(
    q_THE: FloatArray, keys_SKE: FloatArray, values_SKE: FloatArray, positions_T: IntArray, spec: AttentionSpec
) -> FloatArray:
    """Rows of one sequence against its keys 0 .. S-1: (T, H, E)."""
    out = np.empty_like(q_THE)
    block = max(1, _MAX_SCORES // (spec.num_heads * len(keys_SKE)))
    for start in range(0, len(q_THE), block):
        rows = slice(start, start + block)
        out[rows] = _attend_block(q_THE[rows], keys_SKE, values_SKE, positions_T[rows], spec)
    return out


def _attend_block(
    q_THE: FloatArray, keys_SKE: FloatArray, values_SKE: FloatArray, positions_T: IntArray, spec: AttentionSpec
) -> FloatArray:
    """Query heads of one KV head are rows of one product (R = T x group): numpy is slow where it must broadcast."""
    tokens, heads, dim = q_THE.shape
    kv_heads, group = spec.num_kv_heads, spec.group
    q_KRE = q_THE.reshape(tokens, kv_heads, group, dim).transpose(1, 0, 2, 3).reshape(kv_heads, tokens * group, dim)
    scores_KRS = _softcap((q_KRE @ keys_SKE.transpose(1, 2, 0)) * np.float32(spec.scale), spec.softcap)
    visible_RS = np.repeat(visible(positions_T, len(keys_SKE), spec.window), group, axis=0)
    scores_KRS = np.where(visible_RS, scores_KRS, np.float32(-np.inf))
    weights_KRS = np.exp(scores_KRS - scores_KRS.max(axis=-1, keepdims=True))
    out_KRE: FloatArray = weights_KRS @ values_SKE.transpose(1, 0, 2) / weights_KRS.sum(axis=-1, keepdims=True)
    return out_KRE.reshape(kv_heads, tokens, group, dim).transpose(1, 0, 2, 3).reshape(tokens, heads, dim)


def visible(positions_T: IntArray, length: int, window: int | None) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(T, S) bools: which of the tokens 0 .. length-1 each row sees; a window counts the row's own position."""
    distance_TS = positions_T[:, None] - np.arange(length)
    seen = distance_TS >= 0
    return seen if window is None else seen & (distance_TS < window)


def activate(x: FloatArray, activation: Activation) -> FloatArray:
    if activation is Activation.SILU:
        return np.asarray(x / (1 + np.exp(-np.clip(x, -80, None))), np.float32)  # exp stays finite; x itself is not cut
    if activation is Activation.GELU_TANH:
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), np.float32)
    assert activation is Activation.GELU, activation
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2)).astype(np.float32)), np.float32)


def _softcap(x: FloatArray, cap: float | None) -> FloatArray:
    return x if cap is None else np.tanh(x / np.float32(cap)) * np.float32(cap)


def _split_heads(qkv: FloatArray, spec: AttentionSpec) -> tuple[FloatArray, FloatArray, FloatArray]:
    tokens = len(qkv)
    q, k, v = np.split(qkv, [spec.q_size, spec.q_size + spec.kv_size], axis=-1)
    kv_shape = (tokens, spec.num_kv_heads, spec.head_dim)
    return q.reshape(tokens, spec.num_heads, spec.head_dim), k.reshape(kv_shape), v.reshape(kv_shape)


def _rows(table: Tensor, ids: IntArray) -> FloatArray:
    """Rows of a table as float32, dequantising only those."""
    picked = np.ascontiguousarray(table.row_view()[ids]).reshape(-1)
    return Tensor(table.name, (len(ids), table.cols), table.format, picked).float32()
