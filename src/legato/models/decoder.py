"""One decoder for every family: the parts of an `ArchSpec`, run in order against `Ops`.

Knows: the order of operations in a decoder layer, and which packed weight each one takes.
Does not know: families, files, devices, requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from legato.core.spec import ArchSpec, LayerSpec, MlpKind, NormSpec
from legato.kernels.ops import Act, Ops, Weight


@dataclass(frozen=True, slots=True)
class NormWeights:
    """A norm's packed vectors; RMS norms have no bias."""

    weight: Weight
    bias: Weight | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's packed weights. `up` is gate and up in one where the MLP is gated."""

    attn_norm: NormWeights
    qkv: Weight
    q_norm: Weight | None
    k_norm: Weight | None
    out: Weight
    post_attn_norm: NormWeights | None
    mlp_norm: NormWeights
    up: Weight
    down: Weight
    post_mlp_norm: NormWeights | None


@dataclass(frozen=True, slots=True)
class Decoder:
    """A spec and the weights one backend packed for it. `forward` is what the backend's executor runs or records."""

    spec: ArchSpec
    embed: Weight
    positions: Weight | None
    layers: tuple[LayerWeights, ...]
    final_norm: NormWeights
    head: Weight

    def forward(self, ops: Ops) -> Act:
        """The logits of the step's logit rows. Each layer: x += attention(norm(x)); x += mlp(norm(x))."""
        x = ops.embed(self.embed, self.spec.embed_scale, self.positions)
        for index, (layer, weights) in enumerate(zip(self.spec.layers, self.layers, strict=True)):
            x = _attend(ops, x, layer, weights, index)
            x = _mlp(ops, x, layer, weights)
        h = _norm(ops, x, self.spec.final_norm, self.final_norm)
        return ops.logits(h, self.head, self.spec.logit_softcap)


def _norm(ops: Ops, x: Act, spec: NormSpec, weights: NormWeights) -> Act:
    return ops.norm(x, spec, weights.weight, weights.bias)


def _attend(ops: Ops, x: Act, layer: LayerSpec, weights: LayerWeights, index: int) -> Act:
    h = _norm(ops, x, layer.attn_norm, weights.attn_norm)
    h = ops.linear(h, weights.qkv)
    h = ops.attention(h, layer.attention, index, weights.q_norm, weights.k_norm)
    h = ops.linear(h, weights.out)
    if layer.post_attn_norm is not None and weights.post_attn_norm is not None:
        h = _norm(ops, h, layer.post_attn_norm, weights.post_attn_norm)
    return ops.add(x, h)


def _mlp(ops: Ops, x: Act, layer: LayerSpec, weights: LayerWeights) -> Act:
    h = _norm(ops, x, layer.mlp_norm, weights.mlp_norm)
    h = ops.linear(h, weights.up)
    act = layer.mlp.activation
    h = ops.gated(h, act) if layer.mlp.kind is MlpKind.GATED else ops.activate(h, act)
    h = ops.linear(h, weights.down)
    if layer.post_mlp_norm is not None and weights.post_mlp_norm is not None:
        h = _norm(ops, h, layer.post_mlp_norm, weights.post_mlp_norm)
    return ops.add(x, h)
