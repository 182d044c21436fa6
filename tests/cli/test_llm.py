"""The Python door, on a model that knows the alphabet."""

from __future__ import annotations

import gc
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from alphabet import CONTEXT, write_alphabet

from legato import LLM, Completion, SamplingParams
from legato.core.sequence import FinishReason
from legato.errors import CapacityError, LegatoError, OverloadedError, RequestError, UsageError
from legato.kernels.cpu import load_library

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONG = SamplingParams(ignore_eos=True)


def idle(llm: LLM) -> bool:
    """Nothing runs, waits, or holds a page."""
    while llm.parts.engine.has_work:
        llm.parts.engine.step()
    stats = llm.parts.engine.stats()
    return stats.num_running == stats.num_waiting == stats.kv.in_use == stats.num_leaks == 0


def test_a_text_is_continued_until_the_end_token(llm: LLM) -> None:
    [done] = llm.generate("a")
    assert done.text == LETTERS[1:]
    assert done.token_ids == [*LETTERS[1:].encode(), 256]
    assert (done.finish_reason, done.stop_reason, done.prompt_tokens) == (FinishReason.STOP, None, 1)


def test_prompts_of_all_kinds_run_together_as_they_would_alone(llm: LLM) -> None:
    prompts = ["a", "xy", [109, 110], "The cat", np.array([97, 98])]
    params = SamplingParams(max_tokens=9, temperature=1.0, seed=11)
    together = llm.generate(prompts, params)
    alone = [llm.generate(p, params)[0] for p in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert together[1].prompt_ids == [120, 121]


def test_each_prompt_may_have_its_own_params(llm: LLM) -> None:
    done = llm.generate(["a", "a"], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=3)])
    assert [c.text for c in done] == ["b", "bcd"]
    with pytest.raises(RequestError, match="params"):
        llm.generate(["a", "a"], [SamplingParams()])


def test_several_answers_share_a_prompt_and_differ(llm: LLM) -> None:
    [done] = llm.generate("a" * 40, SamplingParams(n=4, temperature=1.0, seed=5, max_tokens=12))
    assert [output.index for output in done.outputs] == [0, 1, 2, 3]
    assert len({tuple(output.token_ids) for output in done.outputs}) > 1
    assert done.num_output_tokens == 48
    assert idle(llm)


def test_a_seed_left_out_is_drawn_and_told_so_that_it_can_be_repeated(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True)
    first, second = llm.generate(["q", "q"], params)
    assert first.receipt.seed != second.receipt.seed
    again = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True, seed=first.receipt.seed)
    assert llm.generate("q", again)[0].token_ids == first.token_ids


def test_stop_strings_end_the_answer_and_the_computing(llm: LLM) -> None:
    before = llm.parts.engine.ledger.total.output_tokens
    [done] = llm.generate("a", SamplingParams(stop=("mn", "nop"), logprobs=1))
    assert (done.text, done.finish_reason, done.stop_reason) == ("bcdefghijkl", FinishReason.STOP, "mn")
    assert bytes(done.token_ids) == b"bcdefghijklmn"
    assert done.logprobs is not None and len(done.logprobs) == len(done.token_ids)
    assert llm.parts.engine.ledger.total.output_tokens - before <= len(done.token_ids) + 1
    assert idle(llm)


def test_a_stop_string_ends_only_the_answer_that_wrote_it(llm: LLM) -> None:
    params = SamplingParams(n=8, temperature=0.8, seed=2, max_tokens=12, ignore_eos=True, stop=("de",))
    [done] = llm.generate("a", params)
    assert {output.finish_reason for output in done.outputs} == {FinishReason.STOP, FinishReason.LENGTH}
    for output in done.outputs:
        assert "de" not in output.text
        assert (output.stop_reason == "de") == (output.finish_reason is FinishReason.STOP)


def test_a_stop_token_is_in_the_tokens_and_not_in_the_text(llm: LLM) -> None:
    [done] = llm.generate("a", SamplingParams(stop_token_ids=(101,)))
    assert (done.text, done.token_ids, done.stop_reason) == ("bcd", [98, 99, 100, 101], 101)


