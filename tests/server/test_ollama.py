"""Ollama's protocol: its lines, its fields, its own client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from live import NAME, Live, alphabet_assembly, running
from scripted import TURN, check_golden, result_of, scripted_stream, streamed

from legato.server.problems import Problem
from legato.server.protocols.ollama import LineEncoder

CHAT, GENERATE = "/api/chat", "/api/generate"
HELLO = [{"role": "user", "content": "hello"}]
COLD = {"temperature": 0, "num_predict": 3}
ASK: dict[str, Any] = {"model": NAME, "messages": HELLO, "options": COLD}
SCHEMA = {"type": "object", "properties": {"on": {"enum": [True]}}, "required": ["on"], "additionalProperties": False}
SWITCH = {"type": "function", "function": {"name": "switch", "description": "turns it", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    from alphabet import write_alphabet

    path: Path = write_alphabet(tmp_path_factory.mktemp("long") / "alphabet.gguf", context=2048)
    with running(alphabet_assembly(path)) as live:
        yield live


def timeless(data: bytes) -> bytes:
    """Durations replaced."""
    return re.sub(rb'("[a-z_]+_duration"):\d+', rb"\1:0", data)


def lines(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_the_lines_of_a_chat(letters: Live) -> None:
    reply = letters.post(CHAT, ASK)
    assert reply.headers["content-type"] == "application/x-ndjson"
    check_golden("ollama_chat.ndjson", timeless(reply.body))


def test_the_lines_of_a_generation(letters: Live) -> None:
    check_golden("ollama_generate.ndjson", timeless(letters.post(GENERATE, ASK_TEXT).body))
    whole = letters.post(GENERATE, {**ASK_TEXT, "stream": False})
    assert whole.headers["content-type"] == "application/json" and whole.json["response"] == "abc"


ASK_TEXT = {"model": NAME, "prompt": "hello", "options": COLD}


def test_the_lines_of_thoughts_text_and_calls() -> None:
    check_golden("ollama_turn.ndjson", streamed(LineEncoder(NAME, scripted_stream(TURN), True), TURN))
    whole = lines(LineEncoder(NAME, scripted_stream(TURN), True).whole(result_of(TURN)))[0]["message"]
    assert (whole["thinking"], whole["content"]) == ("Hm, weather.", 'Let me look "it" up.\n')
    assert [call["function"] for call in whole["tool_calls"]] == [
        {"name": "weather", "arguments": {"city": "Paris"}},
        {"name": "clock", "arguments": {}},
    ]


def test_durations_are_nanoseconds(letters: Live) -> None:
    last = lines(letters.post(CHAT, ASK).body)[-1]
    assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"] > 100_000
    scripted = lines(streamed(LineEncoder(NAME, scripted_stream(TURN), True), TURN))[-1]
    assert scripted["prompt_eval_duration"] == 20_000_000 and scripted["eval_duration"] == 50_000_000
    assert scripted["total_duration"] == 71_000_000 and scripted["prompt_eval_count"] == 12


def test_a_fault_in_mid_stream() -> None:
    encoder = LineEncoder(NAME, scripted_stream(TURN), True)
    assert encoder.failed(Problem(500, "the engine ended")) == b'{"error":"the engine ended"}\n'


# -- fields -----------------------------------------------------------------------------------------------------------


def test_formats_are_kept_to(letters: Live) -> None:
    body = {**ASK, "options": {"temperature": 0, "num_predict": 300}, "stream": False}
    reply = letters.post(CHAT, {**body, "format": SCHEMA})
    assert json.loads(reply.json["message"]["content"]) == {"on": True}


def test_options_do_what_they_say(letters: Live) -> None:
    def answer(**options: Any) -> dict[str, Any]:
        body = {**ASK, "stream": False, "options": {"temperature": 0, **options}}
        found: dict[str, Any] = letters.post(CHAT, body).json
        return found

    assert answer(stop=["de"])["message"]["content"] == "abc" and answer(stop=["de"])["done_reason"] == "stop"
    assert answer(num_predict=2)["done_reason"] == "length" and answer(num_predict=-1)["eval_count"] == 27
    assert answer(num_predict=None)["eval_count"] == 27
    assert answer(num_predict=2, num_ctx=8192, num_gpu=0, mirostat=0, typical_p=1.0)["eval_count"] == 2
    assert answer(num_predict=4, repeat_penalty=100.0, repeat_last_n=-1)["eval_count"] == 4


def test_what_does_nothing_here_is_named(letters: Live) -> None:
    reply = letters.post(CHAT, {**ASK, "keep_alive": "5m", "options": {**COLD, "num_ctx": 4096, "num_thread": 4}})
    assert set(reply.headers["x-ignored-params"].split(",")) == {"keep_alive", "options.num_ctx", "options.num_thread"}


def test_logprobs_come_with_their_tokens(letters: Live) -> None:
    for stream in (True, False):
        body = letters.post(CHAT, {**ASK, "logprobs": True, "top_logprobs": 2, "stream": stream}).body
        found = lines(body)
        tokens = [entry for line in found for entry in line.get("logprobs", ())]
        assert [entry["token"] for entry in tokens] == ["a", "b", "c"]
        assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in tokens)


def test_a_raw_prompt_is_taken_as_it_is(letters: Live) -> None:
    body = {**ASK_TEXT, "prompt": "mn", "raw": True, "stream": False}
    reply = letters.post(GENERATE, body).json
    assert reply["response"] == "opq" and reply["prompt_eval_count"] == 2


def test_asking_for_nothing_asks_whether_the_model_is_loaded(letters: Live) -> None:
    for path, body in ((CHAT, {"model": NAME}), (GENERATE, {"model": NAME, "prompt": "", "keep_alive": 0})):
        reply = letters.post(path, body)
        assert reply.status == 200 and reply.json["done_reason"] == "load" and reply.json["done"]
        assert letters.post(path, {**body, "model": "llama3"}).status == 404


def test_a_whole_turn_of_tools(letters: Live) -> None:
    turns = [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "switch", "arguments": {"on": True}}}],
        },
        {"role": "tool", "tool_name": "switch", "content": "it is"},
    ]
    reply = letters.post(CHAT, {**ASK, "messages": turns, "tools": [SWITCH], "stream": False})
    assert reply.status == 200 and reply.json["message"]["role"] == "assistant"


BAD: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"model": 1}, "model"),
    (CHAT, {"options": {"mirostat": 2}}, "options.mirostat"),
    (CHAT, {"options": {"tfs_z": 0.5}}, "options.tfs_z"),
    (CHAT, {"options": {"num_predict": 0}}, "options.num_predict"),
    (CHAT, {"options": {"num_predict": "3"}}, "options.num_predict"),
    (CHAT, {"options": {"temperature": -1}}, "options.temperature"),
    (CHAT, {"options": {"temperature": True}}, "options.temperature"),
    (CHAT, {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
    (CHAT, {"options": {"temprature": 1}}, "options.temprature"),
    (CHAT, {"format": "xml"}, "format"),
    (CHAT, {"format": {"if": {}}}, "format"),
    (CHAT, {"think": True}, "think"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"),
    (GENERATE, {"prompt": "x", "messages": None, "suffix": "y"}, "suffix"),
    (GENERATE, {"prompt": "x", "messages": None, "context": [1, 2]}, "context"),
    (GENERATE, {"prompt": "x", "messages": None, "template": "{{ .Prompt }}"}, "template"),
    (GENERATE, {"prompt": "x", "messages": None, "raw": True, "system": "y"}, "system"),
]


@pytest.mark.parametrize("path, change, named", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_refused_is_refused_by_name(letters: Live, path: str, change: dict[str, Any], named: str) -> None:
    reply = letters.post(path, {k: v for k, v in (ASK | change).items() if v is not None})
    assert reply.status == 400, reply.body
    assert list(reply.json) == ["error"] and named in reply.json["error"], reply.json


def test_embeddings_are_said_not_to_be_there(letters: Live) -> None:
    for path in ("/api/embed", "/api/embeddings"):
        reply = letters.post(path, {"model": NAME, "input": "x"})
        assert reply.status == 501 and "embeddings" in reply.json["error"]


# -- Ollama's own client ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(letters: Live) -> ollama.Client:
    return ollama.Client(host=letters.url)


def test_the_client_lists_and_shows(client: ollama.Client, letters: Live) -> None:
    (model,) = client.list().models
    assert model.model == NAME and model.size and model.details is not None and model.details.family == "llama"
    shown = client.show(NAME)
    assert shown.capabilities == ["completion", "tools"] and shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 2048
    (loaded,) = client.ps().models
    assert loaded.model == NAME and loaded.context_length == 2048
    assert re.fullmatch(r"\d+\.\d+\.\d+", letters.ask("GET", "/api/version").json["version"])


def test_the_client_chats_and_generates(client: ollama.Client) -> None:
    parts = list(client.chat(model=NAME, messages=HELLO, options=COLD, stream=True))
    assert [part.message.content for part in parts] == ["a", "b", "c", ""] and parts[-1].done_reason == "length"
    whole = client.chat(model=f"{NAME}:latest", messages=HELLO, options=COLD)
    assert whole.message.content == "abc" and whole.eval_count == 3 and (whole.total_duration or 0) > 0
    assert client.generate(model=NAME, prompt="hello", options=COLD).response == "abc"


def test_the_client_sees_calls_and_errors(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="llama3", messages=HELLO)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="embeddings"):
        client.embed(model=NAME, input="x")
    read = [
        ollama.ChatResponse(**line) for line in lines(streamed(LineEncoder(NAME, scripted_stream(TURN), True), TURN))
    ]
    calls = [call.function for part in read for call in part.message.tool_calls or ()]
    assert [(call.name, dict(call.arguments)) for call in calls] == [("weather", {"city": "Paris"}), ("clock", {})]
