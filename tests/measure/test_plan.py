"""Plans: figures that others published, what must hold on any machine, and what is refused at the door."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_specs import SMOLLM2, smollm2

from legato import __version__
from legato.errors import CapacityError, RequestError, UsageError
from legato.measure import predict
from legato.measure.calibrated import write_machine
from legato.measure.devices import DEVICES, find_device
from legato.measure.machine import AttentionRate, Machine, ProductRate, RowCosts, cpu_name, usable_cpus
from legato.measure.plan import Plan
from legato.measure.predict import Piece, Predictor
from legato.measure.presets import PRESETS
from legato.measure.shape import Role, shape_of
from legato.measure.shape_work import step_work
from legato.measure.step_time import StepCost
from legato.planner import find_machine, plan

MODELS = st.sampled_from([p.name for p in PRESETS])
MACHINES = st.sampled_from([d.name for d in DEVICES])


def on(machine: str, model: str, **more: Any) -> Plan:
    return plan(model, machine=machine, **more)


# --- figures ---


def test_a_large_models_long_context_is_39_gib() -> None:
    made = on("h200", "llama-3.1-70b", context=128_000, output=500, kv="bf16")
    assert made.kv_bytes_per_token == 327_680
    assert made.kv_bytes == 41_943_040_000 and round(made.kv_bytes / 2**30, 2) == 39.06
    assert made.weights_bytes == 2 * 70_553_706_496
    assert made.fits is False and made.machines_needed == 2
    small = on("h200", "llama-3.1-70b", context=128_000, output=500, kv="bf16", weights="fp8")
    assert small.fits is True and small.max_users is not None and small.max_users.mid == 1


def test_a_long_prompt_on_a_data_centre_gpu() -> None:
    """Of the order of 500 ms for 10,000 tokens, then 20 to 30 ms a token."""
    made = on("h100", "qwen3-14b", context=10_200, output=200)
    assert made.ttft_ms.low < 500 < made.ttft_ms.high
    made = on("h100", "qwen3-32b", context=10_200, output=200)
    assert made.itl_ms.low < 30 and made.itl_ms.high > 20


@pytest.mark.parametrize(
    ("machine", "model", "measured_ms"),
    [
        ("h100", "llama-3.1-8b", 6.44),  # vLLM 0.19, the intercept at no context (blog of 2026-04-22)
        ("a100", "llama-3.1-8b", 1000 / 93.9),  # gpt-fast's README, bf16
    ],
)
def test_published_decode_times_lie_in_the_interval(machine: str, model: str, measured_ms: float) -> None:
    at = on(machine, model, depths=(0,)).itl_ms_at[0]
    assert at.low < measured_ms < at.high
    assert at.mid == pytest.approx(measured_ms, rel=0.25)


def test_the_published_slope_of_context() -> None:
    """131,072 bytes a token at the 3.0 TB/s that vLLM reached on an H100: 43.7 us for each 1,000 tokens."""
    made = on("h100", "llama-3.1-8b", context=100_000)
    assert made.itl_line[1] == pytest.approx(0.0437, rel=0.25)


def test_latent_attention_and_experts_are_planned_too() -> None:
    made = on("h200", "deepseek-v3", context=8192, users=8)
    assert made.kv_bytes_per_token == 61 * 576 * 2
    assert made.active_parameters == pytest.approx(36.6e9, rel=0.01) and made.fits is False
    assert made.itl_ms.low < 0.75 * made.itl_ms.mid  # the low end counts on fewer experts as well
    assert any("experts" in note for note in made.notes)


MEASURED = Machine(
    "measured",
    "avx2",
    2,
    "0",
    "2026-11-22",
    8 << 30,
    {"1": 10.0, "all": 15.0},
    step_overhead_us=100.0,
    products=(
        ProductRate("q4_0", 4.5, {1: 4e-11, 16: 7e-11, 256: 9e-10}),
        ProductRate("q8_0", 8.5, {1: 8e-11, 16: 9e-11, 256: 9e-10}),
    ),
    rows=RowCosts({1: 2e-9, 256: 1e-9}, 2e-6, 1e-4, 1e-5, 1e-7),
    attention=(AttentionRate("int8", 3e-6, 1e-9, 1e-6, 9e-11, 1e-11, 9e-12),),
)


@pytest.mark.parametrize("machine", [find_device("ddr5-desktop").machine(), MEASURED], ids=["sheet", "measured"])
def test_the_shapes_work_is_the_specs_work(machine: Machine) -> None:
    """Two ways to the same step: the engine's spec, and the counting shape made of it."""
    bits = dict.fromkeys(Role, 5.0) | {Role.HEAD: 8.5}
    for spec in (SMOLLM2, smollm2(300)):
        for pieces in ([(Piece(0, 512), 1)], [(Piece(1000, 1), 8)], [(Piece(700, 200, 0), 1), (Piece(90, 1), 4)]):
            ours = predict.seconds_of(step_work(shape_of(spec), bits, "int8", pieces), machine)
            theirs = Predictor(spec, bits, "int8", machine).step(pieces)
            assert ours.seconds == pytest.approx(theirs.seconds, rel=1e-9)