def test_logprobs_of_answer_and_prompt(llm: LLM) -> None:
    [done] = llm.generate("abc", SamplingParams(max_tokens=2, logprobs=2, prompt_logprobs=1))
    assert done.logprobs is not None and done.prompt_logprobs is not None
    assert [p.token_id for p in done.prompt_logprobs] == [98, 99]
    assert all(p.rank == 1 and p.top[0] == (p.token_id, p.logprob) for p in done.prompt_logprobs)
    assert [len(p.top) for p in done.logprobs] == [2, 2]


# -- streams --------------------------------------------------------------------------------------------------------


def test_deltas_together_are_the_answer(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=9, max_tokens=40, ignore_eos=True, stop=("never",))
    [whole] = llm.generate("a", params)
    with llm.stream("a", params) as stream:
        deltas = list(stream)
    assert "".join(d.text for d in deltas) == whole.text == stream.completion.text
    assert [t for d in deltas for t in d.token_ids] == whole.token_ids
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert stream.completion.timings.ttft_ms > 0


def test_a_character_is_never_broken(llm: LLM) -> None:
    bias = {0xC3: 100.0}
    pieces = [d.text for d in llm.stream("\xc2", SamplingParams(logit_bias=bias, max_tokens=1))]
    assert "".join(pieces) == "\ufffd"  # the first half of a character, told only at the end
    text = "".join(d.text for d in llm.stream([0xC3, 0xA8], SamplingParams(max_tokens=3)))
    assert text == "\ufffd" * 3  # lone continuation bytes


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_closing_a_stream_aborts_its_request(llm: LLM, steps: int) -> None:
    stream = llm.stream("a", LONG)
    taken = [next(stream) for _ in range(steps)]
    stream.close()
    stream.close()
    assert len(taken) == steps and stream.finished
    assert stream.completion.finish_reason is FinishReason.ABORT
    assert idle(llm)


def test_a_stream_that_nobody_holds_is_aborted(llm: LLM) -> None:
    for _delta in llm.stream("a", LONG):
        break
    gc.collect()
    assert idle(llm)


def test_streams_can_be_read_in_turn(llm: LLM) -> None:
    one, two = llm.stream("a", SamplingParams(max_tokens=6)), llm.stream("k", SamplingParams(max_tokens=6))
    pairs = [(x.text, y.text) for x, y in zip(one, two, strict=True)]
    assert pairs == list(zip("bcdefg", "lmnopq", strict=True))
    [between] = llm.generate("x")
    assert between.text == "yz"


def test_the_rest_goes_on_while_one_is_read(llm: LLM) -> None:
    with llm.stream("a", SamplingParams(max_tokens=8)) as stream:
        first = next(stream)
        [other] = llm.generate("x")
        rest = list(stream)
    assert other.text == "yz"
    assert first.text + "".join(d.text for d in rest) == "bcdefghi"


# -- conversations --------------------------------------------------------------------------------------------------


def test_a_conversation_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "hi there"}]
    ids = llm.render(messages)
    assert ids == [*b"S;", 257, *b"hi there", 258]
    done = llm.chat(messages, SamplingParams(max_tokens=3))
    assert isinstance(done, Completion) and done.text == "abc" and done.prompt_ids == ids
    assert "".join(d.text for d in llm.stream(messages, SamplingParams(max_tokens=3))) == "abc"


def test_the_next_turn_reuses_the_first(alphabet: Path) -> None:
    with LLM(str(alphabet), backend="reference") as llm:
        messages = [{"role": "user", "content": "once upon a time there was"}]
        first = llm.chat(messages)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and then?"}]
        second = llm.chat(messages)
    assert first.timings.cached_tokens == 0
    shared = len(first.prompt_ids) + len(first.token_ids)
    assert second.timings.cached_tokens >= shared // 16 * 16 - 16 > 0


