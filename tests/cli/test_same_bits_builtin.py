"""On the real model: computed, found, found again after eviction, restored from disk - the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from legato import LLM, Completion, SamplingParams
from legato.core.miss import MissCause

pytestmark = pytest.mark.slow

PARAMS = SamplingParams(max_tokens=12, logprobs=5, ignore_eos=True)
CONTEXT = 1024


def bits(done: Completion) -> object:
    return done.token_ids, done.logprobs


@pytest.mark.parametrize("kv", ["bf16", "int8", "int4"])
def test_miss_hit_evicted_and_restored_have_the_same_bits(
    builtin_native: Path, english: str, tmp_path: Path, kv: str
) -> None:
    def open_llm(threads: int = 2) -> LLM:
        return LLM(str(builtin_native), context=CONTEXT, kv=kv, kv_memory="14M", threads=threads, session_dir=tmp_path)

    with open_llm() as llm:
        ids = llm.tokenizer.encode(english[:3000])[:500]
        miss = llm.generate([ids], PARAMS)[0]
        hit = llm.generate([ids], PARAMS)[0]
        assert (miss.timings.cached_tokens, hit.timings.cached_tokens) == (0, 496)
        assert bits(hit) == bits(miss)
        info = llm.sessions.save("talk", miss)
        assert info.cached_tokens == 496 and info.problem is None

        others = llm.tokenizer.encode(english[3000:60_000])
        cache, start = llm.parts.engine.scheduler.cache, 0
        while start < cache.num_pages * cache.page_size:
            llm.generate([others[start : start + 400]], SamplingParams(max_tokens=1))
            start += 400
        after = llm.generate([ids], PARAMS)[0]
        assert after.miss is not None and after.miss.cause is MissCause.EVICTED
        assert after.miss.evicted_by is not None and after.miss.evicted_s is not None and after.miss.evicted_s > 0
        assert bits(after) == bits(miss)

    for threads in (1, 2):
        with open_llm(threads) as llm:
            restored = llm.sessions.restore("talk")
            assert (restored.loaded_tokens, restored.note) == (496, None)
            found = llm.generate([ids], PARAMS)[0]
            assert found.timings.cached_tokens == 496
            assert bits(found) == bits(miss)


def test_a_conversation_taken_up_again_says_what_it_would_have_said(builtin_native: Path, tmp_path: Path) -> None:
    turns = ["My name is Bo and I like boats.", "What do I like?", "Tell me more about them.", "And what is my name?"]
    params = SamplingParams(max_tokens=40, logprobs=2, temperature=0.7, seed=3)

    def talk(llm: LLM, messages: list[dict[str, str]], turn: str) -> Completion:
        done = llm.chat([*messages, {"role": "user", "content": turn}], params)
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": done.text}]
        return done

    messages: list[dict[str, str]] = []
    with LLM(str(builtin_native), context=CONTEXT) as llm:
        kept = [talk(llm, messages, turn) for turn in turns]
        assert all(done.timings.cached_tokens > 16 for done in kept[1:])
    for turn, expected in zip(turns, kept, strict=True):
        with LLM(str(builtin_native), context=CONTEXT, session_dir=tmp_path) as llm:
            known = "talk" in llm.sessions.folder
            so_far = [dict(m) for m in llm.sessions.restore("talk").messages] if known else []
            done = talk(llm, so_far, turn)
            assert bits(done) == bits(expected)
            assert done.timings.cached_tokens > 16 or not known
            llm.sessions.save("talk", done, messages=so_far)


@pytest.fixture
def say(builtin_native: Path) -> Callable[..., Completion]:
    def say(llm: LLM, system: str, user: str) -> Completion:
        return llm.chat([{"role": "system", "content": system}, {"role": "user", "content": user}], PARAMS)

    return say


def test_a_shared_system_prompt_is_found_and_the_miss_names_the_question(
    builtin_native: Path, say: Callable[..., Completion]
) -> None:
    system = "You are a careful assistant who answers in one short sentence and never makes things up at all."
    more = ", and how long has it been the seat of its government? Answer in one sentence."
    with LLM(str(builtin_native), context=CONTEXT) as llm:
        say(llm, system, "What is the capital of France" + more)
        second = say(llm, system, "What is the capital of Spain" + more)
        assert second.timings.cached_tokens >= 16 and second.miss is not None
        assert second.miss.cause is MissCause.TEXT
        assert (second.miss.text, second.miss.other_text) == (" Spain", " France")
        assert second.miss.before.endswith("the capital of")
        alone = LLM(str(builtin_native), context=CONTEXT)
        assert bits(say(alone, system, "What is the capital of Spain" + more)) == bits(second)
        alone.close()
