"""Thoughts, and tools that no grammar can hold, without a model: what the reader and the encoder make of text."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_structured import WEATHER, chunk, masked

from legato.completion import Completion, Delta, Output, Receipt, Timings
from legato.core.request import Grammar, GrammarKind, SamplingParams
from legato.core.sequence import FinishReason
from legato.errors import RequestError
from legato.server.ask import Ask, Chat, Result
from legato.server.protocols.openai.chat import ChatEncoder, ChatView
from legato.server.reading import AnswerReader, prepared, with_tools, without_thought
from legato.text.tokenizer import Tokenizer
from legato.text.tools import ToolUse, checked_tools

THINKER = "{{ messages }}<think></think>"
QWEN = "{% if tools %}<tool_call>{% endif %}<think></think>"


class Letters:
    """One token a character."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def is_special(self, token_id: int) -> bool:
        return False


LETTERS = cast(Tokenizer, Letters())


def encoder(ask: Ask, template: str, prompt: str = "", **view: Any) -> ChatEncoder:
    stream = SimpleNamespace(
        idle_since=0.0,
        ask=ask,
        service=SimpleNamespace(
            model=SimpleNamespace(name="tested", tokenizer=LETTERS), clock=lambda: 0.0, vllm_metrics=False
        ),
        reader=lambda: AnswerReader(ask, template, LETTERS.encode(prompt), LETTERS),
        prompt_ids=lambda i: LETTERS.encode(prompt),
        prompt_logprobs=lambda i: None,
    )
    return ChatEncoder(cast(Any, stream), ChatView(**view))


def result(text: str, reason: FinishReason = FinishReason.STOP) -> Result:
    output = Output(0, text, LETTERS.encode(text), reason)
    return Result([Completion([1], [output], Timings(), Receipt("m", "", 1, "", 0, ""))])


CHAT = Ask((Chat([{"role": "user", "content": "x"}]),))


def test_the_bytes_of_a_thought() -> None:
    made = encoder(CHAT, THINKER, include_usage=True)
    shown = made.begin() + made.deltas(
        [Delta("<thi", [1, 2]), Delta("nk>\nhm", [3]), Delta(" so\n</think>\n\nyes", [4])]
    )
    shown += made.deltas([Delta("", [5], 0, FinishReason.STOP)]) + made.end(result("x"))
    plain = '"logprobs":null,"finish_reason":null'
    assert masked(shown) == (
        chunk('{"role":"assistant","content":""}')
        + chunk('{"reasoning_content":"hm"}', plain)
        + chunk('{"reasoning_content":" so"}', plain)
        + chunk('{"content":"yes"}', plain)
        + chunk("{}", '"finish_reason":"stop","stop_reason":null', ',"timings":{}')
        + 'data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"tested","choices":[],'
        '"usage":'
        '{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2,"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":4}}}\n\ndata: [DONE]\n\n'
    )


def test_a_whole_thought_is_counted_token_by_token() -> None:
    shown = json.loads(encoder(CHAT, THINKER, "<think>\n").whole(result("hm</think>\nyes")))
    message = shown["choices"][0]["message"]
    assert message["content"] == "yes" and message["reasoning"] == message["reasoning_content"] == "hm"
    assert shown["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("hm</think>")
    plain = json.loads(encoder(CHAT, "{{ messages }}").whole(result("<think>hm</think>yes")))
    assert plain["choices"][0]["message"] == {"role": "assistant", "content": "<think>hm</think>yes", "refusal": None}


def test_a_call_after_a_thought() -> None:
    ask = with_tools(Ask(CHAT.prompts, tools=ToolUse(tuple(checked_tools([WEATHER])))), QWEN, LETTERS)
    assert ask.free_text and ask.right_calls
    text = "<think>\nParis\n</think>\n\n<tool_call>\n"
    text += '{"name": "get_weather", "arguments": {"city": "P", "unit": "c"}}\n</tool_call>'
    shown = json.loads(encoder(ask, QWEN).whole(result(text)))["choices"][0]
    assert shown["finish_reason"] == "tool_calls" and shown["message"]["content"] is None
    assert shown["message"]["reasoning_content"] == "Paris"
    assert json.loads(shown["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "P", "unit": "c"}
    cut = json.loads(encoder(ask, QWEN).whole(result(text[:-40], FinishReason.LENGTH)))["choices"][0]
    assert cut["finish_reason"] == "length"


def test_an_open_thought_is_closed_where_a_grammar_begins_at_once() -> None:
    bound = Ask(CHAT.prompts, SamplingParams(grammar=Grammar(GrammarKind.REGEX, "a")), grammar_field="guided_regex")
    opened = LETTERS.encode("<|assistant|><think>\n")
    assert LETTERS.decode(without_thought(bound, opened, LETTERS)).endswith("<think>\n\n</think>\n\n")
    assert without_thought(CHAT, opened, LETTERS) == opened
    assert without_thought(bound, LETTERS.encode("<|assistant|>"), LETTERS) == LETTERS.encode("<|assistant|>")
    assert not AnswerReader(bound, THINKER, opened, LETTERS).needed


def test_free_calls_are_not_refused_for_what_no_grammar_holds() -> None:
    odd = {
        "type": "function",
        "function": {"name": "odd", "parameters": {"type": "object", "properties": {"a": {"pattern": "(?=x)"}}}},
    }
    large = {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "d" * 900} for i in range(90)}}
    admitted: list[SamplingParams] = []

    def admit(params: SamplingParams) -> None:
        assert params.grammar is not None
        if "(?=x)" in params.grammar.text:
            raise RequestError("grammar", "lark", "no look-around")
        admitted.append(params)

    for tool, choice, fine in (
        (odd, "auto", True),
        (odd, "required", False),
        ({"type": "function", "function": {"name": "large", "parameters": large}}, "required", True),
    ):
        ask = Ask(CHAT.prompts, tools=ToolUse(tuple(checked_tools([tool])), choice))
        if fine:
            assert prepared(ask, QWEN, LETTERS, admit).right_calls
        else:
            with pytest.raises(RequestError, match="tools"):
                prepared(ask, QWEN, LETTERS, admit)
    assert len(admitted) == 2 and len(admitted[1].grammar.text) < 9000  # type: ignore[union-attr]
    many = [{"type": "function", "function": {"name": f"f{i}", "parameters": large}} for i in range(40)]
    assert prepared(Ask(CHAT.prompts, tools=ToolUse(tuple(checked_tools(many)))), QWEN, LETTERS, admit).right_calls