def test_without_a_template_a_conversation_is_its_bare_text(tmp_path: Path) -> None:
    path = write_alphabet(tmp_path / "bare.gguf", template=False)
    with LLM(str(path), backend="reference") as llm:
        assert not llm.has_template
        assert llm.render([{"role": "user", "content": "ab"}]) == [97, 98]


# -- measures -------------------------------------------------------------------------------------------------------


def test_logits_predict_the_next_letter(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    logits = llm.logits(ids)
    assert logits.shape == (5, 259) and logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == [i + 1 for i in ids]
    assert idle(llm)


def test_perplexity_is_what_the_logits_say(llm: LLM) -> None:
    ids = llm.tokenizer.encode("abcxyzabcdefgh klm")
    total = 0.0
    for window in (ids[:10], ids[10:]):
        rows = llm.logits(window).astype(np.float64)
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        total -= sum(logs[i, t] for i, t in enumerate(window[1:]))
    found = llm.perplexity(ids, context=10)
    assert found.tokens == len(ids) - 2
    assert math.isclose(found.nll, total / found.tokens, rel_tol=1e-6)
    assert math.isclose(found.perplexity, math.exp(found.nll))


def test_perplexity_may_use_the_whole_context(llm: LLM) -> None:
    ids = [97 + i % 26 for i in range(3 * CONTEXT + 1)]
    assert llm.perplexity(ids, context=CONTEXT).tokens == 3 * (CONTEXT - 1)
    for context in (1, CONTEXT + 1):
        with pytest.raises(RequestError, match="context"):
            llm.perplexity(ids, context=context)


def test_receipts_and_timings_are_whole(llm: LLM, alphabet: Path) -> None:
    [done] = llm.generate("a" * 33, SamplingParams(max_tokens=5, seed=1))
    receipt, timings = done.receipt, done.timings
    assert (receipt.model, receipt.isa, receipt.kv, receipt.seed) == (alphabet.name, "numpy", "f32", 1)
    assert len(receipt.digest) == 32 and receipt.threads >= 1
    assert math.isclose(timings.ttft_ms, timings.queue_ms + timings.prefill_ms)
    assert math.isclose(timings.decode_tok_s, 4 / timings.decode_ms * 1e3)
    assert timings.prompt_tok_s > 0


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused_by_type_and_name(llm: LLM) -> None:
    cases: list[tuple[object, type[LegatoError], str]] = [
        ("", RequestError, "prompt"),
        ([], RequestError, "prompts"),
        ([[]], RequestError, "prompt"),
        (["a", ""], RequestError, "prompt"),
        (7, RequestError, "prompts"),
        ([{"a": 1}], RequestError, "prompt"),
        ([1.5], RequestError, "prompt"),
        ([True], RequestError, "prompt"),
        ([259], RequestError, "prompt_ids"),
        ([-1], RequestError, "prompt_ids"),
        ("a" * CONTEXT, CapacityError, "prompt"),
    ]
    for prompt, kind, name in cases:
        with pytest.raises(kind, match=name):
            llm.generate(prompt)  # type: ignore[arg-type]
    assert idle(llm)


def test_a_prompt_too_long_names_both_numbers(llm: LLM) -> None:
    with pytest.raises(CapacityError) as caught:
        llm.generate("a" * 500)
    assert "501" in str(caught.value) and str(CONTEXT) in str(caught.value)


def test_a_prompt_too_long_for_a_context_that_was_set_names_the_setting(
    alphabet: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CapacityError, match="use a model with a longer context"):
        llm.generate("a" * 500)
    with LLM(str(alphabet), backend="reference", context=10) as short:
        for asked in (short.generate, short.stream, lambda text: short.logits(short.tokenizer.encode(text))):
            with pytest.raises(CapacityError, match=rf"raise --context \(the model has {CONTEXT}\)"):
                asked("a" * 20)
    monkeypatch.setenv("LEGATO_CONTEXT", "10")
    with LLM(str(alphabet), backend="reference") as short, pytest.raises(CapacityError, match="raise LEGATO_CONTEXT"):
        short.generate("a" * 20)


def test_windows_that_the_cache_does_not_hold_may_be_shorter(alphabet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(str(alphabet), backend="reference") as model:
        monkeypatch.setattr(model.parts.engine.scheduler.cache, "grow", lambda seq, tokens: False)
        with pytest.raises(CapacityError, match="shorter windows with --context, or give more memory with --kv-memory"):
            model.perplexity([1, 2, 3])


def test_one_bad_prompt_leaves_nothing_of_the_others(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate(["fine", [9999]])
    assert idle(llm)


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"content": "x"}], "text", [3]])
def test_bad_messages(llm: LLM, messages: object) -> None:
    with pytest.raises(RequestError, match="messages"):
        llm.chat(messages)  # type: ignore[arg-type]


