"""What a model is made of, for counting: matrices, experts, what attention keeps and sees.

Knows: sizes. Does not know: how any of it is computed, files, formats' bits, machines.

An `ArchSpec` says what Legato runs; a `ModelShape` can also describe what it does not run (mixtures of experts, latent
attention), because its bytes and operations can be counted all the same. Layers that are alike are kept once, with
their number.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from legato.core.spec import ArchSpec, AttentionSpec, LayerSpec, MlpKind, NormKind, NormSpec


class Role(enum.StrEnum):
    """What a matrix is for. EMBED is read a row a token; EXPERT where a row is sent; all others whole, every step."""

    EMBED = "embed"
    QKV = "qkv"
    OUT = "out"
    UP = "up"
    DOWN = "down"
    ROUTER = "router"
    EXPERT = "expert"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix: `rows` outputs of `cols` inputs."""

    role: Role
    rows: int
    cols: int

    @property
    def elements(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one vector a token instead of keys and values.

    rank    numbers from which all heads' keys and values are made
    rope    numbers of the key that carries positions, shared by all heads
    expand  the matrix that makes keys and values of the vector: it can be applied to the cache (expanded), or be
            moved to the queries' and outputs' side (absorbed), where heads look at the vector itself
    """

    rank: int
    rope: int
    expand: Matrix

    @property
    def size(self) -> int:
        """Numbers kept for a token."""
        return self.rank + self.rope


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a layer's queries look at.

    key_dim, value_dim  numbers a head multiplies for a score, and sums up for its output
    window              None: all positions before; w: the last w, the own one included
    latent              kept instead of keys and values of `num_kv_heads` heads
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    latent: Latent | None = None

    def seen(self, context: int) -> int:
        """Positions that a token sees which is the last of `context`."""
        return context if self.window is None else min(context, self.window)


@dataclass(frozen=True, slots=True)
class Experts:
    """`count` alike, of which a router sends each row to `active`."""

    count: int
    active: int
    matrices: tuple[Matrix, ...]

    @property
    def elements(self) -> int:
        """Of one expert."""
        return sum(m.elements for m in self.matrices)

    def distinct(self, rows: int) -> float:
        """Experts that `rows` rows need together, each choosing evenly and alone: E (1 - (1 - k/E)^rows).

        No other distribution needs more on average (the sum over experts of 1 - (1 - p)^rows is concave in p).
        """
        return self.count * (1.0 - (1.0 - self.active / self.count) ** rows)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer. `matrices` are read by every row; `vectors` are numbers of norms and biases."""

    attention: AttentionShape
    matrices: tuple[Matrix, ...]
    experts: Experts | None = None
    vectors: int = 0

    @property
    def elements(self) -> int:
        """Numbers in all of its matrices, all experts included."""
        return self.dense_elements + (self.experts.count * self.experts.elements if self.experts else 0)

    @property
    def dense_elements(self) -> int:
        return sum(m.elements for m in self.matrices)

    @property
    def active_elements(self) -> int:
        """Numbers that one row is multiplied with."""
        return self.dense_elements + (self.experts.active * self.experts.elements if self.experts else 0)


@dataclass(frozen=True, slots=True)
class LayerRun:
    """`count` layers that are alike (not always neighbours)."""

    layer: LayerShape
    count: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A whole decoder.

    tied       the output head is the embedding table
    positions  rows of a learned position table
    vectors    numbers of the last norm and of the head's bias
    """

    family: str
    d_model: int
    vocab_size: int
    context_length: int
    runs: tuple[LayerRun, ...]
    tied: bool
    positions: int = 0
    vectors: int = 0

    @property
    def num_layers(self) -> int:
        return sum(run.count for run in self.runs)

    @property
    def head(self) -> Matrix:
        return Matrix(Role.HEAD, self.vocab_size, self.d_model)

    @property
    def table_elements(self) -> int:
        """Numbers of which a token reads a row: embeddings and positions."""
        return (self.vocab_size + self.positions) * self.d_model

    @property
    def all_vectors(self) -> int:
        return self.vectors + sum(run.count * run.layer.vectors for run in self.runs)

    @property
    def parameters(self) -> int:
        """All numbers learnt; a tied table counts once."""
        layers = sum(run.count * run.layer.elements for run in self.runs)
        return self.table_elements + layers + (0 if self.tied else self.head.elements) + self.all_vectors

    @property
    def active_parameters(self) -> int:
        """Numbers that one token is multiplied with: layers with their active experts, and the head."""
        return sum(run.count * run.layer.active_elements for run in self.runs) + self.head.elements


def fold(layers: Iterable[LayerShape]) -> tuple[LayerRun, ...]:
    """Layers that are alike become one run, in order of their first."""
    counts: dict[LayerShape, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(LayerRun(layer, count) for layer, count in counts.items())


def mlp_matrices(width: int, size: int, gated: bool) -> tuple[Matrix, ...]:
    return Matrix(Role.UP, 2 * size if gated else size, width), Matrix(Role.DOWN, width, size)


def shape_of(spec: ArchSpec) -> ModelShape:
    """The same model, for counting."""
    learned = spec.num_positions or 0
    vectors = _norm(spec.final_norm, spec.d_model) + (spec.vocab_size if spec.head_bias else 0)
    return ModelShape(
        family=spec.family,
        d_model=spec.d_model,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        runs=fold(layer_shape(spec.d_model, layer) for layer in spec.layers),
        tied=spec.tied,
        positions=learned,
        vectors=vectors,
    )


def layer_shape(width: int, layer: LayerSpec) -> LayerShape:
    a, mlp = layer.attention, layer.mlp
    gated = mlp.kind is MlpKind.GATED
    norms = (layer.attn_norm, layer.mlp_norm, layer.post_attn_norm, layer.post_mlp_norm)
    vectors = sum(_norm(norm, width) for norm in norms if norm is not None)
    vectors += 2 * _norm(a.qk_norm, a.head_dim) if a.qk_norm is not None else 0
    vectors += (a.q_size + 2 * a.kv_size) * a.qkv_bias + width * a.out_bias
    vectors += ((1 + gated) * mlp.size + width) * mlp.bias
    return LayerShape(
        attention=attention_shape(a),
        matrices=(
            Matrix(Role.QKV, a.q_size + 2 * a.kv_size, width),
            Matrix(Role.OUT, width, a.q_size),
            *mlp_matrices(width, mlp.size, gated),
        ),
        vectors=vectors,
    )


def attention_shape(a: AttentionSpec) -> AttentionShape:
    return AttentionShape(a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim, a.window)


def _norm(norm: NormSpec, width: int) -> int:
    return width * (2 if norm.kind is NormKind.LAYER else 1)
