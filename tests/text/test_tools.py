"""Calls and thoughts in text: found whatever the cuts, never invented, in linear time; grammars write what is read."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import templates
from bytes_vocabulary import SIZE, BytesTokenizer, matches
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.core.request import GrammarKind
from legato.errors import RequestError
from legato.text.grammar import Grammars
from legato.text.reasoning import ReasoningSplit, opened_by, thinks
from legato.text.tools import (
    ARGS,
    HERMES,
    LLAMA,
    MISTRAL,
    PHI,
    TOLD,
    Tool,
    ToolForm,
    calls_grammar,
    checked_tools,
    told,
    tool_form,
)
from legato.text.tools_parser import CallArguments, CallBegun, Content, ToolParser

FORMS = [HERMES, LLAMA, MISTRAL, ARGS, PHI, TOLD]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "s": {"type": "string"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = checked_tools([ADD, NOW])


def read(
    form: ToolForm, text: str, cuts: list[int] | None = None, stream: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    """(content, calls as (name, arguments)) of an answer that comes in pieces."""
    numbers = iter(range(99))
    parser = ToolParser(form, ["add", "now"], lambda: f"c{next(numbers)}", stream=stream)
    ends = sorted({0, len(text), *(c for c in cuts or [] if c <= len(text))})
    pieces = [p for a, b in itertools.pairwise(ends) for p in parser.feed(text[a:b])] + parser.finish()
    content, calls = "", []
    for piece in pieces:
        match piece:
            case Content(part):
                assert part
                content += part
            case CallBegun(index, call_id, name):
                assert index == len(calls) and call_id == f"c{index}"
                calls.append((name, ""))
            case CallArguments(index, part):
                assert index == len(calls) - 1 and part
                calls[-1] = (calls[-1][0], calls[-1][1] + part)
    assert parser.num_calls == len(calls)
    return content, calls


def written(form: ToolForm, calls: list[tuple[str, str]]) -> str:
    """How a model of that family writes calls."""
    objects = [f'{{"name": "{n}", "{form.key}": {a}}}' for n, a in calls]
    match form.name:
        case "llama":
            return "; ".join(objects)
        case "mistral":
            return "[TOOL_CALLS][" + ", ".join(objects) + "]"
        case "phi":
            return "<|tool_call|>[" + ", ".join(objects) + "]<|/tool_call|>"
        case "args":
            return "".join(f"[TOOL_CALLS]{n}[ARGS]{a}" for n, a in calls)
    return "\n".join(f"<tool_call>\n{o}\n</tool_call>" for o in objects)


CALLS = [
    ("add", '{"a": 1, "s": "} ] \\" </tool_call> <tool_call> {"}'),
    ("now", "{}"),
    ("add", '{"a": [{"b": "\\\\"}]}'),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_found_wherever_the_text_is_cut(form: ToolForm, stream: bool) -> None:
    for count in (1, 2, 3):
        for before in ("", "Let me see. \n") if not form.bare else ("", " \n"):
            text = before + written(form, CALLS[:count]) + "\n"
            for cuts in ([], list(range(len(text))), *([i] for i in range(len(text)))):
                assert read(form, text, cuts, stream) == (before.lstrip() and before, CALLS[:count]), cuts


BROKEN = [
    "<tool_call>",
    "<tool_call>\n",
    "<tool_call>{",
    '<tool_call>{"name": "add"',
    "<tool_call>oops</tool_call>",
    '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "add",}</tool_call>',
    '<tool_call>{"name" "add"}</tool_call>',
    "<tool_call>{]</tool_call>",
    '<tool_call>{"name": "add", "arguments": "x"}',
    "<tool_call>" + '{"a":' * 70 + "1" + "}" * 70 + "</tool_call>",
    "<tool",
    "< tool_call>",
    "a < b",
    "</tool_call>",
    "{}",
    '{"name": "nobody", "parameters": {}}',
    '{"answer": 42}',
    "[TOOL_CALLS]",
    "[TOOL_CALLS][",
    "[TOOL_CALLS][]",
    "[TOOL_CALLS] hi",
    "[TOOL_CALLS]" + "x" * 500 + "{}",
    "[TOOL_CALLS]nobody[ARGS]{}",
    "[TOOL_CALLS]add[ARGS]{",
    "<|tool_call|>[{]",
    "\ud800<tool_call>{\ud800",
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_what_is_no_call_is_content(form: ToolForm) -> None:
    for text in BROKEN:
        whole = read(form, text)
        assert whole == (text, []), text
        assert read(form, text, list(range(len(text)))) == whole, text


def test_a_sound_call_after_a_broken_one_is_found() -> None:
    text = "<tool_call>oops <tool_call>\n" + '{"name": "now", "arguments": {}}\n</tool_call> bye'
    assert read(HERMES, text, list(range(len(text)))) == ("<tool_call>oops bye", [("now", "{}")])


def test_other_ways_of_writing_arguments() -> None:
    for body, arguments in [
        ('{"name": "add", "parameters": {"a":1}}', '{"a":1}'),
        ('{"arguments": {"a":1}, "name": "add"}', '{"a":1}'),
        ('{"name": "add"}', "{}"),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"id": "x", "name": "add", "arguments": {"name": "now"}}', '{"name": "now"}'),
        ('{"type": "function", "name": "add", "arguments": {"arguments": {}}}', '{"arguments": {}}'),
        ('{"name": "now", "name": "add", "arguments": {"a":2}, "arguments": {"a":1}}', '{"a": 1}'),
    ]:
        for form in (HERMES, LLAMA):
            text = body if form is LLAMA else f"<tool_call>{body}</tool_call>"
            assert read(form, text, list(range(len(text)))) == ("", [("add", arguments)]), body


ALPHABET = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|tool_call|>",
    '{"name": "add", "arguments": {"a": 1}}',
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    "name",
    "add",
    "[ARGS]",
    ":",
    ",",
    ";",
    " ",
    "\n",
    "<",
    "é",
    '{"name": "now", "parameters": {}}',
]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.lists(st.sampled_from(ALPHABET), max_size=12).map("".join),
    st.randoms(use_true_random=False),
)
def test_cuts_never_change_the_result(form: ToolForm, text: str, dice: random.Random) -> None:
    whole = read(form, text)
    for _ in range(3):
        assert read(form, text, [dice.randrange(len(text) + 1) for _ in range(6)]) == whole
    assert read(form, text, list(range(len(text)))) == whole
    for name, arguments in whole[1]:
        assert name in ("add", "now") and isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(
    "unit", ["<tool_call>", "<tool_call>{", "[", "{", '"', "\\", " ", "\n", "a", "[TOOL_CALLS]x", '<tool_call>{"a":"']
)
def test_reading_takes_linear_time(unit: str) -> None:
    def seconds(form: ToolForm, size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        begun = time.process_time()
        read(form, text, list(range(0, size, 3)))
        return time.process_time() - begun

    for form in (HERMES, ARGS):
        small = min(seconds(form, 8_000) for _ in range(2))
        assert min(seconds(form, 32_000) for _ in range(3)) < 10 * small + 0.2


# -- grammars -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(BytesTokenizer(), SIZE)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_a_forced_call_is_written_as_it_is_read(grammars: Grammars, form: ToolForm) -> None:
    one = calls_grammar(form, TOOLS, forced=True, parallel=False, control=lambda text: None)
    many = calls_grammar(form, TOOLS, forced=True, parallel=True, control=lambda text: None)
    assert one is not None and many is not None
    calls = [("add", '{"a": 1, "s": "x"}'), ("now", "{}")]
    assert matches(grammars, one, written(form, calls[:1])) and matches(grammars, many, written(form, calls[:1]))
    assert matches(grammars, many, written(form, calls)) and not matches(grammars, one, written(form, calls))
    for wrong in ("", "hello", written(form, [("add", '{"s": "x"}')]), written(form, [("sub", "{}")])):
        assert not matches(grammars, many, wrong)


@pytest.mark.parametrize("form", [f for f in FORMS if not f.bare], ids=lambda f: f.name)
def test_text_may_stand_around_calls_but_a_call_begun_is_right(grammars: Grammars, form: ToolForm) -> None:
    free = calls_grammar(form, TOOLS, forced=False, parallel=True, control=lambda text: None)
    assert free is not None
    good = written(form, [("add", '{"a": 1}'), ("now", "{}")])
    for text in ("", "hello < {[", good, f"I see.\n{good}", f"{good} Done."):
        assert matches(grammars, free, text), text
    for text in (
        form.opener,
        f"so {form.opener} what",
        written(form, [("add", '{"s": "x"}')]),
        written(form, [("sub", "{}")]),
    ):
        assert not matches(grammars, free, text), text


def test_a_control_token_opens_a_call_where_the_vocabulary_has_one(grammars: Grammars) -> None:
    control = BytesTokenizer.eos_ids[0] + 1
    for forced in (True, False):
        grammar = calls_grammar(
            MISTRAL,
            TOOLS,
            forced=forced,
            parallel=True,
            control=lambda text: control if text == "[TOOL_CALLS]" else None,
        )
        assert grammar is not None
        grammars.admit(grammar)
        matcher = grammars.matcher(grammar)
        assert matcher.takes(control)
        ids = [control, *b'[{"name": "now", "arguments": {}}]']
        matcher.follow(ids, 0, [])
        assert matcher.takes(BytesTokenizer.eos_ids[0])


def test_a_schema_that_cannot_be_promised() -> None:
    odd = {
        "type": "function",
        "function": {"name": "odd", "parameters": {"type": "object", "not": {"required": ["x"]}}},
    }
    strict = {**odd, "function": {**odd["function"], "strict": True}}  # type: ignore[dict-item]
    assert calls_grammar(HERMES, checked_tools([odd]), forced=False, parallel=True, control=lambda t: None) is not None
    for tools, forced in (
        (checked_tools([odd]), True),
        (checked_tools([strict]), False),
        (checked_tools([strict]), True),
    ):
        with pytest.raises(RequestError, match=r"tools='odd'.*not at #"):
            calls_grammar(HERMES, tools, forced=forced, parallel=True, control=lambda t: None)
    with pytest.raises(RequestError, match="strict"):
        calls_grammar(
            LLAMA, [Tool("f", {"type": "object"}, True, {})], forced=False, parallel=True, control=lambda t: None
        )


def test_references_within_parameters_stay_whole(grammars: Grammars) -> None:
    tree = {
        "$defs": {"t": {"type": "object", "properties": {"l": {"$ref": "#/$defs/t"}}, "additionalProperties": False}},
        "properties": {"t": {"$ref": "#/$defs/t"}},
        "required": ["t"],
    }
    tools = checked_tools([{"type": "function", "function": {"name": "grow", "parameters": tree}}])
    grammar = calls_grammar(HERMES, tools, forced=True, parallel=False, control=lambda text: None)
    assert grammar is not None and grammar.kind is GrammarKind.LARK
    assert matches(grammars, grammar, written(HERMES, [("grow", '{"t": {"l": {"l": {}}}}')]))
    assert not matches(grammars, grammar, written(HERMES, [("grow", '{"t": {"m": 1}}')]))


# -- telling ------------------------------------------------------------------------------------------------------


def test_the_form_is_found_in_the_template() -> None:
    assert tool_form(templates.QWEN25) is HERMES
    assert tool_form(templates.LLAMA3) is LLAMA
    assert tool_form("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]") is MISTRAL
    assert tool_form("{{ tools }}[TOOL_CALLS]name[ARGS]") is ARGS
    assert tool_form("{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}") is PHI
    assert tool_form(templates.CHATML) is TOLD and tool_form(templates.GEMMA) is TOLD and tool_form(None) is TOLD
    for unknown in ("{{ tools }}", "{{ tools }}<tool_call>\n<function=x>"):
        with pytest.raises(RequestError, match="no tools: this model's chat template"):
            tool_form(unknown)


def test_contents_in_parts_are_not_lost_where_tools_are_told_in_words() -> None:
    def shown(content: object) -> list[Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": content},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "content": content},
        ]
        tools = checked_tools([{"type": "function", "function": {"name": "f"}}])
        return [told(form, messages, tools) for form in (TOLD, PHI)]

    assert shown([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]) == shown("one\ntwo")
    assert "one" in str(shown("one")[0][0][1]) and len(shown("one")[0][0]) == 3
    with pytest.raises(RequestError, match=r"messages\[0\].content\[0\]"):
        shown([{"type": "image_url"}])


def test_templates_without_a_place_for_tools_are_told_in_words() -> None:
    messages = [
        {"role": "user", "content": "add"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "x", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "x", "content": "3"},
    ]
    shown, tools = told(TOLD, messages, TOOLS)
    assert tools is None and [m["role"] for m in shown] == ["system", "user", "assistant", "user"]
    assert '"name": "add"' in shown[0]["content"] and read(TOLD, shown[2]["content"]) == ("", [("add", '{"a": 1}')])
    shown, _ = told(TOLD, [{"role": "system", "content": "Be brief."}, *messages], TOOLS)
    assert shown[0]["content"].startswith("Be brief.\n\nYou may call")
    assert told(HERMES, messages, TOOLS) == (messages, [ADD, NOW])
    phi, none = told(PHI, messages, TOOLS)
    assert none is None and json.loads(phi[0]["tools"])[0]["name"] == "add"


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        "x",
        [3],
        [{}],
        [{"type": "web_search"}],
        [{"type": "function"}],
        [{"type": "function", "function": {}}],
        [{"function": {"name": "a b"}}],
        [{"function": {"name": "x" * 65}}],
        [{"function": {"name": "a\n"}}],
        [ADD, ADD],
        [{"function": {"name": "a", "parameters": 3}}],
        [{"function": {"name": "a", "parameters": {"type": "array"}}}],
        [{"function": {"name": "a", "strict": "yes"}}],
        [{"function": {"name": "a", "description": 3}}],
        [NOW] * 129,
    ],
)
def test_wrong_tools_are_refused_by_name(wrong: Any) -> None:
    with pytest.raises(RequestError, match=r"^tools"):
        checked_tools(wrong)


# -- thoughts -----------------------------------------------------------------------------------------------------


def split(text: str, opened: bool, cuts: list[int] | None = None) -> tuple[str, str]:
    parser = ReasoningSplit(opened)
    ends = sorted({0, len(text), *(cuts or [])})
    parts = [parser.feed(text[a:b], 1) for a, b in itertools.pairwise(ends)] + [parser.finish()]
    return "".join(p.reasoning for p in parts), "".join(p.content for p in parts)


THOUGHTS = [
    ("<think>\nhm\n</think>\n\nyes", False, ("hm", "yes")),
    ("hm\n\nso\n</think>\n\nyes", True, ("hm\n\nso", "yes")),
    ("\n <think>hm</think>yes", False, ("hm", "yes")),
    ("<think></think>yes", False, ("", "yes")),
    ("<think>\n\n</think>\n\n", False, ("", "")),
    ("yes <think>no</think>", False, ("", "yes <think>no</think>")),
    ("  yes", False, ("", "  yes")),
    ("<thin", False, ("", "<thin")),
    ("<think>hm </thin", False, ("hm </thin", "")),
    ("hm", True, ("hm", "")),
    ("a</think>b</think>c", True, ("a", "b</think>c")),
    ("", True, ("", "")),
    (" \n", False, ("", " \n")),
]


@pytest.mark.parametrize("text, opened, parts", THOUGHTS, ids=range(len(THOUGHTS)))
def test_thoughts_are_split_wherever_the_text_is_cut(text: str, opened: bool, parts: tuple[str, str]) -> None:
    assert split(text, opened) == parts
    assert split(text, opened, list(range(len(text)))) == parts
    for i in range(len(text)):
        assert split(text, opened, [i]) == parts


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", "\n", " ", "a", "</"]), max_size=10).map("".join),
    st.booleans(),
)
def test_cuts_never_change_a_thought(text: str, opened: bool) -> None:
    assert split(text, opened, list(range(len(text)))) == split(text, opened)


def test_tokens_of_a_thought_are_counted() -> None:
    parser = ReasoningSplit(False)
    for text in ("<th", "ink>", "a", "b", "</think>", "yes", "no"):
        parser.feed(text, 1)
    assert parser.num_tokens == 5
    plain = ReasoningSplit(False)
    for text in ("a", "b"):
        plain.feed(text, 1)
    assert plain.num_tokens == 0


def test_which_models_think_and_which_prompts_have_begun_to() -> None:
    assert thinks("x <think> y </think>") and not thinks(templates.CHATML) and not thinks(None)
    assert opened_by("<|assistant|><think>\n") and not opened_by("<|assistant|>")
    assert not opened_by("<think>\n\n</think>\n\n") and not opened_by("what is <think>? <|assistant|>")


def test_thoughts_take_linear_time() -> None:
    for unit in ("\n", "<", "</think", "a "):
        times = []
        for size in (4_000, 16_000):
            took = []
            for _ in range(3):
                begun = time.process_time()
                split((unit * size)[:size], True, list(range(size)))
                took.append(time.process_time() - begun)
            times.append(min(took))
        assert times[1] < 10 * times[0] + 0.1
