"""Bytes and operations of an engine's work, in closed form.

Knows: an `ArchSpec`, token counts, bytes a number. Does not know: how anything is done, measured times, arrays.

Figures count what must move or be computed at least once; a backend's padding is not part of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from legato.core.spec import ArchSpec, AttentionSpec, LayerSpec, MlpKind


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


def kv_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, bytes_each: int) -> int:
    """Keys and values of `tokens` kept plainly: 2 x layers x kv_heads x head_dim x tokens x bytes."""
    return 2 * layers * kv_heads * head_dim * tokens * bytes_each


def kv_head_bytes(kv_format: str, head_dim: int) -> int:
    """Bytes of one token's key and value of one KV head, with what belongs to them (native/src/attention_layout.h).

    int8 has a scale for each in bf16. int4 has six bits a number of the key, four of the value, two scales and a
    minimum; sixteen tokens share a record that is padded to 64 bytes.
    """
    padded = _round_up(head_dim, 16)
    if kv_format == "f32":
        return 8 * head_dim
    if kv_format == "bf16":
        return 2 * head_dim + 2 * padded
    if kv_format == "int8":
        return head_dim + padded + 4
    assert kv_format == "int4", kv_format
    keys, values, scales = 8 * head_dim + 4 * padded, 8 * _round_up(padded, 32), 3 * 2 * 16
    return _round_up(keys + values + scales, 64) // 16


def _round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def kv_bytes_per_token(spec: ArchSpec, kv_format: str) -> int:
    """Bytes kept for one token: keys and values of every layer."""
    return sum(_layer_kv_bytes(layer.attention, kv_format) for layer in spec.layers)


def kv_read_bytes(spec: ArchSpec, kv_format: str, context: int) -> int:
    """Keys and values that one decode step reads when `context` tokens have them (the own one included).

    Sliding layers read their window only; each KV head is read once for its whole group of query heads.
    """
    return sum(_seen(layer.attention, context) * _layer_kv_bytes(layer.attention, kv_format) for layer in spec.layers)


def _layer_kv_bytes(attention: AttentionSpec, kv_format: str) -> int:
    return attention.num_kv_heads * kv_head_bytes(kv_format, attention.head_dim)


def _seen(attention: AttentionSpec, context: int) -> int:
    return context if attention.window is None else min(context, attention.window)


class Role(enum.StrEnum):
    """What a matrix is for. EMBED is read a row a token; all others are read whole every step."""

    EMBED = "embed"
    QKV = "qkv"
    OUT = "out"
    UP = "up"
    DOWN = "down"
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


def layer_matrices(spec: ArchSpec, layer: LayerSpec) -> tuple[Matrix, ...]:
    attention, mlp, width = layer.attention, layer.mlp, spec.d_model
    up = 2 * mlp.size if mlp.kind is MlpKind.GATED else mlp.size
    return (
        Matrix(Role.QKV, attention.q_size + 2 * attention.kv_size, width),
        Matrix(Role.OUT, width, attention.q_size),
        Matrix(Role.UP, up, width),
        Matrix(Role.DOWN, width, mlp.size),
    )


def matrices(spec: ArchSpec) -> tuple[Matrix, ...]:
    """Every matrix of a decoder; a tied head appears as HEAD, and as EMBED, though one table serves both."""
    layers = tuple(m for layer in spec.layers for m in layer_matrices(spec, layer))
    table = (spec.vocab_size, spec.d_model)
    return (Matrix(Role.EMBED, *table), *layers, Matrix(Role.HEAD, *table))


def weight_bytes(spec: ArchSpec, bits: Mapping[Role, float]) -> dict[Role, int]:
    """Bytes of each role's matrices at so many bits a weight (scales included: Q4_1 is 5, Q8_0 is 8.5)."""
    totals: dict[Role, float] = dict.fromkeys(Role, 0.0)
    for m in matrices(spec):
        totals[m.role] += m.elements * bits[m.role] / 8
    return {role: round(total) for role, total in totals.items()}


def weight_read_bytes(spec: ArchSpec, bits: Mapping[Role, float], rows: int = 1, logit_rows: int = 1) -> int:
    """Weight bytes that a step of `rows` tokens reads: layers once, the head if logits are wanted, rows of EMBED."""
    total = weight_bytes(spec, bits)
    layers = total[Role.QKV] + total[Role.OUT] + total[Role.UP] + total[Role.DOWN]
    head = total[Role.HEAD] if logit_rows else 0
    return layers + head + round(rows * spec.d_model * bits[Role.EMBED] / 8)


def decode_step_bytes(spec: ArchSpec, bits: Mapping[Role, float], kv_format: str, context: int) -> int:
    """All bytes that one decode step at batch 1 must read: weights, and the keys and values of `context` tokens."""
    return weight_read_bytes(spec, bits) + kv_read_bytes(spec, kv_format, context)


def linear_flops(spec: ArchSpec, rows: int, logit_rows: int) -> int:
    """Multiply-adds (two operations each) of all matrix products of a step."""
    per_row = sum(m.elements for m in matrices(spec) if m.role not in (Role.EMBED, Role.HEAD))
    return 2 * rows * per_row + 2 * logit_rows * spec.vocab_size * spec.d_model


def attention_flops(spec: ArchSpec, start: int, rows: int) -> int:
    """Operations of q.k and p.v for `rows` tokens at positions start, start + 1, ... of one sequence."""
    total = 0
    for layer in spec.layers:
        attention = layer.attention
        pairs = visible_pairs(start, rows, attention.window)
        total += 4 * pairs * attention.q_size
    return total


def visible_pairs(start: int, rows: int, window: int | None) -> int:
    """Sum over positions p = start .. start + rows - 1 of min(p + 1, window)."""

    def upto(n: int) -> int:
        """Positions 0 .. n - 1."""
        if window is None or n <= window:
            return n * (n + 1) // 2
        return window * (window + 1) // 2 + (n - window) * window

    return upto(start + rows) - upto(start)


def prefill_flops(spec: ArchSpec, prompt: int) -> int:
    """Operations from nothing to the first token's logits."""
    return linear_flops(spec, prompt, 1) + attention_flops(spec, 0, prompt)
