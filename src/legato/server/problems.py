"""`Problem`: what a client is told when its request is not answered, whatever the protocol.

Knows: HTTP statuses, and which of our errors becomes which. Does not know: how a protocol words it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from legato.errors import CapacityError, EngineAwayError, LegatoError, ModelFileError, OverloadedError, RequestError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "not_supported",
    503: "overloaded_error",
}


class Problem(LegatoError):
    """An answer with an error status.

    message  one line for a person: what, and how to mend it; never a path, an address or a trace
    param    the field at fault
    code     a word for programs
    retry_after_s  seconds after which trying again makes sense; None: it never will
    close    the connection cannot be used again (its body was not read)
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        allow: str = "",
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s, self.allow, self.close = retry_after_s, allow, close

    @property
    def kind(self) -> str:
        return KINDS.get(self.status, "server_error")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those that every protocol's clients understand."""
        out: list[tuple[bytes, bytes]] = []
        if self.retry_after_s is not None:
            out.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_s))))
            out.append((b"retry-after-ms", b"%d" % max(1, math.ceil(1e3 * self.retry_after_s))))
        if self.status >= 500 and self.retry_after_s is None:
            out.append((b"x-should-retry", b"false"))
        if self.allow:
            out.append((b"allow", self.allow.encode("ascii")))
        if self.status == 401:
            out.append((b"www-authenticate", b"Bearer"))
        if self.close:
            out.append((b"connection", b"close"))
        return out


ErrorBody = Callable[[Problem], bytes]
"""How a protocol words a problem."""


def problem_of(error: BaseException) -> Problem:
    """What a client is told of `error`; words that are not meant for clients stay in the log."""
    match error:
        case Problem():
            return error
        case CapacityError():
            code = "context_length_exceeded" if "context" in str(error) or "pages" in str(error) else None
            return Problem(400, str(error), param=error.field, code=code)
        case RequestError():
            return Problem(400, str(error), param=error.field, code="invalid_value")
        case OverloadedError():
            return Problem(429, str(error), code="rate_limit_exceeded", retry_after_s=error.retry_after_s)
        case EngineAwayError():
            return Problem(503, str(error), code="engine_error", retry_after_s=error.retry_after_s)
        case ModelFileError():  # of the chat template, the only file that is run while serving
            text = f"the model's {error.field} {error.problem}; send fewer or shorter messages"
            return Problem(400, text, param="messages", code="invalid_value")
        case RecursionError() | MemoryError():
            return Problem(400, "the request is too deep or too large", code="invalid_value")
        case _:
            return Problem(500, "a fault inside the server; its log says more under this request id", code="internal")