def test_a_bias_outside_the_vocabulary(llm: LLM) -> None:
    with pytest.raises(RequestError, match="logit_bias"):
        llm.generate("a", SamplingParams(logit_bias={4000: 1.0}))


def test_a_closed_model_says_so(alphabet: Path) -> None:
    llm = LLM(str(alphabet), backend="reference")
    stream = llm.stream("a")
    llm.close()
    llm.close()
    with pytest.raises(UsageError, match="closed"):
        llm.generate("a")
    with pytest.raises(UsageError, match="closed"):
        next(stream)
    stream.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "reference", "kv": "int8"}, "kv=int8"),
        ({"context": 4 * CONTEXT}, str(CONTEXT)),
        ({"kv_memory": "900T"}, "kv_memory"),
        ({"colour": "never"}, "did you mean color"),
    ],
)
def test_settings_that_cannot_be_met(alphabet: Path, settings: dict[str, str], said: str) -> None:
    with pytest.raises(LegatoError, match=said):
        LLM(str(alphabet), **{"backend": "reference", **settings})


def test_naive_decoding_gives_the_same_answer(alphabet: Path, llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=4)
    with LLM(str(alphabet), backend="reference", naive=True) as naive:
        slow = naive.generate("abc", params)[0]
        assert naive.parts.engine.ledger.total.prompt_tokens > 100
    assert slow.token_ids == llm.generate("abc", params)[0].token_ids


@pytest.mark.parametrize("kv", ["int8", "bf16", "int4"])
def test_the_native_backend_writes_the_same(alphabet: Path, llm: LLM, kv: str) -> None:
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    params = SamplingParams(max_tokens=6, n=2, temperature=1.0, seed=8)
    with LLM(str(alphabet), backend="native", kv=kv, threads=1) as native:
        [done] = native.generate("abc", params)
        assert done.receipt.kv == kv and done.receipt.threads == 1
    assert [o.token_ids for o in done.outputs] == [o.token_ids for o in llm.generate("abc", params)[0].outputs]


def test_ctrl_c_waits_for_the_step_to_end(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    run, steps = llm.parts.runner.run, 0

    def interrupted(plan: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGINT)
        return run(plan)  # type: ignore[arg-type]

    monkeypatch.setattr(llm.parts.runner, "run", interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        llm.generate("a", LONG)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert idle(llm) and llm.generate("x")[0].text == "yz"


def test_salts_keep_prefixes_apart_and_deadlines_are_kept(llm: LLM) -> None:
    text = [list(range(97, 123)) * 3]
    few = SamplingParams(max_tokens=2)
    [first], [other], [again] = (llm.generate(text, few, salt=salt) for salt in ("ada", "bob", "ada"))
    assert (first.timings.cached_tokens, other.timings.cached_tokens) == (0, 0) and again.timings.cached_tokens > 0
    with pytest.raises(OverloadedError, match="cannot be met"):
        llm.generate("a", LONG, deadline_ms=0.001)
    with pytest.raises(RequestError, match="deadline_ms=-1"):
        llm.stream("a", deadline_ms=-1)
    with pytest.raises(RequestError, match="priority"):
        llm.generate("a", priority=2**40)
    assert idle(llm)
