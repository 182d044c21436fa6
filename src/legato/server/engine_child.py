"""The engine's own process: `python -m legato.server.engine_child FD`, started by `engine_process` only.

Knows: the engine's loop, and one socket to the server. Does not know: HTTP, text.

    main thread  load, then the engine's loop       reader  messages to commands; ends the process with the socket
    beat         a few times a second: I live       admit   compiles grammars beside the steps

It belongs to its server: it ends when the socket does, and the system ends it with whoever started it. Signals that are
sent to a whole group are the server's to answer, which drains and then ends this process.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from legato import __version__
from legato.assemble import Assembly, assemble
from legato.config import Config
from legato.core.events import Event
from legato.errors import EngineError, LegatoError
from legato.server import log as logs
from legato.server import wire
from legato.server.bridge import Snapshot
from legato.server.engine_loop import Abort, Call, EngineLoop, Outcome, Submit
from legato.server.model import Card, Wall
from legato.server.progress import Hear, Heard, Progress
from legato.server.wire import FromEngine, ToEngine, WireError
from legato.weights.catalog import Silent

log = logging.getLogger(__name__)

BEAT_S = 0.25
TELL_S = 0.05  # progress at most this often
SWITCH_S = 0.0005
PR_SET_PDEATHSIG = 1  # prctl(2)

Load = Callable[[Config, Hear], Assembly]


class Speaker:
    """The way back; any thread may speak. A server that does not read makes the engine wait."""

    def __init__(self, link: socket.socket) -> None:
        self._link, self._lock = link, threading.Lock()

    def say(self, message: FromEngine) -> None:
        data = wire.frame(message)
        with self._lock:
            try:
                self._link.sendall(data)
            except OSError:  # nobody is left to be told
                os._exit(0)


class EngineChild:
    """One engine for one server."""

    def __init__(self, link: socket.socket, load: Load) -> None:
        self._speaker, self._load = Speaker(link), load
        self._from_server: BinaryIO = link.makefile("rb")
        self._loop = EngineLoop(self)
        self._admitting = ThreadPoolExecutor(1, thread_name_prefix="admit")
        self._told_at = 0.0
        self._parts: Assembly | None = None

    def life(self) -> int:
        """Until the server ends it, or the engine ends. Returns the exit code."""
        say = self._speaker.say
        say(wire.Hello(__version__))
        try:
            start = self._start()
        except (EngineError, WireError) as error:
            say(wire.Refused(wire.fault_of(error)))
            return 1
        if start is None:
            return 0
        logs.set_up(start.log_format)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        try:
            parts = self._parts = self._load(Config.resolve(start.settings, {}), self._hear)
            self._hear(Progress("taking a first step"))
            self._loop.begin(parts.engine)
        except LegatoError as error:
            say(wire.Refused(wire.fault_of(error)))
            return error.exit_code
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        say(wire.Ready(Card.of(parts)))
        self._loop.run(parts.engine)
        return 0

    # -- the engine's loop tells ----------------------------------------------------------------------------------

    def settled(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self._reply(outcome)

    def happened(self, events: list[Event]) -> None:
        self._speaker.say(wire.Step(events))

    def told(self, snapshot: Snapshot) -> None:
        self._speaker.say(wire.Told(snapshot))

    def _reply(self, outcome: Outcome) -> None:
        assert isinstance(outcome.ref, int)
        fault = None if outcome.error is None else wire.fault_of(outcome.error)
        wall = outcome.result if isinstance(outcome.result, Wall) else None
        self._speaker.say(wire.Reply(outcome.ref, fault, wall))

    def _hear(self, progress: Progress) -> None:
        now = time.monotonic()
        if not progress.done or now - self._told_at >= TELL_S:
            self._told_at = now
            self._speaker.say(wire.Loading(progress.what, progress.done, progress.total))

    # -- the server tells -----------------------------------------------------------------------------------------

    def _start(self) -> wire.Start | None:
        message = self._next()
        if message is None:
            return None
        if not isinstance(message, wire.Start) or message.version != __version__:
            raise EngineError(f"this is version {__version__}, and not what the server speaks; start the server again")
        return message

    def _next(self) -> ToEngine | None:
        """None: the server has gone."""
        head = self._from_server.read(wire.LENGTH.size)
        if len(head) < wire.LENGTH.size:
            return None
        body = self._from_server.read(wire.length_of(head))
        return wire.to_engine(body) if body else None

    def _read(self) -> None:
        try:
            while (message := self._next()) is not None:
                self._obey(message)
        except (WireError, OSError) as error:
            log.error("the server cannot be understood: %s", error)
            os._exit(1)
        os._exit(0)  # whatever a step is doing: there is nobody for whom

    def _obey(self, message: ToEngine) -> None:
        match message:
            case wire.Submit():
                self._loop.put(Submit(message.ref, message.requests))
            case wire.Abort():
                self._loop.put(Abort(message.request_id, message.index, message.reason))
            case wire.Admit():
                self._admitting.submit(self._admit, message)
            case wire.Measure():
                self._loop.put(Call(message.ref, self._wall))
            case wire.Start():
                raise WireError("a second start")

    def _admit(self, message: wire.Admit) -> None:
        assert self._parts is not None
        try:
            self._parts.runner.admit(message.params)
        except Exception as error:
            if not isinstance(error, LegatoError):
                log.exception("a grammar could not be made ready")
            self._reply(Outcome(message.ref, error=error))
        else:
            self._reply(Outcome(message.ref))

    def _wall(self) -> Wall:
        assert self._parts is not None
        return Wall.of(self._parts)

    def _beat(self) -> None:
        while True:
            self._speaker.say(wire.Beat(*self._loop.busy()))
            time.sleep(BEAT_S)


def load(config: Config, hear: Hear) -> Assembly:
    """What the server's own settings name."""
    return assemble(config, Heard(hear, Silent()), Heard(hear, Silent()))


def tie_to_parent() -> None:
    """The system ends this process with its parent, however that ends; elsewhere the socket's end has to do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(arguments: list[str], load: Load = load) -> int:
    """Serves on the socket that is named last."""
    tie_to_parent()
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *ignored: None)  # a handler: what is only ignored, this one's children would too
    sys.setswitchinterval(SWITCH_S)
    link = socket.socket(fileno=int(arguments[-1]))
    os.set_inheritable(link.fileno(), False)
    try:
        return EngineChild(link, load).life()
    except Exception:
        log.exception("the engine met a fault that it cannot survive")
        return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # threads of the library are not waited for
