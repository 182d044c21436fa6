"""`/v1/responses`: its bytes, its fields, OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live import NAME, Live, alphabet_assembly, running
from scripted import TURN, check_golden, masked, result_of, scripted_stream, streamed

from legato.core.sequence import FinishReason
from legato.server.problems import Problem
from legato.server.protocols.responses import ResponseEncoder
from legato.server.protocols.responses_parse import ResponsesBody, parse_body
from legato.server.service import prompt_ids

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": NAME, "max_output_tokens": 3, "input": "hello", "temperature": 0}
SCHEMA = {"type": "object", "properties": {"on": {"enum": [True]}}, "required": ["on"], "additionalProperties": False}
SWITCH = {"type": "function", "name": "switch", "description": "turns it", "parameters": SCHEMA}


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    from alphabet import write_alphabet

    path: Path = write_alphabet(tmp_path_factory.mktemp("long") / "alphabet.gguf", context=2048)
    with running(alphabet_assembly(path)) as live:
        yield live


def rendered(live: Live, body: dict[str, Any]) -> str:
    _, ask, _ = parse_body(json.dumps(body).encode(), live.server.service)
    assert ask is not None
    model = live.server.service.model
    return model.tokenizer.decode(prompt_ids(model, ask.prompts[0]), skip_special=False)


def encoder() -> ResponseEncoder:
    stream = scripted_stream(TURN)
    return ResponseEncoder(ResponsesBody(), NAME, stream, stream.reader())


def events(data: bytes) -> list[dict[str, Any]]:
    """Checked for what holds of every stream: named, numbered from 0, no `[DONE]`."""
    found = []
    for i, event in enumerate(data.decode().removesuffix("\n\n").split("\n\n")):
        name, body = event.split("\n")
        found.append(json.loads(body.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}" and found[-1]["sequence_number"] == i
    return found


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_streamed_text(letters: Live) -> None:
    reply = letters.post(PATH, {**ASK, "stream": True})
    check_golden("responses_text.sse", reply.body)
    events(reply.body)


def test_the_bytes_of_a_whole_text(letters: Live) -> None:
    check_golden("responses_text.json", letters.post(PATH, ASK).body)


def test_the_bytes_of_a_streamed_turn() -> None:
    data = streamed(encoder(), TURN)
    check_golden("responses_turn.sse", data)
    found = events(data)
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert found[-1]["type"] == "response.completed" and found[-1]["response"]["output"] == done


def test_the_bytes_of_a_whole_turn() -> None:
    check_golden("responses_turn.json", encoder().whole(result_of(TURN)))


def test_an_answer_cut_short_and_one_that_failed() -> None:
    cut = events(streamed(encoder(), TURN[:2], FinishReason.LENGTH))[-1]
    assert cut["type"] == "response.incomplete"
    assert cut["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut["response"]["output"][0]["status"] == "incomplete"
    failing = encoder()
    last = events(failing.begin() + failing.failed(Problem(500, "the engine ended")))[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine ended"}


@pytest.mark.parametrize("empty", [None, "", [], [{"role": "user", "content": ""}]])
def test_a_probe_with_nothing_in_it_is_answered(letters: Live, empty: object) -> None:
    whole = letters.post(PATH, {"model": NAME, "input": empty, "instructions": "Be brief."})
    assert whole.status == 200 and whole.json["status"] == "completed" and whole.json["output"] == []
    stream = letters.post(PATH, {"model": NAME, "input": empty, "stream": True})
    kinds = [event["type"] for event in events(stream.body)]
    assert kinds == ["response.created", "response.in_progress", "response.completed"]
    assert letters.post(PATH, {"model": "gpt", "input": empty}).status == 404


# -- fields -----------------------------------------------------------------------------------------------------------


def test_what_an_agent_sends_each_turn(letters: Live) -> None:
    """The fields of an agent's body, with kinds of tools that only OpenAI's servers have."""
    body = {
        **ASK,
        "client_metadata": {"x": "y"},
        "include": ["reasoning.encrypted_content"],
        "instructions": "Be brief.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "on?"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "xyz"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
            {"type": "function_call", "call_id": "call_1", "name": "switch", "arguments": '{"on": true}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "it is"},
            {"role": "user", "content": "so?"},
        ],
        "parallel_tool_calls": True,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "tool_choice": "auto",
        "tools": [SWITCH, {"type": "web_search"}, {"type": "namespace", "name": "x"}, {"type": "image_generation"}],
    }
    reply = letters.post(PATH, body)
    assert reply.status == 200, reply.body
    named = set(reply.headers["x-ignored-params"].split(","))
    assert {"client_metadata", "include", "prompt_cache_key", "store", "tools[1]", "tools[2]", "tools[3]"} <= named
    done = events(reply.body)[-1]["response"]
    assert [tool["name"] for tool in done["tools"]] == ["switch"]


def test_items_become_a_conversation(letters: Live) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"role": "user", "content": "d"},
        {"role": "user", "content": "e"},
    ]
    shown = rendered(letters, {"input": items, "instructions": "I"})
    assert shown == "I;<|user|>a\nb<|answer|>c<|end|><|user|>d\n\ne<|answer|>"


def test_only_allowed_tools_are_told(letters: Live) -> None:
    other = {**SWITCH, "name": "other"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "switch"}]}
    body = {**ASK, "max_output_tokens": 300, "tools": [other, SWITCH], "tool_choice": choice}
    output = letters.post(PATH, body | {"parallel_tool_calls": False}).json["output"]
    assert [(item["type"], item["name"]) for item in output] == [("function_call", "switch")]


def test_an_answer_in_a_schema(letters: Live) -> None:
    form = {"type": "json_schema", "name": "state", "schema": SCHEMA, "strict": True}
    reply = letters.post(PATH, {**ASK, "max_output_tokens": 300, "text": {"format": form}})
    assert json.loads(reply.json["output"][0]["content"][0]["text"]) == {"on": True}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "c"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": ["message.output_text.logprobs"]}, "include[message.output_text.logprobs]"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [SWITCH], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    ({"tools": [SWITCH], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"text": {"format": {"type": "json_schema", "schema": {"if": {}}}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"text": {"form": 1}}, "text.form"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"temperature": "hot"}, "temperature"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize("change, named", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_refused_is_refused_by_name(letters: Live, change: dict[str, Any], named: str) -> None:
    reply = letters.post(PATH, {**ASK, **change})
    assert reply.status == 400, reply.body
    assert reply.error["param"] == named and reply.error["type"] == "invalid_request_error", reply.error


def test_a_choice_that_needs_tools_is_refused_without_them(letters: Live) -> None:
    """Also where all that were sent are left out, or none is allowed: the answer could not be what was asked for."""
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    for choice in ("required", "bogus", {"type": "function", "name": "x"}, {**allowed}):
        for tools in (None, [], [{"type": "web_search"}]):
            reply = letters.post(PATH, {**ASK, "tools": tools, "tool_choice": choice})
            assert reply.status == 400 and reply.error["param"] == "tool_choice", (choice, tools, reply.body)
    assert letters.post(PATH, {**ASK, "tools": [SWITCH], "tool_choice": allowed}).status == 400
    for mild in ("auto", "none", None, {**allowed, "mode": "auto"}):
        for tools in (None, [{"type": "web_search"}]):
            assert letters.post(PATH, {**ASK, "tools": tools, "tool_choice": mild}).status == 200, mild


def test_advice_is_in_the_words_of_this_api(letters: Live) -> None:
    choice = {"type": "function", "name": "x"}
    told = letters.post(PATH, {**ASK, "tools": [SWITCH], "tool_choice": choice}).error["message"]
    assert repr(choice) in told and '{"type": "function", "name": one of tools}' in told
    told = letters.post(PATH, {**ASK, "tool_choice": choice}).error["message"]
    assert told.startswith(f"tool_choice={choice}")
    told = letters.post(PATH, {**ASK, "max_output_tokens": 3, "min_tokens": 4}).error["message"]
    assert "max_output_tokens" in told and "max_tokens" not in told


def test_a_length_for_load_generators(letters: Live) -> None:
    """`ignore_eos` and `min_tokens` go on past the end of the model's own answer; a `seed` repeats it."""
    whole = {**ASK, "temperature": 1, "max_output_tokens": 40, "seed": 5}
    for change in ({"ignore_eos": True}, {"min_tokens": 40}):
        replies = [letters.post(PATH, {**whole, **change}).json for _ in range(2)]
        assert [reply["usage"]["output_tokens"] for reply in replies] == [40, 40]
        assert replies[0]["output"][0]["content"] == replies[1]["output"][0]["content"]
    assert letters.post(PATH, {**whole, "min_tokens": 41}).error["param"] == "min_tokens"


# -- OpenAI's own client ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(letters: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{letters.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_the_client_streams_text(client: openai.OpenAI) -> None:
    with client.responses.stream(model=NAME, input="hello", temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        done = stream.get_final_response()
    assert "".join(pieces) == done.output_text == "abcdefghijklmnopqrstuvwxyz"
    assert done.usage is not None and done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    assert client.responses.create(model=NAME, input="hello", temperature=0).output_text == done.output_text


def test_the_client_streams_a_call(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=NAME,
        input="hello",
        temperature=0,
        tools=[{**SWITCH, "strict": True}],  # type: ignore[list-item]
        tool_choice="required",
        parallel_tool_calls=False,
    ) as stream:
        kinds = {event.type for event in stream}
        done = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    (call,) = done.output
    assert call.type == "function_call" and call.name == "switch" and json.loads(call.arguments) == {"on": True}


def test_the_client_reads_every_event_of_a_turn() -> None:
    """Thoughts, text and two calls, through the types of the client."""
    from openai.types.responses import ResponseStreamEvent
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events(streamed(encoder(), TURN)):
        read = adapter.validate_python(event)
        assert read.type == event["type"], masked(json.dumps(event).encode())
