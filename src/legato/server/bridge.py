"""`Bridge`: the way from the event loop to an engine and back, wherever the engine runs.

Knows: what can be asked of an engine and what it tells. Does not know: HTTP, text, how the engine works, where it runs.

    engine_thread   beside the event loop, in this process
    engine_process  in a child process that is watched and started again
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from legato.core.events import Event
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.engine import EngineStats
from legato.errors import EngineAwayError, LegatoError
from legato.measure.ledger import StepRecord
from legato.server.model import Model, Wall
from legato.server.progress import Progress


class Receiver(Protocol):
    """Who hears of events; called on the event loop."""

    def deliver(self, events: list[Event]) -> None:
        """All events of one step, in order."""

    def engine_lost(self, away: EngineAwayError) -> None:
        """The engine will tell nothing more of anything it was asked; another one is being started."""

    def engine_back(self, model: Model) -> None:
        """The other one works."""

    def engine_ended(self, error: LegatoError) -> None:
        """The engine will tell nothing more, and there will be no other."""


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

    @property
    def num_restarts(self) -> int:
        """How many engines were started after the first."""

    @property
    def pid(self) -> int:
        """Of the engine's process; 0: it is this one, or there is none."""

    @property
    def lost(self) -> asyncio.Future[LegatoError]:
        """Done, with the reason, when the server has to end because there is no engine and none will come."""

    async def start(self, receiver: Receiver) -> Model:
        """Loads the model; returns once the engine has taken a first step. Raises what stands in the way."""

    async def submit(self, requests: Sequence[Request]) -> None:
        """Admits all of them or none; raises what `Engine.add` raises, and `EngineAwayError`."""

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        """Ends a request or one of its answers; unknown ids are fine. Its event comes with the next step."""

    async def measure(self) -> Wall | None:
        """What bounds the model's steps here, measured between two of them; None where nobody can tell."""

    def snapshot(self) -> Snapshot | None:
        """The latest figures, without waiting; None before the first."""

    def pulse(self) -> Pulse:
        """Whether the engine lives, without waiting."""

    def progress(self) -> Progress:
        """How far loading has come, without waiting; once it is over, the last that was told."""

    def retire(self) -> None:
        """No other engine is started from now on."""

    def close(self) -> None:
        """Ends the engine and waits a moment for it."""
