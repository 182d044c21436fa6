"""`Bridge`: the way from the event loop to an engine and back; `EngineThread`: an engine on a thread of its own.

Knows: commands, events, which thread may touch what. Does not know: HTTP, text, how the engine works.

    event loop   submit, abort ──> commands (under a condition) ──> engine thread: add, abort, step, step, ...
    event loop   receiver.deliver(events)  <── one call_soon_threadsafe a step ──  events of that step

The engine belongs to its thread from the model's loading to its end. The thread sleeps while there is nothing to do.
An engine in another process needs the same five calls, so it can take this one's place.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from legato.assemble import Assembly
from legato.core.events import Event
from legato.core.plan import Plan
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.engine import Engine, EngineStats
from legato.errors import EngineError, LegatoError
from legato.measure.ledger import StepRecord
from legato.measure.step_time import Load

log = logging.getLogger(__name__)

SNAPSHOT_S = 0.2  # at most this often while working; always when work ends
RECENT = 32  # steps in a snapshot
MIN_HANG_S = 10.0
HANG_FACTOR = 4.0  # a step that takes this many times what was expected of it is no step any more


class Receiver(Protocol):
    """Who hears of events; called on the event loop."""

    def deliver(self, events: list[Event]) -> None:
        """All events of one step, in order."""

    def engine_ended(self, error: LegatoError) -> None:
        """The engine will tell nothing more."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the engine last told of itself.

    at      the bridge's clock then
    recent  the last steps, one by one
    wait_s  how long one more request would have waited for its turn
    unstarted  requests that are still waiting for their turn
    """

    at: float
    stats: EngineStats
    recent: tuple[StepRecord, ...]
    wait_s: float
    unstarted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pulse:
    """How the engine is: `dead` after a fault it cannot survive, `hung` when a step takes impossibly long."""

    dead: bool
    hung: bool
    busy_s: float
    hang_after_s: float


class Bridge(Protocol):
    """An engine, wherever it runs. All calls are made on the event loop."""

    async def submit(self, requests: Sequence[Request]) -> None:
        """Admits all of them or none; raises what `Engine.add` raises."""

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        """Ends a request or one of its answers; unknown ids are fine. Its event comes with the next step."""

    def snapshot(self) -> Snapshot | None:
        """The latest figures, without waiting; None before the first."""

    def pulse(self) -> Pulse:
        """Whether the engine lives, without waiting."""

    def close(self) -> None:
        """Ends the engine and waits a moment for it."""


@dataclass(slots=True)
class _Submit:
    requests: Sequence[Request]
    reply: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    index: int | None
    reason: FinishReason


@dataclass(slots=True)
class _Call:
    work: Callable[[], object]
    reply: asyncio.Future[Any]


class EngineThread:
    """Loads a model on a new thread and runs its engine there.

    load  makes the assembly; what it raises is raised by `ready`
    """

    def __init__(
        self,
        load: Callable[[], Assembly],
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._load, self._loop, self._clock = load, loop, clock
        self._wake = threading.Condition()
        self._commands: deque[_Submit | _Abort | _Call] = deque()
        self._closing = False
        self._receiver: Receiver | None = None
        self._ready: asyncio.Future[Assembly] = loop.create_future()
        self._snapshot: Snapshot | None = None
        self._busy_since: float | None = None
        self._hang_after_s = 0.0
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # -- on the event loop ----------------------------------------------------------------------------------------

    async def start(self, receiver: Receiver) -> Assembly:
        """Loads the model; returns it once the engine has taken a first step."""
        self._receiver = receiver
        self._thread.start()
        return await self._ready

    async def submit(self, requests: Sequence[Request]) -> None:
        if not self._thread.is_alive():
            raise EngineError("the engine has ended")
        reply: asyncio.Future[None] = self._loop.create_future()
        self._command(_Submit(requests, reply))
        await reply

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        self._command(_Abort(request_id, index, reason))

    async def between_steps(self, work: Callable[[], object]) -> Any:
        """What `work` returns, done on the engine's thread: whatever the native library does, it does one at a time."""
        if not self._thread.is_alive():
            raise EngineError("the engine has ended")
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._command(_Call(work, reply))
        return await reply

    def snapshot(self) -> Snapshot | None:
        return self._snapshot

    def pulse(self) -> Pulse:
        since = self._busy_since
        busy_s = 0.0 if since is None else self._clock() - since
        dead = self._ready.done() and not self._thread.is_alive() and not self._closing
        plan = None if self._engine is None else self._engine.in_flight
        if self._engine is not None and plan is not None:
            self._hang_after_s = _hang_limit(self._engine, plan)
        limit_s = max(MIN_HANG_S, self._hang_after_s)
        return Pulse(dead, busy_s > limit_s, busy_s, limit_s)

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _command(self, command: _Submit | _Abort | _Call) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # -- on the engine's thread -----------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            parts = self._load()
            _warm(parts.engine)
        except BaseException as error:
            self._post(_settle, self._ready, None, error)
            return
        self._engine = parts.engine
        self._publish(parts.engine)
        self._post(_settle, self._ready, parts, None)
        ended: LegatoError = EngineError("the engine has ended")
        try:
            self._run(parts.engine)
        except BaseException as error:
            log.exception("the engine met a fault that it cannot survive")
            ended = EngineError(f"the engine failed: {type(error).__name__}")
        finally:
            self._busy_since = None
            self._end(parts, ended)

    def _run(self, engine: Engine) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._closing or engine.has_work):
                    self._wake.wait()
                if self._closing:
                    return
                commands = list(self._commands)
                self._commands.clear()
            self._busy_since = self._clock()
            if commands:
                self._obey(engine, commands)
            if engine.has_work:
                events = engine.step()
                now = self._clock()
                for event in events:
                    event.at = now
                if events:
                    self._post(self._deliver, events)
            self._after_step(engine)

    def _obey(self, engine: Engine, commands: list[_Submit | _Abort | _Call]) -> None:
        replies: list[tuple[asyncio.Future[None], Exception | None]] = []
        for command in commands:
            if isinstance(command, _Submit):
                replies.append((command.reply, _admit(engine, command.requests)))
            elif isinstance(command, _Call):
                self._post(_settle, command.reply, *_outcome(command.work))
            else:
                engine.abort(command.request_id, command.index, command.reason)
        if replies:
            self._post(_settle_all, replies)

    def _after_step(self, engine: Engine) -> None:
        now = self._clock()
        self._busy_since = now if engine.has_work else None
        if self._snapshot is None or now - self._snapshot.at >= SNAPSHOT_S or not engine.has_work:
            self._publish(engine)

    def _publish(self, engine: Engine) -> None:
        wait_s = engine.estimate().queue_s
        recent, unstarted = tuple(engine.ledger.recent)[-RECENT:], frozenset(engine.scheduler.unstarted)
        self._snapshot = Snapshot(self._clock(), engine.stats(), recent, wait_s, unstarted)

    def _deliver(self, events: list[Event]) -> None:
        assert self._receiver is not None
        self._receiver.deliver(events)

    def _end(self, parts: Assembly, error: LegatoError) -> None:
        with self._wake:
            left = [c.reply for c in self._commands if not isinstance(c, _Abort)]
            self._commands.clear()
        self._post(_settle_all, [(reply, error) for reply in left])
        if self._receiver is not None:
            self._post(self._receiver.engine_ended, error)
        parts.executor.close()
        parts.runner.close()

    def _post(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop has closed: nobody is left to be told
            return


def _hang_limit(engine: Engine, plan: Plan) -> float:
    """What the step being run may take: many times what is expected of it. Called on the event loop.

    The engine writes its plan and the costs without a lock: the figure may be that of the step before. Right before
    and after a step there is no plan, and the last figure stands.
    """
    return max(MIN_HANG_S, HANG_FACTOR * engine.model.seconds(Load.of_plan(plan)))


def _warm(engine: Engine) -> None:
    """One token, so that what is made at a first step is made before anybody waits for it."""
    engine.add(Request("warm", (0,) * min(16, engine.scheduler.limits.context_length - 1)))
    engine.step()
    engine.abort("warm")
    while engine.has_work:
        engine.step()


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


def _outcome(work: Callable[[], object]) -> tuple[object, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _settle_all(replies: list[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for future, error in replies:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(None)
