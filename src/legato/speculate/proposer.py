"""The interface of a guesser of tokens.

Knows: sequences' tokens. Does not know: the scheduler's insides, how guesses are verified.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol

from legato.core.sequence import Sequence


class Proposer(Protocol):
    """Guesses what comes after a sequence's tokens. A wrong guess costs time, never a token."""

    def propose(self, seqs: SequenceOf[Sequence]) -> dict[int, list[int]]:
        """Draft ids by seq_id, for those of `seqs` it has a guess for. Must not change the sequences."""
