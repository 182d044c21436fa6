"""Every field of a request at and beyond its borders: accepted, or refused in one line that names it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from legato.core.request import MAX_BIASES, SAMPLING_FIELDS, Grammar, GrammarKind, Request, SamplingParams
from legato.errors import RequestError

BIG = 2**31 - 1


@dataclass(frozen=True)
class Range:
    low: float
    high: float
    whole: bool
    optional: bool = False


RANGES = {
    "temperature": Range(0.0, 100.0, False),
    "top_k": Range(0, BIG, True),
    "top_p": Range(1e-9, 1.0, False),
    "min_p": Range(0.0, 1.0, False),
    "repetition_penalty": Range(0.01, 100.0, False),
    "presence_penalty": Range(-2.0, 2.0, False),
    "frequency_penalty": Range(-2.0, 2.0, False),
    "seed": Range(-(2**63), 2**64 - 1, True, optional=True),
    "max_tokens": Range(1, BIG, True, optional=True),
    "min_tokens": Range(0, BIG, True),
    "logprobs": Range(0, 20, True, optional=True),
    "prompt_logprobs": Range(0, 20, True, optional=True),
    "n": Range(1, 16, True),
}
OTHERS = {"logit_bias", "stop", "stop_token_ids", "ignore_eos", "grammar"}
NEVER = [math.nan, math.inf, -math.inf, True, False, "1", "", b"1", [1], (1,), {1: 1}, 1j, 10**400, -(10**5000)]


def test_the_table_names_every_field() -> None:
    assert set(SAMPLING_FIELDS) == RANGES.keys() | OTHERS


def refused(name: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(name) and "not allowed" in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize("name", RANGES)
def test_a_number_is_taken_inside_its_range_only(name: str) -> None:
    span = RANGES[name]
    step = 1 if span.whole else 1e-6 * max(1.0, abs(span.high))
    inside: list[object] = [span.low, span.high]
    outside: list[object] = [span.low - step, span.high + step, *NEVER]
    if span.whole:
        outside += [1.5, 1.0]
    (inside if span.optional else outside).append(None)
    for value in inside:
        assert getattr(SamplingParams(**{name: value}), name) == value  # type: ignore[arg-type]
    for value in outside:
        refused(name, value)


def test_a_grammar_is_a_grammar_of_bounded_size() -> None:
    assert SamplingParams(grammar=Grammar(GrammarKind.REGEX, "a+")).grammar is not None
    for value in NEVER:
        refused("grammar", value)
    for text in ("", "a" * 65_537):
        with pytest.raises(RequestError, match="grammar"):
            Grammar(GrammarKind.REGEX, text)


def test_a_deadline_lies_ahead_and_within_a_day() -> None:
    assert Request("r", (1,), deadline_ms=0.5).deadline_ms == 0.5
    for value in (0, -1, 86_400_001, *NEVER):
        with pytest.raises(RequestError, match="deadline_ms"):
            Request("r", (1,), deadline_ms=value)  # type: ignore[arg-type]


def test_top_p_of_nothing_is_refused() -> None:
    refused("top_p", 0.0)
    refused("top_p", 0)


def test_min_tokens_may_not_pass_max_tokens() -> None:
    assert SamplingParams(max_tokens=3, min_tokens=3).min_tokens == 3
    with pytest.raises(RequestError, match=r"min_tokens=4 .*max_tokens=3"):
        SamplingParams(max_tokens=3, min_tokens=4)


@pytest.mark.parametrize("value", [0, 1, None, "true", math.nan])
def test_a_switch_is_true_or_false(value: object) -> None:
    refused("ignore_eos", value)


@pytest.mark.parametrize(
    "value",
    [None, 5, "stop", {"a"}, [""], ["x" * 1025], [5], [None], [b"x"], ["x"] * 17],
)
def test_stop_strings_that_are_none(value: object) -> None:
    refused("stop", value)


@pytest.mark.parametrize("value", [None, 5, "5", [-1], [2**31], [2**63], [1.0], [True], ["5"], [None], [1] * 17])
def test_stop_ids_that_are_none(value: object) -> None:
    refused("stop_token_ids", value)


@pytest.mark.parametrize(
    "value",
    [
        None, [(1, 2)], "x", {-1: 0}, {2**31: 0}, {"1": 0}, {True: 0}, {1.0: 0}, {None: 0},
        {1: 101}, {1: -101}, {1: math.nan}, {1: math.inf}, {1: "1"}, {1: None}, {1: True}, {1: 10**400},
        dict.fromkeys(range(MAX_BIASES + 1), 0.0),
    ],
)  # fmt: skip
def test_biases_that_are_none(value: object) -> None:
    refused("logit_bias", value)


def test_lists_are_taken_and_later_changes_to_them_are_not() -> None:
    stops, ids, bias = ["a", "b"], [1, 2], {3: 1.0}
    params = SamplingParams(stop=stops, stop_token_ids=ids, logit_bias=bias)  # type: ignore[arg-type]
    stops.append("c"), ids.append(9), bias.update({4: 1.0})
    assert (params.stop, params.stop_token_ids, params.logit_bias) == (("a", "b"), (1, 2), {3: 1.0})


@pytest.mark.parametrize(
    "field, value",
    [
        ("request_id", ""), ("request_id", None), ("request_id", 5), ("request_id", "x" * 257),
        ("salt", None), ("salt", b"x"), ("salt", "x" * 257),
        ("priority", None), ("priority", 1.0), ("priority", True), ("priority", "1"), ("priority", 2**31),
        ("priority", -(2**31) - 1), ("priority", math.nan),
        ("params", None), ("params", {"n": 1}),
        ("prompt_ids", None), ("prompt_ids", "abc"), ("prompt_ids", 5), ("prompt_ids", [-1]), ("prompt_ids", [1.0]),
        ("prompt_ids", [True]), ("prompt_ids", ["1"]), ("prompt_ids", [None]), ("prompt_ids", [2**31]),
        ("prompt_ids", [10**5000]), ("prompt_ids", [math.nan]),
    ],
)  # fmt: skip
def test_a_request_refuses_what_is_not_one(field: str, value: object) -> None:
    good = {"request_id": "a", "prompt_ids": (1, 2), "params": SamplingParams()}
    with pytest.raises(RequestError, match=field) as caught:
        Request(**{**good, field: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", [(), []])
def test_an_empty_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(RequestError, match=r"prompt.*at least one token"):
        Request("a", prompt)  # type: ignore[arg-type]


def test_a_request_at_its_borders_is_taken() -> None:
    request = Request("x" * 256, [0, 2**31 - 1], priority=-(2**31), salt="é" * 256)  # type: ignore[arg-type]
    assert request.prompt_ids == (0, 2**31 - 1)


@pytest.mark.parametrize(
    "field, request_",
    [
        ("prompt_ids", Request("a", (0, 100))),
        ("logit_bias", Request("a", (0,), SamplingParams(logit_bias={100: 1.0}))),
        ("stop_token_ids", Request("a", (0,), SamplingParams(stop_token_ids=(100,)))),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_where_the_model_is_known(field: str, request_: Request) -> None:
    request_.check_vocab(101)
    with pytest.raises(RequestError, match=rf"{field}=100 .* 0 to 99"):
        request_.check_vocab(100)
