"""Tiny random decoders for any backend, and a paged world to run them in.

Knows: specs, tensors in every format, page tables. Does not know: how a backend computes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.bench.made_up import llama_spec
from legato.core.spec import Activation, ArchSpec, LayerSpec, MlpKind, NormKind, NormSpec, RopeSpec
from legato.kernels.ops import Backend, Batch, Executor, FloatArray, KvFormat
from legato.models.decoder import Decoder, LayerWeights, NormWeights
from legato.weights.formats import quantize
from legato.weights.tensor import Tensor, WeightFormat

RMS = NormSpec(NormKind.RMS, 1e-5)
LAYER = NormSpec(NormKind.LAYER, 1e-5)
# Where a format's float16 scales lie in its block and their proportion: the second one moves the mean to zero.
# Then the size of its largest integers.
_SCALES: dict[WeightFormat, tuple[dict[int, float], int]] = {
    WeightFormat.Q5_0: ({0: 1}, 16),
    WeightFormat.Q5_1: ({0: 1, 2: -15.5}, 16),
    WeightFormat.Q4_K: ({0: 1, 2: 7.5}, 8 * 32),
    WeightFormat.Q5_K: ({0: 1, 2: 15.5}, 16 * 32),
    WeightFormat.Q6_K: ({208: 1}, 32 * 64),
}


def random_tensor(rng: np.random.Generator, rows: int, cols: int, fmt: WeightFormat, name: str = "w") -> Tensor:
    """Numbers of about 1 / sqrt(cols): quantised where we can, otherwise random blocks with scales of that size."""
    if fmt not in _SCALES:
        values = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
        return Tensor(name, (rows, cols), fmt, quantize(fmt, values))
    scales, size = _SCALES[fmt]
    blocks = rng.integers(0, 256, (rows * cols // fmt.block, fmt.block_bytes), dtype=np.uint8)
    scale = rng.uniform(1, 2, len(blocks)) / (size * np.sqrt(cols))
    for offset, proportion in scales.items():
        blocks[:, offset : offset + 2] = (scale * proportion).astype("<f2").view(np.uint8).reshape(-1, 2)
    return Tensor(name, (rows, cols), fmt, blocks.reshape(-1))


@dataclass(frozen=True)
class Shape:
    """What a test asks of a decoder; the defaults are a small Llama."""

    d_model: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 192
    vocab: int = 331
    layers: int = 2
    fmt: WeightFormat = WeightFormat.Q4_1
    formats: dict[str, WeightFormat] = field(default_factory=dict)  # of single weights: q, k, v, out, gate, up, down
    norm: NormSpec = RMS
    activation: Activation = Activation.SILU
    gated: bool = True
    bias: bool = False
    rotary: float = 1.0  # share of a head that is turned; 0: no rope
    positions: int | None = None
    windows: tuple[int | None, ...] = (None,)
    softcap: float | None = None
    logit_softcap: float | None = None
    qk_norm: bool = False
    post_norm: bool = False
    embed_scale: float = 1.0

    def spec(self) -> ArchSpec:
        plain = llama_spec(
            self.d_model,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp=self.mlp,
            layers=self.layers,
            vocab=self.vocab,
            context=4096,
        )
        return replace(
            plain,
            layers=tuple(self._layer(i, layer) for i, layer in enumerate(plain.layers)),
            final_norm=self.norm,
            embed_scale=self.embed_scale,
            num_positions=self.positions,
            logit_softcap=self.logit_softcap,
        )

    def _layer(self, index: int, plain: LayerSpec) -> LayerSpec:
        turned = int(self.head_dim * self.rotary) // 2
        base = 10000.0 if index % 2 == 0 else 500000.0
        inv_freq = tuple(float(base ** (-i / max(turned, 1))) for i in range(turned))
        attention = replace(
            plain.attention,
            rope=RopeSpec(inv_freq) if turned else None,
            window=self.windows[index % len(self.windows)],
            softcap=self.softcap,
            qk_norm=RMS if self.qk_norm else None,
            qkv_bias=self.bias,
            out_bias=self.bias,
        )
        kind = MlpKind.GATED if self.gated else MlpKind.PLAIN
        mlp = replace(plain.mlp, kind=kind, activation=self.activation, bias=self.bias)
        post = self.norm if self.post_norm else None
        return LayerSpec(attention, mlp, self.norm, self.norm, post, post)


class RandomWeights:
    """The same random numbers for every backend that packs them."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape = shape
        self.seed = seed

    def decoder(self, backend: Backend) -> Decoder:
        rng = np.random.default_rng(self.seed)
        s, spec = self.shape, self.shape.spec()
        table = random_tensor(rng, s.vocab, s.d_model, WeightFormat.Q8_0 if s.d_model % 32 == 0 else WeightFormat.F32)
        positions = None if s.positions is None else random_tensor(rng, s.positions, s.d_model, WeightFormat.F32)
        layers = tuple(self._layer(rng, backend) for _ in spec.layers)
        final = self._norm(rng, backend, s.d_model)
        head = random_tensor(rng, s.vocab, s.d_model, s.formats.get("head", s.fmt))
        return Decoder(
            spec=spec,
            embed=backend.pack_table(table),
            positions=None if positions is None else backend.pack_table(positions),
            layers=layers,
            final_norm=final,
            head=backend.pack_linear([head], None),
        )

    def _layer(self, rng: np.random.Generator, backend: Backend) -> LayerWeights:
        s = self.shape
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        qkv = [self._tensor(rng, "q", q), self._tensor(rng, "k", kv), self._tensor(rng, "v", kv)]
        up = [self._tensor(rng, "up", s.mlp)]
        if s.gated:
            gate = [self._tensor(rng, "gate", s.mlp)]
            packed_up = backend.pack_gate_up(gate, up, self._bias(rng, 2 * s.mlp))
        else:
            packed_up = backend.pack_linear(up, self._bias(rng, s.mlp))
        head_norms = [backend.pack_vector(_around_one(rng, s.head_dim)) if s.qk_norm else None for _ in "qk"]
        return LayerWeights(
            attn_norm=self._norm(rng, backend, s.d_model),
            qkv=backend.pack_linear(qkv, self._bias(rng, q + 2 * kv)),
            q_norm=head_norms[0],
            k_norm=head_norms[1],
            out=backend.pack_linear([self._tensor(rng, "out", s.d_model, q)], self._bias(rng, s.d_model)),
            post_attn_norm=self._norm(rng, backend, s.d_model) if s.post_norm else None,
            mlp_norm=self._norm(rng, backend, s.d_model),
            up=packed_up,
            down=backend.pack_linear([self._tensor(rng, "down", s.d_model, s.mlp)], self._bias(rng, s.d_model)),
            post_mlp_norm=self._norm(rng, backend, s.d_model) if s.post_norm else None,
        )

    def _tensor(self, rng: np.random.Generator, name: str, rows: int, cols: int | None = None) -> Tensor:
        return random_tensor(rng, rows, cols or self.shape.d_model, self.shape.formats.get(name, self.shape.fmt), name)

    def _bias(self, rng: np.random.Generator, size: int) -> NDArray[np.float32] | None:
        return (0.2 * rng.standard_normal(size)).astype(np.float32) if self.shape.bias else None

    def _norm(self, rng: np.random.Generator, backend: Backend, size: int) -> NormWeights:
        bias = None
        if self.shape.norm.kind is NormKind.LAYER:
            bias = backend.pack_vector((0.1 * rng.standard_normal(size)).astype(np.float32))
        return NormWeights(backend.pack_vector(_around_one(rng, size)), bias)


