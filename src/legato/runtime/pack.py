"""The first border: a `Plan` of integers becomes a `Batch` of arrays.

Knows: page arithmetic. Does not know: devices, logits, text.
"""

from __future__ import annotations

import numpy as np

from legato.core.plan import Plan
from legato.kernels.ops import Batch


def pack(plan: Plan, page_size: int) -> Batch:
    """One row a token, slices in plan order, positions ascending within a slice.

    A slice's sequence must own pages for all of [0, slice.end).
    """
    slices = plan.slices
    lengths = [s.length for s in slices]
    cu_seqlens_q_S1 = np.zeros(len(slices) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens_q_S1[1:])
    num_tokens = int(cu_seqlens_q_S1[-1])

    input_ids_T = np.empty(num_tokens, np.int32)
    positions_T = np.empty(num_tokens, np.int32)
    slot_mapping_T = np.empty(num_tokens, np.int32)
    num_pages = [-(-s.end // page_size) for s in slices]
    page_table_SP = np.zeros((len(slices), max(num_pages)), np.int32)
    logit_rows: list[int] = []

    for i, s in enumerate(slices):
        seq, first, last = s.seq, int(cu_seqlens_q_S1[i]), int(cu_seqlens_q_S1[i + 1])
        assert len(seq.pages) >= num_pages[i], (seq.seq_id, len(seq.pages), num_pages[i])
        page_table_SP[i, : num_pages[i]] = seq.pages[: num_pages[i]]
        positions = np.arange(s.start, s.end, dtype=np.int32)
        positions_T[first:last] = positions
        slot_mapping_T[first:last] = page_table_SP[i][positions // page_size] * page_size + positions % page_size
        input_ids_T[first:last] = _tokens(seq.token_ids, seq.draft_ids, s.start, s.end)
        logit_rows.extend(range(last - s.num_logits, last))

    return Batch(
        input_ids_T=input_ids_T,
        positions_T=positions_T,
        slot_mapping_T=slot_mapping_T,
        cu_seqlens_q_S1=cu_seqlens_q_S1,
        seq_lens_S=np.array([s.end for s in slices], np.int32),
        page_table_SP=page_table_SP,
        logit_rows_R=np.array(logit_rows, np.int32),
    )


def _tokens(token_ids: list[int], draft_ids: list[int], start: int, end: int) -> list[int]:
    """Tokens [start, end) of token_ids followed by draft_ids."""
    certain = len(token_ids)
    if end <= certain:
        return token_ids[start:end]
    return token_ids[start:certain] + draft_ids[max(start - certain, 0) : end - certain]
