"""Constrained answers, tool calls and thoughts over HTTP, with a real vocabulary where there is one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from live import NAME, Live, running

from legato.assemble import Assembly, assemble
from legato.config import Config
from legato.weights.catalog import Silent

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["c", "f"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}


@pytest.fixture(scope="module")
def smol(builtin_path: Path) -> Iterator[Live]:
    config = Config.resolve({"model": str(builtin_path), "context": 1024}, {})

    def load() -> Assembly:
        return assemble(config, Silent(), Silent())

    with running(load) as live:
        yield live


def test_json_is_what_was_asked_for(smol: Live) -> None:
    for temperature in (0, 1.5):
        body = {
            "messages": ASK,
            "response_format": FORMAT,
            "temperature": temperature,
            "seed": 5,
            "n": 2,
            "max_tokens": 120,
        }
        for choice in smol.post(CHAT, body).json["choices"]:
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    streamed = smol.post(CHAT, {"messages": ASK, "response_format": FORMAT, "temperature": 0, "stream": True})
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in streamed.events[:-1] if e["choices"])
    jsonschema.validate(json.loads(text), SCHEMA)
    free = smol.post(CHAT, {"messages": ASK, "response_format": {"type": "json_object"}, "max_tokens": 40}).json
    if free["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(free["choices"][0]["message"]["content"]), dict)


@pytest.mark.parametrize(
    "field, pattern",
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "[0-9]{3}-[0-9]{2}"}}, "[0-9]{3}-[0-9]{2}"),
        ({"structured_outputs": {"grammar": 'start: "a" "b"{2,3}'}}, "abb|abbb"),
        ({"structured_outputs": {"json": {"enum": [1, 2]}}}, "[12]"),
        ({"structured_outputs": {"json": '{"enum": [1, 2]}', "regex": None}}, "[12]"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_regex": "x{4}"}, "xxxx"),
        ({"guided_json": {"const": None}}, "null"),
        ({"guided_grammar": 'start: "q"'}, "q"),
        ({"structured_outputs": {"regex": "[0-9]{3}", "structural_tag": None, "disable_fallback": False}}, "[0-9]{3}"),
    ],
    ids=range(10),
)
def test_other_ways_to_constrain(smol: Live, field: dict[str, Any], pattern: str) -> None:
    for path, prompt in ((TEXT, {"prompt": "Well, "}), (CHAT, {"messages": ASK})):
        choice = smol.post(path, {**prompt, **field, "temperature": 1, "max_tokens": 20}).json["choices"][0]
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        assert re.fullmatch(pattern, text) and choice["finish_reason"] == "stop"


def test_a_schema_beside_the_type_counts(smol: Live) -> None:
    """As llama.cpp's clients send it: without the schema, anything that is JSON would do."""
    for kind in ("json_object", "json_schema"):
        body = {"messages": ASK, "response_format": {"type": kind, "schema": SCHEMA}, "max_tokens": 120, "seed": 5}
        jsonschema.validate(json.loads(smol.post(CHAT, body).json["choices"][0]["message"]["content"]), SCHEMA)


def test_what_cannot_be_promised_is_refused_under_the_clients_name(letters: Live) -> None:
    odd = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "not": {}}}}
    for field, param, word in [
        ({"response_format": odd}, "response_format", "not at #"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "JSON schema"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "left out"),
        ({"response_format": {"type": "json_object", "schema": {"not": {}}}}, "response_format", "not at #"),
        (
            {"response_format": {"type": "json_object", "schema": 3}},
            "response_format.json_schema.schema",
            "JSON schema",
        ),
        ({"response_format": {"type": "json_object", "strict": True}}, "response_format.strict", "left out"),
        ({"web_search_options": {}}, "web_search_options", "not supported"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "compiles"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.json", "left out beside"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex", "a text"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
        ({"guided_json": 3}, "guided_json", "JSON schema"),
        ({"guided_regex": "a" * 3000}, "guided_regex", "2048"),
        ({"guided_json": {"$ref": "http://localhost/"}}, "guided_json", "$ref"),
    ]:
        reply = letters.post(CHAT, {"messages": ASK, **field})
        assert reply.status == 400 and reply.error["param"] == param and word in reply.error["message"], reply.body
    for field, param in [
        ({"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [WEATHER], "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True,
                     "parameters": {"type": "object", "if": {}}}}]}, "tools"),
    ]:  # fmt: skip
        reply = letters.post(CHAT, {"messages": ASK, **field})
        assert reply.status == 400 and reply.error["param"] == param, reply.body


