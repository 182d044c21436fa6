"""The first border: a `Plan` of integers becomes a `Batch` of arrays.

Knows: page arithmetic. Does not know: devices, logits, text.

`pack` makes a batch from nothing. A `Packer` makes the same batches, but where all that has happened since its last
plan is that each stream went on by a token, it changes in the last batch what that changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from legato.core.plan import Plan, Slice
from legato.core.sequence import Sequence
from legato.kernels.ops import Batch, IntArray

_ROOM = 8  # pages that streams may grow by before their table is made anew


def pack(plan: Plan, page_size: int) -> Batch:
    """One row a token, slices in plan order, positions ascending within a slice.

    A slice's sequence must own pages for all of [0, slice.end).
    """
    return _Columns(plan, page_size).batch


class Packer:
    """Packs the plans of one engine, one after the other. A batch is good until the next one is packed."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._columns: _Columns | None = None
        self._streams: list[_Stream] = []

    def pack(self, plan: Plan) -> Batch:
        """What `pack` gives; the object of last time, as long as its streams just go on."""
        columns = self._columns
        if columns is not None and self._follow(columns, plan.slices):
            return columns.batch
        streams = [_Stream(s.seq, s.end, s.seq.num_remaps) for s in plan.slices if s.length == s.num_logits == 1]
        go_on = len(streams) == len(plan.slices)
        columns = _Columns(plan, self._page_size, _ROOM if go_on else 0)
        self._columns, self._streams = (columns, streams) if go_on else (None, [])
        return columns.batch

    def _follow(self, columns: _Columns, slices: tuple[Slice, ...]) -> bool:
        """Takes in a token of each stream; False where it is more than that, and then the columns are of no use."""
        if len(slices) != len(self._streams):
            return False
        for i, s in enumerate(slices):
            stream, seq, start = self._streams[i], s.seq, s.start
            if seq is not stream.seq or start != stream.end or s.length != 1 or s.num_logits != 1:
                return False
            if seq.num_remaps != stream.num_remaps:
                return False
            page, offset = divmod(start, self._page_size)
            if offset:
                columns.slots[i] += 1
            elif page < columns.width:
                columns.table[i * columns.width + page] = seq.pages[page]
                columns.slots[i] = seq.pages[page] * self._page_size
            else:
                return False
            columns.input_ids[i] = seq.token_ids[start]
            columns.positions[i] = start
            columns.seq_lens[i] = stream.end = start + 1
        return True


@dataclass(slots=True)
class _Stream:
    """Where a stream of the last batch stood after it."""

    seq: Sequence
    end: int
    num_remaps: int


class _Columns:
    """A batch's numbers in growing lists of C integers, and the batch that looks at them.

    They are filled first and become arrays at the end: after a step has swept the caches, a call into numpy costs
    microseconds, whatever it does.
    """

    __slots__ = ("batch", "input_ids", "positions", "seq_lens", "slots", "table", "width")

    def __init__(self, plan: Plan, page_size: int, room: int = 0) -> None:
        self.input_ids, self.positions, self.slots = array("i"), array("i"), array("i")
        cu_seqlens_q, logit_rows = array("i", (0,)), array("i")
        num_rows, most_pages = 0, 0
        for s in plan.slices:
            end = s.end
            assert len(s.seq.pages) * page_size >= end, (s.seq.seq_id, len(s.seq.pages), end)
            num_rows += s.length
            self.input_ids.extend(_tokens(s))
            self.positions.extend(range(s.start, end))
            _add_slots(self.slots, s, page_size)
            cu_seqlens_q.append(num_rows)
            logit_rows.extend(range(num_rows - s.num_logits, num_rows))
            most_pages = max(most_pages, -(-end // page_size))
        self.width = most_pages + room
        self.table = array("i")
        for s in plan.slices:
            pages = s.seq.pages[:most_pages]
            self.table.extend(pages)
            self.table.extend((0,) * (self.width - len(pages)))
        self.seq_lens = array("i", [s.end for s in plan.slices])
        self.batch = Batch(
            input_ids_T=_array(self.input_ids),
            positions_T=_array(self.positions),
            slot_mapping_T=_array(self.slots),
            cu_seqlens_q_S1=_array(cu_seqlens_q),
            seq_lens_S=_array(self.seq_lens),
            page_table_SP=_array(self.table).reshape(len(plan.slices), self.width),
            logit_rows_R=_array(logit_rows),
        )


def _array(numbers: array[int]) -> IntArray:
    return np.frombuffer(numbers, np.int32)


def _tokens(s: Slice) -> Iterable[int]:
    """The slice's tokens of token_ids followed by draft_ids."""
    token_ids, draft_ids, start, end = s.seq.token_ids, s.seq.draft_ids, s.start, s.end
    certain = len(token_ids)
    if end <= certain:
        return token_ids[start:end]
    return token_ids[start:certain] + draft_ids[max(start - certain, 0) : end - certain]


def _add_slots(slots: array[int], s: Slice, page_size: int) -> None:
    """Where the slice's rows are kept, page by page."""
    pages, at = s.seq.pages, s.start
    while at < s.end:
        page, offset = divmod(at, page_size)
        count = min(page_size - offset, s.end - at)
        first = pages[page] * page_size + offset
        slots.extend(range(first, first + count))
        at += count
