"""`/openapi.json`: the route table and the bodies' types, described as OpenAPI 3.1.

Knows: the form of such a document. Does not know: any route by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from legato import __version__
from legato.server.exchange import Exchange
from legato.server.jsonbody import dumps
from legato.server.limits import ServerLimits
from legato.server.problems import KINDS, Problem
from legato.server.protocols.openai.words import error_body
from legato.server.routes import Route

EXAMPLE = Problem(400, "a problem")
STATUSES = {
    "400": "a field is wrong; the message names it, its value, what is allowed and the way out",
    "401": "a key is needed",
    "404": "no such model or path",
    "413": "the body is too large",
    "429": "the queue is full; retry-after says when to come back",
    "500": "a fault of the server's",
    "503": "loading or shutting down",
}


def route(others: Sequence[Route]) -> Route:
    """The route that describes `others` and itself."""
    made: list[bytes] = []

    async def handle(exchange: Exchange) -> None:
        if not made:
            made.append(dumps(document([*others, own], exchange.limits)))
        await exchange.respond(200, made[0])

    own = Route("GET", "/openapi.json", handle, error_body, "This description")
    return own


def document(routes: Sequence[Route], limits: ServerLimits) -> dict[str, Any]:
    bodies = [r.body for r in routes if isinstance(r.body, type)]
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for each in routes:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Legato",
            "version": __version__,
            "description": f"Bodies hold at most {limits.body} bytes and {limits.depth} levels of JSON.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _error_schema()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(each: Route) -> dict[str, Any]:
    kinds = [kind for kind in (each.answers, each.streams) if kind]
    shown: dict[str, Any] = {
        "summary": each.summary,
        "security": [] if each.open else [{}, {"key": []}],
        "responses": {
            "200": {"description": "the answer", "content": {kind: {"schema": {}} for kind in kinds}},
            **{status: _refusal(text, each) for status, text in STATUSES.items()},
        },
    }
    if each.stem is not None:
        name = each.path[len(each.stem) + 1 : -1]
        shown["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if isinstance(each.body, type):
        schema = {"$ref": f"#/components/schemas/{each.body.__name__}"}
        shown["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return shown


def _refusal(text: str, each: Route) -> dict[str, Any]:
    """In the words of the route's own protocol."""
    ours = each.words is error_body
    schema = {"$ref": "#/components/schemas/Error"} if ours else _shape(msgspec.json.decode(each.words(EXAMPLE)))
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _shape(value: object) -> dict[str, Any]:
    """The schema of objects and texts like these."""
    if not isinstance(value, dict):
        return {"type": "string"}
    return {"type": "object", "required": list(value), "properties": {k: _shape(v) for k, v in value.items()}}


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    error = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"},
            "type": {"enum": sorted(set(KINDS.values()))},
            "param": text,
            "code": text,
        },
    }
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
