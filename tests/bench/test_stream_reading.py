"""One streamed answer, whatever its shape and wherever packets cut it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from fake_openai import DONE, chunk, event, usage
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.bench.link import LinkError, Origin
from legato.bench.reading import Reading
from legato.errors import UsageError


def read(data: bytes, cuts: list[int] | None = None, kind: str = "text/event-stream", status: int = 200) -> Reading:
    """The n-th packet comes at second n, from 1 on."""
    reading, places = Reading(), sorted({0, len(data), *(c % len(data) for c in cuts or ())})
    reading.head(status, kind)
    for second, (begin, end) in enumerate(pairwise(places), 1):
        reading.body(data[begin:end], float(second))
    reading.close()
    return reading


FINISH = chunk("", finish_reason="stop")
SHAPES = {
    "plain": (chunk("a") + chunk("b") + FINISH + usage(5, 2) + DONE, 2, 2, 5),
    "no usage": (chunk("a") + chunk("b") + FINISH + DONE, 2, None, None),
    "only done": (chunk("a") + DONE, 1, None, None),
    "no done": (chunk("a") + FINISH, 1, None, None),
    "text in the finish chunk": (chunk("a") + chunk("b", finish_reason="length") + DONE, 2, None, None),
    "usage counts up": (
        event({"choices": [{"text": "ab"}], "usage": {"completion_tokens": 2}}) + usage(3, 4) + DONE,
        1,
        4,
        3,
    ),
    "crlf": ((chunk("a") + FINISH + DONE).replace(b"\n", b"\r\n"), 1, None, None),
    "comments": (b": hello\n\n: keep-alive\n\n" + chunk("a") + b"event: ping\n\n" + FINISH, 1, None, None),
    "no space": ((chunk("a") + FINISH + DONE).replace(b"data: ", b"data:"), 1, None, None),
    "two data lines": (b'data: {"choices": [\ndata: {"text": "a"}]}\n\n' + DONE, 1, None, None),
    "no last empty line": ((chunk("a") + DONE).rstrip(b"\n"), 1, None, None),
    "thoughts": (event({"choices": [{"delta": {"reasoning_content": "hm"}}]}) + DONE, 1, None, None),
    "call": (event({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}) + DONE, 1, None, None),
    "role, nulls": (
        event({"choices": [{"delta": {"role": "assistant", "content": None}}]})
        + event({"choices": None, "usage": None})
        + event({"choices": [None, 3, {"delta": 3}]})
        + chunk("a")
        + DONE,
        1,
        None,
        None,
    ),
    "lone surrogate": (b'data: {"choices": [{"text": "\\ud83d"}]}\n\n' + DONE, 1, None, None),
    "silly usage": (event({"choices": [{"text": "a"}], "usage": {"completion_tokens": "many"}}) + DONE, 1, None, None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    data, stamps, tokens, prompt = SHAPES[name]
    for cuts in ([], list(range(len(data))), [7, 40]):
        found = read(data, cuts)
        assert (len(found.stamps), found.tokens, found.prompt_tokens) == (stamps, tokens, prompt)
        assert found.streamed and found.ended is not None and found.stamps == sorted(found.stamps)


@settings(derandomize=True, max_examples=60)
@given(st.sampled_from(sorted(SHAPES)), st.lists(st.integers(0, 2000), max_size=8))
def test_packets_cut_anywhere(name: str, cuts: list[int]) -> None:
    data, stamps, tokens, _ = SHAPES[name]
    found = read(data, cuts)
    assert (len(found.stamps), found.tokens) == (stamps, tokens)


def test_a_chunk_came_when_its_last_byte_did() -> None:
    first, rest = chunk("a"), chunk("b") + chunk("c") + DONE
    found = read(first + rest, [len(first) - 3, len(first) + 5])
    assert found.stamps == [2.0, 3.0, 3.0] and found.ended == 3.0


def test_an_answer_that_is_no_stream() -> None:
    told = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
    found = read(json.dumps(told).encode(), [10], "application/json")
    assert (found.streamed, len(found.stamps), found.tokens, found.finished) == (False, 1, 3, True)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (chunk("a"), "connection dropped", "without a finish reason after 1 chunks"),
        (b"data: nonsense\n\n", "not JSON", "nonsense"),
        (b"data: [1]\n\n", "not JSON", "[1]"),
        (chunk("a") + event({"error": {"message": "no\nmemory"}}), "error event", "no memory"),
        (event({"error": "plain words"}), "error event", "plain words"),
        (FINISH + DONE, "empty", "no text"),
    ],
)
def test_what_is_wrong_has_a_kind(data: bytes, kind: str, words: str) -> None:
    with pytest.raises(LinkError) as error:
        read(data)
    assert error.value.kind == kind and words in str(error.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "queue full"}}', "queue full"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "message": "bad"}', "bad"),
        (b"<html>\n<b>502 Bad Gateway</b>", "502 Bad Gateway"),
        (b"", "no reason given"),
    ],
)
def test_errors_keep_their_words(body: bytes, words: str) -> None:
    reading = Reading()
    reading.head(503, "application/json")
    reading.body(body, 1.0)
    with pytest.raises(LinkError, match=words) as error:
        reading.close()
    assert error.value.kind == "http 503"


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x?y=1", "http://[::", "http://me:word@x"],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match="--url") as refused:
        Origin.of(url)
    assert "me:word" not in str(refused.value)


def test_urls() -> None:
    assert Origin.of("http://h:1/v1/") == Origin("h", 1, False, "/v1")
    assert Origin.of("https://h").port == 443 and Origin.of("https://h").authority == "h"
    assert Origin.of("http://[::1]:80/").authority == "[::1]" and Origin.of("http://[::1]").local
