"""`EngineLoop`: commands in, steps, events out; the life of an engine on its own thread, in whichever process.

Knows: commands, what a step is expected to take. Does not know: who gave them, what becomes of events, event loops.

    any thread       put, close ──> commands (under a condition)
    engine's thread  run: add, abort, step, step, ... ──> listener: settled, happened, told

The engine belongs to its thread from the model's loading to its end. The thread sleeps while there is nothing to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from legato.core.events import Event
from legato.core.plan import Plan
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.engine import Engine
from legato.errors import EngineError, LegatoError
from legato.measure.step_time import Load
from legato.server.bridge import Snapshot

log = logging.getLogger(__name__)

SNAPSHOT_S = 0.2  # at most this often while working; always when work ends
RECENT = 32  # steps in a snapshot
MIN_HANG_S = 10.0
HANG_FACTOR = 4.0  # a step that takes this many times what was expected of it is no step any more
WARM_SALT = "first step"  # with a blank in it, which no client's salt has


@dataclass(frozen=True, slots=True)
class Submit:
    """All of `requests` or none; `ref` is given back with the outcome."""

    ref: object
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str
    index: int | None
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Call:
    """`work` between two steps: whatever the native library does, it does one at a time."""

    ref: object
    work: Callable[[], object]


Command = Submit | Abort | Call


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a `Submit` or a `Call`."""

    ref: object
    result: object = None
    error: Exception | None = None


class Listener(Protocol):
    """Who hears of what the engine does; called on the engine's thread."""

    def settled(self, outcomes: list[Outcome]) -> None: ...

    def happened(self, events: list[Event]) -> None: ...

    def told(self, snapshot: Snapshot) -> None: ...


class EngineLoop:
    """One engine's life. `put`, `close` and `busy` may be called from any thread."""

    def __init__(self, listener: Listener, clock: Callable[[], float] = time.perf_counter) -> None:
        self._listener, self._clock = listener, clock
        self._wake = threading.Condition()
        self._commands: deque[Command] = deque()
        self._closing = False
        self._engine: Engine | None = None
        self._busy_since: float | None = None
        self._hang_after_s = 0.0
        self._told_at: float | None = None

    def put(self, command: Command) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def close(self) -> None:
        """Ends `run` after the step in flight."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    @property
    def closing(self) -> bool:
        return self._closing

    def busy(self) -> tuple[float, float]:
        """(seconds that the engine has been in one step, seconds from which on that is no step any more)."""
        since = self._busy_since
        busy_s = 0.0 if since is None else self._clock() - since
        plan = None if self._engine is None else self._engine.in_flight
        if self._engine is not None and plan is not None:
            self._hang_after_s = hang_limit(self._engine, plan)
        return busy_s, max(MIN_HANG_S, self._hang_after_s)

    def left(self) -> list[object]:
        """Refs of what nobody will do any more. After `run`."""
        with self._wake:
            refs = [c.ref for c in self._commands if not isinstance(c, Abort)]
            self._commands.clear()
        return refs

    # -- on the engine's thread -----------------------------------------------------------------------------------

    def begin(self, engine: Engine) -> None:
        """A first step, so that what is made at a first step is made before anybody waits for it.

        Under a salt of its own: the first prompt of a client is not to be told that it differs from this one.
        """
        ids = (0,) * min(16, engine.scheduler.limits.context_length - 1)
        engine.add(Request("warm", ids, salt=WARM_SALT))
        engine.step()
        engine.abort("warm")
        while engine.has_work:
            engine.step()
        self._engine = engine
        self._tell(engine)

    def run(self, engine: Engine) -> None:
        """Until `close`, or a fault that the engine cannot survive, which is raised."""
        try:
            while self._turn(engine):
                pass
        finally:
            self._busy_since = None

    def _turn(self, engine: Engine) -> bool:
        with self._wake:
            while not (self._commands or self._closing or engine.has_work):
                self._wake.wait()
            if self._closing:
                return False
            commands = list(self._commands)
            self._commands.clear()
        self._busy_since = self._clock()
        if commands:
            self._obey(engine, commands)
        events = engine.step() if engine.has_work else []
        now = self._clock()
        for event in events:
            event.at = now
        self._busy_since = now if engine.has_work else None
        if self._told_at is None or now - self._told_at >= SNAPSHOT_S or not engine.has_work:
            self._tell(engine)  # before the events: who has the last answer finds it counted
        if events:
            self._listener.happened(events)
        return True

    def _obey(self, engine: Engine, commands: list[Command]) -> None:
        outcomes: list[Outcome] = []
        for command in commands:
            if isinstance(command, Submit):
                outcomes.append(Outcome(command.ref, error=_admit(engine, command.requests)))
            elif isinstance(command, Call):
                outcomes.append(_done(command))
            else:
                engine.abort(command.request_id, command.index, command.reason)
        if outcomes:
            self._listener.settled(outcomes)

    def _tell(self, engine: Engine) -> None:
        self._told_at = self._clock()
        wait_s = engine.estimate().queue_s
        recent, unstarted = tuple(engine.ledger.recent)[-RECENT:], frozenset(engine.scheduler.unstarted)
        self._listener.told(Snapshot(self._told_at, engine.stats(), recent, wait_s, unstarted))


def hang_limit(engine: Engine, plan: Plan) -> float:
    """What the step being run may take: many times what is expected of it. Called from other threads.

    The engine writes its plan and the costs without a lock: the figure may be that of the step before. Right before
    and after a step there is no plan, and the last figure stands.
    """
    return max(MIN_HANG_S, HANG_FACTOR * engine.model.seconds(Load.of_plan(plan)))


def _admit(engine: Engine, requests: Sequence[Request]) -> Exception | None:
    """Adds all or none; what stands in the way is returned."""
    added: list[str] = []
    try:
        for request in requests:
            engine.add(request)
            added.append(request.request_id)
    except LegatoError as error:
        refused: Exception = error
    except Exception as error:
        log.exception("a request could not be admitted")
        refused = EngineError(f"the engine failed on this request: {type(error).__name__}")
    else:
        return None
    for request_id in added:
        engine.abort(request_id)
    return refused


def _done(call: Call) -> Outcome:
    try:
        return Outcome(call.ref, call.work())
    except Exception as error:
        return Outcome(call.ref, error=error)
