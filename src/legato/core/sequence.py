"""What the engine knows of one answer in progress.

Knows: token ids and how many of them have keys and values. Does not know: text, arrays, who scheduled it.

    token_ids    |-- prompt --|-- output --|        all that is certain
    draft_ids                              |-- guesses --|
    computed     0 ......... num_computed_tokens    keys and values exist in `pages`
    num_tokens   = len(token_ids) + len(draft_ids)

Every step lets `num_computed_tokens` catch up with `num_tokens`; prefill, chunks, decode, prefix hits,
preemption and verification of drafts are all that one rule.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from legato.core.account import Account
from legato.core.miss import Miss
from legato.core.request import Request


class FinishReason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    DEADLINE = "deadline"


@dataclass(slots=True, eq=False)
class Sequence:
    """One of a request's `n` answers: its tokens, its pages, and when things happened to it.

    seq_id      the engine's own number, never reused; a later one arrived later
    index       which of the request's n answers
    max_length  the most tokens it may come to hold, prompt included: max_tokens cut at the context's end
    pages       where keys and values lie; any of them may be exchanged for an equal one between two steps
    num_remaps  times that pages were exchanged or taken away; otherwise they only become more
    miss        why no longer prefix was found in the cache when it was first admitted
    num_prompt_logprobs  positions of the prompt whose logprobs have been delivered
    marks       clock readings in seconds by name (arrived, scheduled, first_token, finished)
    account     where its time goes
    """

    seq_id: int
    request: Request
    index: int = 0
    max_length: int = 0
    token_ids: list[int] = field(default_factory=list)
    draft_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    miss: Miss | None = None
    pages: list[int] = field(default_factory=list)
    num_remaps: int = 0
    num_preemptions: int = 0
    num_prompt_logprobs: int = 0
    finish_reason: FinishReason | None = None
    marks: dict[str, float] = field(default_factory=dict)
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.token_ids = list(self.request.prompt_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + len(self.draft_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def first_logit_row(self) -> int:
        """The first position whose logits are still wanted: the last certain token's, or earlier in the prompt.

        Only the first of a request's answers brings the prompt's logprobs: the prompt is the same for all.
        """
        wanted = self.index == 0 and self.request.params.prompt_logprobs is not None
        if wanted and self.num_prompt_logprobs < self.num_prompt_tokens - 1:
            return self.num_prompt_logprobs
        return len(self.token_ids) - 1

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None
