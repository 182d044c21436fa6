"""curl, as a README shows it: an answer, a stream that arrives piece by piece, with a key and without one."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from installed import NAME, Served

TIMEOUT_S = 120


@pytest.fixture(scope="session")
def curl() -> str:
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed")
    return found


@pytest.fixture
def versioned(curl: str, record_property: Callable[[str, object], None]) -> str:
    said = subprocess.run([curl, "--version"], capture_output=True, text=True, check=True).stdout
    record_property("client", " ".join(said.split()[:2]))
    return curl


def chat(stream: bool, tokens: int = 16) -> str:
    messages = [{"role": "user", "content": "Count to five."}]
    body = {"model": NAME, "messages": messages, "stream": stream, "temperature": 0}
    return json.dumps(body | {"max_tokens": tokens, "ignore_eos": True})


def ask(curl: str, served: Served, *more: str, body: str) -> tuple[int, str]:
    """(status, body) of a chat."""
    form = ["-w", "\n%{http_code}", "-H", "content-type: application/json", "-d", body]
    done = subprocess.run(
        [curl, "-sS", f"{served.v1}/chat/completions", *form, *more],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    said, _, status = done.stdout.rpartition("\n")
    return int(status), said


def bearer(key: str) -> tuple[str, str]:
    return "-H", f"authorization: Bearer {key}"


def test_an_answer_without_keys(versioned: str, open_to_all: Served) -> None:
    status, said = ask(versioned, open_to_all, body=chat(stream=False))
    answer = json.loads(said)
    assert status == 200
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 16


def test_without_its_key_nothing_with_it_an_answer(versioned: str, keyed: Served) -> None:
    for refused in ((), bearer("k-for-somebody-else")):
        status, said = ask(versioned, keyed, *refused, body=chat(stream=False))
        assert status == 401
        assert json.loads(said)["error"]["message"]
    status, said = ask(versioned, keyed, *bearer(keyed.key), body=chat(stream=False))
    assert status == 200
    assert json.loads(said)["choices"][0]["finish_reason"] == "length"


def test_a_stream_arrives_as_it_is_made(versioned: str, open_to_all: Served) -> None:
    """`curl -N` shows the first word long before the last, and the pieces are the whole answer."""
    events, times = _streamed(versioned, open_to_all, chat(stream=True, tokens=96))
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event) for event in events[:-1]]
    text = "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
    _, whole = ask(versioned, open_to_all, body=chat(stream=False, tokens=96))
    assert text == json.loads(whole)["choices"][0]["message"]["content"]
    assert len(pieces) > 20
    assert times[1] < times[-1] / 2, "the first pieces waited for the last"


def _streamed(curl: str, served: Served, body: str) -> tuple[list[str], list[float]]:
    """The events' data, and after how many seconds each was there."""
    command = [curl, "-sSN", f"{served.v1}/chat/completions", "-H", "content-type: application/json", "-d", body]
    begun = time.monotonic()
    lines: list[Any] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((line.rstrip("\n"), time.monotonic() - begun))
        assert process.wait(TIMEOUT_S) == 0
    shown = [(line.removeprefix("data: "), at) for line, at in lines if line.startswith("data: ")]
    return [line for line, _ in shown], [at for _, at in shown]
