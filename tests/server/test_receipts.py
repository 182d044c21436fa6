"""What an answer tells of itself when asked: a receipt that replays, and why the prompt was not in the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import NAME, Live, Reply, alphabet_assembly, echo_assembly, running

from legato.llm import LLM
from legato.replay import Recorded, check_same_model, read_receipt, replay

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
SAMPLED = {"max_tokens": 12, "temperature": 1.3, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(alphabet: Path) -> Iterator[LLM]:
    with LLM(str(alphabet), backend="reference") as made:
        yield made


def ask(live: Live, path: str, body: dict[str, Any], stream: bool) -> dict[str, Any]:
    """The answer, or the chunk of a stream that carries what was asked for."""
    reply = live.post(path, body | {"stream": stream})
    assert reply.status == 200, reply.body
    if not stream:
        return dict(reply.json)
    chunks = [event for event in reply.events if event != "[DONE]"]
    assert all("receipt" not in chunk and "cache" not in chunk for chunk in chunks[:-1])
    return dict(chunks[-1])


def saved(folder: Path, receipt: dict[str, Any]) -> Recorded:
    path = folder / "receipt.json"
    path.write_text(json.dumps(receipt))
    return read_receipt(path)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt"), [(TEXT, {"prompt": "hijk"}), (CHAT, {"messages": [{"role": "user", "content": "abc"}]})]
)
@pytest.mark.parametrize(
    "more",
    [{}, {"n": 2, "seed": 7}, {"stop": ["q"], "temperature": 0}, {"logit_bias": {"100": 5}, "logprobs": None}],
    ids=str,
)
def test_the_receipt_of_an_answer_replays(
    letters: Live, llm: LLM, tmp_path: Path, path: str, prompt: dict[str, Any], stream: bool, more: dict[str, Any]
) -> None:
    answer = ask(letters, path, {**prompt, **SAMPLED, **more, "include": ["receipt"]}, stream)
    recorded = saved(tmp_path, answer["receipt"])
    check_same_model(recorded, llm.digest, "alphabet")
    assert len(recorded.answers) == more.get("n", 1) and recorded.num_tokens > 0
    assert recorded.receipt.context == letters.parts.engine.scheduler.limits.context_length
    assert replay(llm, recorded) is None
    recorded.answers[0][-1] ^= 1
    difference = replay(llm, recorded)
    assert difference is not None and difference.index == len(recorded.answers[0]) - 1


def test_the_receipt_of_an_answer_under_a_grammar_replays(letters: Live, llm: LLM, tmp_path: Path) -> None:
    body = {"prompt": "a", "structured_outputs": {"regex": "[x-z]{3,9}"}, "include": ["receipt"]}
    assert replay(llm, saved(tmp_path, ask(letters, TEXT, body, False)["receipt"])) is None


def test_several_prompts_have_a_receipt_each(letters: Live, llm: LLM, tmp_path: Path) -> None:
    body = {"prompt": ["ab", "xyz"], **SAMPLED, "include": ["receipt", "miss"]}
    answer = ask(letters, TEXT, body, False)
    first, second = answer["receipt"]
    assert (len(first["replay"]["prompt_ids"]), len(second["replay"]["prompt_ids"])) == (2, 3)
    assert len(answer["cache"]) == 2
    for each in (first, second):
        assert replay(llm, saved(tmp_path, each)) is None


def test_seeds_that_were_drawn_survive_any_json_reader(echo: Live) -> None:
    for _ in range(20):
        answer = ask(echo, TEXT, {"prompt": "a", "max_tokens": 1, "include": ["receipt"]}, False)
        assert 0 <= answer["receipt"]["receipt"]["seed"] < 1 << 53


def test_the_first_prompt_of_all_is_told_that_it_is_the_first(alphabet: Path) -> None:
    with running(alphabet_assembly(alphabet)) as fresh:
        said = ask(fresh, CHAT, {"messages": [{"role": "user", "content": "abc" * 9}], "include": ["miss"]}, False)
    assert said["cache"]["miss"]["cause"] == "new_text" and said["cache"]["miss"]["index"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_miss_is_explained(alphabet: Path, stream: bool) -> None:
    with running(alphabet_assembly(alphabet)) as live:
        text = "the capital of " + "a" * 80
        ask(live, TEXT, {"prompt": text, "max_tokens": 1}, False)
        other = text.replace("of a", "of b")
        cache = ask(live, TEXT, {"prompt": other, "max_tokens": 1, "include": ["miss"]}, stream)["cache"]
        assert cache["miss"]["cause"] == "different_text" and cache["miss"]["index"] == text.index("of a") + 3
        assert '"b", not "a"' in cache["miss"]["sentence"], cache
        again = ask(live, TEXT, {"prompt": text, "max_tokens": 1, "include": ["miss"]}, stream)
        assert again["cache"]["cached_tokens"] > 0 and "receipt" not in again


def test_nothing_is_told_unasked_and_nothing_of_other_keys(alphabet: Path, echo: Live) -> None:
    plain = echo.post(TEXT, {"prompt": "a", "max_tokens": 1}).json
    assert "receipt" not in plain and "cache" not in plain
    refused = echo.post(TEXT, {"prompt": "a", "include": ["reciept"]})
    assert refused.status == 400 and refused.error["param"] == "include"
    with running(echo_assembly(alphabet), api_keys=("sk-one-of-two", "sk-two-of-two")) as live:
        shared = live.post(TEXT, {"prompt": "a", "include": ["miss"]})
        assert shared.status == 400 and "several keys" in shared.error["message"]
        assert live.post(TEXT, {"prompt": "a", "max_tokens": 1, "include": ["receipt"]}).status == 200


SAID = [{"role": "user", "content": "abc"}]
OTHERS = {
    "/v1/responses": {"input": "abc", "max_output_tokens": 9},
    "/v1/messages": {"messages": SAID, "max_tokens": 9},
    "/api/chat": {"model": NAME, "messages": SAID, "options": {"num_predict": 9}},
    "/api/generate": {"model": NAME, "prompt": "abc", "options": {"num_predict": 9}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", OTHERS)
def test_other_protocols_tell_it_at_their_answers_end(
    letters: Live, llm: LLM, tmp_path: Path, path: str, stream: bool
) -> None:
    body = OTHERS[path] | {"stream": stream}
    reply = letters.post(path, body | {"include": ["receipt", "miss", "explain"]})
    assert reply.status == 200, reply.body
    told = last_of(path, reply, stream)
    assert replay(llm, saved(tmp_path, told["receipt"])) is None
    assert 0 <= told["cache"]["cached_tokens"] < len(told["receipt"]["replay"]["prompt_ids"])
    assert sum(step["tokens"] for step in told["explain"]["steps"]) == len(told["receipt"]["token_ids"]) > 0
    plain = last_of(path, letters.post(path, body), stream)
    assert not {"receipt", "cache", "explain"} & set(plain)
    wrong = letters.post(path, body | {"include": ["recipe"]})
    assert wrong.status == 400 and b"include" in wrong.body


def last_of(path: str, reply: Reply, stream: bool) -> dict[str, Any]:
    """Where an answer of this protocol says how it ended."""
    if not stream:
        return dict(reply.json)
    if path.startswith("/api/"):
        return dict(json.loads(reply.body.splitlines()[-1]))
    events = [json.loads(line[6:]) for line in reply.body.decode().splitlines() if line.startswith("data: ")]
    return dict(events[-1]["response"] if path == "/v1/responses" else events[-2])
