"""From a bound socket to an exit code: load, announce, watch, drain.

Knows: signals, the order of starting and stopping, which routes there are. Does not know: requests, the engine.

    bind -> listen (probes answer, /ready says how far loading is) -> load where the engine will run -> ready, banner
    first signal -> new requests get 503, answers in flight have `drain_s` -> exit 0
    second signal -> the end, at once
    no engine, and none will come -> exit 1
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from legato.config import ServeConfig
from legato.errors import EngineAwayError, EngineError, LegatoError, UsageError
from legato.measure.energy import Rates
from legato.server import openapi, page, probes
from legato.server.app import App, Observer
from legato.server.ask import Chat
from legato.server.auth import Keys
from legato.server.bridge import Bridge
from legato.server.exchange import Exchange
from legato.server.http11 import protocol_class
from legato.server.limits import ServerLimits
from legato.server.meters import NO_ROUTE
from legato.server.model import Model
from legato.server.problems import Problem
from legato.server.protocols import anthropic, ollama, openai, responses, tokens
from legato.server.protocols.openai.words import error_body
from legato.server.routes import Route, RouteTable
from legato.server.service import Service, State
from legato.server.status import Status
from legato.server.traces import Traces

log = logging.getLogger(__name__)

PORTS_TRIED = 20
TICK_S = 0.25
STATUS_S = 10.0
LAST_WORDS_S = 0.3  # for the last answers to leave when there is no engine any more
QUIET_S = 0.25  # from ready until the machine is measured, if nobody asks meanwhile
SWITCH_S = (
    0.0005  # how long one thread may keep the interpreter when the other wants it; Python's own is ten times that
)

T = TypeVar("T")
MakeBridge = Callable[[asyncio.AbstractEventLoop], Bridge]
Announce = Callable[[Model, str], None]


def all_routes(service: Service) -> list[Route]:
    """Everything that can be reached. A protocol adds its list here."""
    listed = [*page.routes(), *probes.routes(service), *openai.routes(service), *tokens.routes(service)]
    listed += [*responses.routes(service), *anthropic.routes(service), *ollama.routes(service)]
    return [*listed, openapi.route(listed)]


def check_exposure(serve: ServeConfig) -> None:
    """Refuses to be open to other machines without a key."""
    if not _is_loopback(serve.host) and not serve.api_keys and not serve.insecure:
        text = f"host={serve.host} lets other machines in, so keys are needed: give --api-key KEY (or LEGATO_API_KEYS)"
        raise UsageError(text + ", or --insecure if everybody may come")


def _is_loopback(host: str) -> bool:
    """By address; of names only the one that every system keeps for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def bind(serve: ServeConfig) -> socket.socket:
    """A listening socket. A busy port is an error when it was asked for, else the next free one is taken."""
    chosen = serve.sources.get("port", "default") != "default"
    ports = [serve.port] if chosen else range(serve.port, serve.port + PORTS_TRIED)
    for port in ports:
        try:
            return _bound(serve.host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            what = error.strerror or str(error)
            raise UsageError(f"host={serve.host} port={port} cannot be listened on: {what}; choose others") from None
    if chosen:
        raise UsageError(f"port={serve.port} is in use; end its user, choose another --port, or 0 for any free one")
    raise UsageError(f"ports {ports[0]} to {ports[-1]} are in use; choose another with --port, or 0 for any free one")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """One listening server around one model; `run` is its whole life."""

    def __init__(
        self,
        serve: ServeConfig,
        make_bridge: MakeBridge,
        announce: Announce,
        limits: ServerLimits | None = None,
        rates: Rates | None = None,
    ) -> None:
        self._serve, self._make_bridge, self._announce, self._rates = serve, make_bridge, announce, rates
        self.limits = replace(limits or ServerLimits(), queue=serve.queue, drain_s=serve.drain_s)
        self.service: Service
        self.routes: RouteTable
        self.app: App
        self._stops = 0
        self._traces: Traces | None = None
        self._stopping: asyncio.Event

    async def run(self, sock: socket.socket) -> int:
        """Serves on `sock` until told to stop; raises what loading raised, or why no engine is left.

        Returns the exit code.
        """
        import uvicorn

        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        bridge = self._make_bridge(loop)
        service = self.service = Service(bridge, self.limits)
        keys = Keys(self._serve.api_keys, own_names=_is_loopback(self._serve.host))
        service.many_tenants = len(keys) > 1
        self.routes = RouteTable(all_routes(service))
        service.vllm_metrics, service.rates = self._serve.vllm_metrics, self._rates
        app = self.app = App(self.routes, keys, self.limits, error_body, self._observers(service))
        http = uvicorn.Server(_http_config(app, uvicorn.Config))
        listening = asyncio.create_task(http.serve(sockets=[sock]))
        while not http.started and not listening.done():
            await asyncio.sleep(0.005)
        self._catch_signals(loop)
        ticking = asyncio.create_task(self._tick())
        first: asyncio.Task[None] | None = None
        try:
            model = await self._unless_stopped(asyncio.ensure_future(bridge.start(service)))
            if model is not None:
                service.ready(model)
                self._announce(model, url_of(sock))
                first = asyncio.create_task(self._settle(bridge))
            lost = await self._unless_stopped(bridge.lost)
            if lost is not None:
                await asyncio.sleep(LAST_WORDS_S)
                raise lost
            bridge.retire()
            await self._drain()
        finally:
            ticking.cancel()
            if first is not None:
                first.cancel()
            bridge.close()
            http.should_exit = http.force_exit = True
            await asyncio.wait([listening], timeout=2.0)
            service.close()
            if self._traces is not None:
                self._traces.close()
        return 0 if service.state is not State.ERROR else 1

    def _observers(self, service: Service) -> list[Observer]:
        def counted(exchange: Exchange, route: Route | None) -> None:
            service.meters.request(NO_ROUTE if route is None else route.path, exchange.line.status)

        if not self._serve.otel:
            return [counted]
        self._traces = Traces(service)
        return [counted, self._traces.tell]

    def stop(self) -> None:
        """A signal: the first drains, the second ends. Call it on the event loop."""
        self._stops += 1
        self._stopping.set()
        if self._stops == 1 and self.service.num_in_flight:
            log.info("draining: %d answers in flight have %g s", self.service.num_in_flight, self.limits.drain_s)

    async def _unless_stopped(self, future: asyncio.Future[T]) -> T | None:
        """What `future` brings, or None when a signal came first."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        both: list[asyncio.Future[Any]] = [future, stopping]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        return future.result() if future.done() else None

    async def _settle(self, bridge: Bridge) -> None:
        """What need not be there before the first request: a compiled template, the machine's wall."""
        await _render_once(self.service)
        while self.service.model.wall is None:
            await asyncio.sleep(QUIET_S)
            if self.service.num_in_flight or self.service.state is not State.READY:
                continue
            try:
                wall = await bridge.measure()
            except EngineAwayError:  # asked again when there is another one
                continue
            except EngineError as error:
                log.warning("the machine's wall is not known: %s", error)
                return
            if wall is None:
                return
            self.service.measured(wall)

    async def _drain(self) -> None:
        """Waits for answers in flight; what is left at the end is told so, in its own words."""
        service, loop = self.service, asyncio.get_running_loop()
        if service.state is not State.ERROR:
            service.state = State.DRAINING
        end = loop.time() + self.limits.drain_s
        while service.num_in_flight and loop.time() < end and self._stops < 2 and service.state is not State.ERROR:
            await asyncio.sleep(0.02)
        for stream in service.streams():
            stream.fail(Problem(503, "the server is shutting down", code="draining", retry_after_s=5))
        await asyncio.sleep(0.05 if self._stops < 2 else 0.0)  # the last bytes leave with the loop's next turns

    async def _tick(self) -> None:
        told, status, since = False, Status(), 0.0
        while True:
            before = self.service.loop.time()
            await asyncio.sleep(TICK_S)
            self.service.meters.lag.add(max(0.0, self.service.loop.time() - before - TICK_S))
            self.service.tick()
            since += TICK_S
            if since >= STATUS_S:
                status.tell(self.service.bridge.snapshot(), self.service.meters)
                since = 0.0
            pulse = self.service.bridge.pulse()
            if pulse.hung and not told:
                text = "the engine hangs: no sign of progress for %.1f s, and %.1f s are the limit"
                log.error(text, pulse.busy_s, pulse.hang_after_s)
            told = pulse.hung
            if pulse.dead and self.service.state is State.READY:
                self.service.engine_ended(EngineError("the engine's thread has ended"))

    def _catch_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)


async def _render_once(service: Service) -> None:
    """Has the template compiled before the first conversation comes."""
    try:
        await service.encode([Chat([{"role": "user", "content": "Hello"}])])
    except LegatoError as error:
        log.warning("the chat template does not render a plain greeting: %s", error)


def _http_config(app: App, config: Callable[..., Any]) -> Any:
    """HTTP/1.1 only; no access log of its own, no trust in forwarded headers."""
    return config(
        app,
        http=protocol_class(),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=64 << 10,
        backlog=1024,
    )


def serve(serve_config: ServeConfig, make_bridge: MakeBridge, announce: Announce, rates: Rates | None = None) -> int:
    """Binds, loads, serves, drains; returns the exit code. Raises a `LegatoError` for what stands in the way.

    rates  what a second of the machine costs, for the bills of answers
    """
    check_exposure(serve_config)
    with bind(serve_config) as sock:
        sys.setswitchinterval(SWITCH_S)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(Server(serve_config, make_bridge, announce, rates=rates).run(sock))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
