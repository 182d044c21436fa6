"""The second border: a row of logits becomes a token id.

Knows: sampling parameters, the tokens a sequence has so far, logits. Does not know: devices, pages, text.

A token depends only on its own row, its sequence's tokens, and (seed, answer index, position): randomness is a
hash of those three, not a stream. So neighbours, preemption, chunking and rejected drafts cannot change it.

The order of operations: logprobs are read from the raw logits; then logit_bias, repetition, presence and frequency
penalties, the grammar, the ban of end tokens below min_tokens, temperature, min_p, top_k, top_p, and one draw.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from legato.core.plan import TokenLogprobs
from legato.core.request import SamplingParams
from legato.core.sequence import Sequence
from legato.kernels.choice import choose
from legato.text.grammar import GrammarFault, Grammars, Matcher

Row = NDArray[np.float32]

# Of a row of logits, temperature, top_k, top_p, min_p and a draw: see `Executor.choose`.
Choose = Callable[[Row, float, int, float, float, float], int]


# What a byte of a mask adds to eight logits, the lowest bit's first: 0 where allowed. 0.04 ms for 150,000 tokens.
_ADDED = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf)
_ADDED = _ADDED.astype(np.float32)


class NotFiniteError(ArithmeticError):
    """A row of logits holds NaN, or nothing finite at all."""


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: blake2b of the three integers, 53 bits of it."""
    key = struct.pack("<QQQ", seed % 2**64, index, position)
    return float(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


class Seen:
    """The tokens of one sequence, counted as far as they were last looked at."""

    __slots__ = ("counted", "output", "prompt")

    def __init__(self, seq: Sequence) -> None:
        self.prompt = frozenset(seq.request.prompt_ids)
        self.output: Counter[int] = Counter()
        self.counted = seq.num_prompt_tokens

    def catch_up(self, token_ids: list[int]) -> None:
        if self.counted < len(token_ids):
            self.output.update(token_ids[self.counted :])
            self.counted = len(token_ids)


def needs_logits(params: SamplingParams, num_output: int) -> bool:
    """Whether choosing the next token takes more than the row's argmax."""
    return not (
        params.greedy
        and not params.logit_bias
        and params.logprobs is None
        and params.repetition_penalty == 1.0
        and params.presence_penalty == 0.0
        and params.frequency_penalty == 0.0
        and num_output >= params.min_tokens
    )


def penalise(row: Row, params: SamplingParams, seen: Seen) -> None:
    """Repetition (CTRL, arXiv 1909.05858), presence and frequency penalties, in place."""
    if params.repetition_penalty != 1.0 and (seen.prompt or seen.output):
        ids = np.fromiter(seen.prompt | seen.output.keys(), np.int64)
        values = row[ids]
        factor = np.float32(params.repetition_penalty)
        row[ids] = np.where(values > 0, values / factor, values * factor)
    if seen.output and (params.presence_penalty or params.frequency_penalty):
        ids = np.fromiter(seen.output.keys(), np.int64)
        counts = np.fromiter(seen.output.values(), np.float32)
        row[ids] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts


def mask_row(row: Row, allowed: bytes) -> None:
    """Takes the tokens whose bit is not set out of the choice, in place."""
    row += _ADDED.take(np.frombuffer(allowed, np.uint8), axis=0).reshape(-1)[: len(row)]


def _likeliest(probs: Row, k: int) -> NDArray[np.int64]:
    threshold = np.partition(probs, len(probs) - k)[len(probs) - k]
    return _sorted(probs, np.flatnonzero(probs >= threshold))[:k]


def _sorted(probs: Row, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids[np.argsort(-probs[ids], kind="stable")]


def logprobs_of(row: Row, token_id: int, k: int) -> TokenLogprobs:
    """Log-softmax of the raw row: the token's, its rank from 1, and the k likeliest."""
    shifted = row.astype(np.float64) - float(row.max())
    log_total = float(np.log(np.exp(shifted).sum()))
    own = float(shifted[token_id]) - log_total
    rank = int((row > row[token_id]).sum()) + 1
    top: tuple[tuple[int, float], ...] = ()
    if k:
        top = tuple((int(i), float(shifted[i]) - log_total) for i in _likeliest(row, min(k, len(row))))
    return TokenLogprobs(token_id, own, rank, top)


class Sampler:
    """Chooses tokens; remembers of each sequence which tokens were counted for its penalties, and where it stands in
    its grammar.

    vocab_size  ids from here on are padding of the head and are never chosen
    eos_ids     banned while min_tokens is not reached (with the request's own stop ids)
    grammars    None: requests with a grammar are not admitted
    choose      draws a token from a finished row, as `Executor.choose` says
    """

    def __init__(
        self,
        vocab_size: int,
        eos_ids: Collection[int],
        grammars: Grammars | None = None,
        choose: Choose = choose,
    ) -> None:
        self.vocab_size = vocab_size
        self.eos_ids = tuple(i for i in eos_ids if i < vocab_size)
        self.ends = frozenset(self.eos_ids)
        self.grammars = grammars
        self._choose = choose
        self._seen: dict[int, Seen] = {}
        self._matchers: dict[int, Matcher] = {}

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Drops what is remembered of sequences that ended."""
        for seq_id in seq_ids:
            self._seen.pop(seq_id, None)
            self._matchers.pop(seq_id, None)

    def matcher(self, seq: Sequence, accepted: list[int]) -> Matcher | None:
        """Where the answer stands in its grammar after `seq.token_ids + accepted`; None if it has none.

        Raises GrammarFault when the answer is not in its grammar any more.
        """
        grammar = seq.request.params.grammar
        if grammar is None:
            return None
        matcher = self._matchers.get(seq.seq_id)
        if matcher is None:
            if self.grammars is None:
                raise GrammarFault("this engine cannot constrain answers")
            matcher = self._matchers[seq.seq_id] = self.grammars.matcher(grammar)
        matcher.follow(seq.token_ids, seq.num_prompt_tokens, accepted)
        return matcher

    def sample(
        self, seq: Sequence, accepted: list[int], raw: Row, matcher: Matcher | None = None
    ) -> tuple[int, TokenLogprobs | None]:
        """The token after `seq.token_ids + accepted`, from its raw row of logits (left unchanged).

        matcher  the answer's place in its grammar, where it has one
        Raises NotFiniteError when the row cannot be trusted, GrammarFault when the grammar leaves nothing to choose.
        """
        params = seq.request.params
        raw = raw[: self.vocab_size]
        early = seq.num_output_tokens + len(accepted) < params.min_tokens
        row = self._changed(seq, accepted, raw, matcher, early)
        if params.greedy:
            token_id = int(row.argmax()) if np.isfinite(row.max()) else -1
        else:
            draw = uniform(params.seed or 0, seq.index, len(seq.token_ids) + len(accepted))
            token_id = self._choose(row, params.temperature, params.top_k, params.top_p, params.min_p, draw)
        if token_id < 0:
            raise NotFiniteError("the model's logits are not finite")
        if params.logprobs is None:
            return token_id, None
        return token_id, logprobs_of(raw, token_id, params.logprobs)

    def _changed(self, seq: Sequence, accepted: list[int], raw: Row, matcher: Matcher | None, early: bool) -> Row:
        """The row that is chosen from: a copy with biases, penalties and bans, or `raw` itself where there are none."""
        params = seq.request.params
        penalties = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        if not (params.logit_bias or penalties or early or matcher is not None):
            return raw
        if not np.isfinite(raw.max()):
            raise NotFiniteError("the model's logits are not finite")
        row = raw.copy()
        for token_id, bias in params.logit_bias.items():
            row[token_id] += np.float32(bias)
        if penalties:
            penalise(row, params, self._counts(seq, accepted))
        if matcher is not None:
            self._constrain(row, params, matcher, early)
        elif early:
            row[list(self.eos_ids) + list(params.stop_token_ids)] = -np.inf
        return row

    def _constrain(self, row: Row, params: SamplingParams, matcher: Matcher, early: bool) -> None:
        """Leaves what the grammar allows. End tokens that may not come yet stay if the grammar has nothing else."""
        mask_row(row, matcher.allowed())
        barred = [*self.eos_ids, *params.stop_token_ids] if early else [*self.eos_ids] if params.ignore_eos else []
        kept = row[barred]
        row[barred] = -np.inf
        if row.max() == -np.inf:
            row[barred] = kept
            if row.max() == -np.inf:
                raise GrammarFault("the grammar allows none of the model's tokens")

    def _counts(self, seq: Sequence, accepted: list[int]) -> Seen:
        seen = self._seen.get(seq.seq_id)
        if seen is None:
            seen = self._seen[seq.seq_id] = Seen(seq)
        seen.catch_up(seq.token_ids)
        if not accepted:
            return seen
        ahead = Seen(seq)
        ahead.output = seen.output + Counter(accepted)
        return ahead
