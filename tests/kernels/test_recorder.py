"""What a decoder's calls become: few operations, buffers that share memory only when they may, refusals by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import RMS, RandomWeights, Shape

from legato.core.spec import Activation
from legato.errors import EngineError
from legato.kernels.cpu import NativeBackend
from legato.kernels.cpu.lib import Epilogue, OpKind
from legato.kernels.cpu.pack import PackedLinear, PackedTable, PackedVector
from legato.kernels.cpu.recorder import Op, Program, assign_slots, record
from legato.kernels.ops import Act, Ops
from legato.weights.tensor import WeightFormat

WEIGHT = PackedLinear((1,), 8, 8, gated=False)
HEAD = PackedLinear((2,), 20, 8, gated=False)
GATE_UP = PackedLinear((3,), 16, 8, gated=True)
NORM = PackedVector(4, 8)
TABLE = PackedTable(0, 20, 8)


def program_of(shape: Shape, native: NativeBackend) -> Program:
    return record(RandomWeights(shape).decoder(native).forward)


@pytest.fixture
def isa() -> str:
    return "portable"


def test_a_llama_layer_is_five_operations(native: NativeBackend) -> None:
    program = program_of(Shape(layers=2), native)
    layer = [
        ("qkv", OpKind.LINEAR, Epilogue.STORE),
        ("attention", OpKind.ATTENTION, Epilogue.STORE),
        ("attn_out", OpKind.LINEAR, Epilogue.ADD),
        ("mlp_up", OpKind.LINEAR, Epilogue.GATED_SILU),
        ("mlp_down", OpKind.LINEAR, Epilogue.ADD),
    ]
    found = [(op.lap, op.kind, op.epilogue) for op in program.ops]
    assert found[1:-1] == 2 * layer
    assert [op.norm is not None for op in program.ops[1:-1]] == 2 * [True, False, False, True, False]
    assert found[0][0] == "embed" and found[-1][0] == "logits" and program.ops[-1].norm is not None
    assert len(set(program.slots)) == 3, "the residual, and two others in turn"


def test_post_norms_join_the_residual(native: NativeBackend) -> None:
    program = program_of(Shape(layers=1, post_norm=True), native)
    kinds = [op.kind for op in program.ops]
    assert kinds.count(OpKind.NORM_ADD) == 2
    assert Epilogue.ADD not in [op.epilogue for op in program.ops]


def test_formats_that_cannot_interleave_are_gated_apart(native: NativeBackend) -> None:
    program = program_of(Shape(layers=1, formats={"up": WeightFormat.Q8_0}), native)
    up, gate = (next(op for op in program.ops if op.lap == lap) for lap in ("mlp_up", "gate"))
    assert len(up.weights) == 2 and gate.kind is OpKind.GATED and gate.epilogue is Epilogue.SILU


def _unnormed_sum(ops: Ops) -> Act:
    x = ops.embed(TABLE, 1.0, None)
    return ops.logits(ops.add(x, ops.linear(ops.linear(x, WEIGHT), WEIGHT)), HEAD, None)


def test_the_smallest_program() -> None:
    program = record(_unnormed_sum)
    assert [op.lap for op in program.ops] == ["embed", "linear", "linear", "logits"]
    assert program.vocab_size == 20


def _stale(ops: Ops) -> Act:
    x = ops.embed(TABLE, 1.0, None)
    y = ops.add(x, ops.linear(x, WEIGHT))
    return ops.logits(ops.add(y, ops.linear(x, WEIGHT)), HEAD, None)


def _activated_sum(ops: Ops) -> Act:
    x = ops.embed(TABLE, 1.0, None)
    return ops.logits(ops.activate(ops.add(x, ops.linear(x, WEIGHT)), Activation.SILU), HEAD, None)


def _norm_of_a_norm(ops: Ops) -> Act:
    x = ops.embed(TABLE, 1.0, None)
    return ops.logits(ops.norm(ops.norm(x, RMS, NORM, None), RMS, NORM, None), HEAD, None)


def _ungated_pair(ops: Ops) -> Act:
    x = ops.embed(TABLE, 1.0, None)
    return ops.logits(ops.add(x, ops.activate(ops.linear(x, GATE_UP), Activation.SILU)), HEAD, None)


def _no_logits(ops: Ops) -> Act:
    return ops.embed(TABLE, 1.0, None)


def _wrong_width(ops: Ops) -> Act:
    return ops.linear(ops.linear(ops.embed(TABLE, 1.0, None), HEAD), WEIGHT)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (_stale, "read after it was replaced"),
        (_activated_sum, "not a linear layer's own result"),
        (_norm_of_a_norm, "a norm that neither"),
        (_ungated_pair, "packed together, but not gated"),
        (_no_logits, "does not end with its logits"),
        (_wrong_width, "8 columns after 20 numbers"),
    ],
)
def test_what_fits_no_pattern_is_refused(forward: Callable[[Ops], Act], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        record(forward)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_buffers_that_live_at_once_never_share_memory(pairs: list[tuple[int, int]]) -> None:
    names = {buffer: i for i, buffer in enumerate(dict.fromkeys(b for pair in pairs for b in pair))}
    ops = [Op(OpKind.LINEAR, "x", names[reads], names[writes]) for reads, writes in pairs]
    slots = assign_slots(ops, len(names))
    touched = {b: [i for i, op in enumerate(ops) if b in (op.reads, op.writes)] for b in names.values()}
    for a in touched:
        for b in touched:
            if a < b and slots[a] == slots[b]:
                assert touched[a][-1] < touched[b][0] or touched[b][-1] < touched[a][0]
