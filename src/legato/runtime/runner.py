"""Runs a plan: pack, one step on the device, choose tokens.

Knows: an executor, the sampler, which row belongs to which slice. Does not know: scheduling, text, requests' owners.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from legato.core.plan import Plan, Slice, SliceResult, TokenLogprobs
from legato.core.request import SamplingParams
from legato.errors import RequestError
from legato.kernels.ops import Batch, Executor, FloatArray
from legato.runtime.pack import Packer
from legato.runtime.sampler import NotFiniteError, Sampler, logprobs_of, needs_logits
from legato.runtime.verify import verify
from legato.text.grammar import GrammarFault, Grammars, Matcher


class Runner:
    """Anything that happens on the device happens from here.

    vocab_size  the tokenizer's; a head padded beyond it never yields those ids
    grammars    compiles what answers must match; None: a request with a grammar is refused
    """

    def __init__(
        self,
        executor: Executor,
        *,
        page_size: int,
        vocab_size: int,
        eos_ids: Collection[int],
        grammars: Grammars | None = None,
    ) -> None:
        self.executor = executor
        self.page_size = page_size
        self._packer = Packer(page_size)
        self.sampler = Sampler(vocab_size, eos_ids, grammars, executor.choose)

    def admit(self, params: SamplingParams) -> None:
        """Makes ready what `params` ask of the sampler, or raises `RequestError`.

        It may take seconds: call it from the asking thread, before `Engine.add`.
        """
        if params.grammar is None:
            return
        if self.sampler.grammars is None:
            raise RequestError("grammar", params.grammar.kind.value, "no grammar: this engine cannot constrain answers")
        self.sampler.grammars.admit(params.grammar)

    def close(self) -> None:
        """Ends what `admit` has started."""
        if self.sampler.grammars is not None:
            self.sampler.grammars.close()

    def run(self, plan: Plan) -> list[SliceResult]:
        """One step; a result for each slice, in order. A fault in one row is that slice's `error` alone."""
        logits = self.executor.run(self._packer.pack(plan))
        best = self.executor.argmax()
        results, row = [], 0
        for s in plan.slices:
            end = row + s.num_logits
            if end == row:
                results.append(SliceResult())
            elif end == row + 1 and self._is_plain(s, best[row]):
                results.append(SliceResult([best[row]]))
            else:
                results.append(self._finish(s, logits[row:end], best[row:end]))
            row = end
        return results

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Drops per-sequence state of sequences that ended."""
        self.sampler.forget(seq_ids)

    def logits(self, token_ids: Sequence[int], pages: Sequence[int], chunk: int) -> FloatArray:
        """Logits (T, V) of a lone sequence, `chunk` rows a step, in pages that are the caller's."""
        return np.concatenate([rows.copy() for rows in self.logit_chunks(token_ids, pages, chunk)])

    def logit_chunks(self, token_ids: Sequence[int], pages: Sequence[int], chunk: int) -> Iterator[FloatArray]:
        """The same piece by piece; a piece is overwritten by the next one."""
        for start in range(0, len(token_ids), chunk):
            end = min(start + chunk, len(token_ids))
            yield self.executor.run(self._lone_batch(token_ids, pages, start, end))

    def _lone_batch(self, token_ids: Sequence[int], pages: Sequence[int], start: int, end: int) -> Batch:
        positions_T = np.arange(start, end, dtype=np.int32)
        table = np.array(pages[: -(-end // self.page_size)], np.int32)
        return Batch(
            input_ids_T=np.array(token_ids[start:end], np.int32),
            positions_T=positions_T,
            slot_mapping_T=(
                table[positions_T // self.page_size] * self.page_size + positions_T % self.page_size
            ).astype(np.int32),
            cu_seqlens_q_S1=np.array([0, end - start], np.int32),
            seq_lens_S=np.array([end], np.int32),
            page_table_SP=table[None, :],
            logit_rows_R=np.arange(end - start, dtype=np.int32),
        )

    def _finish(self, s: Slice, logits: FloatArray, best: list[int]) -> SliceResult:
        """Rows are the slice's last `num_logits` positions; the last 1 + drafts of a caught-up slice choose tokens."""
        seq, result = s.seq, SliceResult()
        num_choosing = 1 + len(seq.draft_ids) if s.end == seq.num_tokens else 0
        first = s.num_logits - num_choosing
        try:
            if seq.request.params.prompt_logprobs is not None:
                result.prompt_logprobs = self._prompt_logprobs(s, logits)
            if num_choosing:
                result.token_ids, result.logprobs = self._choose(s, logits[first:], best[first:])
                if seq.request.params.grammar is not None:
                    result.complete = not self.sampler.ends.isdisjoint(result.token_ids)
        except (NotFiniteError, GrammarFault) as error:
            return SliceResult(error=f"{error} at position {s.end - 1}")
        return result

    def _is_plain(self, s: Slice, best: int) -> bool:
        """Whether the next token is the likeliest of its row and nothing else is asked: most streams, most steps."""
        seq = s.seq
        params = seq.request.params
        if seq.draft_ids or s.end != len(seq.token_ids) or params.grammar is not None:
            return False
        plain = params.prompt_logprobs is None and not needs_logits(params, seq.num_output_tokens)
        return plain and 0 <= best < self.sampler.vocab_size

    def _choose(self, s: Slice, logits: FloatArray, best: list[int]) -> tuple[list[int], list[TokenLogprobs] | None]:
        seq, params = s.seq, s.seq.request.params
        found: list[TokenLogprobs] = []

        def choose_next(i: int, accepted: list[int]) -> int:
            token_id = best[i]
            if token_id < 0:
                raise NotFiniteError("the model's logits are not finite")
            if params.grammar is not None and not self.sampler.ends.isdisjoint(accepted):
                return token_id  # the answer has ended: what comes after is dropped
            matcher = self.sampler.matcher(seq, accepted)
            plain = not needs_logits(params, seq.num_output_tokens + i) and token_id < self.sampler.vocab_size
            if plain and (matcher is None or self._allows(matcher, params, token_id)):
                return token_id
            token_id, logprobs = self.sampler.sample(seq, accepted, logits[i], matcher)
            if logprobs is not None:
                found.append(logprobs)
            return token_id

        token_ids = verify(seq.draft_ids, choose_next)
        return token_ids, found if params.logprobs is not None else None

    def _allows(self, matcher: Matcher, params: SamplingParams, token_id: int) -> bool:
        """Whether the likeliest token of all is in the grammar: then it is the likeliest that is, without a mask."""
        return not (params.ignore_eos and token_id in self.sampler.ends) and matcher.takes(token_id)

    def _prompt_logprobs(self, s: Slice, logits: FloatArray) -> list[TokenLogprobs]:
        """Row j speaks of the token at position end - num_logits + j + 1, as far as the prompt goes."""
        k = s.seq.request.params.prompt_logprobs or 0
        first = s.end - s.num_logits
        last = min(s.end, s.seq.num_prompt_tokens - 1)
        size = self.sampler.vocab_size
        return [logprobs_of(logits[p - first][:size], s.seq.token_ids[p + 1], k) for p in range(first, last)]
