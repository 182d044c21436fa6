"""A grammar is honoured as a whole or refused by name; whatever is sent, this process lives and keeps its memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from bytes_vocabulary import CONTROL, EOS, BytesTokenizer, matches

from legato.core.request import Grammar, GrammarKind
from legato.errors import RequestError
from legato.text.grammar import GrammarFault, Grammars
from legato.text.grammar_schema import MAX_DEPTH, choice, compilable
from legato.text.grammar_worker import Refused, Worker


def schema(value: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, value if isinstance(value, str) else json.dumps(value))


def regex(text: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text)


def lark(text: str) -> Grammar:
    return Grammar(GrammarKind.LARK, text)


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(BytesTokenizer(), BytesTokenizer.vocab_size)  # type: ignore[arg-type]
    yield made
    made.close()


def nested(depth: int, key: str = "properties") -> Any:
    inner: Any = {"type": "string"}
    for _ in range(depth - 1):
        inner = {"type": "object", "properties": {"a": inner}} if key == "properties" else {key: [inner]}
    return inner


# A keyword that the compiler does not hold to, or would overlook, is named in the refusal.
UNSUPPORTED = [
    ("unevaluatedProperties", {"type": "object", "unevaluatedProperties": False}),
    ("unevaluatedItems", {"type": "array", "unevaluatedItems": False}),
    ("dependentSchemas", {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}),
    ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}),
    ("dependencies", {"type": "object", "dependencies": {"a": ["b"]}}),
    ("if", {"if": {"type": "integer"}, "then": {"minimum": 3}}),
    ("then", {"then": {"minimum": 3}}),
    ("else", {"else": {"minimum": 3}}),
    ("not", {"not": {"type": "integer"}}),
    ("uniqueItems", {"type": "array", "uniqueItems": True}),
    ("contains", {"type": "array", "contains": {"type": "integer"}}),
    ("minContains", {"type": "array", "minContains": 1}),
    ("maxContains", {"type": "array", "maxContains": 1}),
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^a"}}),
    ("minProperties", {"type": "object", "minProperties": 2}),
    ("additionalItems", {"type": "array", "items": [{"type": "integer"}], "additionalItems": False}),
    ("format", {"type": "string", "format": "foo"}),
    ("format", {"type": "string", "format": "regex"}),
    ("format", {"type": "string", "format": "json-pointer"}),
    ("format", {"type": "string", "format": "iri"}),
    ("format", {"type": "string", "format": ["date"]}),
    ("format", {"type": "integer", "format": "int32"}),
    ("minimun", {"type": "integer", "minimun": 3}),
    ("x-guidance", {"type": "object", "x-guidance": {"lenient": True}}),
    ("nullable", {"type": "integer", "nullable": True}),
    ("divisibleBy", {"type": "integer", "divisibleBy": 3}),
    ("disallow", {"disallow": "integer"}),
    ("extends", {"extends": {"type": "integer"}}),
    ("id", {"id": "x", "type": "integer"}),
    ("$dynamicRef", {"$dynamicRef": "#a"}),
    ("$recursiveRef", {"$recursiveRef": "#"}),
    ("$anchor", {"$anchor": "a", "type": "integer"}),
    ("$vocabulary", {"$vocabulary": {}}),
    ("$id", {"properties": {"a": {"$id": "http://localhost/a", "type": "integer"}}}),
    ("$ref", {"$ref": "http://localhost/a"}),
    ("$ref", {"$ref": "other.json#/a"}),
    ("$ref", {"$ref": "file:///etc/hostname"}),
    ("$ref", {"$ref": "#/definitions/x"}),
    ("$ref", {"$ref": "#name"}),
    ("$ref", {"$ref": 3}),
    ("$ref", {"default": {"minimun": 3}, "$ref": "#/default"}),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"minimum": 3}]}),
    ("oneOf", {"oneOf": [{"properties": {"a": {}}, "type": "object"}, {"properties": {"b": {}}, "type": "object"}]}),
    ("look-around", {"type": "string", "pattern": "(?=a)b"}),
    ("backreferences", {"type": "string", "pattern": r"(a)\1"}),
]


@pytest.mark.parametrize("named, value", UNSUPPORTED, ids=[f"{n}-{i}" for i, (n, _) in enumerate(UNSUPPORTED)])
def test_what_cannot_be_honoured_is_refused_by_name(grammars: Grammars, named: str, value: object) -> None:
    for placed in (value, {"type": "array", "items": value} if "$ref" not in json.dumps(value) else value):
        with pytest.raises(RequestError) as refusal:
            grammars.admit(schema(placed))
        assert named.lower() in str(refusal.value).lower() and refusal.value.field == "grammar"
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


UNSATISFIABLE = [
    False,
    {"type": "integer", "minimum": 3, "maximum": 1},
    {"allOf": [{"type": "integer"}, {"type": "string"}]},
    {"enum": []},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "object", "required": ["b"], "additionalProperties": False},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}]}},
    },
    {"type": "array", "minItems": 3, "maxItems": 2},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "string", "pattern": "^a$", "minLength": 2},
    {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
]


@pytest.mark.parametrize("value", UNSATISFIABLE, ids=range(len(UNSATISFIABLE)))
def test_a_schema_that_no_answer_fulfils_is_refused(grammars: Grammars, value: object) -> None:
    with pytest.raises(RequestError, match="grammar="):
        grammars.admit(schema(value))


HONOURED: list[tuple[object, list[str], list[str]]] = [
    ({}, ['{"a":1}', "{}"], ["1", "null", "[]"]),
    ({"type": "integer"}, ["1", "-12"], ["1.5", "01", "x"]),
    ({"type": "integer", "multipleOf": 3}, ["3", "12"], ["4"]),
    ({"type": "number", "multipleOf": 0.1}, ["0.1"], ["0.15"]),
    ({"type": "integer", "exclusiveMinimum": 3, "maximum": 5}, ["4", "5"], ["3", "6"]),
    ({"type": ["integer", "null"]}, ["1", "null"], ["true"]),
    ({"enum": [1, "a", None]}, ["1", '"a"', "null"], ["2"]),
    ({"const": {"a": [1]}}, ['{"a":[1]}'], ['{"a":[2]}']),
    ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-02-30"']),
    ({"type": "string", "pattern": "b"}, ['"abc"'], ['"ac"']),
    ({"type": "string", "maxLength": 2}, ['"ab"', '"é"'], ['"abc"']),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, ['{"ab":1}', '{"b":"x"}'], ['{"ab":"x"}']),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, ["[1]", "[]"], ["[1,2]"]),
    ({"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "null"}}, ["[null]"], ["[]", "[null,1]"]),
    ({"type": "array", "uniqueItems": False}, ["[1,1]"], ["1"]),
    (
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}], "additionalItems": False},
        ["[null]"],
        ["[null,1]"],
    ),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    (
        {"$defs": {"t": {"type": "object", "properties": {"c": {"$ref": "#/$defs/t"}}, "additionalProperties": False}},
         "$ref": "#/$defs/t"},
        ["{}", '{"c":{"c":{}}}'],
        ['{"d":1}'],
    ),
    # a second spelling of a key, or a key twice, must not slip past its schema
    (
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        ['{"a":1,"b":2}'],
        ['{"b":2,"\\u0061":"x"}', '{"a":1,"a":"x"}', '{"b":2,"a":"x"}'],
    ),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "é": True}, "required": ["é"]}, ['{"é":1}'], ["{}"]),
]  # fmt: skip


@pytest.mark.parametrize("value, good, bad", HONOURED, ids=range(len(HONOURED)))
def test_what_is_accepted_is_held_to(grammars: Grammars, value: object, good: list[str], bad: list[str]) -> None:
    import jsonschema

    for text in good:
        assert matches(grammars, schema(value), text), text
        if value != {}:
            jsonschema.validate(json.loads(text), value)
    for text in bad:
        assert not matches(grammars, schema(value), text), text


def test_limits_of_size_and_depth(grammars: Grammars) -> None:
    grammars.admit(schema(nested(MAX_DEPTH)))
    for value in (nested(MAX_DEPTH + 1), nested(64), nested(129), nested(33, "anyOf"), {"const": nested(40)}):
        with pytest.raises(RequestError, match="32 deep"):
            grammars.admit(schema(value))
    for depth in (10_000, 30_000):
        for text in ("[" * depth, '{"not":' * (depth // 10), '{"properties":{"a":' * (depth // 10)):
            with pytest.raises(RequestError):
                grammars.admit(schema(text))
    with pytest.raises(RequestError, match="65536"):
        grammars.admit(schema('"' + "é" * 40_000 + '"'))
    with pytest.raises(RequestError, match="2048"):
        grammars.admit(regex("a" * 2049))


def _bad_schemas() -> list[str]:
    deep = ["[" * n for n in (33, 129, 10_000)] + ['{"items":' * n + "{}" + "}" * n for n in (33, 129, 900, 5_000)]
    broken = ["", "{", "}", "nul", "NaN", '{"minimum":NaN}', '{"a":1,"a":2}', "\ud800", '{"type":"\ud800"}', "\x00"]
    broken += ["[]", "3", '"x"', "null", "true", "false", '{"properties":[]}', '{"properties":{"a":3}}', '{"items":3}']
    broken += ['{"type":"int"}', '{"type":3}', '{"type":[]}', '{"type":["a"]}', '{"required":"a"}', '{"required":[1]}']
    keywords = ["minimum", "maximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "pattern", "enum"]
    keywords += ["anyOf", "allOf", "oneOf", "$ref", "format", "additionalProperties", "prefixItems", "minProperties"]
    wrong = ["-1", "1e400", "[]", '"x"', "{}", "null", str(2**64)]
    typed = [f'{{"type":"{t}","{k}":{v}}}' for k, t in zip(keywords, ["integer", "string", "array"] * 6, strict=False)
             for v in wrong]  # fmt: skip
    huge = ['{"type":"array","minItems":1000000000,"items":{"type":"null"}}', '{"type":"string","maxLength":1e9}']
    huge += [
        json.dumps({"enum": [f"{i:x}" * 5 for i in range(7000)]}),
        json.dumps({"anyOf": [{"const": i} for i in range(4000)]}),
    ]
    huge += [
        json.dumps({"type": "string", "pattern": p})
        for p in ("(a*)*b", "((a{1,100}){1,100}){1,100}", "(" * 500, "a{99999}")
    ]
    huge += [
        json.dumps(
            {
                "$ref": "#/$defs/d0",
                "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)}
                | {"d25": {"type": "null"}},
            }
        )
    ]
    huge += [
        json.dumps(
            {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": f"a{{{i}}}"} for i in range(900)}}
        )
    ]
    return [s for s in deep + broken + typed + huge if 0 < len(s) <= 65536]


def _bad_regexes() -> list[str]:
    parens = ["(" * n + "a" + ")" * n for n in (50, 250, 1000)]
    quantified = [
        "(a*)*b",
        "(a+)+$",
        "(a|a)*b",
        "((a*)*)*",
        "a{1,100000}",
        "((a{1,100}){1,100}){1,100}",
        "(a{0,50}b?){50}",
    ]
    quantified += [
        "(.{1,200}){1,200}x",
        "(x+x+)+y",
        "([a-z]+)*[0-9]{500}",
        "(a?){500}a{500}",
        "(?:a{1,30}){1,30}b{1,900}",
    ]
    broken = [
        "(",
        ")",
        "[",
        "]",
        "a{",
        "*",
        "+a",
        "?",
        "a**",
        "\\",
        "[z-a]",
        "(?P<",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "\\1",
        "\\b",
    ]
    broken += [
        "[^\\s\\S]",
        "\ud800",
        "a\x00",
        "\\x{110000}",
        "\\p{Nope}",
        "(?i",
        "(?#c)",
        "a{2,1}",
        "\n\n",
        "/",
        '"',
        "\\Q",
    ]
    wide = [
        "|".join(f"w{i}" for i in range(400)),
        ".*" * 500,
        ".*a" * 300,
        "[\\s\\S]*" * 200,
        "(.*){9}",
        "\\p{L}{1,500}",
    ]
    return parens + quantified + broken + wide


def test_bad_schemas_and_regexes_leave_the_process_alive_and_quick(grammars: Grammars) -> None:
    cases = [(GrammarKind.JSON_SCHEMA, s) for s in _bad_schemas()] + [(GrammarKind.REGEX, r) for r in _bad_regexes()]
    assert len(cases) >= 180
    slowest, refused = 0.0, 0
    for kind, text in cases:
        begun = time.perf_counter()
        try:
            grammars.admit(Grammar(kind, text))
            grammars.matcher(Grammar(kind, text)).allowed()
        except (RequestError, GrammarFault) as error:
            refused += 1
            assert "0x" not in str(error) and "\n" not in str(error)
        slowest = max(slowest, time.perf_counter() - begun)
    assert refused > 100
    assert slowest < 6.0  # two seconds in the child, its restart, and a busy machine
    assert matches(grammars, regex("[0-9]+"), "12")


@pytest.mark.parametrize(
    "text",
    ["start: x", 'root ::= "a"', "start: /a(?!b)/", "start: @x", 'start: "("*1', "start: " + "(" * 30_000, "", "%json",
     'start: %json {"minimun": 3}', 'start: %json {"$ref": "http://localhost"}', "start: %json {", 'start: "a" <nope>',
     'start: %json {"not": {}}', "start: start"],
)  # fmt: skip
def test_bad_larks(grammars: Grammars, text: str) -> None:
    with pytest.raises(RequestError):
        grammars.admit(lark(text))


def test_lark_and_choices(grammars: Grammars) -> None:
    assert matches(grammars, lark('start: "a"+ %json {"type":"integer"}'), "aa12")
    assert not matches(grammars, lark('start: "a"+ %json {"type":"integer"}'), "aa")
    options = ["yes", "no", 'a "quoted" \\ one', "é\n\t", "%json", "a/b|c(d)[e]", "\x7f\x00"]
    for option in options:
        assert matches(grammars, choice(options), option)
    assert not matches(grammars, choice(options), "ye")
    for wrong in ([], [""], [3]):
        with pytest.raises(RequestError, match="choice"):
            choice(wrong)  # type: ignore[arg-type]


def test_no_text_is_a_control_token(grammars: Grammars) -> None:
    anything = regex("(?s:.*)")
    grammars.admit(anything)
    bits = int.from_bytes(grammars.matcher(anything).allowed(), "little")
    assert not bits >> CONTROL & 1  # but its letters are text like any other
    assert bits >> EOS & 1 and bits >> ord("<") & 1 and bits >> (EOS - 1) & 1


def test_a_matcher_is_taken_back_and_follows_again(grammars: Grammars) -> None:
    grammar = schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    grammars.admit(grammar)
    matcher, ids = grammars.matcher(grammar), list(b'{"a":12}')
    masks = []
    for i in range(len(ids) + 1):
        matcher.follow([7, *ids[:i]], 1, [])
        masks.append(matcher.allowed())
    other = grammars.matcher(grammar)
    for certain, accepted in ((0, 8), (0, 3), (2, 5), (2, 0), (3, 1), (5, 3), (7, 1), (8, 0)):
        other.follow([7, *ids[:certain]], 1, ids[certain : certain + accepted])
        assert other.allowed() == masks[certain + accepted]
    with pytest.raises(GrammarFault):
        other.follow([7, *ids, 65], 1, [])


def test_a_grammar_nobody_admitted_is_a_fault_and_one_that_made_room_is_not() -> None:
    small = Grammars(BytesTokenizer(), BytesTokenizer.vocab_size, cache_bytes=1 << 20)  # type: ignore[arg-type]
    with pytest.raises(GrammarFault, match="not admitted"):
        small.matcher(regex("a"))
    first = regex("a{3}")
    small.admit(first)
    for i in range(20):
        small.admit(regex(f"b{{{i + 1}}}"))
    assert small.taken_bytes <= 1 << 20 and small.num_compiled < 10
    assert small.matcher(first).takes(97)
    small.close()


def _anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as f:
        return sum(int(line.split()[1]) << 10 for line in f if line.startswith(("RssAnon", "VmSwap")))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux to count memory")
def test_a_stream_of_new_schemas_takes_no_more_memory() -> None:
    limited = Grammars(BytesTokenizer(), BytesTokenizer.vocab_size, cache_bytes=8 << 20)  # type: ignore[arg-type]

    def admit(i: int) -> None:
        names = {f"name{i}_{j}": {"type": "string", "maxLength": 5} for j in range(8)}
        limited.admit(schema({"type": "object", "properties": names}))
        limited.matcher(schema({"type": "object", "properties": names})).allowed()

    for i in range(150):
        admit(i)
    before = _anonymous_bytes()
    for i in range(150, 500):
        admit(i)
    assert _anonymous_bytes() - before < 8 << 20
    limited.close()


def test_a_killed_worker_is_replaced(grammars: Grammars) -> None:
    import signal

    grammars.admit(regex("killed0"))
    first = grammars.worker_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    grammars.admit(regex("killed1"))
    assert grammars.worker_pid != first


def test_the_text_for_the_compiler_is_the_schema_and_its_style() -> None:
    made = json.loads(compilable(schema({"type": "object", "title": "T"})))
    assert made.pop("x-guidance").keys() == {"json_allowed_escapes", "whitespace_pattern"}
    assert made == {"type": "object", "title": "T"}


def test_a_compilation_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, grammars: Grammars) -> None:
    grammars.admit(regex("before"))
    first = grammars.worker_pid
    slow = schema(
        {"type": "object", "properties": {f"q{i}": {"type": "string", "pattern": f"a{{{i}}}"} for i in range(400)}}
    )
    with monkeypatch.context() as patch:
        patch.setattr("legato.text.grammar.TIME_LIMITS_S", dict.fromkeys(GrammarKind, 1e-3))
        with pytest.raises(RequestError, match=r"within 0\.001 s"):
            grammars.admit(slow)
    grammars.admit(slow)
    assert grammars.worker_pid != first


def test_the_worker_survives_what_would_overflow_a_stack() -> None:
    worker = Worker()
    for kind, text in (
        ("regex", "(" * 40_000 + ")" * 40_000),
        ("lark", "start: " + "(" * 40_000 + '"a"' + ")" * 40_000),
    ):
        with pytest.raises(Refused):
            worker.check(kind, text, 5.0)
    worker.check("regex", "a", 5.0)
    worker.close()
