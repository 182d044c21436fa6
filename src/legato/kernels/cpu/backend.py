"""The native backend at load, and the executor that replays its program.

Knows: how a recorded program and a batch become the library's structs. Does not know: kernels, requests, files.
"""

from __future__ import annotations

import ctypes as c
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.core.spec import ArchSpec, AttentionSpec
from legato.errors import EngineError, UsageError
from legato.kernels.cpu import lib
from legato.kernels.cpu.pack import Context, PackedLinear, PackedTable, PackedVector, Packer
from legato.kernels.cpu.recorder import Attention, Op, Program, norm_code, record
from legato.kernels.ops import Act, Batch, ByteArray, FloatArray, IntArray, KvFormat, Ops
from legato.weights.tensor import Tensor

_KV_KINDS = {KvFormat.BF16: lib.KvKind.BF16, KvFormat.INT8: lib.KvKind.INT8, KvFormat.INT4: lib.KvKind.INT4}
_Sizes = tuple[lib.KvKind, int, int, int, int]  # kind, num_pages, page_size, max_tokens, max_seqs
_LANES = 16  # rows of logits are padded to this many numbers
_MOST_HEAD_DIM = 512
_SYSTEM_PAGE = 4096


class NativeBackend:
    """One context (threads, instruction set, packed weights). Models that share it share its threads.

    threads  None: the cores that affinity and control groups allow
    isa      None or "auto": the highest usable level; a name forces it
    library  None: the one that was built with the package
    Raises `UsageError` when the library is missing, or the level cannot be used here.
    """

    name = "native"

    def __init__(
        self,
        threads: int | None = None,
        isa: str | None = None,
        library: lib.Library | None = None,
    ) -> None:
        found = library if library is not None else lib.load_library()
        if isinstance(found, str):
            raise UsageError(f"the native backend is not available: {found}")
        self._library = found
        self._context = Context(found, isa or "auto", threads or 0)
        self._packer = Packer(self._context)
        self.isa = self._context.isa
        self.threads = self._context.threads
        self.placement = self._context.placement

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights; tables are read in place and do not count."""
        return self._context.weight_bytes

    def read_seconds(self, nbytes: int, threads: int, passes: int) -> list[float]:
        """Fresh memory on large pages, each thread its own ascending share: how a step reads weights."""
        out = (c.c_int64 * passes)()
        self._library["lg_read_probe"](self._context.pointer, nbytes, threads, passes, out)
        return [ns / 1e9 for ns in out]

    def supports(self, spec: ArchSpec) -> str | None:
        for index, layer in enumerate(spec.layers):
            reason = _attention_obstacle(layer.attention)
            if reason is not None:
                return f"layer {index}: {reason}"
        return None

    def page_bytes(self, spec: ArchSpec, page_size: int, kv_format: KvFormat) -> int:
        """One page of all layers."""
        kind, count = _kv_kind(kv_format), self._library["lg_kv_page_bytes"]
        heads = [(layer.attention.num_kv_heads, layer.attention.head_dim) for layer in spec.layers]
        return sum(count(kind, num_heads, head_dim, page_size) for num_heads, head_dim in heads)

    def pack_vector(self, values: FloatArray) -> PackedVector:
        return self._packer.vector(values)

    def pack_linear(self, parts: Sequence[Tensor], bias: FloatArray | None) -> PackedLinear:
        return self._packer.linear(parts, bias)

    def pack_gate_up(self, gate: Sequence[Tensor], up: Sequence[Tensor], bias: FloatArray | None) -> PackedLinear:
        return self._packer.gate_up(gate, up, bias)

    def pack_table(self, table: Tensor) -> PackedTable:
        return self._packer.table(table)

    def build(
        self,
        spec: ArchSpec,
        forward: Callable[[Ops], Act],
        *,
        num_pages: int,
        page_size: int,
        kv_format: KvFormat,
        max_tokens: int,
        max_seqs: int,
    ) -> NativeExecutor:
        reason = self.supports(spec)
        if reason is not None:
            raise EngineError(f"the native backend does not run this model: {reason}; use --backend reference")
        sizes = (_kv_kind(kv_format), num_pages, page_size, max_tokens, max_seqs)
        return NativeExecutor(self._context, record(forward), kv_format, sizes)


class NativeExecutor:
    """Replays one program: each step is one native call, during which other Python threads run."""

    name = "native"

    def __init__(self, context: Context, program: Program, kv_format: KvFormat, sizes: _Sizes) -> None:
        max_tokens = sizes[3]
        self.isa = context.isa
        self.threads = context.threads
        self.kv_format = kv_format
        self.vocab_size = program.vocab_size
        self._lap_names = (*program.laps, "wait")
        self._native: _NativeProgram | None = _NativeProgram(context, program, sizes)
        self._context = context
        self._step = context.library["lg_step"]
        self._batch = lib.BatchStruct()
        self._batch_ref = c.byref(self._batch)
        stride = -(-program.vocab_size // _LANES) * _LANES
        self._logits: FloatArray = self._native.view("lg_logits", c.c_float, max_tokens * stride).reshape(-1, stride)
        self._best: IntArray = self._native.view("lg_argmax", c.c_int32, max_tokens)
        self._laps: NDArray[np.int64] = self._native.view("lg_laps", c.c_int64, len(self._lap_names))
        self._pages: ByteArray = self._native.pages()
        self._filled: Batch | None = None
        self._seen_logits, self._seen_best = self._logits[:0, : self.vocab_size], self._best[:0]
        self._choice, self._token = lib.ChoiceStruct(), c.c_int32()
        self._choice_ref, self._token_ref = c.byref(self._choice), c.byref(self._token)

    def run(self, batch: Batch) -> FloatArray:
        native = self._open()
        if batch is not self._filled:  # one that comes again has other numbers in the same places
            self._fill(batch)
            self._filled = batch
            num_logits = len(batch.logit_rows_R)
            self._seen_logits, self._seen_best = self._logits[:num_logits, : self.vocab_size], self._best[:num_logits]
        self._step(native.pointer, self._batch_ref)
        return self._seen_logits

    def argmax(self) -> list[int]:
        self._open()
        best: list[int] = self._seen_best.tolist()
        return best

    def choose(
        self, logits_V: FloatArray, temperature: float, top_k: int, top_p: float, min_p: float, draw: float
    ) -> int:
        native = self._open()
        assert logits_V.dtype == np.float32 and logits_V.flags.c_contiguous
        choice = self._choice
        choice.logits, choice.vocab = logits_V.ctypes.data, len(logits_V)
        choice.draw, choice.temperature = draw, temperature
        choice.top_p, choice.min_p, choice.top_k = top_p, min_p, top_k
        native.choose(self._choice_ref, self._token_ref)
        return self._token.value

    def join_from(self, nbytes: int) -> None:
        """Sequences read what they share together where a layer's part of it has so many bytes or more."""
        self._context.library["lg_join_from"](self._open().pointer, nbytes)

    def laps_ns(self) -> dict[str, int]:
        """Nanoseconds that worker 0 spent on each kind of operation since the executor was made, and waiting."""
        self._open()
        return dict(zip(self._lap_names, self._laps.tolist(), strict=True))

    def memory(self) -> dict[str, int]:
        """Bytes of address space: `kv_bytes`, `buffer_bytes`, and `kv_page_bytes` of one page of all layers."""
        return self._open().memory()

    def read_pages(self, page_ids: Sequence[int]) -> ByteArray:
        native = self._open()
        data_NB = np.empty((len(page_ids), native.memory()["kv_page_bytes"]), np.uint8)
        native.move_pages("lg_kv_read", page_ids, data_NB)
        return data_NB

    def write_pages(self, page_ids: Sequence[int], data_NB: ByteArray) -> None:
        native = self._open()
        shape = (len(page_ids), native.memory()["kv_page_bytes"])
        native.move_pages("lg_kv_write", page_ids, np.ascontiguousarray(np.broadcast_to(data_NB, shape), np.uint8))

    def touch_pages(self) -> None:
        """One byte of each 4 KiB is written back as it is: the system then has to find the memory."""
        self._open()
        self._pages[::_SYSTEM_PAGE] |= 0

    def close(self) -> None:
        """Logits that somebody still holds stay readable; memory goes with the last of them."""
        empty = np.zeros((0, self.vocab_size), np.float32)
        self._native, self._filled = None, None
        self._logits = self._seen_logits = empty
        self._best = self._seen_best = np.zeros(0, np.int32)
        self._laps = np.zeros(0, np.int64)
        self._pages = np.zeros(0, np.uint8)

    def _open(self) -> _NativeProgram:
        if self._native is None:
            raise EngineError("this executor was closed")
        return self._native

    def _fill(self, batch: Batch) -> None:
        rows, seqs = len(batch.input_ids_T), len(batch.seq_lens_S)
        fits = (
            len(batch.positions_T) == len(batch.slot_mapping_T) == rows
            and len(batch.cu_seqlens_q_S1) == seqs + 1
            and batch.page_table_SP.ndim == 2
            and len(batch.page_table_SP) == seqs
        )
        if not fits:
            raise EngineError("a batch's arrays have different numbers of rows or sequences")
        s = self._batch
        s.input_ids = _address(batch.input_ids_T)
        s.positions = _address(batch.positions_T)
        s.slot_mapping = _address(batch.slot_mapping_T)
        s.cu_seqlens_q = _address(batch.cu_seqlens_q_S1)
        s.seq_lens = _address(batch.seq_lens_S)
        s.page_table = _address(batch.page_table_SP)
        s.logit_rows = _address(batch.logit_rows_R)
        s.num_tokens, s.num_seqs = rows, seqs
        s.table_stride, s.num_logits = batch.page_table_SP.shape[1], len(batch.logit_rows_R)


