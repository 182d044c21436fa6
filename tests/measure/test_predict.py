"""Predicted step times: what must be true of them on any machine, and figures that can be worked out by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from example_machine import INPUTS, MACHINE, Q4, Q8
from hypothesis import given, settings
from hypothesis import strategies as st
from small_specs import SMOLLM2, smollm2

from legato.measure import cost
from legato.measure.cost import Role
from legato.measure.machine import Machine
from legato.measure.predict import Attend, Piece, Predictor, Product, StepTime, Work, chunks, seconds_of, step_work
from legato.measure.step_time import Load, StepTimeModel

BITS = dict.fromkeys(Role, 4.5) | {Role.HEAD: 8.5, Role.EMBED: 8.5}
H100 = Machine.from_sheet("H100", memory_gb_s=3350, tops={8: 1979, 16: 989}, memory_bytes=80 << 30)
MACHINES = pytest.mark.parametrize("machine", [MACHINE, H100, Machine.ordinary(2)], ids=lambda m: m.name[:12])
few = settings(max_examples=30, deadline=None, derandomize=True)


def predictor(machine: Machine = MACHINE, kv: str = "int8", window: int | None = None) -> Predictor:
    return Predictor(smollm2(window), BITS, kv, machine)


@MACHINES
@few
@given(depth=st.integers(0, 8000), streams=st.integers(1, 64), more=st.integers(1, 500))
def test_deeper_and_more_streams_take_longer(machine: Machine, depth: int, streams: int, more: int) -> None:
    p = predictor(machine)
    here = p.itl(depth, streams).seconds
    assert here <= p.itl(depth + more, streams).seconds * (1 + 1e-12)
    assert here <= p.itl(depth, streams + more).seconds * (1 + 1e-12)
    assert p.itl(depth, streams + more).seconds < (streams + more) / streams * here * 1.001, "company is never a loss"


@MACHINES
@few
@given(prompt=st.integers(1, 8000), more=st.integers(1, 3000), data=st.data())
def test_longer_prompts_take_longer_and_cached_ones_less(
    machine: Machine, prompt: int, more: int, data: st.DataObject
) -> None:
    p, cached = predictor(machine), data.draw(st.integers(0, prompt))
    whole = p.ttft(prompt).seconds
    assert p.ttft(prompt, cached).seconds <= whole * 1.001  # cut at other places it may read a little more
    assert p.ttft(prompt, prompt).seconds == pytest.approx(p.step([(Piece(prompt - 1, 1), 1)]).seconds)
    assert whole < p.ttft(prompt + more + 512).seconds


@few
@given(prompt=st.integers(1, 3000), most=st.integers(1, 600), data=st.data())
def test_a_prompt_is_cut_without_gaps_and_wants_logits_once(prompt: int, most: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, prompt - 1))
    pieces = list(chunks(start, prompt, most))
    places = [at for piece in pieces for at in range(piece.start, piece.start + piece.length)]
    assert places == list(range(start, prompt)) and all(piece.length == most for piece in pieces[:-1])
    assert [piece.logits for piece in pieces] == [0] * (len(pieces) - 1) + [1]


@MACHINES
def test_parts_add_up_and_the_interval_holds_them(machine: Machine) -> None:
    for time in (predictor(machine).itl(500, 8), predictor(machine).ttft(3000)):
        parts = [getattr(time, f.name) for f in fields(StepTime) if f.name != "spread"]
        assert all(part >= 0 for part in parts) and sum(parts) == pytest.approx(time.seconds)
        assert time.low < time.seconds < time.high and getattr(time, time.limit) == max(parts)


@MACHINES
def test_a_window_ends_what_depth_costs(machine: Machine) -> None:
    windowed, whole = Predictor(smollm2(256), BITS, "int8", machine), predictor(machine)
    assert windowed.itl(200).seconds == pytest.approx(whole.itl(200).seconds)
    assert windowed.itl(5000).seconds < whole.itl(5000).seconds
    grown, usual = (p.itl(8000).seconds - p.itl(4000).seconds for p in (windowed, whole))
    assert grown == pytest.approx(usual / 2, rel=0.01), "half of the layers have the window"
    assert windowed.ttft(8000).seconds < whole.ttft(8000).seconds


def test_a_step_that_only_reads_takes_its_bytes_over_the_speed() -> None:
    """100 GB/s of which 80 % are reached, arithmetic without end."""
    machine = Machine.from_sheet(
        "x", memory_gb_s=100, tops={16: 1e9}, memory_bytes=1, layer_us=0, step_overhead_us=0, read=0.8
    )
    p = predictor(machine)
    nbytes = cost.decode_step_bytes(p.spec, BITS, "int8", 1001) - p.spec.d_model * 8.5 / 8
    assert p.itl(1000).seconds == pytest.approx(nbytes / 80e9, rel=1e-6)
    assert p.itl(1000).limit == "weights" and p.itl(8000, 64).limit == "kv"


def test_a_prompt_that_only_computes_takes_its_operations_over_the_rate() -> None:
    """2 TOPS of which half are reached in products and a quarter in attention, memory without end."""
    machine = Machine.from_sheet(
        "x", memory_gb_s=1e9, tops={16: 2}, memory_bytes=1, layer_us=0, step_overhead_us=0, attention=0.25
    )
    p = predictor(machine)
    expected = cost.linear_flops(p.spec, 3000, 1) / 1e12 + cost.attention_flops(p.spec, 0, 3000) / 0.5e12
    assert p.ttft(3000).seconds == pytest.approx(expected, rel=1e-3)


def test_layers_and_steps_have_their_price() -> None:
    machine = replace(H100, step_overhead_us=1000.0)
    assert predictor(machine).itl(0).seconds - predictor(H100).itl(0).seconds == pytest.approx(800e-6)
    assert predictor(H100).itl(0).layers == pytest.approx(30 * 5e-6)


@pytest.mark.parametrize("rows", list(Q4))
def test_measured_rows_take_what_was_measured(rows: int) -> None:
    product = Product(outputs=1000, inputs=200, bits=4.5, rows=rows, count=3)
    time = seconds_of(Work(rows, 1, 0, (product,), ()), MACHINE)
    expected = 600_000 * Q4[rows] + 3 * 200 * rows * INPUTS[rows]
    assert time.weights + time.products == pytest.approx(expected) and time.layers == pytest.approx(3e-6)


@few
@given(rows=st.integers(1, 2000), bits=st.floats(2, 16))
def test_between_what_was_measured_lies_between(rows: int, bits: float) -> None:
    def seconds(rows: int, bits: float) -> float:
        time = seconds_of(Work(rows, 1, 0, (Product(1 << 10, 1 << 10, bits, rows),), ()), MACHINE)
        return (time.weights + time.products - (1 << 10) * rows * INPUTS[max(n for n in INPUTS if n <= rows)]) / 2**20

    assert seconds(1, 4.5) * 0.85 <= seconds(rows, bits) <= 1.1 * max(Q8[256], Q8[256] * rows / 256)
    assert seconds(rows, 4.5) <= seconds(rows, 6.5) <= seconds(rows, 8.5)
    assert seconds(512, 4.5) == pytest.approx(2 * Q4[256])


def test_looking_back_is_counted_by_format_size_of_head_and_kind() -> None:
    look = Attend(rows=1, tokens=1000, pairs=1000, q_size=576, kv_size=396, numbers=960, kv_format="int8", head_dim=64)

    def seconds(attend: Attend) -> float:
        time = seconds_of(Work(1, 1, 0, (), (attend,)), MACHINE)
        return time.kv + time.attention

    expected = 5e-7 + 960 * 1.5e-9 + 396_000 * 2.2e-11 + 576_000 * 1.2e-11
    assert seconds(look) == pytest.approx(expected)
    assert seconds(replace(look, streams=5, count=2)) == pytest.approx(10 * expected)
    assert seconds(replace(look, kv_format="int4")) == pytest.approx(expected), "unknown formats: as the first"
    assert seconds(replace(look, kv_format="bf16")) > seconds(replace(look, head_dim=0))
    assert seconds(replace(look, head_dim=128)) < seconds(look) == seconds(replace(look, head_dim=80))
    prompt = replace(look, rows=100, tokens=1100, pairs=100_000)
    assert seconds(prompt) == pytest.approx(5e-7 + 96_000 * 1.5e-9 + 57_600_000 * 1.1e-11)


def test_work_counts_every_byte_once() -> None:
    spec = SMOLLM2
    work = step_work(spec, BITS, "int8", [(Piece(99, 1), 4), (Piece(0, 50, 0), 1)])
    assert (work.rows, work.seqs, work.layers) == (54, 5, 30)
    assert work.weight_bytes == cost.weight_read_bytes(spec, BITS, rows=0)
    assert work.kv_bytes == 450 * cost.kv_bytes_per_token(spec, "int8")
    assert sum(2 * p.weights * p.rows for p in work.products) == cost.linear_flops(spec, 54, 4)
    pairs = cost.attention_flops(spec, 99, 1) * 4 + cost.attention_flops(spec, 0, 50)
    assert sum(a.operations for a in work.attends) == pairs


@MACHINES
def test_what_the_scheduler_starts_from_is_the_same_in_straight_lines(machine: Machine) -> None:
    p = predictor(machine)
    model = StepTimeModel(p.step_cost())
    for streams, depth in ((1, 0), (1, 4000), (4, 500), (8, 2000), (32, 500)):
        expected = p.itl(depth, streams).seconds
        assert model.seconds(Load.of_streams(streams, depth + 1)) == pytest.approx(expected, rel=0.25)
    for start, end in ((0, 512), (2048, 2560), (7000, 7512)):
        expected = p.step([(Piece(start, end - start, 0), 1)]).seconds
        assert model.seconds(Load.of_rows(start, end)) == pytest.approx(expected, rel=0.25)


def test_what_was_foreseen_stays_while_the_scheduler_learns() -> None:
    model, load = StepTimeModel(predictor().step_cost()), Load.of_streams(4, 500)
    before = model.foreseen(load)
    assert before == pytest.approx(model.seconds(load))
    for _ in range(60):
        model.observe(load, 2 * before)
    assert model.foreseen(load) == before and model.seconds(load) == pytest.approx(2 * before, rel=0.05)
