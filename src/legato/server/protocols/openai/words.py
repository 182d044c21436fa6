"""How this protocol words a problem.

Knows: OpenAI's error object. Does not know: which problems there are.
"""

from __future__ import annotations

from legato.server.jsonbody import dumps
from legato.server.problems import Problem


def error_object(problem: Problem) -> dict[str, object]:
    return {
        "error": {
            "message": problem.message,
            "type": problem.kind,
            "param": problem.param,
            "code": problem.code,
        }
    }


def error_body(problem: Problem) -> bytes:
    return dumps(error_object(problem))


def error_event(problem: Problem) -> bytes:
    """In mid-stream: the error, then the end."""
    return b"data: " + error_body(problem) + b"\n\ndata: [DONE]\n\n"
