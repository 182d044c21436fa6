"""An engine in a process of its own gives the same answers, and the same words when it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apart import Apart, apart, echo_command, echo_text, tokenizer_of
from live import UNSPEAKABLE, Live, Reply

from legato.server.metrics import resident_bytes

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [True, None]}}}


@pytest.fixture(scope="module")
def far(alphabet: Path) -> Iterator[Apart]:
    """The alphabet, as `legato serve --engine-process` would run it."""
    with apart(alphabet) as made:
        yield made
        made.live.wait(made.idle, 2.0, "everything given back")


@pytest.fixture(scope="module")
def echo_far(alphabet: Path) -> Iterator[Apart]:
    with apart(alphabet, echo_command()) as made:
        yield made
        made.live.wait(made.idle, 2.0, "everything given back")


def comparable(reply: Reply) -> tuple[int, str]:
    """Without ids, times, and seeds that were drawn."""
    text = re.sub(r'"(id|request_id)":"[^"]*"', '"id":""', reply.body.decode())
    text = re.sub(r'"(created|created_at|[a-z_]+_ms|[a-z_]+_tok_s|seed)":("[^"]*"|-?[0-9.e+]+)', r'"\1":0', text)
    text = re.sub(r"about \d+ ms", "about 0 ms", text)
    return reply.status, re.sub(r'msg_[0-9a-f]+|resp_[0-9a-f]+|call_[0-9a-f]+|"[a-z_]+_duration":\d+', "", text)


ASKS: list[tuple[str, dict[str, Any]]] = [
    (TEXT, {"prompt": "abc", "max_tokens": 5, "temperature": 0}),
    (TEXT, {"prompt": "abc", "max_tokens": 5, "temperature": 0, "stream": True}),
    (TEXT, {"prompt": ["abc", "x"], "n": 2, "max_tokens": 5, "temperature": 2, "seed": 7, "logprobs": 3}),
    (TEXT, {"prompt": "hij", "max_tokens": 9, "stop": ["n"], "temperature": 0, "stream": True}),
    (TEXT, {"prompt": "hijk", "max_tokens": 3, "echo": True, "logprobs": 2, "temperature": 0}),
    (TEXT, {"prompt": "hijk", "max_tokens": 3, "logit_bias": {"100": 90}, "temperature": 0}),
    (TEXT, {"prompt": "a", "max_tokens": 4, "min_tokens": 2, "presence_penalty": 1.5, "seed": 3, "temperature": 1}),
    (TEXT, {"prompt": "a", "structured_outputs": {"regex": "[x-z]{3,9}"}, "temperature": 0}),
    (CHAT, {"messages": HELLO, "max_tokens": 3, "temperature": 0, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": HELLO, "max_tokens": 9, "temperature": 0, "response_format": SCHEMA}),
    (CHAT, {"messages": HELLO, "max_tokens": 3, "temperature": 0, "seed": 1, "include": ["receipt", "miss"]}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 16, "temperature": 0}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 3, "temperature": 0}),
    ("/api/chat", {"messages": HELLO, "stream": False, "options": {"temperature": 0, "num_predict": 3}}),
    ("/tokenize", {"prompt": "hello"}),
    # refused
    (TEXT, {"prompt": "a" * 500}),
    (TEXT, {"prompt": [99999]}),
    (TEXT, {"prompt": "a", "stop_token_ids": [70000]}),
    (TEXT, {"prompt": "a", "max_tokens": 5, "deadline_ms": 0.000001}),
    (TEXT, {"prompt": "a", "structured_outputs": {"regex": "(((("}}),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 7}}}),
    (TEXT, {"prompt": "a", "n": 99}),
    (TEXT, {"prompt": "a", "cache_salt": "#"}),
]


@pytest.mark.parametrize(("path", "body"), ASKS, ids=lambda value: json.dumps(value)[:60])
def test_answers_and_refusals_are_the_same(far: Apart, letters: Live, path: str, body: dict[str, Any]) -> None:
    there, here = far.live.post(path, body), letters.post(path, body)
    assert comparable(there) == comparable(here)
    assert there.headers.keys() == here.headers.keys()
    assert not UNSPEAKABLE.search(there.body.decode())


def test_figures_cross(far: Apart, letters: Live) -> None:
    far.live.post(TEXT, {"prompt": "abc", "max_tokens": 5})
    letters.post(TEXT, {"prompt": "abc", "max_tokens": 5})
    for path in ("/v1/engine/stats", "/v1/models"):
        there, here = far.live.ask("GET", path).json, letters.ask("GET", path).json
        assert there.keys() == here.keys()
    names = [
        {line.split("{")[0].split(" ")[0] for line in live.ask("GET", "/metrics").body.decode().splitlines()}
        for live in (far.live, letters)
    ]
    told = far.live.ask("GET", "/metrics").body.decode()
    memory = int(told.split("\nprocess_resident_memory_bytes ")[1].split()[0])
    engines, ours = resident_bytes(far.pid), resident_bytes()
    assert sys.platform != "linux" or (engines > 10e6 and abs(memory - engines - ours) < 0.1 * memory)
    measured = {"legato_wall_seconds_total", "legato_read_bytes_total"}  # there, and not for this fixture
    assert names[0] - measured == names[1]
    far.live.wait(lambda: far.live.stats()["total"]["output_tokens"] > 5, 2, "told")
    far.live.wait(lambda: far.live.stats()["wall"] is not None, 5, "the wall is measured in the child")


def shape(value: Any) -> Any:
    """What there is, without figures and words."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def test_explanations_cross(far: Apart, letters: Live) -> None:
    """What an answer is explained by is told by the engine, with its end."""
    body = {"prompt": "abc", "max_tokens": 9, "temperature": 0, "include": ["explain"]}
    there, here = far.live.post(TEXT, body).json["explain"], letters.post(TEXT, body).json["explain"]
    assert there["summary"] and there.keys() == here.keys() and shape(there["summary"]) == shape(here["summary"])


def test_answers_of_the_page_echo_model_are_exact(echo_far: Apart, alphabet: Path) -> None:
    tokenizer = tokenizer_of(alphabet)
    for seed in range(6):
        ids, params = [seed, 50, 60, 70] * 9, {"max_tokens": 30, "ignore_eos": True, "temperature": seed % 2}
        body = {"prompt": ids, "seed": seed, **params}
        text = echo_text(tokenizer, ids, seed=seed, **params)
        assert echo_far.live.post(TEXT, body).json["choices"][0]["text"] == text


def test_a_deadline_ends_an_answer_there(alphabet: Path) -> None:
    with apart(alphabet, echo_command(pace=0.02)) as made:
        body = {"prompt": [1], "max_tokens": 300, "ignore_eos": True, "deadline_ms": 300}
        reply = made.live.post(TEXT, body)
        assert reply.status == 429 or reply.json["choices"][0]["finish_reason"] == "length", reply.body
        made.live.wait(made.idle, 2, "everything given back")


def test_what_is_no_part_of_an_engine_is_not_loaded_with_it() -> None:
    code = (
        "import sys, legato.server.engine_child; sys.exit(any(m in sys.modules for m in ('uvicorn', 'rich', 'click')))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