# --- what must hold on any machine ---


@settings(derandomize=True, max_examples=40, deadline=None)
@given(MODELS, MACHINES, st.integers(64, 1000), st.integers(1, 200), st.integers(1, 200))
def test_more_users_never_lower_latency(model: str, machine: str, context: int, few: int, more: int) -> None:
    few, more = sorted((few, few + more))
    one, two = (on(machine, model, context=context, users=n) for n in (few, more))
    for name in ("ttft_ms", "itl_ms"):
        for end in ("low", "mid", "high"):
            assert getattr(getattr(one, name), end) <= getattr(getattr(two, name), end) * (1 + 1e-9)
    assert one.kv_bytes < two.kv_bytes and (one.fits or not two.fits)
    assert two.tok_s.mid >= 0.85 * one.tok_s.mid  # and nearly never lower throughput: experts are read anew


@settings(derandomize=True, max_examples=30, deadline=None)
@given(MODELS, MACHINES, st.integers(32, 500), st.integers(1, 500))
def test_more_context_never_helps(model: str, machine: str, context: int, more: int) -> None:
    short, long = (on(machine, model, context=c, output=16) for c in (context, context + more))
    assert short.ttft_ms.mid <= long.ttft_ms.mid * (1 + 1e-9)
    assert short.itl_ms.mid <= long.itl_ms.mid * (1 + 1e-9)
    assert short.kv_bytes < long.kv_bytes
    assert short.max_users is not None and long.max_users is not None
    assert short.max_users.mid >= long.max_users.mid


@settings(derandomize=True, max_examples=40, deadline=None)
@given(MODELS, MACHINES, st.integers(2, 1024), st.integers(1, 64))
def test_a_plan_agrees_with_itself(model: str, machine: str, context: int, users: int) -> None:
    made = on(machine, model, context=context, users=users, price_per_hour=3.6)
    for span in (made.ttft_ms, made.itl_ms, made.tok_s, made.requests_s, *made.itl_ms_at.values()):
        assert 0 < span.low <= span.mid <= span.high
    times = [span.mid for span in made.itl_ms_at.values()]
    assert times == sorted(times) and list(made.itl_ms_at) == sorted(made.itl_ms_at)
    assert made.tok_s.mid == pytest.approx(users / made.itl_ms.mid * 1e3)
    assert made.price_per_million is not None
    prices, seconds = made.price_per_million, made.seconds_per_million
    assert prices["output"].mid == pytest.approx(seconds["output"].mid * 3.6 / 3600)
    total = made.prompt * seconds["input"].mid + made.output * seconds["output"].mid
    assert 1e6 / total == pytest.approx(made.requests_s.mid)
    assert [row.users for row in made.by_users] == sorted({row.users for row in made.by_users})
    assert users in [row.users for row in made.by_users]
    for limit in made.limits.values():
        assert 0 < limit.share <= 1 + 1e-9
        assert sum(limit.parts.values()) == pytest.approx(1.0) or not limit.parts
    shown = made.as_dict()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_fewer_bits_need_less_memory_and_less_time_to_read() -> None:
    made = [on("rtx-4090", "llama-3.1-8b", weights=bits) for bits in ("bf16", "q8_0", "4.5", "q2_k")]
    sizes, times = [m.weights_bytes for m in made], [m.itl_ms.mid for m in made]
    assert sizes == sorted(sizes, reverse=True) and times == sorted(times, reverse=True)
    kept = [on("h100", "llama-3.1-8b", kv=kv).kv_bytes for kv in ("f32", "bf16", "int8", "int4")]
    assert kept == sorted(kept, reverse=True)


