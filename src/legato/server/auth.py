"""Who may ask: keys, compared in constant time; without any, whoever calls the server by a name of this machine.

Knows: keys' digests, names that only lead to this machine. Does not know: routes, which of them need a key.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from legato.server.problems import Problem


class Keys:
    """The keys of one server; without any, everybody is let in under the name "".

    own_names  but only who calls it by one: a page of another site whose name was made to lead here (DNS rebinding)
               may send and read anything, and the name is all that tells it from a page of ours
    """

    def __init__(self, keys: Iterable[str], own_names: bool = False) -> None:
        self._digests = [_digest(key) for key in dict.fromkeys(keys)]
        self._own_names = own_names

    def __len__(self) -> int:
        return len(self._digests)

    def tenant(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The name of the key that was sent (a part of its digest). Raises a 401, or a 403 for a name of others."""
        if not self._digests:
            if self._own_names and not all(is_own_name(value) for name, value in headers if name == b"host"):
                text = "without keys this server answers to names of its machine only: call it localhost or by its"
                raise Problem(403, f"{text} address, or start it with --api-key KEY", code="unknown_host")
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


def is_own_name(host: bytes) -> bool:
    """Whether a Host header names an address, or a name that nobody can have pointed here from outside.

    Names under localhost (RFC 6761) and internal (reserved by ICANN; containers call their host by one) are nobody's.
    """
    name = host.decode("latin-1").strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.rstrip(".").rpartition(".")[2] in ("localhost", "internal", "")
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _given(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return None
