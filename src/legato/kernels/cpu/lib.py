"""The native library as Python sees it: where it lies, its functions and structs, its errors.

Knows: the C interface (native/legato.h). Does not know: models, programs, what handles mean.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from legato.errors import EngineError, LegatoError, UsageError

ABI_VERSION = 4
MAX_SEGMENTS = 4
NO_HANDLE = -1
_STEM = "legato_native"
_SUFFIXES = (".so", ".dylib")


class Status(IntEnum):
    OK = 0
    BAD_ARGUMENT = 1
    UNSUPPORTED = 2
    OUT_OF_MEMORY = 3
    BAD_BATCH = 4
    BUSY = 5
    FORKED = 6


class OpKind(IntEnum):
    EMBED = 0
    LINEAR = 1
    ATTENTION = 2
    NORM_ADD = 3
    GATED = 4
    LOGITS = 5


class NormCode(IntEnum):
    NONE = 0
    RMS = 1
    LAYER = 2


class Epilogue(IntEnum):
    STORE = 0
    ADD = 1
    GATED_SILU = 2
    GATED_GELU_TANH = 3
    GATED_GELU = 4
    SILU = 5
    GELU_TANH = 6
    GELU = 7


class KvKind(IntEnum):
    BF16 = 1
    INT8 = 2
    INT4 = 3


class TopologyStruct(c.Structure):
    _fields_ = (
        ("allowed_cpus", c.c_int32),
        ("allowed_cores", c.c_int32),
        ("numa_nodes", c.c_int32),
        ("default_threads", c.c_int32),
        ("cpu_quota", c.c_double),
        ("l2_bytes", c.c_int64),
    )


class PartStruct(c.Structure):
    _fields_ = (
        ("data", c.c_void_p),
        ("data_bytes", c.c_int64),
        ("rows", c.c_int64),
        ("slot", c.c_int32),
        ("reserved", c.c_int32),
    )


class OpStruct(c.Structure):
    _fields_ = (
        ("kind", c.c_int32),
        ("lap", c.c_int32),
        ("input", c.c_int32),
        ("output", c.c_int32),
        ("norm", c.c_int32),
        ("norm_weight", c.c_int32),
        ("norm_bias", c.c_int32),
        ("eps", c.c_float),
        ("value", c.c_float),
        ("epilogue", c.c_int32),
        ("weights", c.c_int32 * MAX_SEGMENTS),
        ("num_weights", c.c_int32),
        ("attention", c.c_int32),
    )


class AttentionStruct(c.Structure):
    _fields_ = (
        ("num_heads", c.c_int32),
        ("num_kv_heads", c.c_int32),
        ("head_dim", c.c_int32),
        ("window", c.c_int32),
        ("rope", c.c_int32),
        ("qk_norm", c.c_int32),
        ("q_norm", c.c_int32),
        ("k_norm", c.c_int32),
        ("eps", c.c_float),
        ("scale", c.c_float),
        ("softcap", c.c_float),
        ("layer", c.c_int32),
    )


class RopeStruct(c.Structure):
    _fields_ = (
        ("inv_freq", c.POINTER(c.c_float)),
        ("half", c.c_int32),
        ("reserved", c.c_int32),
        ("scale", c.c_double),
    )


class ProgramSpecStruct(c.Structure):
    _fields_ = (
        ("ops", c.POINTER(OpStruct)),
        ("attentions", c.POINTER(AttentionStruct)),
        ("ropes", c.POINTER(RopeStruct)),
        ("buffer_widths", c.POINTER(c.c_int32)),
        ("buffer_slots", c.POINTER(c.c_int32)),
        ("num_ops", c.c_int32),
        ("num_attentions", c.c_int32),
        ("num_ropes", c.c_int32),
        ("num_buffers", c.c_int32),
        ("num_laps", c.c_int32),
        ("num_layers", c.c_int32),
        ("kv_kind", c.c_int32),
        ("num_pages", c.c_int32),
        ("page_size", c.c_int32),
        ("max_tokens", c.c_int32),
        ("max_seqs", c.c_int32),
        ("vocab_size", c.c_int32),
    )


class BatchStruct(c.Structure):
    _fields_ = (
        ("input_ids", c.c_void_p),
        ("positions", c.c_void_p),
        ("slot_mapping", c.c_void_p),
        ("cu_seqlens_q", c.c_void_p),
        ("seq_lens", c.c_void_p),
        ("page_table", c.c_void_p),
        ("logit_rows", c.c_void_p),
        ("num_tokens", c.c_int32),
        ("num_seqs", c.c_int32),
        ("table_stride", c.c_int32),
        ("num_logits", c.c_int32),
    )


class ChoiceStruct(c.Structure):
    _fields_ = (
        ("logits", c.c_void_p),
        ("vocab", c.c_int64),
        ("draw", c.c_double),
        ("temperature", c.c_float),
        ("top_p", c.c_float),
        ("min_p", c.c_float),
        ("top_k", c.c_int32),
    )


class ProgramMemoryStruct(c.Structure):
    _fields_ = (("kv_bytes", c.c_int64), ("buffer_bytes", c.c_int64), ("kv_page_bytes", c.c_int64))


# name, result, arguments. A result of None means: a status, checked after every call.
_STATUS = object()
_FUNCTIONS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("lg_abi_version", c.c_int32, ()),
    ("lg_error", c.c_char_p, ()),
    ("lg_isa_count", c.c_int32, ()),
    ("lg_isa_name", c.c_char_p, (c.c_int32,)),
    ("lg_isa_obstacle", c.c_char_p, (c.c_int32,)),
    ("lg_read_topology", _STATUS, (c.c_char_p, c.POINTER(TopologyStruct))),
    ("lg_context_create", _STATUS, (c.c_char_p, c.c_int32, c.POINTER(c.c_void_p))),
    ("lg_context_free", None, (c.c_void_p,)),
    ("lg_context_isa", c.c_char_p, (c.c_void_p,)),
    ("lg_context_threads", c.c_int32, (c.c_void_p,)),
    ("lg_context_placement", c.c_char_p, (c.c_void_p,)),
    ("lg_context_weight_bytes", c.c_int64, (c.c_void_p,)),
    ("lg_read_probe", _STATUS, (c.c_void_p, c.c_int64, c.c_int32, c.c_int32, c.POINTER(c.c_int64))),
    ("lg_choose", _STATUS, (c.c_void_p, c.POINTER(ChoiceStruct), c.POINTER(c.c_int32))),
    ("lg_kind_block", c.c_int64, (c.c_int32,)),
    ("lg_kind_block_bytes", c.c_int64, (c.c_int32,)),
    ("lg_pack_vector", _STATUS, (c.c_void_p, c.c_void_p, c.c_int64, c.POINTER(c.c_int32))),
    (
        "lg_pack_linear",
        _STATUS,
        (c.c_void_p, c.c_int32, c.c_int64, c.POINTER(PartStruct), c.c_int32, c.c_void_p, c.POINTER(c.c_int32)),
    ),
    (
        "lg_pack_table",
        _STATUS,
        (c.c_void_p, c.c_int32, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.POINTER(c.c_int32)),
    ),
    ("lg_program_create", _STATUS, (c.c_void_p, c.POINTER(ProgramSpecStruct), c.POINTER(c.c_void_p))),
    ("lg_kv_page_bytes", c.c_int64, (c.c_int32, c.c_int32, c.c_int32, c.c_int32)),
    ("lg_program_free", None, (c.c_void_p,)),
    ("lg_program_memory_use", None, (c.c_void_p, c.POINTER(ProgramMemoryStruct))),
    ("lg_kv_pages", c.c_void_p, (c.c_void_p,)),
    ("lg_kv_read", _STATUS, (c.c_void_p, c.c_void_p, c.c_int64, c.c_void_p)),
    ("lg_kv_write", _STATUS, (c.c_void_p, c.c_void_p, c.c_int64, c.c_void_p)),
    ("lg_join_from", _STATUS, (c.c_void_p, c.c_int64)),
    ("lg_step", _STATUS, (c.c_void_p, c.POINTER(BatchStruct))),
    ("lg_logits", c.c_void_p, (c.c_void_p,)),
    ("lg_argmax", c.c_void_p, (c.c_void_p,)),
    ("lg_laps", c.c_void_p, (c.c_void_p,)),
)


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction-set level. `obstacle` says why it cannot be used here; empty when it can."""

    name: str
    obstacle: str


