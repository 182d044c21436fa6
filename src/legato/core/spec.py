"""Architectures as data: an `ArchSpec` says what a decoder computes, in typed parts.

Knows: sizes, kinds and constants. Does not know: weights, files, families' names for things, devices.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class NormKind(enum.StrEnum):
    RMS = "rms"
    LAYER = "layer"


class Activation(enum.StrEnum):
    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU = "gelu"


class MlpKind(enum.StrEnum):
    GATED = "gated"  # down(act(gate(x)) * up(x))
    PLAIN = "plain"  # down(act(up(x)))


@dataclass(frozen=True, slots=True)
class NormSpec:
    """kind RMS: x * w / rms(x); LAYER: (x - mean) / std * w + b. Offsets such as Gemma's 1 + w are folded at load."""

    kind: NormKind
    eps: float


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of the first 2 x len(inv_freq) dims of a head, halves rotated (NeoX order).

    inv_freq  radians a position, all scaling (linear, llama3, longrope, yarn) already applied
    scale     multiplies cos and sin (longrope's and yarn's attention factor)
    """

    inv_freq: tuple[float, ...]
    scale: float = 1.0

    @property
    def dim(self) -> int:
        return 2 * len(self.inv_freq)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention with optional rope, per-head q/k norm, sliding window and score soft cap.

    window   None: all positions before; w: the last w positions, the own one included
    scale    multiplies q.k
    softcap  c: scores become c * tanh(scores / c)
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None
    qk_norm: NormSpec | None = None
    qkv_bias: bool = False
    out_bias: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class MlpSpec:
    kind: MlpKind
    size: int
    activation: Activation
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x += post_attn_norm(attn(attn_norm(x))); x += post_mlp_norm(mlp(mlp_norm(x))); post norms may be absent."""

    attention: AttentionSpec
    mlp: MlpSpec
    attn_norm: NormSpec
    mlp_norm: NormSpec
    post_attn_norm: NormSpec | None = None
    post_mlp_norm: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class ArchSpec:
    """A whole decoder.

    context_length    positions the model was made for
    embed_scale       multiplies the token embedding (Gemma: sqrt(d_model))
    num_positions     rows of a learned position table (GPT-2), or None
    tied              the output head is the embedding table
    logit_softcap     c: logits become c * tanh(logits / c)
    """

    family: str
    d_model: int
    vocab_size: int
    context_length: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    tied: bool
    embed_scale: float = 1.0
    num_positions: int | None = None
    logit_softcap: float | None = None
    head_bias: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers kept in the cache for one token: keys and values of every layer."""
        return sum(2 * layer.attention.kv_size for layer in self.layers)
