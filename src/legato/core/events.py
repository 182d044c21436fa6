"""What the engine tells the world after a step.

Knows: sequence numbers, token ids and reasons. Does not know: text (that is made above), arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from legato.core.plan import TokenLogprobs
from legato.core.sequence import FinishReason


@dataclass(slots=True)
class Event:
    """New tokens of one sequence, and perhaps its end. Each accepted sequence gets exactly one finish.

    token_ids      new since the last event (stop tokens that ended it are included, marked by `stop_token_id`)
    error          what went wrong, with finish_reason ERROR
    """

    request_id: str
    seq_id: int
    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str | None = None
