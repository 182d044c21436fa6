"""The ASGI application: limits, key, route, handler; whatever goes wrong becomes an answer.

Knows: the order in which a request is checked. Does not know: any protocol, any model.

The path is taken as it was sent and compared exactly; no header has a say in what is reached or who may reach it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from legato.errors import LegatoError
from legato.server.auth import Keys
from legato.server.exchange import Disconnected, Exchange, Receive, Scope, Send
from legato.server.limits import ServerLimits
from legato.server.problems import ErrorBody, Problem, problem_of
from legato.server.routes import Route, RouteTable, missing

log = logging.getLogger(__name__)

Observer = Callable[[Exchange, Route | None], None]
"""Hears of every request when it has ended."""

CLIENT_GONE = 499  # for the log only: nobody was there to be told


class App:
    """One server. `words` words problems of paths that no protocol owns; `observers` hear of requests' ends."""

    def __init__(
        self,
        table: RouteTable,
        keys: Keys,
        limits: ServerLimits,
        words: ErrorBody,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.table, self.keys, self.limits, self._words = table, keys, limits, words
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self.limits)
        exchange.error_body = self.table.words(scope["path"], self._words)
        try:
            await self._serve(exchange)
        except Disconnected:
            exchange.line.status = CLIENT_GONE
        except asyncio.CancelledError:
            if not exchange.given_up:
                raise
            exchange.line.status = CLIENT_GONE
        except Exception as error:
            if not isinstance(error, LegatoError):
                log.exception("request %s met a fault of ours", exchange.request_id)
            problem = problem_of(error)
            if exchange.responded:
                raise
            await exchange.refuse(problem)
        finally:
            exchange.done()
            exchange.line.seconds = time.perf_counter() - exchange.started
            self._tell(exchange)
            if not self._quiet(exchange):
                exchange.line.write()

    async def _serve(self, exchange: Exchange) -> None:
        self._check_headers(exchange)
        method, path = exchange.scope["method"], exchange.scope["path"]
        route, exchange.tail, methods = self.table.find(method, path)
        if route is None or not route.open:
            exchange.tenant = exchange.line.tenant = self.keys.tenant(exchange.headers)
        if route is None:
            raise missing(path, methods)
        if route.body is not None:
            _check_type(exchange)
        await route.handle(exchange)

    def _tell(self, exchange: Exchange) -> None:
        route = self.table.find(exchange.scope["method"], exchange.scope["path"])[0]
        for observer in self._observers:
            observer(exchange, route)

    def _check_headers(self, exchange: Exchange) -> None:
        size = sum(len(name) + len(value) for name, value in exchange.headers)
        if len(exchange.headers) > self.limits.headers or size > self.limits.header_bytes:
            text = f"at most {self.limits.headers} headers of {self.limits.header_bytes} bytes in all"
            raise Problem(431, text, code="headers_too_large", close=True)
        version = exchange.scope["http_version"]
        hosts = sum(name == b"host" for name, _ in exchange.headers)
        if version not in ("1.0", "1.1") or hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Problem(400, "send HTTP/1.1 with one host header", code="invalid_http", close=True)

    def _quiet(self, exchange: Exchange) -> bool:
        """Probes come often, and say to their askers all that there is to say."""
        route: Route | None = self.table.find(exchange.scope["method"], exchange.scope["path"])[0]
        return route is not None and (route.open or (route.path == "/metrics" and exchange.line.status < 400))


def _check_type(exchange: Exchange) -> None:
    """415 unless the body is JSON by its header; what `curl -d` says of it passes too, but not from a page.

    A page of another site can send forms and plain text here unasked, and always says its origin with them. A body that
    is packed is never unpacked: a few bytes could become any number.
    """
    coding = (exchange.header(b"content-encoding") or b"identity").strip().lower()
    if coding != b"identity":
        text = "the body is packed (content-encoding); send it as it is"
        raise Problem(415, text, code="unsupported_media_type", close=True)
    kind = (exchange.header(b"content-type") or b"").split(b";")[0].strip().lower()
    if kind in (b"application/json", b"text/json") or kind.endswith(b"+json"):
        return
    if kind in (b"", b"application/x-www-form-urlencoded") and exchange.header(b"origin") is None:
        return
    raise Problem(415, "send JSON, with content-type: application/json", code="unsupported_media_type", close=True)
