"""Every error that Legato raises on purpose, and the exit code each one becomes.

Knows: the tree below. Does not know: where errors are raised or how they are printed.

    LegatoError                    exit 1
    |-- RequestError               exit 2   a field of a request is refused
    |   `-- CapacityError          exit 2   it can never fit (prompt + output > context, pages, memory)
    |-- OverloadedError            exit 1   not now: the queue is full, or a deadline cannot be met; says when to retry
    |-- UsageError                 exit 2   a wrong command, setting or model name
    |-- ModelFileError             exit 3   a file is damaged, lying or unreadable
    |   `-- UnsupportedModelError  exit 3   the file is sound, but holds something we do not run
    |-- DownloadError              exit 1   a fetch failed (nothing half-written stays)
    |-- SessionError               exit 1   a saved session cannot be read or written (what was there stays)
    `-- EngineError                exit 1   a fault of ours inside the engine
        `-- EngineAwayError        exit 1   the engine has ended, and another one is being started

A message is one line: what, where, and how to mend it.
"""

from __future__ import annotations

import os


class LegatoError(Exception):
    """Base of all errors raised on purpose. `str(error)` is one line meant for a person."""

    exit_code = 1


class RequestError(LegatoError):
    """A request is refused at the door: names the field, the value, the allowed range and the fix."""

    exit_code = 2

    def __init__(self, field: str, value: object, allowed: str, fix: str = "") -> None:
        self.field, self.value, self.allowed, self.fix = field, value, allowed, fix
        try:
            shown = repr(value)
        except ValueError:  # Python refuses to print an int of more than 4,300 digits
            shown = f"a {type(value).__name__} too long to print"
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field}={shown} is not allowed: {allowed}" + (f"; {fix}" if fix else ""))


class CapacityError(RequestError):
    """A request that could never run here: carries what it needs and what there is."""

    def __init__(self, field: str, needed: int, available: int, unit: str, fix: str) -> None:
        self.needed, self.available = needed, available
        super().__init__(field, needed, f"at most {available} {unit}", fix)


class OverloadedError(LegatoError):
    """A sound request that is refused now: the queue is full, or its deadline cannot be met.

    retry_after_s  seconds after which trying again makes sense, from the measured pace of what is ahead
    reason         what there was too little of: "queue", "key" (of the places that one key may take), "deadline"
    """

    def __init__(self, problem: str, retry_after_s: float, reason: str = "deadline") -> None:
        self.retry_after_s, self.reason = retry_after_s, reason
        super().__init__(f"{problem}; try again in {retry_after_s:.1f} s")


class UsageError(LegatoError):
    """A wrong command, setting or model name; the message ends with how to mend it."""

    exit_code = 2


class ModelFileError(LegatoError):
    """A model file is damaged, lies about itself, or cannot be read. `field` names the culprit."""

    exit_code = 3

    def __init__(self, path: str | os.PathLike[str], field: str, problem: str) -> None:
        self.path, self.field, self.problem = os.fspath(path), field, problem
        super().__init__(f"{self.path}: {field}: {problem}")


class UnsupportedModelError(ModelFileError):
    """The file is sound but asks for something Legato does not run (named in `field`)."""


class DownloadError(LegatoError):
    """A fetch failed; nothing half-written is left where a model would be looked for."""


class SessionError(LegatoError):
    """A saved session cannot be read or written, or its folder is in use; what was there before is still there."""


class EngineError(LegatoError):
    """A fault inside the engine; the request that met it is ended, the others go on."""


class EngineAwayError(EngineError):
    """There is no engine at the moment; another one is expected in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("the engine ended before this answer was whole; it is being started again")
