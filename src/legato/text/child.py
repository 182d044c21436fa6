"""A child process that does what this process must not be harmed by, and can be killed.

Knows: how to start one, exchange frames with it, and end it. Does not know: what it does.
The frames are those of `sandbox`.
"""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING, Any

from legato.errors import EngineError
from legato.text import sandbox

if TYPE_CHECKING:
    import socket
    import subprocess

START_LIMIT_S = 20.0  # a child process has to import its library on a busy machine


class Child:
    """One child process and the socket to it.

    script      a file to run, which says {"ready": true}: `python -I -S SCRIPT FD READ_LIMIT SYS_PATH_AS_JSON`
    purpose     what it is for, in messages of errors: "to render a chat template"
    read_limit  the most bytes of a frame
    """

    def __init__(self, script: str, purpose: str, read_limit: int) -> None:
        import socket
        import subprocess
        import sys

        ours, theirs = socket.socketpair()
        self.compiled = False
        self._link = ours
        self._read_limit, self._purpose = read_limit, purpose
        self._ready = False
        arguments = [str(theirs.fileno()), str(read_limit), json.dumps(sys.path)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", script, *arguments],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at a terminal is the parent's, which needs this child afterwards
            )
        except OSError as e:
            ours.close()
            raise EngineError(f"cannot start {sys.executable!r} {purpose}: {e.strerror}") from None
        finally:
            theirs.close()
        self.end = weakref.finalize(self, _end, self._process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> None:
        if not self._ready:
            from time import monotonic

            end = monotonic() + START_LIMIT_S
            try:
                answer = sandbox.receive(self._link, self._read_limit, lambda: end - monotonic())
            except (OSError, ValueError):
                answer = None
            if answer is None:
                self.end()
                raise EngineError(f"the process {self._purpose} did not start; is Legato installed whole?")
            self._ready = True

    def exchange(self, frame: bytes, seconds: float) -> dict[str, Any] | None:
        """Sends a packed frame, waits for the answer. TimeoutError when that takes too long; None if the child died."""
        from time import monotonic

        end = monotonic() + seconds
        self._link.settimeout(seconds)
        self._link.sendall(frame)
        return sandbox.receive(self._link, self._read_limit, lambda: end - monotonic())


def _end(process: subprocess.Popen[bytes], link: socket.socket) -> None:
    link.close()
    process.kill()
    process.wait()
