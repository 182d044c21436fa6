"""Every limit of the server, in one table. Each is enforced in one place, at admission, for every route.

Knows: numbers. Does not know: who enforces them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Sizes in bytes, times in seconds.

    headers, header_bytes  of one request                                                (app)
    body                   of one request, counted before it is kept                     (exchange)
    body_s                 until a body must have come whole                             (exchange)
    depth                  of JSON                                                       (jsonbody)
    messages, prompts      of one request                                                (service)
    stop_bytes             of one stop string                                            (service)
    queue                  answers waiting beside those that run; None: 4 x max_seqs      (service)
    queue_s                in the queue until a request is given up                      (service)
    tenant_share           of all places that one key may take while others exist        (service)
    stall_s                until a reader that takes nothing is dropped                  (exchange)
    ping_s                 of silence in a stream before a comment is sent               (service)
    drain_s                for answers in flight after the first signal                  (lifecycle)
    """

    headers: int = 64
    header_bytes: int = 16 << 10
    body: int = 4 << 20
    body_s: float = 30.0
    depth: int = 64
    messages: int = 2048
    prompts: int = 64
    stop_bytes: int = 256
    queue: int | None = None
    queue_s: float = 60.0
    tenant_share: float = 0.5
    stall_s: float = 60.0
    ping_s: float = 15.0
    drain_s: float = 30.0
