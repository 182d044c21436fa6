"""Loads an OpenAI-compatible server: so many requests at once, or so many a second, and what came of each.

Knows: arrivals, requests' bodies, when a server has to be given up. Does not know: sockets, statistics, terminals.

Closed (`concurrency`): that many requests are in flight as long as there are more. Open (`rate`): requests are sent
when they are due, whether or not earlier ones were answered, because a slow server must not slow its own load.
The generator measures itself: how late its own event loop was, and what each chunk cost it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from legato.bench.link import REFUSED, STALLED, Client, LinkError
from legato.bench.prompts import Prompt, Writer, counter
from legato.bench.reading import Reading
from legato.bench.serve_metrics import Limits, LoadResult, Spread, Trace, summarise
from legato.errors import LegatoError, UsageError
from legato.weights.hub import Report

TICK_S = 0.02  # how often the generator looks at its own clock
TELL_S = 0.25  # how often it tells its progress and looks for servers that went silent
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Target:
    """The server's endpoint, and what it takes.

    path        of the endpoint
    chat        messages instead of a prompt
    ignore_eos  answers can be made to have exactly the tokens asked for
    usage       it can be asked to count tokens in a stream
    """

    path: str
    model: str
    chat: bool = False
    ignore_eos: bool = True
    usage: bool = True

    def body(self, prompt: Prompt, decode: int) -> bytes:
        asked: dict[str, Any] = {
            "model": self.model,
            "max_tokens": prompt.max_tokens or decode,
            "temperature": 0,
            "stream": True,
        }
        if self.chat:
            asked["messages"] = prompt.messages or [{"role": "user", "content": prompt.text}]
        else:
            asked["prompt"] = prompt.text
        if self.usage:
            asked["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            asked["ignore_eos"] = True
        return json.dumps(asked).encode()


@dataclass(frozen=True, slots=True)
class Level:
    """One level of load: `concurrency` in flight, or `rate` a second at `poisson` or fixed distances."""

    concurrency: int | None = None
    rate: float | None = None
    poisson: bool = True

    def due(self, count: int, seed: int) -> list[float]:
        """Seconds from the begin at which requests are due; open arrivals only. The first is due at once."""
        assert self.rate is not None
        drawn, moment, moments = random.Random(seed), 0.0, []
        for _ in range(count):
            moments.append(moment)
            moment += drawn.expovariate(self.rate) if self.poisson else 1 / self.rate
        return moments


@dataclass(frozen=True, slots=True)
class Generator:
    """What the load generator cost, and how late it was itself: a lag near the ITL makes that ITL its own."""

    lag_ms: Spread
    cpu_s: float
    cpu_share: float
    cpu_us_per_chunk: float


@dataclass(frozen=True, slots=True)
class Served:
    """One level's figures, and the generator's own."""

    result: LoadResult
    generator: Generator
    traces: tuple[Trace, ...]

    def as_json(self) -> dict[str, Any]:
        return self.result.as_json() | {"generator": asdict(self.generator)}


async def models(client: Client) -> list[str]:
    """The names of `/v1/models`; [] when the server has none to tell. Raises `LegatoError` when nobody answers."""
    base = endpoint(client.origin.path, False).removesuffix("/completions").removesuffix("/chat")
    try:
        status, told = await client.json("GET", f"{base}/models")
    except LinkError as error:
        where = f"http{'s' * client.origin.tls}://{client.origin.authority}"
        fix = "start the server, or leave out --url to measure our own"
        if error.kind == STALLED:
            fix = "try a longer --timeout"
        raise LegatoError(f"no server answers at {where} ({error}); {fix}") from None
    if status in (401, 403):
        raise UsageError("the server wants a key: give it with --api-key")
    found = told.get("data") if isinstance(told, dict) and status == 200 else None
    return [str(m["id"]) for m in found or () if isinstance(m, dict) and m.get("id")]


def endpoint(path: str, chat: bool) -> str:
    """The endpoint's path from the URL's own: a whole endpoint stays, /v1 (or /v3) is gone on from."""
    if path.endswith("/completions"):
        return path
    last = path.rsplit("/", 1)[-1]
    base = path if last[:1] == "v" and last[1:].isdigit() else f"{path}/v1"
    return f"{base}/chat/completions" if chat else f"{base}/completions"


async def tried(client: Client, target: Target, prompt: Prompt, timeout_s: float) -> Target:
    """The target as it answers: fields that it refuses are left out. Raises `LegatoError` when it does not answer."""
    while True:
        reading = Reading()
        try:
            await asyncio.wait_for(
                client.send("POST", target.path, target.body(Prompt(prompt.text, prompt.messages), 2), reading),
                timeout_s,
            )
            reading.close()
            return target
        except TimeoutError:
            raise LegatoError(
                f"the first request got no answer within {timeout_s:g} s; try a longer --timeout"
            ) from None
        except LinkError as error:
            if error.kind in ("http 400", "http 422") and target.ignore_eos:
                target = Target(target.path, target.model, target.chat, ignore_eos=False, usage=target.usage)
            elif error.kind in ("http 400", "http 422") and target.usage:
                target = Target(target.path, target.model, target.chat, ignore_eos=False, usage=False)
            elif error.kind == "empty":  # an end token at once; longer answers will show
                return target
            else:
                raise LegatoError(f"the first request failed: {error.kind}: {error}") from None


async def written(
    client: Client, target: Target, count: int, tokens: int, shared: int, seed: int, report: Report
) -> list[Prompt]:
    """`count` random prompts of `shared` equal tokens and `tokens` of their own; without `/tokenize` by estimate."""
    writer = Writer(seed, await counter(client, target.model, target.chat))
    prefix = (await writer.prompt(shared)).text or "" if shared else ""
    report.start(count, f"writing {count} prompts")
    try:
        prompts = []
        for _ in range(count):
            prompts.append(await writer.prompt(shared + tokens, prefix))
            report.advance(1)
        return prompts
    finally:
        report.done()


class Load:
    """One level of load on one server. `run` may be called once; `stop` ends it early, with what there is."""

    def __init__(
        self, client: Client, target: Target, prompts: Sequence[Prompt], decode: int, level: Level, timeout_s: float
    ) -> None:
        self._client, self._target, self._level, self._timeout_s = client, target, level, timeout_s
        self._bodies = [target.body(prompt, decode) for prompt in prompts]
        self._traces: list[Trace] = []
        self._next = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._lags: list[float] = []
        self._stopped: str | None = None
        self._over = asyncio.Event()

    def stop(self, reason: str = INTERRUPTED, cut: bool = True) -> None:
        """No more requests. `cut`: those in flight are cut off and not counted, else they may end."""
        if self._stopped is None:
            self._stopped = reason
        self._over.set()
        for task in self._in_flight if cut else ():
            task.cancel()

    async def run(self, limits: Limits, seed: int, report: Report, label: str) -> Served:
        """Sends all requests; returns what came of those that ended."""
        count, level = len(self._bodies), self._level
        cpu, began = time.process_time(), time.perf_counter()
        report.start(count, label)
        watching = asyncio.create_task(self._watch(report))
        try:
            if level.rate is None:
                await self._closed(level.concurrency or 1)
            else:
                await self._open(level.due(count, seed))
        finally:
            watching.cancel()
            report.done()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        chunks = sum(len(trace.stamps) for trace in self._traces)
        generator = Generator(Spread.of(self._lags), cpu, cpu / wall, 1e6 * cpu / max(1, chunks))
        result = summarise(
            self._traces, limits, asked=count, concurrency=level.concurrency, rate=level.rate, stopped=self._stopped
        )
        return Served(result, generator, tuple(self._traces))

    async def _closed(self, concurrency: int) -> None:
        async def worker() -> None:
            while self._next < len(self._bodies) and self._stopped is None:
                self._next += 1
                await self._one(self._next - 1, None)

        for _ in range(min(concurrency, len(self._bodies))):
            self._spawn(worker())
        await self._all()

    async def _open(self, moments: Sequence[float]) -> None:
        began = time.perf_counter()
        for index, moment in enumerate(moments):
            if (wait := began + moment - time.perf_counter()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), wait)
            if self._stopped is not None:
                break
            self._next = index + 1
            self._spawn(self._one(index, began + moment))
            if wait <= 0:
                await asyncio.sleep(0)
        await self._all()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _all(self) -> None:
        while self._in_flight:
            done, _ = await asyncio.wait(list(self._in_flight))
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error

    async def _one(self, index: int, due: float | None) -> None:
        trace, reading = Trace(index, due), Reading()
        trace.sent = time.perf_counter()
        try:
            await self._client.send("POST", self._target.path, self._bodies[index], reading)
            reading.close()
        except LinkError as error:
            trace.error, trace.problem = error.kind, str(error)
            if error.kind == REFUSED:
                self.stop(f"the server stopped answering: {error}", cut=False)
        trace.stamps, trace.prompt_tokens = reading.stamps, reading.prompt_tokens
        trace.ended = reading.ended if reading.ended is not None and trace.error is None else time.perf_counter()
        trace.tokens = reading.tokens if reading.tokens is not None else len(reading.stamps)
        trace.counted = "chunks" if reading.tokens is None else "usage"
        self._traces.append(trace)

    async def _watch(self, report: Report) -> None:
        """The generator's own lag, progress, and requests that hear nothing any more."""
        told, shown = time.perf_counter(), 0
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            self._lags.append(max(0.0, 1e3 * (now - before - TICK_S)))
            if now - told >= TELL_S:
                report.advance(len(self._traces) - shown)
                told, shown = now, len(self._traces)
                self._give_up(now)

    def _give_up(self, now: float) -> None:
        """A server of which no request heard a byte for too long is gone; one alone may wait in its queue."""
        links = list(self._client.links)
        if not links or any(now - link.last_byte <= self._timeout_s for link in links):
            return
        text = f"not a byte within {self._timeout_s:g} s"
        self.stop(f"the server stopped answering: {text}; a longer --timeout waits longer", cut=False)
        for link in links:
            link.fail(LinkError(STALLED, text))
