"""What a step, a prompt or a whole answer costs: bytes and operations of every kind, with a cache and without.

Knows: a model's shape, bits a weight, a cache's format. Does not know: time, machines, how anything is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from legato.measure import cost
from legato.measure.cost import Model
from legato.measure.shape import AttentionShape, ModelShape, Role


@dataclass(frozen=True, slots=True)
class Tally:
    """Of a step, or the sum of several. Bytes are read or written at least once; operations count multiply and add.

    steps             passes through the layers
    rows              tokens computed
    weight_bytes      weights read
    kv_read_bytes     keys and values read
    kv_write_bytes    keys and values written
    activation_bytes  inputs and outputs of matrix products
    linear_flops      matrix products
    attention_flops   looking back
    """

    steps: int = 0
    rows: int = 0
    weight_bytes: int = 0
    kv_read_bytes: int = 0
    kv_write_bytes: int = 0
    activation_bytes: int = 0
    linear_flops: int = 0
    attention_flops: int = 0

    @property
    def nbytes(self) -> int:
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes + self.activation_bytes

    @property
    def flops(self) -> int:
        return self.linear_flops + self.attention_flops

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def step_tally(
    model: Model, bits: Mapping[Role, float], kv_format: str, start: int, rows: int, logit_rows: int = 1
) -> Tally:
    """A step of `rows` tokens of one sequence, from position `start` on."""
    whole = cost.shape(model)
    return Tally(
        steps=1,
        rows=rows,
        weight_bytes=cost.weight_read_bytes(whole, bits, rows, logit_rows),
        kv_read_bytes=sum(
            run.count * _read(run.layer.attention, start, rows) * cost.layer_kv_bytes(run.layer.attention, kv_format)
            for run in whole.runs
        ),
        kv_write_bytes=rows * cost.kv_bytes_per_token(whole, kv_format),
        activation_bytes=activation_bytes(whole, rows, logit_rows),
        linear_flops=cost.linear_flops(whole, rows, logit_rows),
        attention_flops=cost.attention_flops(whole, start, rows),
    )


def generation_tally(
    model: Model, bits: Mapping[Role, float], kv_format: str, prompt: int, tokens: int, cached: bool = True
) -> Tally:
    """A prompt of `prompt` tokens, and `tokens` of answer; the first comes of the prompt's own step.

    cached  False: every step computes all positions again and keeps nothing
    """
    assert prompt > 0 and tokens > 0, (prompt, tokens)
    whole = cost.shape(model)
    if not cached:
        return _naive(whole, bits, prompt, tokens)
    return step_tally(whole, bits, kv_format, 0, prompt) + _decode(whole, bits, kv_format, prompt, tokens - 1)


def _decode(model: ModelShape, bits: Mapping[Role, float], kv_format: str, start: int, steps: int) -> Tally:
    """`steps` of one row each, the first at position `start`: every count is linear in the context, or a sum of it."""
    pairs = {run: cost.visible_pairs(start, steps, run.layer.attention.window) for run in model.runs}
    return Tally(
        steps=steps,
        rows=steps,
        weight_bytes=steps * cost.weight_read_bytes(model, bits),
        kv_read_bytes=sum(
            run.count * seen * cost.layer_kv_bytes(run.layer.attention, kv_format) for run, seen in pairs.items()
        ),
        kv_write_bytes=steps * cost.kv_bytes_per_token(model, kv_format),
        activation_bytes=steps * activation_bytes(model, 1, 1),
        linear_flops=steps * cost.linear_flops(model, 1, 1),
        attention_flops=sum(run.count * seen * cost.pair_flops(run.layer.attention) for run, seen in pairs.items()),
    )


def _naive(model: ModelShape, bits: Mapping[Role, float], prompt: int, tokens: int) -> Tally:
    """Steps of P, P + 1, ..., P + T - 1 rows from position 0; keys and values never leave the step."""
    rows = cost.decode_positions(prompt, tokens)
    return Tally(
        steps=tokens,
        rows=rows,
        weight_bytes=sum(cost.weight_read_bytes(model, bits, n) for n in range(prompt, prompt + tokens)),
        activation_bytes=activation_bytes(model, rows, tokens),
        linear_flops=cost.linear_flops(model, rows, tokens),
        attention_flops=sum(
            run.count * naive_pairs(prompt, tokens, run.layer.attention.window) * _whole_pair_flops(run.layer.attention)
            for run in model.runs
        ),
    )


def naive_pairs(prompt: int, tokens: int, window: int | None) -> int:
    """Query-key pairs of one head when steps of P, P + 1, ..., P + T - 1 rows each begin at position 0."""
    return _pyramid(prompt + tokens - 1, window) - _pyramid(prompt - 1, window)


def _pyramid(n: int, window: int | None) -> int:
    """The sum over m = 1..n of the pairs of m rows from position 0: n (n + 1) (n + 2) / 6 without a window."""
    if window is None or n <= window:
        return n * (n + 1) * (n + 2) // 6
    beyond = n - window
    inside = window * (window + 1) * (window + 2) // 6
    return inside + beyond * window * (window + 1) // 2 + window * beyond * (beyond + 1) // 2


def activation_bytes(model: ModelShape, rows: int, logit_rows: int, number_bytes: int = 4) -> int:
    """Inputs and outputs of all matrix products, each moved once; of experts the active ones."""
    per_row = 0
    for run in model.runs:
        per_row += run.count * sum(m.rows + m.cols for m in run.layer.matrices)
        if run.layer.experts is not None:
            per_row += run.count * run.layer.experts.active * sum(m.rows + m.cols for m in run.layer.experts.matrices)
    return number_bytes * (rows * per_row + logit_rows * (model.vocab_size + model.d_model))


def _read(attention: AttentionShape, start: int, rows: int) -> int:
    """Keys and values that rows at start .. start + rows - 1 see together."""
    end = start + rows
    return end if attention.window is None else min(end, attention.window + rows - 1)


def _whole_pair_flops(attention: AttentionShape) -> int:
    """Nothing is cached, so latent attention is never absorbed."""
    return cost.pair_flops(attention, absorbed=False)
