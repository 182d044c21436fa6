"""Records `Decoder.forward` and fuses it into the few operations that a native step is made of.

Knows: which calls become one operation, and when an intermediate result is no longer needed.
Does not know: memory addresses, kernels, threads.

What is fused: a norm into the linear that reads it; the residual, the gate and activations into the linear that feeds
them. A call that fits none of the patterns is refused at load, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from legato.core.spec import Activation, AttentionSpec, NormKind, NormSpec, RopeSpec
from legato.errors import EngineError
from legato.kernels.cpu.lib import NO_HANDLE, Epilogue, NormCode, OpKind
from legato.kernels.cpu.pack import PackedLinear, PackedTable, PackedVector
from legato.kernels.ops import Act, Ops

_GATED = {
    Activation.SILU: Epilogue.GATED_SILU,
    Activation.GELU_TANH: Epilogue.GATED_GELU_TANH,
    Activation.GELU: Epilogue.GATED_GELU,
}
_PLAIN = {
    Activation.SILU: Epilogue.SILU,
    Activation.GELU_TANH: Epilogue.GELU_TANH,
    Activation.GELU: Epilogue.GELU,
}


@dataclass(eq=False, slots=True)
class Node:
    """One call, and the handle of its result: rows of `width` numbers."""

    width: int
    users: list[Node] = field(default_factory=list, init=False)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return ()


@dataclass(eq=False, slots=True)
class Embed(Node):
    table: PackedTable
    scale: float
    positions: PackedTable | None


@dataclass(eq=False, slots=True)
class Norm(Node):
    x: Node
    spec: NormSpec
    weight: PackedVector
    bias: PackedVector | None

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x,)


@dataclass(eq=False, slots=True)
class Linear(Node):
    x: Node
    weight: PackedLinear

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x,)


@dataclass(eq=False, slots=True)
class Attention(Node):
    qkv: Node
    spec: AttentionSpec
    layer: int
    q_norm: PackedVector | None
    k_norm: PackedVector | None

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.qkv,)


@dataclass(eq=False, slots=True)
class Add(Node):
    x: Node
    y: Node

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x, self.y)


@dataclass(eq=False, slots=True)
class Gated(Node):
    gate_up: Node
    activation: Activation

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.gate_up,)


@dataclass(eq=False, slots=True)
class Activate(Node):
    h: Node
    activation: Activation

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.h,)


@dataclass(eq=False, slots=True)
class Logits(Node):
    h: Node
    head: PackedLinear
    softcap: float | None

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.h,)


@dataclass(frozen=True, slots=True)
class Op:
    """One native operation; `reads` and `writes` are buffers. See lg_op in native/legato.h."""

    kind: OpKind
    lap: str
    reads: int = 0
    writes: int = 0
    norm: Norm | None = None
    value: float = 0.0
    epilogue: Epilogue = Epilogue.STORE
    weights: tuple[int, ...] = ()
    attention: int = NO_HANDLE


@dataclass(frozen=True, slots=True)
class Program:
    """A whole step: operations in order, buffers' widths and the memory slot each lives in."""

    ops: tuple[Op, ...]
    attentions: tuple[Attention, ...]
    ropes: tuple[RopeSpec, ...]
    widths: tuple[int, ...]
    slots: tuple[int, ...]
    laps: tuple[str, ...]
    vocab_size: int


