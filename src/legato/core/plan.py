"""What one step will do: `Plan` of `Slice`s; and what came of it: `StepResult`.

Knows: sequences and counts. Does not know: arrays, devices, how a slice is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from legato.core.sequence import Sequence


@dataclass(slots=True, eq=False)  # not frozen: that would treble the time to make one, and steps make many
class Slice:
    """Advance `seq` over tokens [start, start + length) of token_ids + draft_ids. Nobody changes one.

    num_logits  how many trailing rows need logits: 0 in the middle of a prompt, 1 at its end,
                1 + drafts for verification, up to `length` where prompt logprobs are still to be delivered
    """

    seq: Sequence
    start: int
    length: int
    num_logits: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's slices, in row order. Never two slices of one sequence."""

    slices: tuple[Slice, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(s.length for s in self.slices)

    def __bool__(self) -> bool:
        return bool(self.slices)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: the chosen token's, its rank from 1, and the k likeliest (id, logprob)."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class SliceResult:
    """What a slice brought: the tokens accepted after it (none in mid-prompt, one, or drafts + 1).

    token_ids        accepted, in order; drafts that failed are simply absent
    logprobs         one a token in token_ids, when asked for
    prompt_logprobs  when asked for: one for each row r with logits whose next token r + 1 is in the prompt
    error            a fault of this sequence alone (for example a NaN in its logits)
    complete         the answer's grammar is complete: an end token among token_ids ends it, whatever min_tokens and
                     ignore_eos say
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    complete: bool = False
