"""The interface between a model and a device: about ten fused operations.

Knows: which operations a decoder is made of, and the arrays of one step. Does not know: devices, files, requests.

A `Backend` packs weights at load and builds an `Executor`; an executor runs steps. `Ops` is what
`Decoder.forward` is written against: the reference computes at once with numpy, the native backend
*records* the calls once into a flat program that one native call replays every step.

Shape letters: T tokens (rows) of a step, S sequences, R rows that need logits, P pages of a sequence,
D model width, H query heads, K key/value heads, E head width, F MLP width, V vocabulary, L layers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from legato.core.spec import Activation, ArchSpec, AttentionSpec, NormSpec
from legato.weights.tensor import Tensor

Act = Any  # an activation handle: a float32 array (reference) or a buffer of the program (native)
Weight = Any  # a packed weight, opaque to all but the backend that made it
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
ByteArray = NDArray[np.uint8]

# What the bytes of a page mean. Raise it when any backend's layout of a page changes, or any arithmetic that keys and
# values come from: pages that were saved under another number are computed again.
PAGE_LAYOUT = 3


class KvFormat(enum.StrEnum):
    """How keys and values are kept: float32 (reference only), bf16, int8 or int4 with scales per token and head."""

    F32 = "f32"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's integers, ready for a device. Rows of a sequence are consecutive and in position order.

    input_ids_T, positions_T   a token and its place in its sequence
    slot_mapping_T             where its keys and values go: page * page_size + offset
    cu_seqlens_q_S1            rows of sequence s are [cu[s], cu[s+1])
    seq_lens_S                 tokens of s that have keys and values once this step wrote its own
    page_table_SP              pages of s in order; entries past its last page are never read
    logit_rows_R               rows whose logits are wanted, ascending
    """

    input_ids_T: IntArray
    positions_T: IntArray
    slot_mapping_T: IntArray
    cu_seqlens_q_S1: IntArray
    seq_lens_S: IntArray
    page_table_SP: IntArray
    logit_rows_R: IntArray


class Ops(Protocol):
    """What a step is made of. Activations are float32 in meaning; a device may keep them otherwise inside."""

    def embed(self, table: Weight, scale: float, positions: Weight | None) -> Act:
        """x_TD = table[input_ids] * scale (+ positions[positions_T])."""

    def norm(self, x: Act, spec: NormSpec, weight: Weight, bias: Weight | None) -> Act:
        """Row-wise norm, each row alone by the same code at every batch size."""

    def linear(self, h: Act, w: Weight) -> Act:
        """y_TN = h_TD @ w_ND.T + bias (the bias is part of the packed weight)."""

    def attention(self, qkv: Act, spec: AttentionSpec, layer: int, q_norm: Weight | None, k_norm: Weight | None) -> Act:
        """From [q | k | v] rows: q/k norm, rope, write k and v at slot_mapping, attend over the pages: a_T(HE)."""

    def add(self, x: Act, y: Act) -> Act:
        """The residual: x + y. The result replaces x."""

    def gated(self, gate_up: Act, activation: Activation) -> Act:
        """act(gate) * up, from the output of a linear packed by `Backend.pack_gate_up`."""

    def activate(self, h: Act, activation: Activation) -> Act:
        """act(h), for plain MLPs."""

    def logits(self, h: Act, head: Weight, softcap: float | None) -> Act:
        """Logits of logit_rows only: (R, V)."""


class Executor(Protocol):
    """A loaded model on a device, with its KV store: runs steps."""

    name: str
    isa: str
    threads: int

    def run(self, batch: Batch) -> FloatArray:
        """One step: writes keys and values at slot_mapping, returns float32 logits (R, V).

        The array belongs to the executor and is overwritten by the next step.
        """

    def argmax(self) -> list[int]:
        """Each logit row's likeliest token in the last step: the lowest id among equals, -1 for a row with a NaN."""

    def choose(
        self, logits_V: FloatArray, temperature: float, top_k: int, top_p: float, min_p: float, draw: float
    ) -> int:
        """The token that `draw` in [0, 1) falls on; -1 where a logit is a NaN or none is a finite number.

        Weights are softmax(logits / temperature). min_p keeps those of at least min_p times the largest, top_k the
        k largest (0: all), top_p the fewest whose sum reaches p of what the others kept; likelier before less likely,
        lower ids first among equals. The token is the first by id at which the kept weights' running sum passes
        draw times their sum.
        """

    def read_pages(self, page_ids: Sequence[int]) -> ByteArray:
        """A copy of these pages, all layers of a page together: (N, bytes a page). Not during a step."""

    def write_pages(self, page_ids: Sequence[int], data_NB: ByteArray) -> None:
        """Puts back what `read_pages` of an executor of the same model, format and instruction set gave."""

    def touch_pages(self) -> None:
        """Takes the memory of all pages now, so that it cannot be missing later. Changes no page."""

    def laps_ns(self) -> dict[str, int]:
        """Nanoseconds since the executor was made, by kind of operation; together, the time of `run`'s own call.

        Where kinds are told apart, "attention" is looking back, and "wait" threads' waiting for each other.
        """

    def close(self) -> None:
        """Frees buffers and threads; safe to call twice."""


class Backend(Protocol):
    """One device at load time: packs weights into its own layouts, then builds an executor."""

    name: str

    def read_seconds(self, nbytes: int, threads: int, passes: int) -> list[float]:
        """Seconds of each of `passes` readings of `nbytes` of memory by `threads` threads, as a step reads."""

    def supports(self, spec: ArchSpec) -> str | None:
        """None when this backend runs `spec`; otherwise the reason, for a person."""

    def pack_vector(self, values: FloatArray) -> Weight:
        """A norm weight or any other 1-D float32 vector."""

    def pack_linear(self, parts: Sequence[Tensor], bias: FloatArray | None) -> Weight:
        """Rows of all parts one after the other (for example q, k, v), all of equal columns."""

    def pack_gate_up(self, gate: Sequence[Tensor], up: Sequence[Tensor], bias: FloatArray | None) -> Weight:
        """Gate and up projections in one, laid out as `Ops.gated` of this backend wants; bias is [gate | up]."""

    def pack_table(self, table: Tensor) -> Weight:
        """A table read by rows (token embedding, learned positions)."""

    def page_bytes(self, spec: ArchSpec, page_size: int, kv_format: KvFormat) -> int:
        """Bytes that one page of the KV store takes over all layers, scales and padding included."""

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
    ) -> Executor:
        """`forward(ops)` is the decoder with its weights bound; it returns the logits handle."""
