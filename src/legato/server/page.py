"""The page at `/`: static files of this package, sent with headers that let nothing else run.

Knows: the files, their types, how long a browser may keep them. Does not know: what they do.

`/` is asked for anew each time and answered 304 while it is the same. All other files live under `/ui/DIGEST/`, where
the digest is that of all of them together: they may be kept for ever, since changed files have other addresses.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from legato.server.exchange import Exchange, Header
from legato.server.protocols.openai.words import error_body
from legato.server.routes import Handler, Route

KINDS = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
INDEX = "index.html"
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
GUARDS: list[Header] = [
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
FOR_EVER = b"public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: where it is found, its type, its bytes."""

    path: str
    kind: bytes
    body: bytes
    etag: bytes
    keep: bytes


def assets() -> list[Asset]:
    """Every file of the page; the first one is the page itself."""
    found = {item.name: item.read_bytes() for item in files("legato.server").joinpath("ui").iterdir() if item.is_file()}
    found = {name: found[name] for name in sorted(found) if _suffix(name) in KINDS}
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + data for name, data in found.items())).hexdigest()[:16]
    page = found.pop(INDEX).replace(b'"ui/', b'"ui/%s/' % digest.encode())
    shown = [Asset("/", KINDS[".html"], page, _etag(page), b"no-cache")]
    for name, data in found.items():
        shown.append(Asset(f"/ui/{digest}/{name}", KINDS[_suffix(name)], data, _etag(data), FOR_EVER))
    return shown


def routes() -> list[Route]:
    """A route a file. The page needs no key: it has nothing to tell but what the API tells those who have one."""
    return [
        Route(
            "GET",
            asset.path,
            _handler(asset),
            error_body,
            "The page" if asset.path == "/" else "A part of the page",
            open=True,
            answers=asset.kind.decode(),
        )
        for asset in assets()
    ]


def _handler(asset: Asset) -> Handler:
    headers = [*GUARDS, (b"cache-control", asset.keep), (b"etag", asset.etag)]

    async def handle(exchange: Exchange) -> None:
        known = exchange.header(b"if-none-match") or b""
        if asset.etag in [tag.strip() for tag in known.split(b",")]:
            await exchange.respond(304, b"", headers, asset.kind)
        else:
            await exchange.respond(200, asset.body, headers, asset.kind)

    return handle


def _etag(data: bytes) -> bytes:
    return b'"%s"' % hashlib.sha256(data).hexdigest()[:16].encode()


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
