"""Whole generations in closed form: each sum is compared with adding up its steps one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_specs import SMOLLM2

from legato.measure import cost
from legato.measure.shape import (
    AttentionShape,
    Experts,
    Latent,
    LayerRun,
    LayerShape,
    Matrix,
    ModelShape,
    Role,
    fold,
    mlp_matrices,
    shape_of,
)
from legato.measure.tally import Tally, activation_bytes, generation_tally, naive_pairs, step_tally

BITS = dict.fromkeys(Role, 5.0) | {Role.EMBED: 8.5, Role.HEAD: 8.5}


def layer(window: int | None = None, experts: Experts | None = None, latent: Latent | None = None) -> LayerShape:
    return LayerShape(
        AttentionShape(4, 2, 16, 16, window, latent),
        (Matrix(Role.QKV, 128, 64), Matrix(Role.OUT, 64, 64), *mlp_matrices(64, 160, gated=True)),
        experts,
        128,
    )


def model(*layers: LayerShape) -> ModelShape:
    return ModelShape("made-up", 64, 500, 4096, fold(layers), tied=True)


EXPERTS = Experts(8, 2, mlp_matrices(64, 32, gated=True))
LATENT = Latent(32, 8, Matrix(Role.QKV, 4 * 32, 32))


def test_a_spec_and_its_shape_count_the_same() -> None:
    whole = shape_of(SMOLLM2)
    assert [run.count for run in whole.runs] == [30] and whole.num_layers == 30
    assert whole.parameters == 134_515_008
    assert cost.matrices(whole) == cost.matrices(SMOLLM2)
    assert cost.stored_weight_bytes(whole, dict.fromkeys(Role, 16.0)) == 2 * 134_515_008


@pytest.mark.parametrize(("prompt", "tokens", "rows"), [(1, 8, 36), (1, 16, 136), (1, 32, 528), (2000, 200, 419_900)])
def test_without_a_cache_every_position_is_computed_again(prompt: int, tokens: int, rows: int) -> None:
    naive = generation_tally(SMOLLM2, BITS, "bf16", prompt, tokens, cached=False)
    cached = generation_tally(SMOLLM2, BITS, "bf16", prompt, tokens)
    assert (naive.rows, cached.rows) == (rows, prompt + tokens - 1)
    assert (naive.steps, cached.steps) == (tokens, tokens)
    assert naive.linear_flops > cached.linear_flops and naive.kv_read_bytes == naive.kv_write_bytes == 0


def test_the_two_experiments_part_as_the_sums_say() -> None:
    """With a cache the work of T tokens grows like T, without one like T^2: doubling T doubles or quadruples it."""
    growth = []
    for cached in (True, False):
        short, long = (generation_tally(SMOLLM2, BITS, "bf16", 1, t, cached).linear_flops for t in (1000, 2000))
        growth.append(long / short)
    assert growth == pytest.approx([2.0, 4.0], rel=0.25)


@pytest.mark.parametrize("right", [0.55, 0.65, 0.72])
def test_five_drafted_tokens_verified_at_once_give_two_to_three_times(right: float) -> None:
    """Six rows read what one row reads; with each guess right so often they give (1 - right^6) / (1 - right) tokens."""
    one, six = (step_tally(SMOLLM2, BITS, "int8", 1000, rows, rows) for rows in (1, 6))
    tokens = (1 - right**6) / (1 - right)
    assert 2.0 < tokens * (one.weight_bytes + one.kv_read_bytes) / (six.weight_bytes + six.kv_read_bytes) < 3.1
    assert six.weight_bytes < 1.001 * one.weight_bytes


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 30),
    st.one_of(st.none(), st.integers(1, 50)),
    st.booleans(),
    st.booleans(),
)
def test_a_generation_is_the_sum_of_its_steps(
    prompt: int, tokens: int, window: int | None, moe: bool, cached: bool
) -> None:
    made = model(layer(window), layer(None, EXPERTS if moe else None), layer(window))
    total = generation_tally(made, BITS, "int8", prompt, tokens, cached)
    steps = Tally()
    for k in range(tokens):
        if cached:
            start, rows = (0, prompt) if k == 0 else (prompt + k - 1, 1)
            steps += step_tally(made, BITS, "int8", start, rows)
        else:
            step = step_tally(made, BITS, "int8", 0, prompt + k)
            steps += replace(step, kv_read_bytes=0, kv_write_bytes=0)
    assert total == steps
    assert total.nbytes > 0 and total.flops == total.linear_flops + total.attention_flops


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.one_of(st.none(), st.integers(1, 80)))
def test_the_pyramid_of_pairs(prompt: int, tokens: int, window: int | None) -> None:
    counted = sum(min(p + 1, window or p + 1) for rows in range(prompt, prompt + tokens) for p in range(rows))
    assert naive_pairs(prompt, tokens, window) == counted


def test_activations_are_inputs_and_outputs() -> None:
    made = model(layer(experts=EXPERTS))
    dense = (128 + 64) + (64 + 64) + (320 + 64) + (64 + 160)
    active = 2 * ((64 + 64) + (64 + 32))
    assert activation_bytes(made, 3, 1) == 4 * (3 * (dense + active) + 564)


# --- experts ---


def test_a_row_reads_its_experts_and_a_crowd_reads_all() -> None:
    assert EXPERTS.distinct(1) == pytest.approx(2.0)
    assert EXPERTS.distinct(0) == 0.0
    assert EXPERTS.distinct(2) == pytest.approx(8 * (1 - 0.75**2))
    assert EXPERTS.distinct(10_000) == pytest.approx(8.0)
    counts = [EXPERTS.distinct(rows) for rows in range(40)]
    assert counts == sorted(counts) and all(count <= 2 * rows + 1e-9 for rows, count in enumerate(counts))


def test_expected_experts_against_drawing_them() -> None:
    import random

    drawn, dice = 0, random.Random(1)
    for _ in range(4000):
        drawn += len({e for _ in range(5) for e in dice.sample(range(8), 2)})
    assert drawn / 4000 == pytest.approx(EXPERTS.distinct(5), rel=0.01)


def test_flops_count_active_experts_and_bytes_distinct_ones() -> None:
    dense, mixed = model(layer()), model(layer(experts=EXPERTS))
    one = EXPERTS.elements
    assert cost.linear_flops(mixed, 5, 0) - cost.linear_flops(dense, 5, 0) == 2 * 5 * 2 * one
    bits = dict.fromkeys(Role, 8.0)
    extra = cost.weight_read_bytes(mixed, bits, 5) - cost.weight_read_bytes(dense, bits, 5)
    assert extra == pytest.approx(EXPERTS.distinct(5) * one, abs=2)
    assert mixed.parameters - dense.parameters == 8 * one
    assert mixed.active_parameters - dense.active_parameters == 2 * one


# --- latent attention ---


def test_latent_attention_keeps_one_vector() -> None:
    plain, latent = layer().attention, layer(latent=LATENT).attention
    assert cost.layer_kv_bytes(plain, "bf16") == 2 * 2 * 2 * 16
    assert cost.layer_kv_bytes(latent, "bf16") == 2 * 40
    assert cost.layer_kv_bytes(latent, "fp8") == 40 and cost.layer_kv_bytes(latent, "int8") == 42
    assert cost.kv_bytes_per_token(model(layer(latent=LATENT)), "bf16") == 80


def test_latent_attention_takes_the_cheaper_way() -> None:
    """A lone token far back looks at the vectors themselves; a prompt from nothing makes keys and values once."""
    a = layer(latent=LATENT).attention
    absorbed, expanded = cost.pair_flops(a), cost.pair_flops(a, absorbed=False)
    assert (absorbed, expanded) == (2 * 4 * (40 + 32), 2 * 4 * 32)
    assert cost.layer_attention_flops(a, 0, 100) == 5050 * expanded
    assert cost.layer_attention_flops(a, 1000, 1) == 1001 * absorbed


@pytest.mark.parametrize(("kv_format", "per_head"), [("f32", 1024), ("f16", 512), ("bf16", 512), ("fp8", 256)])
def test_plain_formats_of_keys_and_values(kv_format: str, per_head: int) -> None:
    assert cost.kv_head_bytes(kv_format, 128) == per_head
    assert cost.kv_head_bytes(kv_format, 192, 64) == per_head


def test_layers_that_are_alike_are_kept_once() -> None:
    a, b = layer(), layer(window=7)
    assert fold([b, a, b]) == (LayerRun(b, 2), LayerRun(a, 1))
