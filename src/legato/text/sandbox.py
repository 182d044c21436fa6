"""Compiles and renders a chat template in Jinja's sandbox, here or in a child process that can be killed.

Knows: the dialect of Jinja that chat templates are written in, and limits. Does not know: messages' meaning, models.
Imports nothing of Legato, so that a child needs only this file and Jinja.

The sandbox stops a template from reaching outside. It does not stop `10 ** 2000000` or loops inside loops: nothing in
one Python process can interrupt those, nor take their memory back. So a template that is not known to be tame runs in
a child (`serve`) with a limit on memory, an alarm, and a parent that kills it when its time is over.

Frames on the child's socket: 4 bytes of length, then a JSON object.
    child -> {"ready": true}
    parent -> {"source", "size_limit"}         child -> {} or {"error", "message"}
    parent -> {variables of one rendering}     child -> {"text"} or {"error", "message"}      ... until closed
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

HEADROOM = 48 << 20  # bytes of memory that a child may use beyond what it starts with
ALARM_S = 10.0  # a child that nobody waits for any more ends itself
_LENGTH = struct.Struct(">I")


class TemplateFailure(Exception):
    """kind: "template" (it refuses these messages), "syntax", "limit" or "unsafe"; the message is one line."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(" ".join(message.split())[:300])


Render = Callable[[dict[str, Any]], str]


def compile_template(source: str, size_limit: int) -> Render:
    """`source` as a function of its variables. Raises `TemplateFailure`, as does the function.

    The same dialect as transformers': trim_blocks, lstrip_blocks, loop controls, `{% generation %}` (which marks
    what an assistant said, and changes nothing here), `tojson` without HTML's escapes, `raise_exception` and
    `strftime_now`.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # local time, as transformers'
    try:
        template = environment.from_string(source)
    except TemplateError as e:
        raise TemplateFailure("syntax", f"line {getattr(e, 'lineno', None) or '?'}: {e.message}") from None
    except (RecursionError, MemoryError, OverflowError, SyntaxError, ValueError) as e:
        raise TemplateFailure("limit", f"too deep or too large to compile ({type(e).__name__})") from None

    def render(variables: dict[str, Any]) -> str:
        try:
            return _joined(template.generate(variables), size_limit)
        except SecurityError as e:
            raise TemplateFailure("unsafe", str(e)) from None
        except (MemoryError, RecursionError, OverflowError) as e:
            raise TemplateFailure("limit", f"ran out of bounds ({type(e).__name__})") from None
        except TemplateFailure:
            raise
        except Exception as e:  # a template is a program, and may fail like any other
            raise TemplateFailure("template", str(e) or type(e).__name__) from None

    return render


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _joined(pieces: Any, size_limit: int) -> str:
    out: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > size_limit:
            break
        out.append(piece)
    text = "".join(out)
    if size > size_limit or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > size_limit):
        raise TemplateFailure("limit", f"its text is larger than {size_limit} bytes")
    return text


def packed(value: dict[str, Any]) -> bytes:
    """One frame."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(body)) + body


def receive(link: socket.socket, limit: int, remaining: Callable[[], float] | None = None) -> dict[str, Any] | None:
    """Reads one frame, None when the other side has gone. `remaining` gives the seconds left (TimeoutError after)."""
    head = _exactly(link, _LENGTH.size, remaining)
    if head is None:
        return None
    length = _LENGTH.unpack(head)[0]
    if length > limit:
        raise ValueError(f"a frame of {length} bytes; at most {limit} are read")
    body = _exactly(link, length, remaining)
    if body is None:
        return None
    value = json.loads(body.decode("utf-8", "surrogatepass"))
    assert isinstance(value, dict)
    return value


def _exactly(link: socket.socket, count: int, remaining: Callable[[], float] | None) -> bytes | None:
    parts: list[bytes] = []
    while count:
        if remaining is not None:
            left = remaining()
            if left <= 0:
                raise TimeoutError
            link.settimeout(left)
        part = link.recv(min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def serve(link: socket.socket, read_limit: int) -> None:
    """The child's life: compile what the first frame holds, then render frame after frame until the link closes."""
    import importlib
    import signal

    for name in ("jinja2.ext", "jinja2.sandbox"):  # now, so that `ready` means ready
        importlib.import_module(name)
    limit_memory(HEADROOM)
    link.sendall(packed({"ready": True}))
    first = receive(link, read_limit)
    if first is None:
        return
    signal.setitimer(signal.ITIMER_REAL, ALARM_S)
    try:
        render = compile_template(first["source"], first["size_limit"])
    except TemplateFailure as e:
        link.sendall(packed({"error": e.kind, "message": str(e)}))
        return
    link.sendall(packed({}))
    while True:
        signal.setitimer(signal.ITIMER_REAL, 0)
        variables = receive(link, read_limit)
        if variables is None:
            return
        signal.setitimer(signal.ITIMER_REAL, ALARM_S)
        try:
            link.sendall(packed({"text": render(variables)}))
        except TemplateFailure as e:
            link.sendall(packed({"error": e.kind, "message": str(e)}))


def limit_memory(headroom: int) -> None:
    """Lets the address space grow by `headroom` bytes. Where a system cannot, the parent's clock is the limit."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            used = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + headroom, used + headroom))
    except (OSError, ValueError):
        return


def main(arguments: list[str]) -> None:
    """Runs as `python -I -S sandbox.py FD READ_LIMIT SYS_PATH_AS_JSON`."""
    import socket

    descriptor, read_limit, paths = arguments
    sys.path[:] = json.loads(paths)
    with socket.socket(fileno=int(descriptor)) as link:
        serve(link, int(read_limit))


if __name__ == "__main__":
    main(sys.argv[1:])
