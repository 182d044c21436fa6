"""Lossless verification of drafts: take the model's own tokens for as long as the guesses agree with them.

Knows: guessed ids and a way to choose the true one. Does not know: logits, devices, who guessed.

A draft is accepted exactly when the token that would have been chosen without it is the same token; since that
choice is a function of (row, seed, position), the output is token for token what decoding without drafts gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def verify(draft_ids: Sequence[int], choose_next: Callable[[int, list[int]], int]) -> list[int]:
    """Accepted tokens: agreeing drafts, then the one token the model chose instead (or after all of them).

    choose_next(i, accepted)  the model's token after i accepted drafts, from verification row i

    >>> verify([5, 6, 9], lambda i, accepted: [5, 6, 7, 8][i])
    [5, 6, 7]
    """
    accepted: list[int] = []
    for i in range(len(draft_ids) + 1):
        token_id = choose_next(i, accepted)
        accepted.append(token_id)
        if i < len(draft_ids) and draft_ids[i] != token_id:
            break
    return accepted
