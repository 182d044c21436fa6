"""A model whose every token depends on every slot it reads: any paging fault is a wrong token at once.

Knows: plans, page tables, a store of slots. Does not know: the scheduler, the pool, the tree.

A slot stores its token's id and a chain value mixed from the slot before it (found through the page table, as deeper
layers depend on all that precedes) and from its position (as rotated keys do). The next token is a hash of all ids and
all chain values read back through the page table. `plain_answer` says, with no pages at all, what must come out.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b

from legato.core.plan import Plan, Slice, SliceResult, TokenLogprobs
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason, Sequence
from legato.errors import RequestError

MASK = 2**64 - 1
EMPTY = MASK  # no token has this id


def mix(before: int, token_id: int, position: int) -> int:
    x = (before ^ (token_id * 0x9E3779B97F4A7C15 + position * 0xC2B2AE3D27D4EB4F)) & MASK
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9 & MASK
    return x ^ (x >> 32)


def draw(ids: bytes, chain: bytes, request: Request, index: int) -> int:
    """64 bits that depend on the whole context; on the answer's index too unless the request is greedy."""
    flavour = b"" if request.params.greedy else b"%d/%d" % (index, request.params.seed or 0)
    return int.from_bytes(blake2b(ids + chain + flavour, digest_size=8).digest(), "little")


def choose(number: int, vocab_size: int, request: Request, num_output: int, eos_ids: frozenset[int]) -> int:
    """A token; those that would stop are masked until min_tokens are out."""
    stops = eos_ids | set(request.params.stop_token_ids) if num_output < request.params.min_tokens else frozenset()
    token_id = number % vocab_size
    while token_id in stops:
        token_id = (token_id + 1) % vocab_size
    return token_id


def logprob(token_id: int, number: int) -> TokenLogprobs:
    return TokenLogprobs(token_id, -float(number % 997), 1 + number % 7)


def plain_answer(
    request: Request, index: int, vocab_size: int, eos_ids: frozenset[int], max_length: int
) -> tuple[list[int], FinishReason, list[TokenLogprobs]]:
    """Plain decoding with nothing but a list: the answer, why it ends, and the prompt's logprobs."""
    ids, chain, numbers = array("Q"), array("Q"), []
    before = 0

    def push(token_id: int) -> None:
        nonlocal before
        before = mix(before, token_id, len(ids))
        ids.append(token_id)
        chain.append(before)

    for token_id in request.prompt_ids:
        push(token_id)
        numbers.append(draw(ids.tobytes(), chain.tobytes(), request, index))
    prompt = [logprob(t, n) for t, n in zip(request.prompt_ids[1:], numbers, strict=False)]
    number, out = numbers[-1], []
    stops = set(request.params.stop_token_ids) | (set() if request.params.ignore_eos else eos_ids)
    while True:
        out.append(choose(number, vocab_size, request, len(out), eos_ids))
        if out[-1] in stops and len(out) > request.params.min_tokens:
            return out, FinishReason.STOP, prompt
        if len(request.prompt_ids) + len(out) >= max_length:
            return out, FinishReason.LENGTH, prompt
        push(out[-1])
        number = draw(ids.tobytes(), chain.tobytes(), request, index)


class PageEcho:
    """A Runner. `during` is called in the middle of a step, before or after it writes; `spoil(seq)` makes an error."""

    def __init__(self, num_pages: int, page_size: int, vocab_size: int, eos_ids: frozenset[int] = frozenset()) -> None:
        self.page_size, self.vocab_size, self.eos_ids = page_size, vocab_size, eos_ids
        self.ids = array("Q", [EMPTY]) * (num_pages * page_size)
        self.chain = array("Q", [EMPTY]) * (num_pages * page_size)
        self.known: set[int] = set()
        self.num_steps = self.num_rows = self.num_verified = 0
        self.during: Callable[[Plan], None] = lambda plan: None
        self.spoil: Callable[[Sequence], bool] = lambda seq: False

    def slot(self, seq: Sequence, position: int) -> int:
        return seq.pages[position // self.page_size] * self.page_size + position % self.page_size

    def admit(self, params: SamplingParams) -> None:
        """Hashes follow no grammar."""
        if params.grammar is not None:
            raise RequestError("grammar", params.grammar.kind.value, "no grammar: this model hashes")

    def close(self) -> None: ...

    def run(self, plan: Plan) -> list[SliceResult]:
        self.num_steps += 1
        self.num_rows += plan.num_tokens
        written: set[int] = set()
        if self.num_steps % 2:
            self.during(plan)
        for piece in plan.slices:
            self.write(piece, written)
        if self.num_steps % 2 == 0:
            self.during(plan)
        return [self.result(piece) for piece in plan.slices]

    def forget(self, seq_ids: Iterable[int]) -> None:
        self.known.difference_update(seq_ids)

    def write(self, piece: Slice, written: set[int]) -> None:
        seq = piece.seq
        self.known.add(seq.seq_id)
        assert 0 <= piece.start < piece.end <= seq.num_tokens, "a slice lies outside its sequence"
        assert len(seq.pages) * self.page_size >= piece.end, "a slice has no pages for its tokens"
        tokens = seq.token_ids + seq.draft_ids
        before = self.chain[self.slot(seq, piece.start - 1)] if piece.start else 0
        for position in range(piece.start, piece.end):
            slot = self.slot(seq, position)
            assert slot not in written, "two slices write the same slot in one step"
            written.add(slot)
            before = mix(before, tokens[position], position)
            self.ids[slot], self.chain[slot] = tokens[position], before

    def read(self, seq: Sequence, row: int) -> int:
        """What the model makes of positions 0 .. row, every one read back through the page table."""
        size, length = self.page_size, row + 1
        spans = [(page * size, min(size, length - i * size)) for i, page in enumerate(seq.pages) if i * size < length]
        ids = b"".join(self.ids[start : start + n].tobytes() for start, n in spans)
        chain = b"".join(self.chain[start : start + n].tobytes() for start, n in spans)
        return draw(ids, chain, seq.request, seq.index)

    def result(self, piece: Slice) -> SliceResult:
        seq, params = piece.seq, piece.seq.request.params
        result = SliceResult()
        if self.spoil(seq):
            return SliceResult(error="spoiled on purpose")
        numbers = {row: self.read(seq, row) for row in range(piece.end - piece.num_logits, piece.end)}
        if params.prompt_logprobs is not None:
            prompt = seq.request.prompt_ids
            result.prompt_logprobs = [logprob(prompt[r + 1], n) for r, n in numbers.items() if r + 1 < len(prompt)]
        if piece.end < seq.num_tokens:
            return result
        result.logprobs = [] if params.logprobs is not None else None
        drafts = seq.draft_ids
        self.num_verified += len(drafts)
        for i, row in enumerate(range(piece.end - 1 - len(drafts), piece.end)):
            num_output = row + 1 - seq.num_prompt_tokens
            token_id = choose(numbers[row], self.vocab_size, seq.request, num_output, self.eos_ids)
            result.token_ids.append(token_id)
            if result.logprobs is not None:
                result.logprobs.append(logprob(token_id, numbers[row]))
            if i < len(drafts) and drafts[i] != token_id:
                break
        return result
