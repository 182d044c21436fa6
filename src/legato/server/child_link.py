"""`ChildLink`: one child process, the socket to it, and its end.

Knows: how it is started, framed, killed and reaped. Does not know: what messages mean, whether another one follows.

The socket is one of a pair without a name: nobody else can connect to it, and whichever side ends, the other reads so.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import cast

from legato.server import wire
from legato.server.wire import Frames, FromEngine, ToEngine, WireError

log = logging.getLogger(__name__)


LINGER_S = 1.0


class ChildLink(asyncio.Protocol):
    """Starts `command` with the number of its end of the socket as the last argument. Belongs to the event loop.

    heard  gets each message
    gone   done when nothing more will come, with what was wrong if the other side did not just end
    """

    def __init__(self, command: Sequence[str], loop: asyncio.AbstractEventLoop, heard: Callable[[FromEngine], None]):
        self._command, self._loop, self._heard = command, loop, heard
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.gone: asyncio.Future[str] = loop.create_future()

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    async def open(self) -> None:
        """Starts the process; `gone` tells if that is not possible."""
        ours, theirs = socket.socketpair()
        try:
            # From the loop's own thread: the system ends the child with the thread that started it.
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at a terminal is the server's, which drains
            )
        except OSError as error:
            ours.close()
            self._end(f"{self._command[0]!r} cannot be started: {error.strerror or error}")
            return
        finally:
            theirs.close()
        await self._loop.create_unix_connection(lambda: self, sock=ours)

    def send(self, message: ToEngine) -> None:
        """Raises `WireError` for what cannot be sent."""
        data = wire.frame(message)
        if self._transport is not None and not self.gone.done():
            self._transport.write(data)

    def kill(self, why: str) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
        self._end(why)

    async def reaped(self) -> str:
        """How the process ended, for a person. It is killed if it still lives."""
        process = self._process
        if process is None:
            return ""
        try:  # one that ends by itself closes its socket a moment before
            await self._loop.run_in_executor(None, lambda: process.wait(LINGER_S))
        except subprocess.TimeoutExpired:
            process.kill()
            await self._loop.run_in_executor(None, process.wait)
            return "it closed its socket and did not end"
        return _ending(process.returncode)

    def close(self) -> None:
        """Ends it and waits: it takes the socket's end for its own."""
        self._end("")
        if self._process is not None:
            try:
                self._process.wait(LINGER_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _end(self, why: str) -> None:
        if not self.gone.done():
            self.gone.set_result(why)
        if self._transport is not None:
            self._transport.abort()

    # -- called by the event loop ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                if self.gone.done():
                    return
                self._heard(wire.from_engine(body))
        except WireError as error:
            self.kill(f"it sent what cannot be read: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("")


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as a system does that is out of memory" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
