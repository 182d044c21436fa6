"""Constraints of a body: the one place where response_format and its relatives are understood, or refused by name.

Knows: response_format, structured_outputs, the older guided_* fields. Does not know: how a grammar is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from legato.core.request import Grammar, GrammarKind
from legato.errors import RequestError
from legato.server.protocols.openai.fields import Common
from legato.text.grammar_schema import choice

_WAYS = ("json", "json_object", "regex", "choice", "grammar")
_FORMATS = "text, json_object or json_schema"


def grammar_of(body: Common) -> tuple[Grammar | None, str]:
    """What the answer must match, and the field that says so. Raises `RequestError` for what cannot be promised."""
    found: dict[str, Grammar] = {}
    if body.response_format is not None:
        made = _of_format(body.response_format)
        if made is not None:
            found["response_format"] = made
    guided = {f"guided_{way}": getattr(body, f"guided_{way}") for way in ("json", "regex", "choice", "grammar")}
    asked = {name: (name.removeprefix("guided_"), value) for name, value in guided.items() if value is not None}
    for way, value in (body.structured_outputs or {}).items():
        flag = way == "json_object" or way not in _WAYS
        if value is None or (flag and value is False):  # also of what is not understood: it asks for nothing
            continue
        name = f"structured_outputs.{way[:60]}"
        if way not in _WAYS:
            raise RequestError(name, value, f"left out; one of {', '.join(_WAYS)} is understood")
        asked[name] = way, value
    found |= {name: _of_way(name, way, value) for name, (way, value) in asked.items()}
    if len(found) > 1:
        raise RequestError(list(found)[1], "...", f"left out beside {next(iter(found))}", "give one constraint")
    return next(((grammar, name) for name, grammar in found.items()), (None, ""))


def _of_format(given: Mapping[str, Any]) -> Grammar | None:
    kind = given.get("type")
    for name, value in given.items():
        if name not in ("type", "json_schema", "schema") and value is not None:
            raise RequestError(f"response_format.{name[:60]}", value, "left out", "give type and json_schema")
    if kind == "text":
        return None
    schema = given.get("schema")  # beside the type, as llama.cpp takes it
    if kind == "json_object" and schema is None:
        return Grammar(GrammarKind.JSON_SCHEMA, "{}")
    if kind not in ("json_object", "json_schema"):
        raise RequestError("response_format.type", kind, _FORMATS)
    named = given.get("json_schema")
    if schema is None and isinstance(named, Mapping):
        schema = named.get("schema")
    if not isinstance(schema, Mapping):
        fix = 'send {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
        raise RequestError("response_format.json_schema.schema", schema, "a JSON schema", fix)
    return _made("response_format", GrammarKind.JSON_SCHEMA, json.dumps(schema))


def _of_way(name: str, way: str, value: Any) -> Grammar:
    if way == "json" and isinstance(value, (Mapping, str)):
        return _made(name, GrammarKind.JSON_SCHEMA, value if isinstance(value, str) else json.dumps(value))
    if way == "json_object" and value is True:
        return Grammar(GrammarKind.JSON_SCHEMA, "{}")
    if way == "regex" and isinstance(value, str):
        return _made(name, GrammarKind.REGEX, value)
    if way == "grammar" and isinstance(value, str):
        return _made(name, GrammarKind.LARK, value)
    if way == "choice" and isinstance(value, list):
        try:
            return choice(value)
        except RequestError as error:
            raise RequestError(name, error.value, error.allowed) from None
    allowed = {"json": "a JSON schema", "json_object": "true", "choice": "a list of texts"}.get(way, "a text")
    raise RequestError(name, value, allowed)


def _made(name: str, kind: GrammarKind, text: str) -> Grammar:
    try:
        return Grammar(kind, text)
    except RequestError as error:
        raise RequestError(name, error.value, error.allowed) from None