def test_why_output_costs_more_is_told_with_this_plans_numbers() -> None:
    made = on("h100", "llama-3.1-8b", context=2000, output=200, users=4)
    words = made.why_output_costs_more
    assert made.output_over_input > 10 and f"{made.output_over_input:.3g} times as much" in words
    assert "15 GB of weights" in words and "1,800 tokens" in words and "memory bandwidth" in words
    crowded = on("m1", "llama-3.2-1b", context=130, output=2, users=500)
    assert crowded.output_over_input < made.output_over_input


def test_limits_name_what_limits() -> None:
    limits = on("h100", "llama-3.1-8b", context=8000).limits
    assert (limits["ttft"].by, limits["itl"].by, limits["users"].by) == ("compute", "memory bandwidth", "capacity")
    assert on("h100", "smollm2-135m", context=500).limits["itl"].by == "fixed costs"
    assert on("h100", "llama-3.1-8b", context=2000, users=400).limits["itl"].what == "reading keys and values"


def test_no_machine_known_gives_a_guess_that_says_so(tmp_path: Path) -> None:
    made = plan("smollm2-135m", context=512, output=64, cache_dir=tmp_path)
    assert made.machine_kind == "not calibrated" and made.kv == "int8"
    assert made.itl_ms.high > 5 * made.itl_ms.low and "legato calibrate" in made.notes[0]
    with pytest.raises(UsageError, match="never calibrated"):
        plan("smollm2-135m", machine="this", cache_dir=tmp_path)


def test_plans_guess_the_machine_that_the_scheduler_starts_from(tmp_path: Path) -> None:
    guessed = find_machine(None, tmp_path).machine
    assert guessed == replace(Machine.ordinary(usable_cpus()), name=guessed.name)
    bits = dict.fromkeys(Role, 5.0)
    assert StepCost.expected(SMOLLM2, bits, "int8", guessed) == StepCost.expected(
        SMOLLM2, bits, "int8", cores=usable_cpus()
    )


def test_this_machine_is_as_it_was_calibrated(tmp_path: Path) -> None:
    here = replace(MEASURED, name=cpu_name(), version=__version__)
    write_machine(tmp_path, here)
    for name in (None, "this", "THIS"):
        made = plan("smollm2-135m", context=2000, output=100, machine=name, cache_dir=tmp_path)
        assert made.machine_kind == "calibrated" and made.memory_bytes == MEASURED.memory_bytes and not made.notes
    bits = dict.fromkeys(Role, 5.0) | {Role.EMBED: 8.5, Role.HEAD: 8.5}
    expected = Predictor(SMOLLM2, bits, "int8", here)
    assert made.ttft_ms.mid == pytest.approx(1e3 * expected.ttft(1900).seconds)
    assert made.itl_ms_at[512].mid == pytest.approx(1e3 * expected.itl(512).seconds)
    assert made.itl_ms.low == pytest.approx(0.8 * made.itl_ms.mid)
    for model in ("gpt-oss-20b", "deepseek-v3"):  # what this engine does not run can be planned here all the same
        assert plan(model, context=500, output=50, users=4, cache_dir=tmp_path).itl_ms.mid > made.itl_ms.mid


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": "0.0.0"}, "version 0.0.0"), ({"products": (), "rows": None, "attention": ()}, "reference backend")],
)
def test_a_calibration_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_machine(tmp_path, replace(MEASURED, **{"name": cpu_name(), "version": __version__, **change}))
    made = plan("smollm2-135m", cache_dir=tmp_path)
    assert made.machine_kind == "not calibrated" and words in made.notes[0]
    with pytest.raises(UsageError, match=words):
        plan("smollm2-135m", machine="this", cache_dir=tmp_path)