class _NativeProgram:
    """Owns the library's program; freed with the last view of its memory."""

    def __init__(self, context: Context, program: Program, sizes: _Sizes) -> None:
        structs = _ProgramStructs(program, sizes)
        pointer = c.c_void_p()
        context.library["lg_program_create"](context.pointer, c.byref(structs.spec), c.byref(pointer))
        self.pointer = pointer
        self._context = context
        weakref.finalize(self, _free_program, context, pointer)

    def view(self, name: str, kind: Any, count: int) -> NDArray[Any]:
        """`count` numbers at the address that function `name` tells, no copy."""
        memory: Any = (kind * count).from_address(self._context.library[name](self.pointer))
        memory.owner = self  # arrays made of it keep it, and it keeps the program
        array: NDArray[Any] = np.ctypeslib.as_array(memory)
        return array

    def pages(self) -> ByteArray:
        """The whole store, no copy."""
        return self.view("lg_kv_pages", c.c_uint8, self.memory()["kv_bytes"])

    def move_pages(self, function: str, page_ids: Sequence[int], data_NB: ByteArray) -> None:
        ids = np.ascontiguousarray(page_ids, np.int32)
        self._context.library[function](self.pointer, ids.ctypes.data, len(ids), data_NB.ctypes.data)

    def choose(self, choice: Any, token: Any) -> None:
        self._context.library["lg_choose"](self._context.pointer, choice, token)

    def memory(self) -> dict[str, int]:
        out = lib.ProgramMemoryStruct()
        self._context.library["lg_program_memory_use"](self.pointer, c.byref(out))
        return {name: getattr(out, name) for name, _ in out._fields_}


