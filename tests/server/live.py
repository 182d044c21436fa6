"""A server in a thread, around a model that can be checked: the alphabet, or the page-echo model.

Knows: the server's own entry points, raw sockets. Does not know: protocols.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from page_echo import PageEcho, plain_answer

from legato.assemble import Assembly, assemble, open_tokenizer
from legato.config import Config, ServeConfig
from legato.core.request import Request, SamplingParams
from legato.engine import Engine
from legato.server.engine_thread import EngineThread
from legato.server.lifecycle import MakeBridge, Server
from legato.server.limits import ServerLimits
from legato.server.model import Model, Wall
from legato.server.progress import Hear
from legato.text.template import ChatTemplate
from legato.weights.source import open_model

NAME = "tested"
# In no answer to a client: addresses, traces, and paths, those of this tree's own top folder among them.
TOP = re.escape("/" + Path(__file__).resolve().parts[1])
UNSPEAKABLE = re.compile(rf"0x[0-9a-f]{{6,}}|Traceback|File \"|{TOP}|/tmp|/home|/root|site-packages|\.py\b")


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, `[DONE]` as it is."""
        parts = self.body.decode().split("\n\n")
        assert parts[-1] == "", parts[-1]
        shown = [part.removeprefix("data: ") for part in parts[:-1] if not part.startswith(":")]
        return [part if part == "[DONE]" else json.loads(part) for part in shown]


@dataclass
class Live:
    """A server that is ready."""

    server: Server
    loop: asyncio.AbstractEventLoop
    port: int
    parts: Assembly
    key: str = ""
    codes: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """One request on its own connection; `body` that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"connection": "close"} | ({"content-type": "application/json"} if data is not None else {})
        if self.key:
            sent["authorization"] = f"Bearer {self.key}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request(method, path, data, {k: v for k, v in sent.items() if v})
            answer = link.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            link.close()

    def post(self, path: str, body: object, **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def open(self, body: object, path: str = "/v1/completions", key: str = "") -> socket.socket:
        """A connection with a request sent and nothing read."""
        data = json.dumps(body).encode()
        link = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        head += f"x-api-key: {key}\r\n" if key else ""
        link.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return link

    def on_loop(self, function: Callable[[], Any]) -> Any:
        """Runs `function` on the server's event loop and returns what it returns."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def stats(self) -> Any:
        return self.ask("GET", "/v1/engine/stats").json

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Seconds until `condition` holds."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < seconds, f"not within {seconds} s: {what}"
            time.sleep(0.005)
        return time.monotonic() - begun

    def idle(self) -> bool:
        """Nothing in flight, no page in use, nobody's state kept."""
        service, engine = self.server.service, self.parts.engine
        return not (engine.has_work or service.num_in_flight or service._streams or engine.stats().kv.in_use)


def raw(live: Live, request: bytes) -> bytes:
    """The whole answer to bytes sent as they are."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as link:
        link.sendall(request)
        out = b""
        while part := link.recv(65536):
            out += part
        return out


@contextmanager
def running(
    load: Callable[[], Assembly],
    before: Callable[[int], None] | None = None,
    limits: ServerLimits | None = None,
    measure: Callable[[Assembly], Wall] | None = None,
    **settings: object,
) -> Iterator[Live]:
    """A server around what `load` makes, until the block ends; `before` sees the port while it loads."""
    made: list[Assembly] = []

    def described(hear: Hear) -> tuple[Assembly, Model]:
        made.append(load())
        return made[0], Model.of(made[0], NAME)

    with serving(lambda loop: EngineThread(described, loop, measure), before, limits, **settings) as live:
        live.parts = made[0]
        yield live


@contextmanager
def serving(
    make_bridge: MakeBridge,
    before: Callable[[int], None] | None = None,
    limits: ServerLimits | None = None,
    **settings: object,
) -> Iterator[Live]:
    """A server in front of a bridge; its `parts` are for whoever knows them."""
    serve = ServeConfig.resolve({"port": 0, "served_name": NAME, "drain_s": 5, **settings}, {})
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # so that a reader who stalls is felt soon
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so only where the protocol is named
    sock.setblocking(False)
    made: dict[str, Any] = {}
    ready = threading.Event()

    server = Server(serve, make_bridge, lambda model, url: ready.set(), limits)
    codes: list[int] = []

    async def main() -> None:
        made["loop"] = asyncio.get_running_loop()
        codes.append(await server.run(sock))

    def life() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            made["error"] = error  # raised by whoever waits
            ready.set()

    thread = threading.Thread(target=life, daemon=True)
    thread.start()
    if before is not None:
        before(sock.getsockname()[1])
    assert ready.wait(60), "the server did not get ready"
    if "error" in made:
        raise made["error"]
    key = serve.api_keys[0] if serve.api_keys else ""
    live = Live(server, made["loop"], sock.getsockname()[1], cast(Assembly, None), key, codes)
    try:
        yield live
    finally:
        if thread.is_alive():
            live.loop.call_soon_threadsafe(lambda: (server.stop(), server.stop()))
        thread.join(15)
        sock.close()
        assert not thread.is_alive(), "the server did not end"
        if "error" in made:
            raise made["error"]


def alphabet_assembly(path: Path, **settings: object) -> Callable[[], Assembly]:
    """The alphabet on the reference backend."""
    config = Config.resolve({"model": str(path), "backend": "reference", **settings}, {})
    from legato.weights.catalog import Silent

    return lambda: assemble(config, Silent(), Silent())


def echo_assembly(
    path: Path,
    *,
    num_pages: int = 512,
    page_size: int = 8,
    max_seqs: int = 16,
    context: int = 400,
    pace: float = 0.0,
    ends: bool = True,
) -> Callable[[], Assembly]:
    """The page-echo model under the alphabet's tokenizer; `pace` seconds are added to each step. Unless it ends, its
    answers go on to their limit."""

    def load() -> Assembly:
        source = open_model(path)
        tokenizer = open_tokenizer(source)
        eos = frozenset(tokenizer.eos_ids if ends else ())
        runner = PageEcho(num_pages, page_size, tokenizer.vocab_size, eos)
        runner.during = lambda plan: time.sleep(pace)
        engine = Engine(
            runner,
            num_pages=num_pages,
            page_size=page_size,
            max_tokens=64,
            max_seqs=max_seqs,
            context_length=context,
            vocab_size=tokenizer.vocab_size,
            eos_ids=eos,
        )
        assert tokenizer.chat_template is not None
        closing = SimpleNamespace(isa="echo", threads=1, close=lambda: None)
        parts = SimpleNamespace(
            engine=engine,
            tokenizer=tokenizer,
            template=ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens),
            executor=closing,
            runner=runner,
            kv_format="slots",
            vocab_size=tokenizer.vocab_size,
            source=source,
            config=SimpleNamespace(weights="auto"),
            capacity="slots",
            notes=[],
            setting=None,
        )
        runner.close = lambda: None  # type: ignore[attr-defined]
        return cast(Assembly, parts)

    return load


def expected(live: Live, ids: list[int], index: int = 0, **params: Any) -> tuple[str, list[int], str]:
    """(text, token ids, finish reason) that the page-echo model must give."""
    tokenizer, limits = live.parts.tokenizer, live.parts.engine.scheduler.limits
    request = Request("expected", tuple(ids), SamplingParams(**params))
    eos = frozenset(tokenizer.eos_ids)
    out, reason, _ = plain_answer(request, index, tokenizer.vocab_size, eos, limits.max_length(request))
    shown = out[:-1] if reason == "stop" else out
    return tokenizer.decode(shown), out, str(reason)