def masked(body: bytes) -> str:
    text = re.sub(r'"chatcmpl-[0-9a-f]{24}"', '"chatcmpl-ID"', body.decode())
    text = re.sub(r'"call_[0-9a-f]{24}"', '"call_ID"', text)
    text = re.sub(r'"created":\d+', '"created":0', text)
    return re.sub(r'"timings":\{[^}]*\}', '"timings":{}', text)


def chunk(delta: str, end: str = '"logprobs":null,"finish_reason":null', more: str = "") -> str:
    head = f'{{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"{NAME}","choices":['
    return f'data: {head}{{"index":0,"delta":{delta},{end}}}]{more}}}\n\n'


SWITCH = {"type": "function", "function": {"name": "switch", "parameters": {
    "properties": {"on": {"const": True}}, "required": ["on"], "additionalProperties": False}}}  # fmt: skip


ANTHROPIC = {
    "messages": ASK,
    "tools": [{"name": "switch", "input_schema": SWITCH["function"]["parameters"]}],  # type: ignore[index]
    "tool_choice": {"type": "any"},
    "temperature": 0,
}


@pytest.mark.parametrize("choice, word", [("required", "tool_calls"), (SWITCH, "stop")], ids=["required", "named"])
def test_the_bytes_of_a_streamed_call(smol: Live, choice: Any, word: str) -> None:
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": "switch"}}
    body = {"messages": ASK, "tools": [SWITCH], "tool_choice": choice, "temperature": 0, "stream": True}
    text = masked(smol.post(CHAT, {**body, "parallel_tool_calls": False}).body)
    begun = '{"tool_calls":[{"index":0,"id":"call_ID","type":"function","function":{"name":"switch","arguments":""}}]}'
    front = chunk('{"role":"assistant","content":""}') + chunk(begun)
    assert text.startswith(front)
    rest, arguments = text[len(front) :], ""
    while match := re.match(
        r'data: .*?"tool_calls":\[\{"index":0,"function":\{"arguments":("(?:[^"\\]|\\.)*")\}\}\]', rest
    ):
        piece = chunk(f'{{"tool_calls":[{{"index":0,"function":{{"arguments":{match[1]}}}}}]}}')
        assert rest.startswith(piece)
        arguments, rest = arguments + json.loads(match[1]), rest[len(piece) :]
    assert json.loads(arguments) == {"on": True}
    finish = chunk("{}", f'"finish_reason":"{word}","stop_reason":null', ',"timings":{}')
    assert rest == finish + "data: [DONE]\n\n"


def test_forced_calls_always_parse_and_match(smol: Live) -> None:
    parameters = WEATHER["function"]["parameters"]  # type: ignore[index]
    for body in (
        {"tool_choice": "required", "temperature": 1.5, "n": 2, "seed": 3},
        {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}, "temperature": 0},
        {"tool_choice": "auto", "response_format": FORMAT, "temperature": 1, "seed": 1, "n": 2},
    ):
        reply = smol.post(CHAT, {"messages": ASK, "tools": [WEATHER, SWITCH], "max_tokens": 120, **body})
        for choice in reply.json["choices"]:
            message, calls = choice["message"], choice["message"].get("tool_calls", [])
            for call in calls if choice["finish_reason"] != "length" else calls[:-1]:
                name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                jsonschema.validate(
                    arguments, parameters if name == "get_weather" else SWITCH["function"]["parameters"]
                )  # type: ignore[index]
            if body["tool_choice"] != "auto":
                assert calls and message["content"] is None
                assert choice["finish_reason"] in (
                    "length",
                    "tool_calls" if body["tool_choice"] == "required" else "stop",
                )
            elif not calls and choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(message["content"]), SCHEMA)


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_that_was_cut_shows_no_marks(smol: Live, stream: bool) -> None:
    for most in (1, 4, 9, 14):
        body = {"messages": ASK, "tools": [SWITCH], "tool_choice": "required", "temperature": 0, "max_tokens": most}
        reply = smol.post(CHAT, {**body, "stream": stream})
        if stream:
            deltas = [event["choices"][0]["delta"] for event in reply.events[:-1]]
            assert not any(delta.get("content") for delta in deltas), most
        else:
            choice = reply.json["choices"][0]
            assert choice["finish_reason"] == "length" and not choice["message"]["content"], most
    whole = smol.post("/v1/messages", {**ANTHROPIC, "max_tokens": 3}).json
    assert whole["stop_reason"] == "max_tokens" and not any(block.get("text") for block in whole["content"])


