"""`EngineProcess`: a `Bridge` to an engine in a child process, which is watched, and started again when it ends.

Knows: when a child is dead, hung or hopeless. Does not know: HTTP, how the engine works, sockets.

    start -> loading -> works -> ends (killed, crashed, speechless) -> every answer fails -> a pause -> start ...
                          `----> silent, or in one step for too long -> hung -> killed after `kill_after_s`

Tokenizer and template are here, weights and pages only there. A child that says why it cannot load is not tried again
the first time; later everything is tried again, until it ended too often.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

from legato import __version__
from legato.assemble import open_source, open_tokenizer
from legato.config import Config
from legato.core.events import Event
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.errors import EngineAwayError, EngineError, LegatoError, RequestError
from legato.server import wire
from legato.server.bridge import Pulse, Receiver, Snapshot
from legato.server.child_link import ChildLink
from legato.server.model import Card, Model, Wall, Words
from legato.server.progress import FETCHING, Heard, Progress, Shown
from legato.server.wire import FromEngine, WireError
from legato.text.template import ChatTemplate
from legato.weights.catalog import Report, Silent
from legato.weights.source import ModelSource

T = TypeVar("T")

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "legato.server.engine_child")


@dataclass(frozen=True, slots=True)
class Watch:
    """When to give up what. Seconds.

    restarts, window_s  more ends than that within so long, and there is no other child
    pause_s, most_pause_s  before the first child after one that worked; doubled each time within the window
    silent_s            without a beat a child is hung; while it loads, it may be silent for `loading_silent_s`
    kill_after_s        a child that has been hung for so long is killed
    """

    restarts: int = 5
    window_s: float = 60.0
    pause_s: float = 0.05
    most_pause_s: float = 5.0
    tick_s: float = 0.25
    silent_s: float = 5.0
    loading_silent_s: float = 60.0
    kill_after_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """What a child is told to load, and who is told how that goes."""

    config: Config
    name: Callable[[ModelSource], str]
    log_format: str = "auto"
    fetching: Report = field(default_factory=Silent)
    loading: Report = field(default_factory=Silent)


class EngineProcess:
    """Starts a child, and another when it ends. It is a `Bridge`.

    command  starts a process that speaks `wire` on the socket whose number is its last argument
    """

    def __init__(
        self,
        served: Served,
        loop: asyncio.AbstractEventLoop,
        watch: Watch | None = None,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._served, self._loop, self._watch = served, loop, watch or Watch()
        self._command, self._clock = command, clock
        self.lost: asyncio.Future[LegatoError] = loop.create_future()
        self.num_restarts = 0
        self._receiver: Receiver | None = None
        self._link: ChildLink | None = None
        self._works = self._retired = False
        self._told = False  # a child that has nothing to do yet may be silent
        self._card: asyncio.Future[Card] = loop.create_future()
        self._card.add_done_callback(lambda card: card.cancelled() or card.exception())  # seen, if start has failed
        self._words: Words | None = None
        self._refs = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Wall | None]] = {}
        self._ends: deque[float] = deque()
        self._begun, self._start_s = 0.0, 1.0
        self._snapshot: Snapshot | None = None
        self._progress = Progress("starting the engine")
        self._shown = Shown(served.loading)
        self._beat = wire.Beat(0.0, 0.0)
        self._beat_at = self._silent_s = self._hung_s = 0.0
        self._refused: LegatoError | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        return 0 if self._link is None else self._link.pid

    # -- what a bridge does ---------------------------------------------------------------------------------------

    async def start(self, receiver: Receiver) -> Model:
        self._receiver = receiver
        words: asyncio.Future[ModelSource] = self._loop.create_future()
        self._tasks = [self._loop.create_task(self._live(words)), self._loop.create_task(self._look())]
        for task in self._tasks:
            task.add_done_callback(self._over)
        source = await self._aside(self._open)
        words.set_result(source)
        self._words = await self._aside(lambda: _words_of(source))
        return self._model(await self._card)

    async def submit(self, requests: Sequence[Request]) -> None:
        sent = [replace(r, params=replace(r.params, stop=())) for r in requests]  # stop strings are matched here
        await self._asked(lambda ref: wire.Submit(ref, sent))

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        if self._link is not None and self._works:
            self._link.send(wire.Abort(request_id, index, reason))

    async def measure(self) -> Wall | None:
        return await self._asked(wire.Measure)

    def admit(self, params: SamplingParams) -> None:
        """Makes ready what sampling needs, in the child. Called beside the event loop; waits."""
        if params.grammar is None:
            return
        params = replace(params, stop=())
        asked: Future[Wall | None] = asyncio.run_coroutine_threadsafe(
            self._asked(lambda ref: wire.Admit(ref, params)), self._loop
        )
        try:
            asked.result()
        except CancelledError:
            raise EngineAwayError(1.0) from None

    def snapshot(self) -> Snapshot | None:
        return self._snapshot

    def pulse(self) -> Pulse:
        beat, limit_s = self._beat, self._beat.limit_s
        busy_s = beat.busy_s + (self._clock() - self._beat_at) if beat.busy_s > 0 else 0.0
        silent_after_s = self._watch.silent_s if self._works else self._watch.loading_silent_s
        if self._silent_s > silent_after_s:
            return Pulse(self.lost.done(), True, self._silent_s, silent_after_s)
        return Pulse(self.lost.done(), self._works and beat.busy_s > limit_s, busy_s, limit_s)

    def progress(self) -> Progress:
        return self._progress

    def retire(self) -> None:
        self._retired = True

    def close(self) -> None:
        self._retired = True
        for task in self._tasks:
            task.cancel()
        self._served.loading.done()
        self._fail(EngineError("the engine has ended"))
        if self._link is not None:
            self._link.close()

    async def _aside(self, work: Callable[[], T]) -> T:
        """`work` on a thread that the program's end does not wait for: a download may take hours."""
        outcome: Future[T] = Future()
        outcome.set_running_or_notify_cancel()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, name="open", daemon=True).start()
        return await asyncio.wrap_future(outcome, loop=self._loop)

    async def _asked(self, message: Callable[[int], wire.ToEngine]) -> Wall | None:
        """The reply to a message; raises the error that the reply is."""
        link = self._link
        if link is None or not self._works:
            raise self._away()
        ref = next(self._refs)
        reply: asyncio.Future[Wall | None] = self._loop.create_future()
        self._waiting[ref] = reply
        try:
            link.send(message(ref))
            return await reply
        except WireError as error:
            raise RequestError("request", "", "what fits into one message", str(error)) from None
        finally:
            self._waiting.pop(ref, None)

    # -- a child's life -------------------------------------------------------------------------------------------

    async def _live(self, opened: asyncio.Future[ModelSource]) -> None:
        """One child after the other."""
        while True:
            self._begun = self._clock()
            link = self._link = ChildLink(self._command, self._loop, self._heard)
            self._silent_s, self._hung_s, self._told = 0.0, 0.0, False
            await link.open()
            idle = self._clock()
            source = await asyncio.shield(opened)
            self._begun += self._clock() - idle
            link.send(wire.Start(__version__, _settings(self._served.config, source), self._served.log_format))
            self._told = True
            why = await link.gone
            self._ended(why)
            ending = await link.reaped()
            why = why or ending
            if self._refused is not None and not self._card.done():
                self._card.set_exception(self._refused)
                return
            if self._retired or self._hopeless(why):
                return
            await asyncio.sleep(self._pause())
            self.num_restarts += 1

    def _ended(self, why: str) -> None:
        """At once: whoever waits is told."""
        worked, self._works = self._works, False
        now = self._clock()
        self._ends.append(now)
        while worked and now - self._ends[0] > self._watch.window_s:  # those that never worked all count
            self._ends.popleft()
        self._beat, self._progress = wire.Beat(0.0, 0.0), Progress("starting the engine again")
        away = self._away()
        self._fail(away)
        if worked and self._receiver is not None:
            self._receiver.engine_lost(away)
        if why:
            log.error("the engine's process was ended: %s", why)

    def _hopeless(self, why: str) -> bool:
        """Whether it ended too often; then whoever waits for another one is told so."""
        if self._refused is not None:
            why, self._refused = str(self._refused), None
        if len(self._ends) <= self._watch.restarts:
            log.error("the engine's process has ended (%s); it is started again", why)
            return False
        span_s = max(self._watch.window_s, self._ends[-1] - self._ends[0])
        text = f"the engine's process ended {len(self._ends)} times within {span_s:.0f} s, at last by {why}"
        self._give_up(EngineError(text + "; see the lines before, and start the server again"))
        return True

    def _give_up(self, error: LegatoError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        if not self._card.done():
            self._card.set_exception(error)
        elif self._receiver is not None:
            self._receiver.engine_ended(error)

    def _over(self, task: asyncio.Task[None]) -> None:
        """Nobody may be left waiting for a watcher that a fault of ours has ended."""
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log.error("the engine's process is not watched any more", exc_info=fault)
            self._give_up(EngineError(f"the watch over the engine failed: {type(fault).__name__}"))

    def _pause(self) -> float:
        return min(self._watch.most_pause_s, self._watch.pause_s * 2.0 ** (len(self._ends) - 1))

    def _away(self) -> EngineAwayError:
        return EngineAwayError(self._pause() + self._start_s)

    def _fail(self, error: LegatoError) -> None:
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(error)
        self._waiting.clear()

    async def _look(self) -> None:
        """Counts how long a child has been silent or hung. A pause of this process is not the child's."""
        watch = self._watch
        while True:
            before = self._clock()
            await asyncio.sleep(watch.tick_s)
            passed = min(self._clock() - before, 2 * watch.tick_s)
            self._silent_s += passed if self._told else 0.0
            pulse = self.pulse()
            self._hung_s = self._hung_s + passed if pulse.hung else 0.0
            if self._hung_s > watch.kill_after_s and self._link is not None:
                self._hung_s = 0.0
                self._link.kill(f"it gave no sign of progress for {pulse.busy_s:.1f} s")

    # -- what a child says ----------------------------------------------------------------------------------------

    def _heard(self, message: FromEngine) -> None:
        self._silent_s = 0.0
        match message:
            case wire.Step():
                self._deliver(message.events)
            case wire.Told():
                self._snapshot = message.snapshot
            case wire.Beat():
                self._beat, self._beat_at = message, self._clock()
            case wire.Reply():
                self._replied(message)
            case wire.Loading():
                self._progress = Progress(message.what, message.done, message.total)
                if not self._card.done():
                    self._shown.hear(self._progress)
            case wire.Ready():
                self._ready(message.card)
            case wire.Refused():
                self._refused = wire.error_of(message.fault)
            case wire.Hello():
                if message.version != __version__:
                    text = f"version {message.version} answers to {__version__}: the package was changed meanwhile"
                    raise WireError(text)

    def _deliver(self, events: list[Event]) -> None:
        assert self._receiver is not None
        try:
            self._receiver.deliver(events)
        except Exception:  # a fault on this side is no reason to end that one
            log.exception("events of a step could not be delivered")

    def _replied(self, reply: wire.Reply) -> None:
        waiting = self._waiting.pop(reply.ref, None)
        if waiting is None or waiting.done():
            return
        if reply.fault is not None:
            waiting.set_exception(wire.error_of(reply.fault))
        else:
            waiting.set_result(reply.wall)

    def _ready(self, card: Card) -> None:
        self._works = True
        self._start_s = self._clock() - self._begun
        if not self._card.done():
            self._served.loading.done()
            self._card.set_result(card)
            return
        before = self._card.result()
        if card.digest != before.digest:
            raise WireError("the model's files have changed since the server was started")
        if self._receiver is not None:
            self._receiver.engine_back(self._model(card))

    def _open(self) -> ModelSource:
        return open_source(self._served.config, Heard(self._hear, self._served.fetching, FETCHING))

    def _hear(self, progress: Progress) -> None:
        self._progress = progress

    def _model(self, card: Card) -> Model:
        assert self._words is not None
        return Model.of_card(card, self._words, self._served.name(self._words.source), self.admit)


def _words_of(source: ModelSource) -> Words:
    tokenizer = open_tokenizer(source)
    template = None
    if tokenizer.chat_template is not None:
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens, origin=str(source.path))
        template.warm()
    return Words(source, tokenizer, template)


def _settings(config: Config, source: ModelSource) -> dict[str, wire.Setting]:
    """`config` for `Config.resolve` in the child, with the model that was found here."""
    found = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "sources"}
    found["model"] = source.path
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}
