"""`EngineThread`: a `Bridge` to an engine on a thread beside the event loop.

Knows: which thread may touch what. Does not know: HTTP, text, how the engine works.

    event loop   submit, abort ──> EngineLoop's commands ──> engine thread: add, abort, step, step, ...
    event loop   receiver.deliver(events)  <── one call_soon_threadsafe a step ──  events of that step
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from legato.assemble import Assembly
from legato.core.events import Event
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.errors import EngineError, LegatoError
from legato.server.bridge import Pulse, Receiver, Snapshot
from legato.server.engine_loop import Abort, Call, EngineLoop, Outcome, Submit
from legato.server.model import Model, Wall
from legato.server.progress import Hear, Progress

log = logging.getLogger(__name__)

Load = Callable[[Hear], tuple[Assembly, Model]]
Measure = Callable[[Assembly], Wall]


class EngineThread:
    """Loads a model on a new thread and runs its engine there. It is a `Bridge`.

    load     makes the assembly; what it raises is raised by `start`
    measure  what bounds its steps; called on the engine's thread
    """

    def __init__(
        self,
        load: Load,
        loop: asyncio.AbstractEventLoop,
        measure: Measure | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._load, self._loop, self._measure = load, loop, measure
        self._engine_loop = EngineLoop(self, clock)
        self._receiver: Receiver | None = None
        self._ready: asyncio.Future[Model] = loop.create_future()
        self._parts: Assembly | None = None
        self._snapshot: Snapshot | None = None
        self._progress = Progress("reading the model's files")
        self.lost: asyncio.Future[LegatoError] = loop.create_future()  # never done: its server stays, and says so
        self.num_restarts = self.pid = 0
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # -- on the event loop ----------------------------------------------------------------------------------------

    async def start(self, receiver: Receiver) -> Model:
        self._receiver = receiver
        self._thread.start()
        return await self._ready

    async def submit(self, requests: Sequence[Request]) -> None:
        reply = self._reply()
        self._engine_loop.put(Submit(reply, requests))
        await reply

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        self._engine_loop.put(Abort(request_id, index, reason))

    async def between_steps(self, work: Callable[[], object]) -> Any:
        """What `work` returns, done on the engine's thread."""
        reply = self._reply()
        self._engine_loop.put(Call(reply, work))
        return await reply

    async def measure(self) -> Wall | None:
        measure, parts = self._measure, self._parts
        if measure is None or parts is None:
            return None
        wall: Wall = await self.between_steps(lambda: measure(parts))
        return wall

    def snapshot(self) -> Snapshot | None:
        return self._snapshot

    def pulse(self) -> Pulse:
        busy_s, limit_s = self._engine_loop.busy()
        dead = self._ready.done() and not self._thread.is_alive() and not self._engine_loop.closing
        return Pulse(dead, busy_s > limit_s, busy_s, limit_s)

    def progress(self) -> Progress:
        return self._progress

    def retire(self) -> None:
        """There is only one."""

    def close(self) -> None:
        self._engine_loop.close()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _reply(self) -> asyncio.Future[Any]:
        if not self._thread.is_alive():
            raise EngineError("the engine has ended")
        return self._loop.create_future()

    # -- on the engine's thread -----------------------------------------------------------------------------------

    def settled(self, outcomes: list[Outcome]) -> None:
        self._post(_settle_all, outcomes)

    def happened(self, events: list[Event]) -> None:
        self._post(self._deliver, events)

    def told(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def _main(self) -> None:
        try:
            parts, model = self._load(self._hear)
            self._hear(Progress("taking a first step"))
            self._engine_loop.begin(parts.engine)
        except BaseException as error:
            self._post(_settle, self._ready, None, error)
            return
        self._parts = parts
        self._post(_settle, self._ready, model, None)
        ended: LegatoError = EngineError("the engine has ended")
        try:
            self._engine_loop.run(parts.engine)
        except BaseException as error:
            log.exception("the engine met a fault that it cannot survive")
            ended = EngineError(f"the engine failed: {type(error).__name__}")
        finally:
            self._end(parts, ended)

    def _hear(self, progress: Progress) -> None:
        self._progress = progress

    def _deliver(self, events: list[Event]) -> None:
        assert self._receiver is not None
        self._receiver.deliver(events)

    def _end(self, parts: Assembly, error: LegatoError) -> None:
        self._post(_settle_all, [Outcome(ref, error=error) for ref in self._engine_loop.left()])
        if self._receiver is not None:
            self._post(self._receiver.engine_ended, error)
        parts.executor.close()
        parts.runner.close()

    def _post(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop has closed: nobody is left to be told
            return


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _settle_all(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert isinstance(outcome.ref, asyncio.Future)
        _settle(outcome.ref, outcome.result, outcome.error)