@dataclass(frozen=True, slots=True)
class Topology:
    """What this process may use of the machine. cpu_quota: cores' worth of time by control groups, 0 for no limit."""

    allowed_cpus: int
    allowed_cores: int
    numa_nodes: int
    default_threads: int
    cpu_quota: float
    l2_bytes: int


class Library:
    """The loaded library. Calls release the interpreter lock; a failed status becomes a `LegatoError`."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when the file cannot be loaded, `EngineError` when it is of another version."""
        self.path = path
        self._cdll = c.CDLL(str(path))
        self._calls: dict[str, Callable[..., Any]] = {}
        for name, result, arguments in _FUNCTIONS:
            function = getattr(self._cdll, name)
            function.argtypes = arguments
            function.restype = c.c_int32 if result is _STATUS else result
            self._calls[name] = self._checked(function) if result is _STATUS else function
        found = self["lg_abi_version"]()
        if found != ABI_VERSION:
            raise EngineError(f"{path} speaks interface {found}, this package {ABI_VERSION}; build it again")

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._calls[name]

    def _checked(self, function: Callable[..., int]) -> Callable[..., None]:
        last_error = self._cdll.lg_error

        def call(*arguments: Any) -> None:
            status = function(*arguments)
            if status:
                raise _error(status, last_error().decode("utf-8", "replace"))

        return call

    def isas(self) -> tuple[Isa, ...]:
        """Every level, lowest first."""
        name, obstacle = self["lg_isa_name"], self["lg_isa_obstacle"]
        return tuple(Isa(name(i).decode(), obstacle(i).decode()) for i in range(self["lg_isa_count"]()))

    def topology(self, root: str = "") -> Topology:
        """`root` is put before /sys and /proc, so that a made-up machine can be read."""
        out = TopologyStruct()
        self["lg_read_topology"](root.encode(), c.byref(out))
        return Topology(**{name: getattr(out, name) for name, _ in TopologyStruct._fields_})


def _error(status: int, message: str) -> LegatoError:
    if status == Status.UNSUPPORTED:
        return UsageError(message)
    if status == Status.OUT_OF_MEMORY:
        return EngineError(f"{message}; free memory, lower --kv-memory or --context, or take a smaller model")
    return EngineError(f"native library: {message} ({Status(status).name.lower()})")


def find_library() -> Path | None:
    """The library beside this file, where the build and the wheel put it."""
    here = Path(__file__).parent
    found = [here / f"{_STEM}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in found if path.is_file()), None)


def load_library() -> Library | str:
    """The library, or the reason, for a person, why there is none."""
    path = find_library()
    if path is None:
        return (
            "the native kernels were not built at install (no C++17 compiler was found, or it failed); "
            "install a compiler and reinstall with `pip install --force-reinstall --no-cache-dir .`"
        )
    try:
        return Library(path)
    except OSError as error:
        return f"{path.name} cannot be loaded here: {error}"
