"""Anthropic's protocol: its bytes, its fields, its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from live import NAME, Live, alphabet_assembly, running
from scripted import TURN, check_golden, result_of, scripted_stream, streamed

from legato.core.sequence import FinishReason
from legato.server.problems import Problem
from legato.server.protocols.anthropic import MessageEncoder
from legato.server.protocols.turns import arguments_of
from legato.server.service import prompt_ids

PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "hello"}]
ASK = {"model": NAME, "max_tokens": 3, "messages": HELLO, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"on": {"enum": [True]}}, "required": ["on"], "additionalProperties": False}
COLD = {"temperature": 0}
SWITCH = {"name": "switch", "description": "turns it", "input_schema": SCHEMA}


@pytest.fixture(scope="module")
def letters(alphabet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    from alphabet import write_alphabet

    path = write_alphabet(tmp_path_factory.mktemp("long") / "alphabet.gguf", context=2048)
    with running(alphabet_assembly(path)) as live:
        yield live


def rendered(live: Live, body: dict[str, Any]) -> str:
    """The prompt that a body becomes."""
    from legato.server.protocols.anthropic_parse import parse_body

    _, ask = parse_body(json.dumps({"max_tokens": 1} | body).encode(), live.server.service)
    model = live.server.service.model
    return model.tokenizer.decode(prompt_ids(model, ask.prompts[0]), skip_special=False)


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_streamed_text(letters: Live) -> None:
    reply = letters.post(PATH, {**ASK, "stream": True})
    check_golden("anthropic_text.sse", reply.body)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_the_bytes_of_a_whole_text(letters: Live) -> None:
    reply = letters.post(PATH, ASK)
    check_golden("anthropic_text.json", reply.body)
    assert float(reply.headers["x-engine-ttft-ms"]) > 0


def test_the_bytes_of_thoughts_text_and_calls() -> None:
    encoder = MessageEncoder(scripted_stream(TURN), 50)
    check_golden("anthropic_turn.sse", streamed(encoder, TURN))
    whole = MessageEncoder(scripted_stream(TURN), 50).whole(result_of(TURN))
    check_golden("anthropic_turn.json", whole)


def test_every_event_has_its_name(letters: Live) -> None:
    for event in letters.post(PATH, {**ASK, "stream": True}).body.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]


def test_a_fault_in_mid_stream() -> None:
    encoder = MessageEncoder(scripted_stream(TURN), 50)
    last = encoder.begin() + encoder.failed(Problem(500, "the engine ended"))
    assert last.endswith(
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"the engine ended"}}\n\n'
    )
    assert encoder.ping == b'event: ping\ndata: {"type":"ping"}\n\n'


# -- fields -----------------------------------------------------------------------------------------------------------


def test_why_it_stopped(letters: Live) -> None:
    assert letters.post(PATH, ASK).json["stop_reason"] == "max_tokens"
    reply = letters.post(PATH, {**ASK, "max_tokens": 30, "stop_sequences": ["fg"]}).json
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", "fg")
    assert reply["content"] == [{"type": "text", "text": "abcde"}]
    assert letters.post(PATH, {**ASK, "max_tokens": 30}).json["stop_reason"] == "end_turn"
    cut = MessageEncoder(scripted_stream(TURN), 50).whole(result_of(TURN, FinishReason.LENGTH))
    assert json.loads(cut)["stop_reason"] == "model_context_window_exceeded"


def test_system_prompts_are_text_or_blocks_and_lose_the_line_that_changes_with_every_request(letters: Live) -> None:
    plain = rendered(letters, {"messages": HELLO, "system": "Be brief."})
    assert plain == "Be brief.;<|user|>hello<|answer|>"
    line = "x-anthropic-billing-header: cc_version=2.1; cch=%s;"
    blocks = [{"type": "text", "text": line % "a1"}, {"type": "text", "text": "Be brief.", "cache_control": {}}]
    assert rendered(letters, {"messages": HELLO, "system": blocks}) == plain
    assert rendered(letters, {"messages": HELLO, "system": line % "b2" + "\nBe brief."}) == plain
    said = [{"role": "user", "content": line % "c3"}]
    assert "billing" in rendered(letters, {"messages": said})  # what a person says is left alone


def test_requests_with_another_billing_line_find_their_prefix(letters: Live) -> None:
    system = "Answer in letters. " * 8
    cached = []
    for value in ("aaaa", "bbbb"):
        body = {**ASK, "system": f"x-anthropic-billing-header: cch={value};\n{system}"}
        cached.append(letters.post(PATH, body).json["usage"]["cache_read_input_tokens"])
    assert cached[1] > 100 > cached[0]


def test_a_whole_turn_of_tools(letters: Live) -> None:
    turns = [
        {"role": "user", "content": "on?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "ok"},
                {"type": "tool_use", "id": "toolu_1", "name": "switch", "input": {"on": True}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "it is"}]},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    reply = letters.post(PATH, {**ASK, "messages": turns, "tools": [SWITCH]})
    assert reply.status == 200, reply.body
    failed = [*turns[:2], {"role": "user", "content": [{**turns[2]["content"][0], "is_error": True}]}]  # type: ignore[dict-item]
    assert letters.post(PATH, {**ASK, "messages": failed, "tools": [SWITCH]}).status == 200
    count = letters.post(PATH + "/count_tokens", {"messages": turns, "model": NAME, "tools": [SWITCH]}).json
    usage = reply.json["usage"]
    assert count["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"] > 300


def test_a_document_brings_its_title_and_what_is_said_of_it(letters: Live) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Once."}
    block = {"type": "document", "source": source, "title": "Tale", "context": "Very old.", "citations": None}
    for change, text in (
        ({}, "Tale\nVery old.\nOnce."),
        ({"title": None, "citations": {"enabled": False}}, "Very old.\nOnce."),
        ({"title": "", "context": None}, "Once."),
    ):
        messages = [{"role": "user", "content": [{**block, **change}]}]
        assert rendered(letters, {"messages": messages}) == f"<|user|>{text}<|answer|>"
    for wrong in ({"citations": {"enabled": True}}, {"context": 5}, {"title": ["x"]}):
        reply = letters.post(PATH, {**ASK, "messages": [{"role": "user", "content": [{**block, **wrong}]}]})
        assert reply.status == 400 and f"content[0].{next(iter(wrong))}" in reply.json["error"]["message"], reply.body


CUT: list[tuple[str, dict[str, Any]]] = [
    ('{"city": "Paris', {"city": "Paris"}),
    ('{"city": "Paris"', {"city": "Paris"}),
    ('{"city": "Paris", "un', {"city": "Paris"}),
    ('{"city": "Paris", "unit": ', {"city": "Paris"}),
    ('{"city": "Paris", "days": 1', {"city": "Paris"}),
    ('{"days": 1, "sure": tru', {"days": 1}),
    ('{"days": 1 ', {}),
    ('{"a": {"b": [1, "x", "y', {"a": {"b": [1, "x", "y"]}}),
    ('{"a": {"b": 1}, "c": [{"d": 2}', {"a": {"b": 1}, "c": [{"d": 2}]}),
    ('{"a": [1, 2', {"a": [1]}),
    ('{"a": "{x: [1, ', {"a": "{x: [1, "}),
    ('{"a": "b\\\\', {"a": "b\\"}),
    ('{"a": "b\\', {"a": "b"}),
    ('{"a": "b\\"', {"a": 'b"'}),
    ('{"a": "b\\u00', {"a": "b"}),
    ('{"a": "b\\u00e9', {"a": "b\u00e9"}),
    ('{"a": "b\\ud83d', {"a": "b"}),
    ('{"a": "b\\ud83d\\ude0', {"a": "b"}),
    ('{"a": "b\\ud83d\\ude00', {"a": "b\U0001f600"}),
    ('{"a": "two\nlines', {"a": "two\nlines"}),
    ("{", {}),
    ("", {}),
    ('{"', {}),
    ("no object", {}),
    ("{]", {}),
    ("{" * 9, {}),
    ('{"a":[' * 9999, {}),
]


@pytest.mark.parametrize("text, read", CUT, ids=[str(i) for i in range(len(CUT))])
def test_of_a_call_that_was_cut_there_is_what_came(text: str, read: dict[str, Any]) -> None:
    assert arguments_of(text) == read


def test_no_cut_of_a_call_invents_anything() -> None:
    whole = {
        "a": 'x\\"\u00e9\U0001f600{',
        "b": {"c": [1.5, "y,", {"d": None, "e": ["z"]}], "f": {}},
        "g": False,
        "h": "",
    }
    for ascii_only in (True, False):
        text = json.dumps(whole, ensure_ascii=ascii_only)
        for cut in range(len(text)):
            assert _part_of(arguments_of(text[:cut]), whole), text[:cut]
        assert arguments_of(text) == whole


def _part_of(part: Any, whole: Any) -> bool:
    if isinstance(part, str):
        return isinstance(whole, str) and whole.startswith(part)
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and _part_of(part[key], whole[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and all(_part_of(a, b) for a, b in zip(part, whole, strict=False))
    return bool(part == whole)


def test_counting_counts_what_would_be_computed(letters: Live) -> None:
    counted = letters.post(PATH + "/count_tokens", {"messages": HELLO, "model": NAME}).json
    usage = letters.post(PATH, ASK).json["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_harmless_fields_are_named(letters: Live) -> None:
    body = {
        **ASK,
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "output_config": {"effort": "low"},
    }
    reply = letters.post(PATH, body)
    assert reply.status == 200
    named = reply.headers["x-ignored-params"].split(",")
    assert set(named) == {"metadata", "output_config.effort", "tools[0]", "thinking.budget_tokens"}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens is needed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
        "messages[0].content[0].source",
    ),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    ({"temperature": -1}, "temperature"),
    ({"top_k": -2}, "top_k"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [SWITCH], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
    ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
    ({"thinking": {"type": "loud"}}, "thinking.type"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"if": {}}}}}, "output_config.format"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"max_tokenz": 3}, "max_tokens"),
    ({"system": [{"type": "image"}]}, "system[0]"),
]


@pytest.mark.parametrize("change, named", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_refused_is_refused_by_name(letters: Live, change: dict[str, Any], named: str) -> None:
    reply = letters.post(PATH, {**ASK, **change})
    assert reply.status == 400, reply.body
    shown = reply.json
    assert shown["type"] == "error" and shown["error"]["type"] == "invalid_request_error"
    assert named in shown["error"]["message"], shown


def test_advice_is_in_the_words_of_this_api(letters: Live) -> None:
    for kind in ({"type": "any"}, {"type": "tool", "name": "f"}):
        told = letters.post(PATH, {**ASK, "tool_choice": kind}).json["error"]["message"]
        assert told == f"tool_choice={kind} is not allowed: left out without tools; send tools"
    named = {"type": "tool", "name": "other"}
    told = letters.post(PATH, {**ASK, "tools": [SWITCH], "tool_choice": named}).json["error"]["message"]
    assert told == f'tool_choice={named} is not allowed: {{"type": "tool", "name": one of tools}}'


def test_a_model_that_is_not_here(letters: Live) -> None:
    reply = letters.post(PATH, {**ASK, "model": "claude"})
    assert reply.status == 404 and reply.json["error"]["type"] == "not_found_error"


# -- Anthropic's own client -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(letters: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=letters.url, api_key="any", max_retries=0) as made:
        yield made


def test_the_client_streams_text(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=NAME, max_tokens=4, messages=HELLO, extra_body=COLD) as stream:  # type: ignore[arg-type]
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert pieces == ["a", "b", "c", "d"] and message.content[0].text == "abcd"  # type: ignore[union-attr]
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 4
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == 7


def test_the_client_streams_a_call(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=NAME,
        max_tokens=300,
        messages=HELLO,  # type: ignore[arg-type]
        extra_body=COLD,
        tools=[SWITCH],  # type: ignore[list-item]
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_message()
    assert "input_json" in kinds
    (block,) = message.content
    assert block.type == "tool_use" and block.name == "switch" and block.input == {"on": True}
    assert message.stop_reason == "tool_use"


def test_the_client_counts_and_fails_in_its_own_words(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model=NAME, messages=HELLO).input_tokens == 7  # type: ignore[arg-type]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", max_tokens=1, messages=HELLO)  # type: ignore[arg-type]
    with pytest.raises(anthropic.BadRequestError, match="top_k"):
        client.messages.create(model=NAME, max_tokens=1, messages=HELLO, extra_body={"top_k": -2})  # type: ignore[arg-type]
