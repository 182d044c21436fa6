"""Bytes and operations of an engine's work, in closed form.

Knows: a model's shape (of an `ArchSpec`, or of what Legato does not run), token counts, bytes a number.
Does not know: how anything is done, measured times, arrays.

Figures count what must move or be computed at least once; a backend's padding is not part of them. What a step or a
whole generation costs, all kinds together, is `measure.tally`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from legato.core.spec import ArchSpec, LayerSpec
from legato.measure.shape import (
    AttentionShape,
    LayerShape,
    Matrix,
    ModelShape,
    Role,
    layer_shape,
    shape_of,
)

__all__ = [
    "Matrix",
    "Role",
    "attention_comparisons",
    "attention_flops",
    "decode_positions",
    "decode_step_bytes",
    "kv_bytes",
    "kv_bytes_per_token",
    "kv_head_bytes",
    "kv_read_bytes",
    "layer_kv_bytes",
    "layer_matrices",
    "linear_flops",
    "matrices",
    "naive_positions",
    "pair_flops",
    "prefill_flops",
    "score_matrix_bytes",
    "shape",
    "stored_weight_bytes",
    "visible_pairs",
    "weight_bytes",
    "weight_read_bytes",
]

Model: TypeAlias = ArchSpec | ModelShape


def shape(model: Model) -> ModelShape:
    return model if isinstance(model, ModelShape) else shape_of(model)


# --- positions ---


def naive_positions(tokens: int) -> int:
    """Positions computed when each of `tokens` steps recomputes all before it: T (T + 1) / 2."""
    return tokens * (tokens + 1) // 2


def decode_positions(prompt: int, tokens: int) -> int:
    """Positions that decode steps 1..T look back at after a prompt of P: P + (P + 1) + ... + (P + T - 1)."""
    return tokens * prompt + tokens * (tokens - 1) // 2


def attention_comparisons(tokens: int, causal: bool = True) -> int:
    """Query-key pairs of one head over `tokens`: n^2, or n (n + 1) / 2 when causal."""
    return tokens * (tokens + 1) // 2 if causal else tokens * tokens


def score_matrix_bytes(tokens: int, bytes_each: int = 2) -> int:
    """Bytes of one head's whole n x n score matrix, if anyone were to keep it."""
    return tokens * tokens * bytes_each


def visible_pairs(start: int, rows: int, window: int | None) -> int:
    """Query-key pairs of one head: the sum over positions p = start .. start + rows - 1 of min(p + 1, window)."""
    return _pairs_before(start + rows, window) - _pairs_before(start, window)


def _pairs_before(n: int, window: int | None) -> int:
    """Positions 0 .. n - 1."""
    if window is None or n <= window:
        return n * (n + 1) // 2
    return window * (window + 1) // 2 + (n - window) * window


# --- keys and values ---


def kv_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, bytes_each: int) -> int:
    """Keys and values of `tokens` kept plainly: 2 x layers x kv_heads x head_dim x tokens x bytes."""
    return 2 * layers * kv_heads * head_dim * tokens * bytes_each


def kv_head_bytes(kv_format: str, head_dim: int, value_dim: int | None = None) -> int:
    """Bytes of one token's key and value of one KV head, with what belongs to them (native/src/attention_layout.h).

    int8 has a scale for each in bf16. int4 has six bits a number of the key, four of the value, two scales and a
    minimum; sixteen tokens share a record that is padded to 64 bytes. f16 and fp8, which other engines have, are plain.
    """
    values = head_dim if value_dim is None else value_dim
    padded = _round_up(values, 16)
    if kv_format == "f32":
        return 4 * (head_dim + values)
    if kv_format == "f16":
        return 2 * (head_dim + values)
    if kv_format == "fp8":
        return head_dim + values
    if kv_format == "bf16":
        return 2 * head_dim + 2 * padded
    if kv_format == "int8":
        return head_dim + padded + 4
    assert kv_format == "int4", kv_format
    keys, summed, scales = 8 * head_dim + 4 * _round_up(head_dim, 16), 8 * _round_up(padded, 32), 3 * 2 * 16
    return _round_up(keys + summed + scales, 64) // 16


def _latent_bytes(kv_format: str, size: int) -> int:
    """One vector a token; int8 and int4 with a scale in bf16 (no engine of ours keeps one)."""
    plain = {"f32": 32, "bf16": 16, "f16": 16, "fp8": 8, "int8": 8, "int4": 4}[kv_format]
    return size * plain // 8 + (2 if kv_format in ("int8", "int4") else 0)


def _round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def layer_kv_bytes(attention: AttentionShape, kv_format: str) -> int:
    """Bytes kept for one token in one layer."""
    if attention.latent is not None:
        return _latent_bytes(kv_format, attention.latent.size)
    return attention.num_kv_heads * kv_head_bytes(kv_format, attention.key_dim, attention.value_dim)


def kv_bytes_per_token(model: Model, kv_format: str) -> int:
    """Bytes kept for one token: keys and values of every layer."""
    return sum(run.count * layer_kv_bytes(run.layer.attention, kv_format) for run in shape(model).runs)


