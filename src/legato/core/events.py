"""What the engine tells the world after a step.

Knows: sequence numbers, token ids and reasons. Does not know: text (that is made above), arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from legato.core.account import Account
from legato.core.miss import Miss
from legato.core.plan import TokenLogprobs
from legato.core.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Usage:
    """What a finished sequence took.

    num_cached_tokens  prompt tokens found in the cache when it was first admitted
    miss               why there were no more of them; None when all that could be was found, or nothing is shared
    marks              clock readings in seconds by name (arrived, scheduled, first_token, finished); those that
                       were never reached are absent
    account            where its time went; whole once the step that brought the end is over
    """

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    marks: dict[str, float]
    miss: Miss | None = None
    account: Account = field(default_factory=Account, compare=False)


@dataclass(slots=True)
class Event:
    """New tokens of one sequence, and perhaps its end. Each accepted sequence gets exactly one finish.

    token_ids      new since the last event (stop tokens that ended it are included, marked by `stop_token_id`)
    prompt_logprobs  of the prompt positions computed since the last event; they come with index 0 only
    error          what went wrong, with finish_reason ERROR
    usage          with finish_reason only
    at             clock reading at the end of the step that brought it; 0 where nobody read the clock
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
    usage: Usage | None = None
    at: float = field(default=0.0, compare=False)