def _free_program(context: Context, pointer: c.c_void_p) -> None:
    """`context` is taken so that it outlives its programs."""
    context.library["lg_program_free"](pointer)


class _ProgramStructs:
    """A program as the library wants it; the arrays live as long as this object."""

    def __init__(self, program: Program, sizes: _Sizes) -> None:
        laps = {name: i for i, name in enumerate(program.laps)}
        self._floats = [(c.c_float * len(rope.inv_freq))(*rope.inv_freq) for rope in program.ropes]
        self._ropes = (lib.RopeStruct * len(program.ropes))(
            *(lib.RopeStruct(f, len(f), 0, r.scale) for f, r in zip(self._floats, program.ropes, strict=True))
        )
        attentions = [_attention_struct(node, program) for node in program.attentions]
        self._attentions = (lib.AttentionStruct * len(attentions))(*attentions)
        ops = [_op_struct(op, laps) for op in program.ops]
        self._ops = (lib.OpStruct * len(ops))(*ops)
        self._widths = (c.c_int32 * len(program.widths))(*program.widths)
        self._slots = (c.c_int32 * len(program.slots))(*program.slots)
        kv_kind, num_pages, page_size, max_tokens, max_seqs = sizes
        self.spec = lib.ProgramSpecStruct(
            ops=self._ops,
            attentions=self._attentions,
            ropes=self._ropes,
            buffer_widths=self._widths,
            buffer_slots=self._slots,
            num_ops=len(ops),
            num_attentions=len(attentions),
            num_ropes=len(program.ropes),
            num_buffers=len(program.widths),
            num_laps=len(program.laps),
            num_layers=1 + max(node.layer for node in program.attentions),
            kv_kind=kv_kind,
            num_pages=num_pages,
            page_size=page_size,
            max_tokens=max_tokens,
            max_seqs=max_seqs,
            vocab_size=program.vocab_size,
        )


