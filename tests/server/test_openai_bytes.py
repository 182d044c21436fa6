"""The exact bytes of OpenAI's protocol, and what every field does to them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from live import NAME, Live

from legato.server.ask import Chat
from legato.server.protocols.openai.fields import ChatBody
from legato.server.protocols.openai.parse import chat_ask

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def masked(body: bytes) -> str:
    """Ids, dates and times replaced: they differ from one answer to the next."""
    text = re.sub(r'"(chatcmpl|cmpl)-[0-9a-f]{24}"', r'"\1-ID"', body.decode())
    text = re.sub(r'"created":\d+', '"created":0', text)
    return re.sub(r'"timings":\{[^}]*\}', '"timings":{}', text)


def chunk(inside: str, more: str = "") -> str:
    head = f'{{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"{NAME}","choices":['
    return f"data: {head}{inside}]{more}}}\n\n"


def piece(text: str, index: int = 0) -> str:
    return chunk(f'{{"index":{index},"delta":{{"content":{json.dumps(text)}}},"logprobs":null,"finish_reason":null}}')


ROLE = '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'


def test_a_streamed_chat(letters: Live) -> None:
    reply = letters.post(CHAT, {"messages": HELLO, "stream": True, "temperature": 0, "max_tokens": 3})
    finish = chunk('{"index":0,"delta":{},"finish_reason":"length","stop_reason":null}', ',"timings":{}')
    assert masked(reply.body) == chunk(ROLE) + piece("a") + piece("b") + piece("c") + finish + "data: [DONE]\n\n"
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"


def test_a_streamed_chat_with_usage_and_a_stop_string(letters: Live) -> None:
    body = {
        "messages": HELLO,
        "stream": True,
        "temperature": 0,
        "stop": "de",
        "stream_options": {"include_usage": True},
    }
    reply = letters.post(CHAT, body)
    finish = chunk('{"index":0,"delta":{},"finish_reason":"stop","stop_reason":"de"}', ',"timings":{}')
    usage = (
        f'data: {{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"{NAME}","choices":[],'
        '"usage":'
        '{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":0}}}\n\n'
    )
    assert masked(reply.body) == (
        chunk(ROLE) + piece("a") + piece("b") + piece("c") + finish + usage + "data: [DONE]\n\n"
    )


def test_a_whole_chat(letters: Live) -> None:
    reply = letters.post(CHAT, {"messages": HELLO, "temperature": 0, "max_completion_tokens": 3, "model": NAME})
    assert masked(reply.body) == (
        f'{{"id":"chatcmpl-ID","object":"chat.completion","created":0,"model":"{NAME}","choices":[{{"index":0,"message":'
        '{"role":"assistant","content":"abc","refusal":null},"logprobs":null,"finish_reason":"length","stop_reason":null}],'
        '"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":0}},"timings":{}}'
    )
    timings = reply.json["timings"]
    names = "queue_ms prefill_ms ttft_ms decode_ms decode_tok_s prompt_tok_s cached_tokens"
    assert " ".join(timings) == names and timings["ttft_ms"] > 0
    assert float(reply.headers["x-engine-ttft-ms"]) == pytest.approx(timings["ttft_ms"], abs=0.01)
    assert float(reply.headers["x-engine-queue-ms"]) >= 0 and int(reply.headers["openai-processing-ms"]) >= 0


def test_a_streamed_text(letters: Live) -> None:
    reply = letters.post(TEXT, {"prompt": "mn", "stream": True, "temperature": 0, "max_tokens": 2})
    head = f'data: {{"id":"cmpl-ID","object":"text_completion","created":0,"model":"{NAME}","choices":['
    tail = ',"logprobs":null,"finish_reason":null}]}\n\n'
    assert masked(reply.body) == (
        f'{head}{{"index":0,"text":"o"{tail}{head}{{"index":0,"text":"p"{tail}'
        f'{head}{{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null}}],"timings":{{}}}}\n\n'
        "data: [DONE]\n\n"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "prompt, texts",
    [("ab", ["cd"]), (["ab", "x"], ["cd", "yz"]), ([97, 98], ["cd"]), ([[97, 98], [120]], ["cd", "yz"])],
)
def test_the_four_forms_of_a_prompt(letters: Live, prompt: object, texts: list[str], stream: bool) -> None:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 2, "stream": stream}
    assert texts_of(letters.post(TEXT, body)) == texts


def texts_of(reply: Any) -> list[str]:
    """Each choice's text, from one object or from a stream."""
    assert reply.status == 200, reply.body
    streamed = reply.headers["content-type"].startswith("text/event-stream")
    shown = [event for event in reply.events if event != "[DONE]"] if streamed else [reply.json]
    texts: dict[int, str] = {}
    for choice in (choice for event in shown for choice in event["choices"]):
        part = choice.get("text")
        if part is None:
            part = choice.get("delta", choice.get("message", {})).get("content", "")
        texts[choice["index"]] = texts.get(choice["index"], "") + part
    return [texts[i] for i in sorted(texts)]