def _around_one(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    return rng.uniform(0.5, 1.5, size).astype(np.float32)


@dataclass(frozen=True)
class Piece:
    """Rows [start, end) of a sequence in one step."""

    seq: int
    start: int
    end: int


class World:
    """Sequences of token ids, each with its own shuffled pages, run through one executor."""

    def __init__(self, executor: Executor, tokens: Sequence[Sequence[int]], page_size: int, num_pages: int) -> None:
        self.executor = executor
        self.tokens = tokens
        self.page_size = page_size
        free = list(np.random.default_rng(5).permutation(num_pages))
        self.pages = [[int(free.pop()) for _ in range(-(-len(ids) // page_size))] for ids in tokens]

    def batch(self, pieces: Sequence[Piece], logits: str = "all") -> Batch:
        rows = [(p.seq, position) for p in pieces for position in range(p.start, p.end)]
        slots = [self.pages[s][i // self.page_size] * self.page_size + i % self.page_size for s, i in rows]
        cu = np.cumsum([0, *(p.end - p.start for p in pieces)])
        table = np.zeros((len(pieces), max(-(-p.end // self.page_size) for p in pieces)), np.int32)
        for i, p in enumerate(pieces):
            used = -(-p.end // self.page_size)
            table[i, :used] = self.pages[p.seq][:used]
        wanted = range(len(rows)) if logits == "all" else [int(end) - 1 for end in cu[1:]]
        return Batch(
            input_ids_T=_int32([self.tokens[s][i] for s, i in rows]),
            positions_T=_int32([i for _, i in rows]),
            slot_mapping_T=_int32(slots),
            cu_seqlens_q_S1=_int32(cu),
            seq_lens_S=_int32([p.end for p in pieces]),
            page_table_SP=table,
            logit_rows_R=_int32(wanted),
        )

    def run(self, pieces: Sequence[Piece], logits: str = "all") -> FloatArray:
        return self.executor.run(self.batch(pieces, logits)).copy()

    def whole(self, seq: int, chunk: int | None = None) -> FloatArray:
        """Logits of every position of one sequence, `chunk` rows a step."""
        length = len(self.tokens[seq])
        size = chunk or length
        return np.concatenate(
            [self.run([Piece(seq, start, min(start + size, length))]) for start in range(0, length, size)]
        )


def _int32(values: Any) -> NDArray[np.int32]:
    return np.asarray(list(values), np.int32)


def build(
    backend: Backend,
    weights: RandomWeights,
    *,
    kv: KvFormat = KvFormat.INT8,
    page_size: int = 16,
    num_pages: int = 128,
    max_tokens: int = 512,
) -> Executor:
    decoder = weights.decoder(backend)
    return backend.build(
        decoder.spec,
        decoder.forward,
        num_pages=num_pages,
        page_size=page_size,
        kv_format=kv,
        max_tokens=max_tokens,
        max_seqs=16,
    )


def random_ids(vocab: int, length: int, seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab, length)]
