"""A stream tells what the whole answer tells: the last tokens, the prompt's own, why it ended, what was cached."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live import Live
from scripted import result_of, scripted_stream

from legato.completion import Delta
from legato.core.sequence import FinishReason
from legato.server.protocols.openai.chat import ChatEncoder, ChatView
from legato.server.reading import Part
from legato.text.tools import ToolUse
from legato.text.tools_parser import CallArguments, CallBegun

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def both(live: Live, path: str, body: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The whole answer, and the chunks of the same one streamed."""
    return live.post(path, body).json, live.post(path, body | {"stream": True}).events[:-1]


def test_the_last_tokens_of_an_answer_with_tools_are_told(letters: Live) -> None:
    """The end token has no text, and no part of the answer to come with."""
    body = {"messages": HELLO, "tools": [TOOL], "truncate_prompt_tokens": 20, "logit_bias": {"256": 100}}
    whole, chunks = both(letters, CHAT, body | {"logprobs": True, "return_token_ids": True})
    choice, streamed = whole["choices"][0], [c for e in chunks for c in e["choices"]]
    assert choice["token_ids"] == [256]
    assert [i for c in streamed for i in c.get("token_ids", ())] == choice["token_ids"]
    told = [t for c in streamed if c.get("logprobs") for t in c["logprobs"]["content"]]
    assert told == choice["logprobs"]["content"]


@pytest.mark.parametrize("path, prompt", [(CHAT, {"messages": HELLO}), (TEXT, {"prompt": "abc"})])
def test_what_was_asked_of_the_prompt_stands_in_the_first_chunk(letters: Live, path: str, prompt: Any) -> None:
    body = {**prompt, "temperature": 0, "max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": True}
    whole, chunks = both(letters, path, body)
    for name in ("prompt_token_ids", "prompt_logprobs"):
        if path == CHAT:
            assert chunks[0][name] == whole[name] and not any(name in e for e in chunks[1:])
        else:
            first, *rest = [e["choices"][0] for e in chunks]
            assert first[name] == whole["choices"][0][name] and not any(name in c for c in rest)


def test_an_echo_shows_control_tokens_where_they_are_asked_for(letters: Live) -> None:
    body = {"prompt": [97, 256, 98], "echo": True, "skip_special_tokens": False, "logprobs": 0, "max_tokens": 1}
    choice = letters.post(TEXT, body | {"temperature": 0}).json["choices"][0]
    assert choice["text"] == "a<|end|>bc" and choice["logprobs"]["text_offset"] == [0, 1, 8, 9]


@pytest.mark.parametrize("skip, step", [(False, 7), (True, 0)])
def test_offsets_count_control_tokens_that_are_shown(letters: Live, skip: bool, step: int) -> None:
    body = {"prompt": "a", "logit_bias": {"256": 100}, "ignore_eos": True, "logprobs": 0, "max_tokens": 4}
    choice = letters.post(TEXT, body | {"skip_special_tokens": skip}).json["choices"][0]
    assert choice["logprobs"]["text_offset"] == [step * i for i in range(4)]
    assert choice["text"] == ("" if skip else "<|end|>" * 4)


def test_a_token_that_is_not_shown_does_not_end_an_echo(letters: Live) -> None:
    body = {"prompt": "ab", "echo": True, "max_tokens": 0, "logit_bias": {"256": 100}}
    whole, chunks = both(letters, TEXT, body)
    assert whole["choices"][0]["finish_reason"] == "length" == chunks[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("path, prompt", [(CHAT, {"messages": HELLO * 8}), (TEXT, {"prompt": "abcdefgh" * 6})])
def test_the_last_chunk_counts_what_was_cached(letters: Live, path: str, prompt: Any) -> None:
    body = {**prompt, "temperature": 0, "max_tokens": 2}
    letters.post(path, body)
    options = {"stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    told = [e["usage"]["prompt_tokens_details"]["cached_tokens"] for e in both(letters, path, body | options)[1]]
    assert told[-1] == told[-2] > 0


@pytest.mark.parametrize("arguments, reason", [('{"a": 1, ', "stop"), ('{"a": 1}', "tool_calls")])
def test_only_a_whole_call_is_the_reason(arguments: str, reason: str) -> None:
    parts: list[list[Part]] = [[CallBegun(0, "call_1", "f")], [CallArguments(0, arguments)]]
    stream: Any = scripted_stream(parts)
    stream.ask = type(stream.ask)(stream.ask.prompts, stream.ask.params, tools=ToolUse((), "required"))
    stream.idle_since = 0.0
    made = stream.reader

    def reader(prompt: int = 0) -> Any:
        found = made(prompt)
        found.needed, found.count_thought = True, lambda counted: None
        return found

    stream.reader = reader
    encoder = ChatEncoder(stream, ChatView())
    out = encoder.begin()
    out += encoder.deltas([Delta("x", [0]), Delta("x", [1], 0, FinishReason.STOP, '"s"')])
    out += encoder.end(result_of(parts))
    ends = [json.loads(line[6:]) for line in out.decode().split("\n\n") if line.startswith("data: {")]
    assert ends[-1]["choices"][0]["finish_reason"] == reason
    whole = json.loads(ChatEncoder(stream, ChatView()).whole(result_of(parts)))
    assert whole["choices"][0]["finish_reason"] == reason