class Recorder:
    """`Ops` that only remembers the calls."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _add(self, node: Node) -> Node:
        for source in node.inputs:
            source.users.append(node)
        self.nodes.append(node)
        return node

    def embed(self, table: PackedTable, scale: float, positions: PackedTable | None) -> Act:
        return self._add(Embed(table.cols, table, scale, positions))

    def norm(self, x: Node, spec: NormSpec, weight: PackedVector, bias: PackedVector | None) -> Act:
        return self._add(Norm(x.width, x, spec, weight, bias))

    def linear(self, h: Node, w: PackedLinear) -> Act:
        if h.width != w.cols:
            _refuse(f"a linear layer of {w.cols} columns after {h.width} numbers")
        return self._add(Linear(w.rows, h, w))

    def attention(
        self, qkv: Node, spec: AttentionSpec, layer: int, q_norm: PackedVector | None, k_norm: PackedVector | None
    ) -> Act:
        return self._add(Attention(spec.q_size, qkv, spec, layer, q_norm, k_norm))

    def add(self, x: Node, y: Node) -> Act:
        return self._add(Add(x.width, x, y))

    def gated(self, gate_up: Node, activation: Activation) -> Act:
        return self._add(Gated(gate_up.width // 2, gate_up, activation))

    def activate(self, h: Node, activation: Activation) -> Act:
        return self._add(Activate(h.width, h, activation))

    def logits(self, h: Node, head: PackedLinear, softcap: float | None) -> Act:
        if h.width != head.cols or len(head.handles) != 1:
            _refuse("a head that is not one weight as wide as the model")
        return self._add(Logits(head.rows, h, head, softcap))


def record(forward: Callable[[Ops], Act]) -> Program:
    """Runs `forward` once and fuses what it did. Raises `EngineError` for a call that fits no pattern."""
    recorder = Recorder()
    result = forward(recorder)
    if not isinstance(result, Logits) or result is not recorder.nodes[-1]:
        _refuse("a forward pass that does not end with its logits")
    return _Fuser(recorder.nodes).program()


class _Fuser:
    """Walks the calls in order and emits operations on virtual buffers; an in-place result keeps its buffer.

    holds[b]  the node whose value buffer b has now: an in-place result must not be read under its old name
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.ops: list[Op] = []
        self.attentions: list[Attention] = []
        self.ropes: list[RopeSpec] = []
        self.widths: list[int] = []
        self.holds: list[Node] = []
        self.place: dict[Node, int] = {}

    def program(self) -> Program:
        for node in self.nodes:
            self._emit(node)
        laps = tuple(dict.fromkeys(op.lap for op in self.ops))
        slots = assign_slots(self.ops, len(self.widths))
        last = self.nodes[-1]
        return Program(
            tuple(self.ops), tuple(self.attentions), tuple(self.ropes), tuple(self.widths), slots, laps, last.width
        )

    def _emit(self, node: Node) -> None:
        match node:
            case Embed():
                positions = () if node.positions is None else (node.positions.handle,)
                out = self._new(node)
                weights = (node.table.handle, *positions)
                self.ops.append(Op(OpKind.EMBED, "embed", out, out, value=node.scale, weights=weights))
            case Norm():
                self._check_norm(node)
            case Linear():
                self._linear(node)
            case Attention():
                self._attention(node)
            case Add() if isinstance(node.y, Norm):
                reads, out = self._read(node.y.x), self._read(node.x)
                self.ops.append(Op(OpKind.NORM_ADD, "post_norm", reads, out, norm=node.y))
                self._replace(out, node)
            case Gated() if node not in self.place:
                reads, out = self._read(node.gate_up), self._new(node)
                self.ops.append(Op(OpKind.GATED, "gate", reads, out, epilogue=_PLAIN[node.activation]))
            case Logits():
                norm, source = _prologue(node.h)
                op = Op(OpKind.LOGITS, "logits", self._read(source), 0, norm, node.softcap or 0.0)
                self.ops.append(_with_weights(op, node.head))
            case _ if node not in self.place:
                _refuse(f"{type(node).__name__.lower()} of something that is not a linear layer's own result")

    def _check_norm(self, node: Norm) -> None:
        """Norms are computed where they are read: by linear layers, or by one residual."""
        if all(isinstance(user, Linear | Logits) for user in node.users):
            return
        if [type(user) for user in node.users] != [Add] or node.users[0].inputs[1] is not node:
            _refuse("a norm that neither a linear layer nor one residual reads")

    def _linear(self, node: Linear) -> None:
        norm, source = _prologue(node.x)
        reads = self._read(source)
        user = node.users[0] if len(node.users) == 1 else None
        epilogue = Epilogue.STORE
        if isinstance(user, Add) and user.y is node and user.x in self.place:
            epilogue, out = Epilogue.ADD, self._read(user.x)
            self._replace(out, user)
        elif isinstance(user, Gated) and node.weight.gated:
            epilogue, out = _GATED[user.activation], self._new(user)
        elif isinstance(user, Activate):
            epilogue, out = _PLAIN[user.activation], self._new(user)
        else:
            out = self._new(node)
        if node.weight.gated != (epilogue in _GATED.values()):
            _refuse("gate and up packed together, but not gated")
        op = Op(OpKind.LINEAR, _role(node, user), reads, out, norm, epilogue=epilogue)
        self.ops.append(_with_weights(op, node.weight))

    def _attention(self, node: Attention) -> None:
        reads, out = self._read(node.qkv), self._new(node)
        if node.spec.rope is not None and node.spec.rope not in self.ropes:
            self.ropes.append(node.spec.rope)
        self.attentions.append(node)
        self.ops.append(Op(OpKind.ATTENTION, "attention", reads, out, attention=len(self.attentions) - 1))

    def _new(self, node: Node) -> int:
        self.widths.append(node.width)
        self.holds.append(node)
        self.place[node] = len(self.holds) - 1
        return self.place[node]

    def _replace(self, buffer: int, node: Node) -> None:
        self.holds[buffer] = node
        self.place[node] = buffer

    def _read(self, node: Node) -> int:
        if node not in self.place or self.holds[self.place[node]] is not node:
            _refuse(f"a result of {type(node).__name__.lower()} read after it was replaced")
        return self.place[node]


def assign_slots(ops: list[Op], num_buffers: int) -> tuple[int, ...]:
    """The memory slot of each buffer: two buffers share one only when the first is dead before the second is born."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, op in enumerate(ops):
        for buffer in (op.reads, op.writes):
            first.setdefault(buffer, i)
            last[buffer] = i
    slots: dict[int, int] = {}
    busy_until: list[int] = []
    for buffer in sorted(first, key=lambda b: first[b]):
        free = next((s for s, until in enumerate(busy_until) if until < first[buffer]), len(busy_until))
        if free == len(busy_until):
            busy_until.append(0)
        busy_until[free] = last[buffer]
        slots[buffer] = free
    return tuple(slots[b] for b in range(num_buffers))


def norm_code(spec: NormSpec) -> NormCode:
    return NormCode.RMS if spec.kind is NormKind.RMS else NormCode.LAYER


def _prologue(node: Node) -> tuple[Norm | None, Node]:
    """The norm to fuse into whatever reads `node`, and what is really read then."""
    return (node, node.x) if isinstance(node, Norm) else (None, node)


def _with_weights(op: Op, weight: PackedLinear) -> Op:
    return Op(op.kind, op.lap, op.reads, op.writes, op.norm, op.value, op.epilogue, weight.handles)


def _role(node: Linear, user: Node | None) -> str:
    """The part of a layer, for the clock."""
    if isinstance(user, Attention):
        return "qkv"
    if isinstance(user, Gated | Activate):
        return "mlp_up"
    if isinstance(node.x, Attention):
        return "attn_out"
    return "mlp_down" if isinstance(node.x, Gated | Activate) else "linear"


def _refuse(what: str) -> NoReturn:
    raise EngineError(f"the native backend cannot record {what}; use --backend reference")