def kv_read_bytes(model: Model, kv_format: str, context: int) -> int:
    """Keys and values that one decode step reads when `context` tokens have them (the own one included).

    Sliding layers read their window only; each KV head is read once for its whole group of query heads. It is also
    what must be kept at least, by a cache that gives up what lies behind a window.
    """
    return sum(
        run.count * run.layer.attention.seen(context) * layer_kv_bytes(run.layer.attention, kv_format)
        for run in shape(model).runs
    )


# --- weights ---


def layer_matrices(spec: ArchSpec, layer: LayerSpec) -> tuple[Matrix, ...]:
    return layer_shape(spec.d_model, layer).matrices


def matrices(model: Model) -> tuple[Matrix, ...]:
    """Every matrix of a decoder; a tied head appears as HEAD, and as EMBED, though one table serves both."""
    whole = shape(model)
    layers = tuple(m for run in whole.runs for m in run.count * _all_matrices(run.layer))
    return (Matrix(Role.EMBED, whole.vocab_size, whole.d_model), *layers, whole.head)


def _all_matrices(layer: LayerShape) -> tuple[Matrix, ...]:
    return layer.matrices + (layer.experts.count * layer.experts.matrices if layer.experts else ())


def weight_bytes(model: Model, bits: Mapping[Role, float]) -> dict[Role, int]:
    """Bytes of each role's matrices at so many bits a weight (scales included: Q4_1 is 5, Q8_0 is 8.5)."""
    totals = {role: elements * bits[role] / 8 for role, elements in _elements(shape(model)).items() if elements}
    return {role: round(totals.get(role, 0.0)) for role in Role}


def _elements(model: ModelShape, rows: int | None = None) -> dict[Role, float]:
    """Numbers by role; with `rows`, of experts only those that so many rows are expected to need."""
    totals: dict[Role, float] = dict.fromkeys(Role, 0.0)
    totals[Role.EMBED] = model.vocab_size * model.d_model
    totals[Role.HEAD] = model.head.elements
    for run in model.runs:
        for m in run.layer.matrices:
            totals[m.role] += run.count * m.elements
        experts = run.layer.experts
        if experts is not None:
            needed = experts.count if rows is None else experts.distinct(rows)
            for m in experts.matrices:
                totals[m.role] += run.count * needed * m.elements
    return totals


def stored_weight_bytes(model: Model, bits: Mapping[Role, float], vector_bits: float = 16.0) -> int:
    """Bytes of the whole model: a tied table once, learned positions like embeddings, norms and biases."""
    whole = shape(model)
    total = sum(weight_bytes(whole, bits).values())
    if whole.tied:
        total -= round(whole.head.elements * bits[Role.HEAD] / 8)
    positions = whole.positions * whole.d_model * bits[Role.EMBED]
    return total + round((positions + whole.all_vectors * vector_bits) / 8)


def weight_read_bytes(model: Model, bits: Mapping[Role, float], rows: int = 1, logit_rows: int = 1) -> int:
    """Weight bytes that a step of `rows` tokens reads: layers once, the head if logits are wanted, rows of EMBED.

    Of experts those that so many rows are expected to need, if each chooses evenly and alone.
    """
    whole = shape(model)
    elements = _elements(whole, rows)
    read = [role for role in Role if role is not Role.EMBED and (role is not Role.HEAD or logit_rows)]
    total = sum(round(elements[role] * bits[role] / 8) for role in read if elements[role])
    return total + round(rows * whole.d_model * bits[Role.EMBED] / 8)


def decode_step_bytes(model: Model, bits: Mapping[Role, float], kv_format: str, context: int) -> int:
    """All bytes that one decode step at batch 1 must read: weights, and the keys and values of `context` tokens."""
    return weight_read_bytes(model, bits) + kv_read_bytes(model, kv_format, context)


# --- operations ---


def linear_flops(model: Model, rows: int, logit_rows: int) -> int:
    """Multiply-adds (two operations each) of all matrix products of a step; of experts the active ones."""
    whole = shape(model)
    per_row = sum(run.count * run.layer.active_elements for run in whole.runs)
    return 2 * rows * per_row + 2 * logit_rows * whole.head.elements


def pair_flops(attention: AttentionShape, absorbed: bool = True) -> int:
    """Operations of q.k and p.v for one token and one it looks at, all heads.

    absorbed  for latent attention: whether heads look at the kept vector itself (as decoding does), or at keys and
              values made of it
    """
    if attention.latent is not None and absorbed:
        return 2 * attention.num_heads * (attention.latent.size + attention.latent.rank)
    return 2 * attention.num_heads * (attention.key_dim + attention.value_dim)


def attention_flops(model: Model, start: int, rows: int) -> int:
    """Operations of q.k and p.v for `rows` tokens at positions start, start + 1, ... of one sequence.

    Latent attention takes the cheaper of its two ways, keys and values of earlier tokens made again where expanded.
    """
    return sum(run.count * layer_attention_flops(run.layer.attention, start, rows) for run in shape(model).runs)


def layer_attention_flops(attention: AttentionShape, start: int, rows: int) -> int:
    pairs = visible_pairs(start, rows, attention.window)
    flops = pairs * pair_flops(attention)
    if attention.latent is None:
        return flops
    again = 2 * start * attention.latent.expand.elements
    return min(flops, pairs * pair_flops(attention, absorbed=False) + again)


def prefill_flops(model: Model, prompt: int) -> int:
    """Operations from nothing to the first token's logits."""
    return linear_flops(model, prompt, 1) + attention_flops(model, 0, prompt)
