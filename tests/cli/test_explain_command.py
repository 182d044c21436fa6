"""`legato explain` and `LLM.explain`: what is told adds up to the time on the wall's clock, alone and in company."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from legato import LLM, SamplingParams
from legato.completion import Completion
from legato.errors import UsageError
from legato.kernels.cpu import load_library

Run = Callable[..., Any]
STORY = "The lighthouse keeper climbed the stairs every evening at six, carrying a can of oil and a clean cloth. "


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_waterfall_and_advice_are_printed(run: Run, alphabet: Path) -> None:
    done = run("explain", "abcdefgh" * 8, "-m", alphabet, "--max-tokens", "20", "--ignore-eos")
    assert done.code == 0, done.err
    first, *lines = done.out.splitlines()
    assert first.startswith("20 tokens after ") and "the first after" in first
    for words in ("prompt, computed", "decode: reading weights", "unexplained", "ms a token", "what would save most"):
        assert any(line.startswith(words) for line in lines), words
    assert "no share of walls is told: the reference backend has none" in done.out and "\x1b" not in done.out


def test_without_a_cache_the_advice_is_to_have_one(run: Run, alphabet: Path) -> None:
    done = run("explain", "abcdefgh" * 8, "-m", alphabet, "--max-tokens", "40", "--ignore-eos", "--naive", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["summary"]["naive"] and "--naive" in told["advice"][0]["do"]
    assert not {a["kind"] for a in told["advice"]} & {"cached_prefix", "company", "kv_format"}


def test_a_machine_never_calibrated_is_told_how_to_mend_that(run: Run, alphabet: Path) -> None:
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    done = run("explain", "abc", "-m", alphabet, "--max-tokens", "4", "--backend", "native")
    [line] = [line for line in done.out.splitlines() if "never calibrated" in line]
    assert done.code == 0 and "run `legato calibrate`" in line


def test_a_first_ctrl_c_ends_it_as_one(
    run: Run, alphabet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("legato.cli.answer.interrupted", lambda completion: True)
    done = run("explain", "abc", "-m", alphabet, "--max-tokens", "4", "--report", tmp_path / "page.html", "--json")
    assert done.code == 130 and done.out == "" and not list(tmp_path.iterdir())


def test_the_json_is_one_object(run: Run, alphabet: Path) -> None:
    done = run("explain", "abc", "-m", alphabet, "--max-tokens", "6", "--ignore-eos", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert set(told) == {"steps", "summary", "advice"}
    assert told["summary"]["output_tokens"] == 6 and told["summary"]["machine"] is None
    assert sum(part["ms"] for part in told["summary"]["parts"]) == pytest.approx(told["summary"]["total_ms"], abs=1e-3)


def test_the_prompt_may_come_from_standard_input(run: Run, alphabet: Path) -> None:
    assert run("explain", "-", "-m", alphabet, "--max-tokens", "2", "--json", stdin=b"hello\n").code == 0


def test_a_report_and_a_record_are_written(run: Run, alphabet: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "told.html"
    done = run(
        "explain", "abc", "-m", alphabet, "--max-tokens", "9", "--ignore-eos", "--report", page, "--save", tmp_path
    )
    assert done.code == 0, done.err
    text = page.read_text()
    assert "decode: reading weights" in text and "most of it" in text
    record = json.loads(next(tmp_path.glob("explain_*.json")).read_text())
    assert record["what"] == "explain" and record["settings"]["summary"]["output_tokens"] == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", ""], "prompt"),
        (["explain", "a", "--report", "{here}/no/such/place.html"], "choose a place that can be written"),
        (["explain", "a", "--report", "{here}/page.pdf"], "FILE.html"),
        (["explain", "a", "--save", "{here}/no/such.json"], "choose a place that can be written"),
        (["explain", "a", "--raw", "--system", "b"], "--raw"),
        (["explain", "a", "--max-tokens", "0"], "max_tokens"),
        (["explain", "a", "--context", "3"], "raise --context (the model has 128)"),
    ],
)
def test_wrong_use_is_one_line(run: Run, alphabet: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(*[a.replace("{here}", str(tmp_path)) for a in arguments], "-m", alphabet)
    assert done.code == 2 and done.out == ""
    assert words in done.err and len([line for line in done.err.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_report_into_a_folder_that_forbids_it_is_refused(run: Run, alphabet: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run("explain", "a", "-m", alphabet, "--report", tmp_path / "a.html")
    tmp_path.chmod(0o700)
    assert done.code == 2 and "choose a place that can be written" in done.err


# -- from Python ------------------------------------------------------------------------------------------------------


def test_an_answer_of_any_call_can_be_explained(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    generated = llm.generate(["abc", "xyzabc"], params)
    for completion in (*generated, llm.chat([{"role": "user", "content": "hi"}], params)):
        told = llm.explain(completion)
        assert told.output_tokens == 5 and told.explained > 0.9
    assert llm.explain("abc", params).prompt_tokens == len(llm.tokenizer.encode("abc"))
    assert llm.explain([{"role": "user", "content": "hi"}], params).output_tokens == 5


def test_of_several_answers_the_last_to_end_is_explained(llm: LLM) -> None:
    [done] = llm.generate("abc", SamplingParams(max_tokens=40, ignore_eos=True, n=3, temperature=1.0, seed=1))
    told = llm.explain(done)
    assert told.total_ms >= done.timings.ttft_ms + done.timings.decode_ms - 1.0


def test_an_answer_that_a_stop_string_ends_is_over_then(llm: LLM) -> None:
    [plain] = llm.generate("abc", SamplingParams(max_tokens=30, ignore_eos=True))
    stop = plain.text[10]
    other = llm.stream("xyz", SamplingParams(max_tokens=90, ignore_eos=True))  # steps go on without it
    told = llm.explain("abc", SamplingParams(max_tokens=60, ignore_eos=True, stop=(stop,)))
    other.close()
    assert told.finish_reason == "stop" and told.output_tokens <= 30
    parts = {part.name: part.ms for part in told.parts}
    assert min(parts.values()) >= 0 and sum(parts.values()) == pytest.approx(told.total_ms)


def test_an_answer_in_the_middle_is_refused(llm: LLM) -> None:
    with llm.stream("abc", SamplingParams(max_tokens=50, ignore_eos=True)) as stream:
        next(stream)
        with pytest.raises(UsageError, match="has not ended"):
            llm.explain(stream.completion)
    assert llm.explain(stream.completion).finish_reason == "abort"


# -- the built-in model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(builtin_native: Path) -> Iterator[LLM]:
    with LLM(str(builtin_native), backend="native") as llm:
        llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=4))
        assert llm.digest
        yield llm


def timed(llm: LLM, text: str, tokens: int) -> tuple[Completion, float]:
    """An answer, and the milliseconds that a caller waited for it."""
    began = time.perf_counter()
    stream = llm.stream([{"role": "user", "content": text}], SamplingParams(max_tokens=tokens, ignore_eos=True))
    for _ in stream:
        pass
    waited = 1e3 * (time.perf_counter() - began)
    return stream.completion, waited


def check_sum(llm: LLM, completion: Completion, waited_ms: float) -> dict[str, float]:
    """What has a name is within 3 % of what the caller waited."""
    told = llm.explain(completion)
    parts = {part.name: part.ms for part in told.parts}
    named = sum(ms for name, ms in parts.items() if name != "unexplained")
    assert named == pytest.approx(waited_ms, rel=0.03), parts
    assert all(ms >= -1e-6 for ms in parts.values()), parts
    return parts


def test_alone_the_parts_add_up_to_the_wait(native: LLM) -> None:
    parts = check_sum(native, *timed(native, STORY * 20, 40))
    assert parts["others_prefill"] == parts["others_streams"] == parts["preempted"] == 0
    assert parts["prefill_computed"] > 0 and parts["weights"] > parts["kv"] > 0 and parts["template"] > 0


def test_in_company_they_do_too_and_others_prompts_have_their_name(native: LLM) -> None:
    streams = SamplingParams(max_tokens=400, ignore_eos=True)
    others = [native.stream(f"Story {i}: once upon a time", streams) for i in range(4)]
    for _ in range(6):
        others[0].advance()
    ids = native.tokenizer.encode("A log of the weather: " + STORY * 200)[:1500]
    long = native.stream(ids, SamplingParams(max_tokens=2), priority=1)  # it does not go before the one looked at
    try:
        parts = check_sum(native, *timed(native, "Where is the lamp?", 60))
        assert parts["others_prefill"] > parts["weights"] > 0, "most of it was the long prompt"
        assert parts["others_streams"] > 0 and parts["preempted"] == 0
    finally:
        for stream in (*others, long):
            stream.close()


def test_why_it_was_not_in_the_cache_is_told(native: LLM) -> None:
    asked = [{"role": "user", "content": STORY * 3 + "What did he carry?"}]
    params = SamplingParams(max_tokens=8)
    native.chat(asked, params)
    asked[0]["content"] = "No: " + asked[0]["content"]
    told = native.explain(asked, params)
    assert told.miss is not None and "differs from token" in told.miss
    again = native.explain(asked, params)
    assert again.cached_tokens > 0 and "cached_prefix" not in {a.kind for a in again.advice if a.share > 0.5}
