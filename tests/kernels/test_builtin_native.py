"""The native backend on the real model: near the float32 reference, and the same bits whatever the company."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from legato import LLM, SamplingParams

pytestmark = pytest.mark.slow

WINDOW, WINDOWS = 1040, 4
CONTEXT = 2048


@pytest.fixture(scope="module")
def windows(builtin_native: Path, english: str) -> list[list[int]]:
    with LLM(str(builtin_native), context=CONTEXT) as llm:
        ids = llm.tokenizer.encode(english[: 8 * WINDOW * WINDOWS])
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)]


class Reading:
    """What a backend says of each window: the next token's log-probability, and the likeliest token."""

    def __init__(self, model: Path, windows: list[list[int]], **settings: str) -> None:
        self.nll: list[float] = []
        self.best: list[int] = []
        with LLM(str(model), context=CONTEXT, **settings) as llm:
            for ids in windows:
                logits = llm.logits(ids)[:-1].astype(np.float64)
                top = logits.max(axis=1)
                log_total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
                self.nll += list(log_total - logits[np.arange(len(ids) - 1), ids[1:]])
                self.best += list(logits.argmax(axis=1))

    @property
    def perplexity(self) -> float:
        return math.exp(float(np.mean(self.nll)))

    def agreement(self, other: Reading) -> float:
        return float(np.mean(np.array(self.best) == np.array(other.best)))


def test_perplexity_and_likeliest_tokens_are_those_of_float32(builtin_native: Path, windows: list[list[int]]) -> None:
    """One test for two formats: what takes its time is the reference, and two workers would compute it twice."""
    reference = Reading(builtin_native, windows, backend="reference")
    assert len(reference.nll) > 4000
    for kv, least in (("bf16", 0.985), ("int8", 0.98)):
        native = Reading(builtin_native, windows, backend="native", kv=kv)
        said = f"{kv}: perplexity {native.perplexity:.4f} against {reference.perplexity:.4f}"
        print(f"{said}, the same likeliest token at {native.agreement(reference):.4%} of {len(native.nll)} positions")
        assert abs(native.perplexity / reference.perplexity - 1) < 0.003, said
        assert native.agreement(reference) >= least


@pytest.fixture
def prompts(windows: list[list[int]]) -> list[list[int]]:
    """Seven prompts of other lengths, the first of 300 tokens."""
    return [windows[i % WINDOWS][37 * i : 37 * i + length] for i, length in enumerate((300, 1, 17, 64, 129, 256, 411))]


def bits(llm: LLM, prompts: list[list[int]]) -> list[list[float]]:
    """Every log-probability, of prompt and answer; equal floats mean equal logits."""
    params = SamplingParams(max_tokens=6, logprobs=3, prompt_logprobs=3, ignore_eos=True)
    found = []
    for done in llm.generate(prompts, params):
        spoken = [*(done.prompt_logprobs or []), *(done.logprobs or [])]
        found.append([x for t in spoken if t is not None for x in (t.logprob, *(v for _, v in t.top))])
    return found


def test_a_batch_of_seven_changes_no_bit(builtin_native: Path, prompts: list[list[int]]) -> None:
    with LLM(str(builtin_native), context=CONTEXT) as llm:
        together = bits(llm, prompts)
        assert [bits(llm, [p])[0] for p in prompts] == together
    assert all(len(x) >= 4 * 6 for x in together)


@pytest.mark.parametrize("chunk", [1, 17, 64])
def test_chunks_of_the_prompt_change_no_bit(builtin_native: Path, prompts: list[list[int]], chunk: int) -> None:
    def logits(**settings: int) -> np.ndarray:
        with LLM(str(builtin_native), context=CONTEXT, **settings) as llm:
            return llm.logits(prompts[0])

    whole, cut = logits(), logits(max_step_tokens=chunk, max_seqs=1)
    assert whole.tobytes() == cut.tobytes()


def test_a_prefix_hit_and_the_number_of_threads_change_no_bit(builtin_native: Path, prompts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=8, logprobs=5, ignore_eos=True)
    seen = []
    for threads, again in itertools.product((1, 2), (False, True)):
        with LLM(str(builtin_native), context=CONTEXT, threads=threads) as llm:
            [done] = llm.generate([prompts[0]], params)
            if again:
                [done] = llm.generate([prompts[0]], params)
                assert done.timings.cached_tokens >= 288
            seen.append([(t.token_id, t.logprob, t.top) for t in done.logprobs or []])
    assert seen[0] and all(s == seen[0] for s in seen)
