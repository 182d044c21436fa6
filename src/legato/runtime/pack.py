"""The first border: a `Plan` of integers becomes a `Batch` of arrays.

Knows: page arithmetic. Does not know: devices, logits, text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from legato.core.plan import Plan, Slice
from legato.kernels.ops import Batch, IntArray


def pack(plan: Plan, page_size: int) -> Batch:
    """One row a token, slices in plan order, positions ascending within a slice.

    A slice's sequence must own pages for all of [0, slice.end). Lists are filled first and become arrays at the end:
    after a step has swept the caches, a call into numpy costs microseconds, whatever it does.
    """
    input_ids, positions, slots = array("i"), array("i"), array("i")
    cu_seqlens_q, logit_rows = array("i", (0,)), array("i")
    num_rows, most_pages = 0, 0
    for s in plan.slices:
        end = s.end
        assert len(s.seq.pages) * page_size >= end, (s.seq.seq_id, len(s.seq.pages), end)
        num_rows += s.length
        input_ids.extend(_tokens(s))
        positions.extend(range(s.start, end))
        _add_slots(slots, s, page_size)
        cu_seqlens_q.append(num_rows)
        logit_rows.extend(range(num_rows - s.num_logits, num_rows))
        most_pages = max(most_pages, -(-end // page_size))
    table = array("i")
    for s in plan.slices:
        pages = s.seq.pages[:most_pages]
        table.extend(pages)
        table.extend((0,) * (most_pages - len(pages)))
    return Batch(
        input_ids_T=_array(input_ids),
        positions_T=_array(positions),
        slot_mapping_T=_array(slots),
        cu_seqlens_q_S1=_array(cu_seqlens_q),
        seq_lens_S=_array(array("i", [s.end for s in plan.slices])),
        page_table_SP=_array(table).reshape(len(plan.slices), most_pages),
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
