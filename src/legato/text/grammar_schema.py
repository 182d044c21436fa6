"""Which schemas and grammars may be compiled: limits of size and depth, and the keywords that are honoured.

Knows: JSON Schema's keywords, and which of them the compiler holds to. Does not know: the compiler, tokens, processes.

A schema is honoured as a whole or refused by name. The compiler refuses most of what it cannot do; here is what it
would overlook: unknown keywords (a typing error in `minimum` must not widen an answer), references to places that
are no schema, formats it does not check, answers without an end, keys spelled with escapes to slip past a rule.

Source: JSON Schema 2020-12, core and validation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from legato.core.request import MAX_GRAMMAR, Grammar, GrammarKind
from legato.errors import RequestError

MAX_DEPTH = 32
MAX_REGEX = 2048

_ONE = frozenset({"additionalProperties", "items", "additionalItems"})
_LISTED = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
_COUNTS = {"required", "minProperties", "maxProperties", "minItems", "maxItems"}
_PLAIN = frozenset({"type", "enum", "const", "pattern", "format", "$ref"} | _BOUNDS | _COUNTS)
# These say something about a value, but never that it is wrong.
_NOTES = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
    | {"$comment", "$schema", "$id", "discriminator", "contentEncoding", "contentMediaType", "propertyOrdering"}
)
_WORDS = _NOTES - {"$schema", "$id"}
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_OLD_DRAFT = re.compile(r"draft-0[4-7]|draft/2019-09")

# Of a string's escapes only those that spell a character which has no other spelling: else "\u0061" would be a second
# way to write the key "a". Of blanks, one space or one line end with its indent: a model may write them for ever.
_STYLE = {"json_allowed_escapes": '"\\nrtbf', "whitespace_pattern": r"( |\n[ \t]{0,20})"}
_JSON_IN_LARK = re.compile(r"%json\b\s*")


def compilable(grammar: Grammar) -> str:
    """The text that the compiler of the grammar's kind takes. Raises `RequestError` naming what is refused."""
    text = grammar.text
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _refused(grammar, "text without lone surrogates") from None
    if size > MAX_GRAMMAR:
        raise _refused(grammar, f"at most {MAX_GRAMMAR} bytes")
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return _checked_json(grammar, text)
        case GrammarKind.REGEX:
            if size > MAX_REGEX:
                raise _refused(grammar, f"a regular expression of at most {MAX_REGEX} bytes")
            if (len(grammar.text) - len(grammar.text.rstrip("\\"))) % 2:
                raise _refused(grammar, "a regular expression that does not end in a lone backslash")
            return text
        case GrammarKind.LARK:
            return _checked_lark(grammar)


def choice(options: list[str]) -> Grammar:
    """The grammar of an answer that is one of `options`, word for word."""
    if not options or not all(isinstance(option, str) and option for option in options):
        raise RequestError("choice", options, "a list of at least one text that is not empty")
    return Grammar(GrammarKind.LARK, "start: " + " | ".join(lark_string(option) for option in options))


def without_notes(schema: Any) -> Any:
    """The schema without what is written in it for people: it allows the same, in fewer words."""
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _WORDS:
            continue
        if key in _NAMED and isinstance(value, dict):
            value = {name: without_notes(item) for name, item in value.items()}
        elif key in _ONE | _LISTED:
            value = [without_notes(item) for item in value] if isinstance(value, list) else without_notes(value)
        out[key] = value
    return out