def test_several_answers_have_their_own_role_chunks_and_ends(letters: Live) -> None:
    body = {"messages": HELLO, "n": 3, "temperature": 0, "max_tokens": 2, "stream": True}
    events = letters.post(CHAT, body).events
    assert [e["choices"][0]["index"] for e in events[:3]] == [0, 1, 2]
    assert all(e["choices"][0]["delta"]["role"] == "assistant" for e in events[:3])
    ends = [e for e in events[:-1] if e["choices"][0]["finish_reason"] is not None]
    assert sorted(e["choices"][0]["index"] for e in ends) == [0, 1, 2] and [("timings" in e) for e in ends] == [0, 0, 1]
    assert texts_of(letters.post(CHAT, body)) == ["ab"] * 3 == texts_of(letters.post(CHAT, body | {"stream": False}))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat(letters: Live, stream: bool) -> None:
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 2, "logprobs": True, "top_logprobs": 2, "stream": stream}
    reply = letters.post(CHAT, body)
    shown = reply.events[:-1] if stream else [reply.json]
    found = [t for e in shown for c in e["choices"] if c.get("logprobs") for t in c["logprobs"]["content"]]
    assert [t["token"] for t in found] == ["a", "b"] and [t["bytes"] for t in found] == [[97], [98]]
    for token in found:
        assert [set(t) for t in token["top_logprobs"]] == [{"token", "logprob", "bytes"}] * 2
        assert token["top_logprobs"][0]["logprob"] == token["logprob"] < 0


def test_logprobs_as_evaluation_tools_read_them(letters: Live) -> None:
    """lm-eval scores a continuation: echo, one more token, and each prompt token's own logprob beside the likeliest."""
    body = {"prompt": [[97, 98, 99, 120]], "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234, "temperature": 0}
    (choice,) = letters.post(TEXT, body).json["choices"]
    found = choice["logprobs"]
    assert choice["text"] == "abcxy" and found["tokens"] == list("abcxy") and found["text_offset"] == [0, 1, 2, 3, 4]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    greedy = [
        p == max(top.values()) for p, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True)
    ]
    assert greedy == [True, True, False, True], "x does not follow c; equal floats tell what is likeliest"
    ((streamed, *_),) = [[e["choices"][0] for e in letters.post(TEXT, body | {"stream": True}).events[:-1]]]
    assert streamed["text"] == "abcx" and streamed["logprobs"]["token_logprobs"] == found["token_logprobs"][:4]
    nothing = letters.post(TEXT, body | {"max_tokens": 0}).json
    assert nothing["choices"][0]["text"] == "abcx" and nothing["usage"]["completion_tokens"] == 0
    assert nothing["choices"][0]["logprobs"]["tokens"] == list("abcx")


def test_characters_of_several_tokens_stay_whole(letters: Live) -> None:
    """The model goes on from byte to byte: after C3 A8 comes A9, no character; broken bytes become U+FFFD, once."""
    body = {"prompt": "è", "temperature": 0, "max_tokens": 6, "logprobs": 1}
    whole = letters.post(TEXT, body).json["choices"][0]
    streamed = letters.post(TEXT, body | {"stream": True})
    assert texts_of(streamed) == [whole["text"]] == ["\ufffd" * 6]
    assert whole["logprobs"]["tokens"][0] == "bytes:\\xa9"


@pytest.mark.parametrize(
    "field, value, text",
    [
        ("include_stop_str_in_output", True, "abcde"),
        ("include_stop_str_in_output", False, "abc"),
        ("return_token_ids", True, "abc"),
        ("truncate_prompt_tokens", 1, "abc"),
        ("user", "somebody", "abc"),
    ],
)
def test_extras(letters: Live, field: str, value: object, text: str) -> None:
    body = {"messages": HELLO, "temperature": 0, "stop": ["de"], field: value}
    assert texts_of(letters.post(CHAT, body)) == [text] == texts_of(letters.post(CHAT, body | {"stream": True}))
    reply = letters.post(CHAT, body)
    assert ("x-ignored-params" in reply.headers) == (field == "user")
    assert ("prompt_token_ids" in reply.json) == (field == "return_token_ids")