def test_a_call_that_was_cut_has_no_argument_that_the_tool_does_not(smol: Live) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"name": "w", "input_schema": {**schema, "additionalProperties": False}}]
    body = {"messages": ASK, "tools": tools, "tool_choice": {"type": "any"}, "temperature": 0}
    seen = []
    for most in range(8, 24, 2):
        reply = smol.post("/v1/messages", {**body, "max_tokens": most}).json
        for block in reply["content"]:
            if reply["stop_reason"] == "max_tokens":
                assert block["type"] == "tool_use" and block["input"].keys() <= {"city"}, reply
            seen += [block["input"].get("city", "")]
    assert seen and any(seen), seen


def test_auto_may_answer_in_words_and_none_must(smol: Live) -> None:
    for choice in ("auto", "none"):
        body = {"messages": ASK, "tools": [WEATHER], "tool_choice": choice, "temperature": 0, "max_tokens": 12}
        whole = smol.post(CHAT, body).json
        assert whole["choices"][0]["message"]["content"]
        streamed = smol.post(CHAT, {**body, "stream": True}).events[:-1]
        assert (
            "".join(e["choices"][0]["delta"].get("content", "") for e in streamed)
            == whole["choices"][0]["message"]["content"]
        )
    without = smol.post(CHAT, {"messages": ASK, "max_tokens": 1}).json["usage"]["prompt_tokens"]
    assert whole["usage"]["prompt_tokens"] == without  # "none" does not tell the model of tools


def test_a_whole_turn_of_tools(smol: Live) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Paris","unit":"c"}'},
    }
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18"},
    ]
    for tools in ([WEATHER], None):
        reply = smol.post(
            CHAT, {"messages": turns, "max_tokens": 8, "temperature": 0} | ({"tools": tools} if tools else {})
        )
        assert reply.status == 200, reply.body