def test_a_context_of_millions_is_planned_at_once() -> None:
    from legato.measure.config_shape import describe_config
    from legato.measure.plan import Setting, make_plan

    config = dict(next(p for p in PRESETS if p.name == "llama-3.2-1b").config) | {"max_position_embeddings": 10**8}
    made = make_plan("x", describe_config("x", config), find_device("h200").machine(), Setting(10**8, 10), "data sheet")
    assert made.limits["ttft"].what == "attention's arithmetic" and made.ttft_ms.mid > 1e9


def test_memory_that_is_not_known_is_not_made_up() -> None:
    from legato.measure.plan import Setting, make_plan
    from legato.planner import describe

    machine = Machine("x", "avx2", 2, "1", "", None, {"1": 10.0, "all": 15.0}, sheet=find_device("m1").machine().sheet)
    made = make_plan("x", describe("qwen3-0.6b"), machine, Setting(1000, 100), "calibrated")
    assert (made.fits, made.max_users, made.usable_bytes, made.machines_needed) == (None, None, None, None)
    assert made.as_dict()["max_users"] is None and "users" not in made.limits


# --- the door ---


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"context": 0}, "context=0 is not allowed"),
        ({"context": 1}, "context=1 is not allowed"),
        ({"context": 10**30}, "context=1000000000000000000000000000000 is not allowed"),
        ({"context": "many"}, "context='many' is not allowed"),
        ({"context": 100, "output": 100}, "output=100 is not allowed: a whole number from 1 to 99; context counts"),
        ({"output": 0}, "output=0 is not allowed"),
        ({"output": -5}, "output=-5 is not allowed"),
        ({"users": 0}, "users=0 is not allowed"),
        ({"users": 10**9}, "users=1000000000 is not allowed"),
        ({"users": True}, "users=True is not allowed"),
        ({"kv": "int3"}, "kv='int3' is not allowed: one of f32, bf16"),
        ({"weights": "0"}, "quant='0' is not allowed: bits a weight from 1 to 32, or one of f32"),
        ({"weights": "nan"}, "quant='nan' is not allowed"),
        ({"weights": "q9"}, "quant='q9' is not allowed"),
        ({"price_per_hour": 0.0}, "price_per_hour=0.0 is not allowed"),
        ({"price_per_hour": -1.0}, "price_per_hour=-1.0 is not allowed"),
        ({"price_per_hour": float("nan")}, "price_per_hour=nan is not allowed"),
        ({"price_per_hour": float("inf")}, "price_per_hour=inf is not allowed"),
    ],
)
def test_absurd_numbers_are_refused_by_name(more: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        on("h100", "llama-3.1-8b", **more)
    assert words in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_more_context_than_the_model_has() -> None:
    with pytest.raises(CapacityError, match="context=8193 is not allowed: at most 8192 tokens"):
        on("h100", "smollm2-135m", context=8193)


@pytest.mark.parametrize(
    ("name", "near"), [("h300", "h100"), ("m4max2", "m4-max"), ("rtx4080", "rtx-4090"), ("", ""), ("x" * 900, "")]
)
def test_an_unknown_machine_gets_near_ones_and_all(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        on(name, "llama-3.1-8b")
    text = str(caught.value)
    assert near in text and "legato calibrate" in text and "ddr5-desktop" in text and len(text) < 400
    assert ("did you mean" in text) == bool(near)


@pytest.mark.parametrize("name", ["H100", "NVIDIA H100", "h100-sxm", "RTX 4090", "4090", "Apple M4 Max", "DDR5"])
def test_machines_names_are_free_in_what_does_not_matter(name: str) -> None:
    assert find_device(name) in DEVICES


def test_data_sheets_are_sane() -> None:
    names = [d.name for d in DEVICES]
    assert len(set(names)) == len(names)
    for device in DEVICES:
        assert 8 <= device.memory_gb <= 1000 and 50 <= device.gb_s <= 10_000
        assert all(1 <= rate <= 5000 for rate in device.tops.values()) and 0.5 < device.usable <= 0.9
