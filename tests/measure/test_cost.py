"""The closed forms of bytes and operations: worked figures, and counting by hand in small worlds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_specs import SMOLLM2

from legato.core.spec import ArchSpec
from legato.kernels.cpu import NativeBackend, load_library
from legato.kernels.ops import KvFormat
from legato.kernels.reference import ReferenceBackend
from legato.measure import cost
from legato.measure.cost import Role

[SMOLLM2_LAYER] = set(SMOLLM2.layers)


def windowed(window: int | None) -> ArchSpec:
    layer = replace(SMOLLM2_LAYER, attention=replace(SMOLLM2_LAYER.attention, window=window))
    return replace(SMOLLM2, layers=(layer,))


@pytest.mark.parametrize(("tokens", "positions"), [(8, 36), (16, 136), (32, 528)])
def test_naive_decoding_visits_a_triangle(tokens: int, positions: int) -> None:
    assert cost.naive_positions(tokens) == positions == sum(range(1, tokens + 1))


@pytest.mark.parametrize(("prompt", "tokens", "positions"), [(2000, 200, 419_900), (1024, 32, 33_264)])
def test_cached_decoding_looks_back_at_a_strip(prompt: int, tokens: int, positions: int) -> None:
    assert cost.decode_positions(prompt, tokens) == positions == sum(prompt + k for k in range(tokens))


def test_attention_is_quadratic() -> None:
    assert cost.attention_comparisons(100, causal=False) == 10**4
    assert cost.attention_comparisons(1000, causal=False) == 10**6
    assert cost.attention_comparisons(1000) == 1000 * 1001 // 2
    assert cost.score_matrix_bytes(100_000) == 20 * 10**9


def test_a_large_models_cache_is_39_gib() -> None:
    size = cost.kv_bytes(layers=80, kv_heads=8, head_dim=128, tokens=128_000, bytes_each=2)
    assert size == 41_943_040_000
    assert round(size / 2**30, 2) == 39.06


def test_kv_bytes_of_a_spec_agree_with_the_plain_formula() -> None:
    assert cost.kv_bytes_per_token(SMOLLM2, "bf16") == cost.kv_bytes(30, 3, 64, 1, 2) == 23_040
    assert cost.kv_bytes_per_token(SMOLLM2, "f32") == 4 * SMOLLM2.kv_elements_per_token
    assert cost.kv_read_bytes(SMOLLM2, "bf16", 8192) == cost.kv_bytes(30, 3, 64, 8192, 2)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("kv_format", [KvFormat.BF16, KvFormat.INT8, KvFormat.INT4])
def test_the_native_backends_pages_are_what_the_formula_says(head_dim: int, kv_format: KvFormat) -> None:
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    layer = replace(SMOLLM2_LAYER, attention=replace(SMOLLM2_LAYER.attention, head_dim=head_dim))
    spec = replace(SMOLLM2, layers=(layer, layer))
    page = NativeBackend(threads=1, library=library).page_bytes(spec, 16, kv_format)
    assert page == 16 * cost.kv_bytes_per_token(spec, kv_format)


def test_the_reference_backends_pages_too() -> None:
    assert ReferenceBackend().page_bytes(SMOLLM2, 16, KvFormat.F32) == 16 * cost.kv_bytes_per_token(SMOLLM2, "f32")


@pytest.mark.parametrize("window", [None, 1, 4, 512])
def test_a_sliding_layer_reads_its_window(window: int | None) -> None:
    spec = windowed(window)
    per_token = cost.kv_bytes_per_token(spec, "int8")
    for context in (1, 3, 4, 5, 600):
        seen = context if window is None else min(window, context)
        assert cost.kv_read_bytes(spec, "int8", context) == seen * per_token


def test_parameters_of_the_built_in_model() -> None:
    """134.5 million parameters, of which the norms (61 x 576) are not matrices; the tied table counts once."""
    elements = sum(m.elements for m in cost.matrices(SMOLLM2) if m.role is not Role.HEAD)
    assert elements + 61 * 576 == 134_515_008


def test_weight_bytes_of_the_built_in_file() -> None:
    bits = dict.fromkeys(Role, 5.0) | {Role.EMBED: 8.5, Role.HEAD: 8.5}
    layers = 30 * (960 * 576 + 576 * 576 + 3072 * 576 + 576 * 1536) * 5 // 8
    head = 49152 * 576 * 17 // 16
    assert cost.weight_read_bytes(SMOLLM2, bits) == layers + head + 576 * 17 // 16
    assert cost.weight_read_bytes(SMOLLM2, bits, logit_rows=0) == layers + 576 * 17 // 16
    step = cost.decode_step_bytes(SMOLLM2, bits, "bf16", 100)
    assert step == cost.weight_read_bytes(SMOLLM2, bits) + 100 * 23_040


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(1, 60), st.one_of(st.none(), st.integers(1, 100)))
def test_attention_work_counts_every_pair(start: int, rows: int, window: int | None) -> None:
    spec = windowed(window)
    pairs = sum(p + 1 if window is None else min(p + 1, window) for p in range(start, start + rows))
    assert cost.attention_flops(spec, start, rows) == 4 * pairs * 9 * 64


def test_chunks_of_a_prompt_cost_what_the_whole_costs() -> None:
    whole = cost.attention_flops(SMOLLM2, 0, 300)
    assert whole == sum(cost.attention_flops(SMOLLM2, start, 100) for start in (0, 100, 200))
    assert cost.prefill_flops(SMOLLM2, 300) == whole + cost.linear_flops(SMOLLM2, 300, 1)