def test_an_effort_of_thinking_is_told_to_templates_that_ask_for_it(letters: Live) -> None:
    def variables(effort: str | None, **more: Any) -> dict[str, Any]:
        prompt = chat_ask(ChatBody(messages=HELLO, reasoning_effort=effort, **more)).prompts[0]
        assert isinstance(prompt, Chat)
        return dict(prompt.variables)

    assert variables(None) == {} and variables("none") == {"enable_thinking": False}
    assert variables("high") == {"enable_thinking": True, "reasoning_effort": "high"}
    mixed = variables("low", chat_template_kwargs={"enable_thinking": False})
    assert mixed == {"enable_thinking": False, "reasoning_effort": "low"}
    reply = letters.post(CHAT, {"messages": HELLO, "max_tokens": 1, "reasoning_effort": "low"})
    assert reply.status == 200 and reply.headers["x-ignored-params"] == "reasoning_effort"  # no template that asks
    wrong = letters.post(CHAT, {"messages": HELLO, "reasoning_effort": "ultra"})
    assert wrong.status == 400 and wrong.error["param"] == "reasoning_effort" and "high" in wrong.error["message"]


def test_an_old_name_of_a_constraint_works_and_is_told(letters: Live) -> None:
    for field, value, new in (("guided_regex", "ab", "regex"), ("guided_choice", ["ab", "cd"], "choice")):
        for stream in (False, True):
            reply = letters.post(CHAT, {"messages": HELLO, field: value, "stream": stream})
            assert reply.status == 200 and f"structured_outputs.{new}" in reply.headers["warning"], field
    assert "warning" not in letters.post(CHAT, {"messages": HELLO, "max_tokens": 1}).headers


def test_continuous_usage_counts_up(letters: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "ab", "stream": True, "temperature": 0, "max_tokens": 3, "stream_options": options}
    events = letters.post(TEXT, body).events[:-1]
    assert [e["usage"]["completion_tokens"] for e in events] == [1, 2, 3, 3, 3]


def test_a_cached_prompt_is_counted(letters: Live) -> None:
    body = {"prompt": "the same beginning of forty characters at least ...", "temperature": 0, "max_tokens": 2}
    letters.post(TEXT, body)
    usage = letters.post(TEXT, body).json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 48


def test_models(letters: Live) -> None:
    card = letters.ask("GET", "/v1/models").json["data"][0]
    assert card["id"] == NAME and card["object"] == "model" and card["max_model_len"] == 128
    assert letters.ask("GET", f"/v1/models/{NAME}").json == card
    missing = letters.ask("GET", "/v1/models/testet")
    assert missing.status == 404 and missing.error["code"] == "model_not_found"
    assert "did you mean 'tested'?" in missing.error["message"]


def test_tokens(letters: Live) -> None:
    assert letters.post("/tokenize", {"prompt": "abé"}).json["tokens"] == [97, 98, 0xC3, 0xA9]
    chat = letters.post("/tokenize", {"messages": HELLO}).json
    assert chat["tokens"] == [257, *b"hello", 258] and chat["count"] == 7
    assert letters.post("/tokenize", {"prompt": "<|end|>"}).json["tokens"] == list(b"<|end|>"), "text is text"
    assert letters.post("/tokenize", {"prompt": ""}).json["tokens"] == []
    assert letters.post("/detokenize", {"tokens": [97, 256, 98]}).json == {"prompt": "a<|end|>b"}
    info = letters.ask("GET", "/tokenizer_info").json
    assert info["eos_token"] == "<|end|>" and "<|user|>" in info["chat_template"]


def test_a_wrong_token_id_is_refused_by_the_fields_own_name(letters: Live) -> None:
    most = letters.server.service.model.vocab_size - 1
    wrong = [([most + 1], "prompt", most + 1), ([5, -1], "prompt", -1), ([[5], [6, most + 1]], "prompt[1]", most + 1)]
    for prompt, name, worst in wrong:
        reply = letters.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
        told = f"{name}={worst} is not allowed: token ids from 0 to {most}"
        assert reply.status == 400 and (reply.error["param"], reply.error["message"]) == (name, told)
    assert letters.post("/v1/completions", {"prompt": [most], "max_tokens": 1}).status == 200


def test_embeddings_are_refused_in_words(letters: Live) -> None:
    reply = letters.post("/v1/embeddings", {"input": "x", "model": NAME})
    assert reply.status == 501 and "embeddings" in reply.error["message"]