def lark_string(text: str) -> str:
    """`text` as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").replace("%", "\\u0025")


def _refused(grammar: Grammar, why: str) -> RequestError:
    return RequestError("grammar", grammar.kind.value, why)


def _checked_lark(grammar: Grammar) -> str:
    """Schemas written after %json inside a grammar are held to the same rules."""
    text, out, at = grammar.text, [], 0
    decoder = _decoder(grammar)
    for found in _JSON_IN_LARK.finditer(text):
        if found.start() < at:
            continue
        try:
            schema, end = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            raise _refused(grammar, "a JSON schema after each %json") from None
        out += [text[at : found.end()], json.dumps(_Schema(grammar, schema).checked())]
        at = end
    return "".join([*out, text[at:]])


def _checked_json(grammar: Grammar, text: str) -> str:
    try:
        schema = _decoder(grammar).decode(text)
    except RecursionError:
        raise _refused(grammar, f"a schema at most {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise _refused(grammar, f"a JSON schema; it is not JSON: {str(error)[:100]}") from None
    return json.dumps(_Schema(grammar, {"type": "object"} if schema == {} else schema).checked())


def _decoder(grammar: Grammar) -> json.JSONDecoder:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _refused(grammar, "a schema that names each key once")
        return found

    def refuse(name: str) -> float:
        raise _refused(grammar, f"a schema without {name}")

    def finite(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(digits[:20])

    return json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)


class _Schema:
    """One schema being checked. `places` are all subschemas by their pointer."""

    def __init__(self, grammar: Grammar, root: Any) -> None:
        self._grammar, self._root = grammar, root
        self.places: dict[str, Any] = {}
        self._refs: list[tuple[str, str]] = []

    def checked(self) -> dict[str, Any]:
        if isinstance(self._root, bool):
            raise self._refusal("", str(self._root).lower(), "an object: say what the answer is")
        self._visit(self._root, "", 1)
        for pointer, ref in self._refs:
            if _target(ref) not in self.places:
                raise self._refusal(pointer, "$ref", f"only to a schema of this document, as #/$defs/NAME; it is {ref}")
        if not self._has_end():
            raise RequestError("grammar", "json_schema", "a schema that an answer can fulfil: this one never ends")
        return {**self.places[""], "x-guidance": _STYLE}

    def _refusal(self, pointer: str, keyword: str, why: str) -> RequestError:
        return _refused(self._grammar, f"{keyword} at #{pointer[:100]} cannot be honoured: {why}")

    def _visit(self, node: Any, pointer: str, depth: int) -> Any:
        """Checks a subschema; returns it as the compiler gets it."""
        if depth > MAX_DEPTH:
            raise _refused(self._grammar, f"a schema at most {MAX_DEPTH} deep")
        if not isinstance(node, (dict, bool)):
            raise self._refusal(pointer, "this", "a schema is an object, true or false")
        self.places[pointer] = node
        if isinstance(node, bool):
            return node
        out: dict[str, Any] = {}
        for key, value in node.items():
            below = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
            if key in _ONE and not isinstance(value, list):
                value = self._visit(value, below, depth + 1)
            elif key in _LISTED or key in _ONE:
                value = self._visit_list(value, below, depth)
            elif key in _NAMED:
                value = self._visit_named(value, below, depth)
            self._check_keyword(node, key, pointer)
            if key != "uniqueItems":
                out[key] = value
        self.places[pointer] = out
        return out

    def _visit_list(self, value: Any, below: str, depth: int) -> list[Any]:
        if not isinstance(value, list):
            raise self._refusal(below, "this", "it is a list of schemas")
        return [self._visit(item, f"{below}/{i}", depth + 1) for i, item in enumerate(value)]

    def _visit_named(self, value: Any, below: str, depth: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._refusal(below, "this", "it is an object of schemas by name")
        return {
            name: self._visit(item, f"{below}/{name.replace('~', '~0').replace('/', '~1')}", depth + 1)
            for name, item in value.items()
        }

    def _check_keyword(self, node: dict[str, Any], key: str, pointer: str) -> None:
        value = node[key]
        if key == "uniqueItems" and value is False:
            return
        if key not in _ONE | _LISTED | _NAMED | _PLAIN | _NOTES:
            raise self._refusal(pointer, key, "it is not a keyword that is supported")
        if key == "format" and not (isinstance(value, str) and value in FORMATS):
            raise self._refusal(pointer, f"format {str(value)[:40]}", f"only {', '.join(sorted(FORMATS))}")
        if key == "additionalItems" and not self._is_old():
            raise self._refusal(pointer, key, "it is of older drafts; use prefixItems and items, or name the $schema")
        if key == "$id" and pointer:
            raise self._refusal(pointer, key, "only at the root")
        if key == "$ref":
            self._refs.append((pointer, str(value)))
        if key in ("enum", "const") and _depth(value) > MAX_DEPTH:
            raise _refused(self._grammar, f"a schema at most {MAX_DEPTH} deep")
        if key == "minProperties" and isinstance(value, (int, float)):
            required = node.get("required")
            named = len(set(map(str, required))) if isinstance(required, list) else 0
            if value > max(1, named):
                raise self._refusal(pointer, key, "a key could be written twice; list the keys in required")

    def _is_old(self) -> bool:
        return isinstance(self._root, dict) and bool(_OLD_DRAFT.search(str(self._root.get("$schema", ""))))

    # -- whether an answer can end --------------------------------------------------------------------------------

    def _has_end(self) -> bool:
        """Whether the root is among the places that can end: counts what each still waits for, in linear time."""
        waiting: dict[str, int] = {}
        users: dict[str, list[str]] = {}
        for at, node in self.places.items():
            needed = list(self._needed(at, node)) if isinstance(node, dict) else ["\0"] * (not node)
            for key in ("anyOf", "oneOf"):
                if isinstance(node, dict) and key in node:
                    any_of_them = f"{at}|{key}"
                    needed.append(any_of_them)
                    waiting[any_of_them] = 1
                    for i in range(len(node[key])):
                        users.setdefault(f"{at}/{key}/{i}", []).append(any_of_them)
            waiting[at] = len(needed)
            for other in needed:
                users.setdefault(other, []).append(at)
        ready = [at for at, count in waiting.items() if count == 0]
        for at in ready:
            for user in users.get(at, ()):
                waiting[user] -= 1
                if waiting[user] == 0:
                    ready.append(user)
        return waiting[""] <= 0

    def _needed(self, at: str, node: dict[str, Any]) -> Iterator[str]:
        """Places without which no value of `node` exists."""
        if "$ref" in node:
            yield _target(str(node["$ref"]))
        yield from (f"{at}/allOf/{i}" for i in range(len(node.get("allOf", ()))))
        kinds = node.get("type")
        if kinds in ("object", ["object"]) and isinstance(node.get("required"), list):
            properties = node.get("properties", {})
            for name in node["required"]:
                if name in properties:
                    yield f"{at}/properties/{name.replace('~', '~0').replace('/', '~1')}"
        least = node.get("minItems", 0)
        if kinds in ("array", ["array"]) and isinstance(least, (int, float)):
            prefix = len(node.get("prefixItems", ()))
            yield from (f"{at}/prefixItems/{i}" for i in range(min(prefix, int(least))))
            if least > prefix and isinstance(node.get("items"), (dict, bool)):
                yield f"{at}/items"


def _target(ref: str) -> str:
    """The pointer that a reference into this document names; what no pointer can be for any other."""
    return unquote(ref[1:]) if ref.startswith("#") else "\0"


def _depth(value: Any) -> int:
    """How deep lists and objects lie in one another, counted no further than is allowed."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            item
            for part in level
            if isinstance(part, (list, dict))
            for item in (part.values() if isinstance(part, dict) else part)
        ]
        depth += 1
    return depth