def test_tokens_of_a_conversation_are_those_of_the_chat(smol: Live) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    begun = {"role": "user", "content": "x"}
    turns: list[list[dict[str, Any]]] = [
        [begun, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "ok"}],
        [begun, {"role": "tool", "content": "ok"}],
        [{"role": "developer", "content": "Be brief"}, begun],
    ]
    ways: list[dict[str, Any]] = [
        {}, {"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"},
        {"tools": [WEATHER, SWITCH], "tool_choice": {"type": "function", "function": {"name": "switch"}}},
        {"chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False},
    ]  # fmt: skip
    counts = []
    for messages in turns:
        for way in ways:
            chat = smol.post(CHAT, {"messages": messages, "max_tokens": 1, "return_token_ids": True, **way}).json
            told = smol.post("/tokenize", {"messages": messages, **way}).json
            assert told.get("tokens") == chat["prompt_token_ids"], (messages, way, told)
            counts.append(told["count"])
    assert counts[0] == counts[2] and counts[5] == 49 and counts[1] > counts[0] + 50


def test_tokens_are_refused_as_the_chat_refuses(smol: Live) -> None:
    for way in ({"tools": [{"type": "function"}]}, {"tool_choice": "required"}, {"chat_template_kwargs": {"x": 1}}):
        chat = smol.post(CHAT, {"messages": ASK, **way})
        told = smol.post("/tokenize", {"messages": ASK, **way})
        assert chat.status == told.status == 400 and chat.error == told.error
        assert smol.post("/tokenize", {"prompt": "x", **way}).error["param"] == next(iter(way))


def test_a_developer_is_the_system(smol: Live) -> None:
    counts = set()
    for role in ("developer", "system"):
        told = [{"role": role, "content": "Be brief"}, {"role": "user", "content": "Hi"}]
        for tools in ({}, {"tools": [SWITCH]}):
            reply = smol.post(CHAT, {"messages": told, "max_tokens": 1, **tools}).json
            counts.add((bool(tools), reply["usage"]["prompt_tokens"]))
    assert len(counts) == 2 and (False, 17) in counts


def test_openais_own_client_parses_and_streams(smol: Live) -> None:
    openai = pytest.importorskip("openai")
    from typing import Literal

    from pydantic import BaseModel, Field

    class Person(BaseModel):
        name: str = Field(max_length=8)
        kind: Literal["cat", "dog"]

    client = openai.OpenAI(base_url=f"{smol.url}/v1", api_key="none", max_retries=0)
    parsed = client.chat.completions.parse(
        model=NAME, messages=ASK, response_format=Person, temperature=0, max_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    tool = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    with client.chat.completions.stream(
        model=NAME, messages=ASK, tools=[tool], tool_choice="required", parallel_tool_calls=False, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        done = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    call = done.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and set(call.function.parsed_arguments) == {"city", "unit"}
    assert done.choices[0].finish_reason == "tool_calls"


def test_neighbours_of_constrained_answers_keep_their_text(smol: Live) -> None:
    from concurrent.futures import ThreadPoolExecutor

    free = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    alone = smol.post(TEXT, free).json["choices"][0]["text"]
    bound = {"messages": ASK, "response_format": FORMAT, "temperature": 1, "seed": 2}
    hostile = {"prompt": "x", "structured_outputs": {"regex": "(" * 2000}}
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(smol.post, *job)
            for job in [(TEXT, free), (CHAT, bound), (TEXT, hostile), (TEXT, free), (CHAT, bound)]
        ]
        replies = [job.result() for job in jobs]
    assert [replies[i].json["choices"][0]["text"] for i in (0, 3)] == [alone, alone]
    assert replies[2].status == 400
    for i in (1, 4):
        jsonschema.validate(json.loads(replies[i].json["choices"][0]["message"]["content"]), SCHEMA)
    smol.wait(smol.idle, 5.0, "everything given back")


def test_a_stream_with_tools_has_every_tokens_logprobs_and_id(smol: Live) -> None:
    """Also of the tokens that no chunk's text shows: the end of a call, the end of the turn."""
    seen = {"logprobs": True, "return_token_ids": True, "seed": 3, "max_tokens": 60, "parallel_tool_calls": False}
    for choice in ("required", "auto"):
        body = {"messages": ASK, "tools": [WEATHER], "tool_choice": choice, **seen}
        whole = smol.post(CHAT, body).json
        events = [e for e in smol.post(CHAT, body | {"stream": True}).events[:-1] if e["choices"]]
        assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
        parts = [event["choices"][0] for event in events]
        assert [i for part in parts for i in part.get("token_ids", [])] == whole["choices"][0]["token_ids"]
        logprobs = [entry for part in parts for entry in (part.get("logprobs") or {"content": []})["content"]]
        assert logprobs == whole["choices"][0]["logprobs"]["content"]
        assert len(logprobs) == whole["usage"]["completion_tokens"]


def test_what_a_text_completion_shows_of_special_tokens_is_the_same_streamed(smol: Live) -> None:
    end = {"logit_bias": {"2": 100}, "ignore_eos": True, "skip_special_tokens": False, "logprobs": 0, "max_tokens": 4}
    shown = smol.post(TEXT, {"prompt": "a", **end}).json["choices"][0]
    assert shown["text"] == "<|im_end|>" * 4 and shown["logprobs"]["text_offset"] == [0, 10, 20, 30]
    ids = [1, 9690, 198, 2, 504]
    echoed = {"prompt": ids, "echo": True, "skip_special_tokens": False, "max_tokens": 0, "logit_bias": {"2": 100}}
    whole = smol.post(TEXT, echoed).json["choices"][0]
    assert whole["text"].startswith("<|im_start|>system\n<|im_end|>") and whole["finish_reason"] == "length"
    events = smol.post(TEXT, echoed | {"stream": True, "return_token_ids": True}).events[:-1]
    choices = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert choices[-1]["finish_reason"] == "length" and choices[0]["prompt_token_ids"] == ids


def test_a_streams_last_usage_knows_what_was_cached(smol: Live) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 60}], "max_tokens": 3, "seed": 1}
    smol.post(CHAT, body)
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = smol.post(CHAT, body | {"stream": True, "stream_options": options}).events[:-1]
    cached = [event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in events]
    assert cached[-1] == cached[-2] > 16
