"""What a step brought one sequence: tokens appended, failed drafts rewound, and whether this is the end.

Knows: one slice, its result, which tokens end an answer. Does not know: pages, other sequences, time.
"""

from __future__ import annotations

from collections.abc import Set

from legato.core.events import Event
from legato.core.plan import Slice, SliceResult
from legato.core.sequence import FinishReason, Sequence


def is_stop(seq: Sequence, token_id: int, eos_ids: Set[int]) -> bool:
    """Whether `token_id`, coming next, ends the answer. min_tokens counts the tokens before the one that stops."""
    params = seq.request.params
    if token_id in params.stop_token_ids or (token_id in eos_ids and not params.ignore_eos):
        return seq.num_output_tokens >= params.min_tokens
    return False


def accept(piece: Slice, result: SliceResult, eos_ids: Set[int]) -> Event:
    """Moves `piece.seq` forward by `result`; the event says what is new, and carries the finish reason if this is one.

    Drafts that were not accepted are rewound by counting fewer tokens as computed.
    """
    seq = piece.seq
    event = Event(seq.request.request_id, seq.seq_id, seq.index)
    end, drafts = piece.start + piece.length, seq.draft_ids
    at_end = end == len(seq.token_ids) + len(drafts)
    if result.error is not None or (at_end and not result.token_ids):
        event.finish_reason = FinishReason.ERROR
        event.error = result.error or "the step brought no token for this sequence"
        return event
    seq.num_computed_tokens = end
    if result.prompt_logprobs:
        event.prompt_logprobs = result.prompt_logprobs
        seq.num_prompt_logprobs += len(result.prompt_logprobs)
    if at_end:
        if drafts:
            seq.num_computed_tokens -= len(seq.draft_ids) - (len(result.token_ids) - 1)
            seq.draft_ids = []
        _append(seq, event, result, eos_ids)
    return event


def _append(seq: Sequence, event: Event, result: SliceResult, eos_ids: Set[int]) -> None:
    """Appends until a token ends the answer; what was accepted past the end is dropped."""
    taken, stop_ids, token_ids = 0, seq.request.params.stop_token_ids, seq.token_ids
    for token_id in result.token_ids:
        stops = False
        if token_id in eos_ids or token_id in stop_ids:
            stops = is_stop(seq, token_id, eos_ids) or (result.complete and token_id in eos_ids)
        token_ids.append(token_id)
        taken += 1
        if stops:
            event.finish_reason, event.stop_token_id = FinishReason.STOP, token_id
            break
        if len(token_ids) >= seq.max_length:
            event.finish_reason = FinishReason.LENGTH
            break
    event.token_ids = result.token_ids if taken == len(result.token_ids) else result.token_ids[:taken]
    if result.logprobs is not None:
        event.logprobs = result.logprobs[:taken]
    seq.num_computed_tokens = min(seq.num_computed_tokens, len(token_ids))
