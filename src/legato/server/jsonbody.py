"""JSON bodies to typed objects: unknown fields are named, wrong types are named, depth is bounded.

Knows: msgspec's structs and messages. Does not know: which fields there are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from legato.errors import RequestError
from legato.server.problems import Problem

Body = TypeVar("Body", bound=msgspec.Struct)

_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)


def parse(
    body: bytes, kind: type[Body], depth: int, ignored: Collection[str] = (), refused: Mapping[str, str] | None = None
) -> tuple[Body, tuple[str, ...]]:
    """(the object, the fields of it that are known and do nothing here). Raises `Problem` and `RequestError`.

    ignored  fields that may be there without changing the answer
    refused  fields that would change the answer in a way that we do not offer, with what to do instead
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not a JSON object: {_first_line(error)}", code="invalid_json") from None
    passed: list[str] = []
    known = kind.__struct_fields__
    for name, raw in fields.items():
        if name in known:
            continue
        if name in ignored:
            passed.append(name)
        elif refused is not None and name in refused:
            if bytes(raw).strip() not in (b"null", b"false", b"[]", b'""'):
                raise Problem(
                    400, f"{name} is not supported: {refused[name]}", param=name, code="unsupported_parameter"
                )
        elif bytes(raw).strip() != b"null":
            raise _unknown(name, [*known, *ignored, *(refused or ())])
    try:
        value = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not usable JSON: {_first_line(error)}", code="invalid_json") from None
    for name in known:
        if not shallow(getattr(value, name), depth - 1):
            raise RequestError(name, "...", f"JSON of at most {depth} levels")
    return value, tuple(passed)


def shallow(value: object, depth: int) -> bool:
    """Whether `value` has at most `depth` levels of lists and objects."""
    level = [value]
    for _ in range(depth + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return True
    return False


def _children(item: object) -> Collection[object]:
    """Containers only: leaves add no level."""
    if isinstance(item, dict):
        return [v for v in item.values() if isinstance(v, (dict, list))]
    if isinstance(item, list):
        return [v for v in item if isinstance(v, (dict, list))]
    return ()


def _wrong(error: msgspec.ValidationError) -> Problem:
    found = _AT.match(str(error))
    what, path = (found["what"], found["path"] or "") if found is not None else (str(error), "")
    path = re.sub(r"\[\.\.\.\]", "[...]", path)
    text = f"{path or 'the body'}: {what[:1].lower()}{what[1:]}; /openapi.json has the types"
    return Problem(400, text.replace("`", ""), param=path or None, code="invalid_type")


def _unknown(name: str, known: list[str]) -> Problem:
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "leave it out; /openapi.json has the fields"
    shown = name if len(name) <= 60 else name[:57] + "..."
    return Problem(400, f"unknown field {shown!r}; {hint}", param=shown, code="unknown_parameter")


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return (str(error) or type(error).__name__).splitlines()[0][:200].replace("`", "'")


def dumps(value: Any) -> bytes:
    return msgspec.json.encode(value)
