"""Who may ask: keys, compared in constant time.

Knows: keys' digests. Does not know: routes, which of them need a key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from legato.server.problems import Problem


class Keys:
    """The keys of one server; without any, everybody is let in under the name ""."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in dict.fromkeys(keys)]

    def __len__(self) -> int:
        return len(self._digests)

    def tenant(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The name of the key that was sent (a part of its digest). Raises a 401."""
        if not self._digests:
            return ""
        given = _given(headers)
        if given is None:
            text = "a key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise Problem(401, text, code="invalid_api_key")
        digest = hashlib.sha256(given).digest()
        found = ""
        for own in self._digests:  # all of them, so that time tells nothing
            if hmac.compare_digest(own, digest):
                found = f"key-{own.hex()[:8]}"
        if not found:
            raise Problem(401, "this key is not known here", code="invalid_api_key")
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _given(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return None