def _op_struct(op: Op, laps: dict[str, int]) -> lib.OpStruct:
    norm = op.norm
    return lib.OpStruct(
        kind=op.kind,
        lap=laps[op.lap],
        input=op.reads,
        output=op.writes,
        norm=lib.NormCode.NONE if norm is None else norm_code(norm.spec),
        norm_weight=lib.NO_HANDLE if norm is None else norm.weight.handle,
        norm_bias=lib.NO_HANDLE if norm is None or norm.bias is None else norm.bias.handle,
        eps=0.0 if norm is None else norm.spec.eps,
        value=op.value,
        epilogue=op.epilogue,
        weights=(c.c_int32 * lib.MAX_SEGMENTS)(*op.weights),
        num_weights=len(op.weights),
        attention=op.attention,
    )


def _attention_struct(node: Attention, program: Program) -> lib.AttentionStruct:
    spec = node.spec
    return lib.AttentionStruct(
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        window=spec.window or 0,
        rope=-1 if spec.rope is None else program.ropes.index(spec.rope),
        qk_norm=lib.NormCode.NONE if spec.qk_norm is None else norm_code(spec.qk_norm),
        q_norm=lib.NO_HANDLE if node.q_norm is None else node.q_norm.handle,
        k_norm=lib.NO_HANDLE if node.k_norm is None else node.k_norm.handle,
        eps=0.0 if spec.qk_norm is None else spec.qk_norm.eps,
        scale=spec.scale,
        softcap=spec.softcap or 0.0,
        layer=node.layer,
    )


def _kv_kind(kv_format: KvFormat) -> lib.KvKind:
    if kv_format not in _KV_KINDS:
        names = ", ".join(known.value for known in _KV_KINDS)
        raise UsageError(f"kv={kv_format.value} is for the reference backend; the native one has {names}")
    return _KV_KINDS[kv_format]


def _attention_obstacle(spec: AttentionSpec) -> str | None:
    if spec.head_dim % 8 or spec.head_dim > _MOST_HEAD_DIM:
        return f"head_dim {spec.head_dim} is not a multiple of 8 up to {_MOST_HEAD_DIM}"
    return None


def _address(array: IntArray) -> int:
    if array.dtype != np.int32 or not array.flags.c_contiguous:
        raise EngineError("a batch's arrays must be contiguous int32")
    address: int = array.__array_interface__["data"][0]
    return address
