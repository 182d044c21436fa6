"""Routes about the server itself: is it alive, ready, healthy; what it is, and how it does.

Knows: states, the engine's figures. Does not know: requests' contents.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from legato import __version__
from legato.server.bridge import Snapshot
from legato.server.exchange import TEXT, Exchange
from legato.server.jsonbody import dumps
from legato.server.metrics import KIND, exposition
from legato.server.progress import Progress
from legato.server.protocols.openai.words import error_body
from legato.server.routes import Route
from legato.server.service import Service, State


def routes(service: Service) -> list[Route]:
    """Probes without a key, figures with one."""

    async def live(exchange: Exchange) -> None:
        await exchange.respond(200, b'{"status":"live"}')

    async def ready(exchange: Exchange) -> None:
        status, shown = readiness(service)
        await exchange.respond(status, dumps(shown))

    async def version(exchange: Exchange) -> None:
        await exchange.respond(200, dumps({"version": __version__}))

    async def stats(exchange: Exchange) -> None:
        await exchange.respond(200, dumps(figures(service)))

    async def metrics(exchange: Exchange) -> None:
        await exchange.respond(200, exposition(service, readiness(service)[0] == 200), kind=KIND)

    words = error_body
    return [
        Route("GET", "/live", live, words, "Whether the event loop answers", open=True),
        Route("GET", "/ready", ready, words, "Whether requests are taken", open=True),
        Route("GET", "/health", ready, words, "The same, and whether the engine makes progress", open=True),
        Route("GET", "/version", version, words, "The version of this server"),
        Route("GET", "/v1/engine/stats", stats, words, "What the engine is doing"),
        Route("GET", "/metrics", metrics, words, "Figures for Prometheus", answers=TEXT.decode()),
    ]


def readiness(service: Service) -> tuple[int, dict[str, Any]]:
    """(status, body): 200 only while requests are taken and the engine makes progress."""
    shown: dict[str, Any] = {"status": "ok", "state": str(service.state)}
    if service.state is State.READY:
        pulse = service.bridge.pulse()
        if not (pulse.dead or pulse.hung):
            return 200, shown
        shown["state"] = "dead" if pulse.dead else "hung"
        shown["step_s"], shown["limit_s"] = round(pulse.busy_s, 3), round(pulse.hang_after_s, 3)
    if service.state is State.LOADING:
        shown["progress"] = _progress(service.bridge.progress())
    shown["status"] = "unavailable"
    return 503, shown


def _progress(progress: Progress) -> dict[str, Any]:
    """What is being done, and how much of it; the fraction is null where nobody knows how much it will be."""
    fraction = progress.fraction
    shown = {"what": progress.what, "fraction": None if fraction is None else round(fraction, 4)}
    return shown | {"done_bytes": progress.done, "total_bytes": progress.total} if progress.total else shown


def figures(service: Service) -> dict[str, Any]:
    """`/v1/engine/stats`: this moment, the last steps, and sums since the start."""
    model, pulse, snapshot = service.model, service.bridge.pulse(), service.bridge.snapshot()
    shown: dict[str, Any] = {
        "state": readiness(service)[1]["state"],
        "model": {
            "name": model.name,
            "context_length": model.context_length,
            "isa": model.isa,
            "threads": model.threads,
            "kv": model.kv,
            "max_seqs": model.max_seqs,
        },
        "wall": None if model.wall is None else asdict(model.wall),
        "in_flight": service.num_in_flight,
        "engine_restarts": service.bridge.num_restarts,
        "places": service.num_places,
        "step_s": round(pulse.busy_s, 4),
        "hung_after_s": round(pulse.hang_after_s, 3),
    }
    return shown if snapshot is None else shown | _engine_figures(snapshot, service.clock())


def _engine_figures(snapshot: Snapshot, now: float) -> dict[str, Any]:
    stats, recent = snapshot.stats, snapshot.recent
    total = stats.total
    span = sum(record.seconds for record in recent)
    return {
        "age_s": round(now - snapshot.at, 3),
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "wait_s": round(snapshot.wait_s, 3),
        "tenants": {name: asdict(tenant) for name, tenant in stats.tenants.items()},
        "kv_pages": asdict(stats.kv),
        "preemptions": stats.num_preemptions,
        "faults": stats.num_faults,
        "leaks": stats.num_leaks,
        "refused": stats.num_refused,
        "expired": stats.num_expired,
        "step_error": round(stats.step_error, 4),
        "tok_s": round(sum(r.output_tokens for r in recent) / span, 2) if span > 0 else 0.0,
        "prompt_tok_s": round(sum(r.prompt_tokens for r in recent) / span, 2) if span > 0 else 0.0,
        "total": {
            "steps": total.num_steps,
            "seconds": round(total.seconds, 4),
            "prompt_tokens": total.prompt_tokens,
            "decode_tokens": total.decode_tokens,
            "draft_tokens": total.draft_tokens,
            "accepted_tokens": total.accepted_tokens,
            "output_tokens": total.output_tokens,
            "laps": {name: round(seconds, 4) for name, seconds in total.laps.items()},
        },
        "recent": [
            {
                "ms": round(1e3 * r.seconds, 3),
                "predicted_ms": round(1e3 * r.predicted, 3),
                "run_ms": round(1e3 * r.laps.get("run", 0.0), 3),
                "seqs": r.num_seqs,
                "decode_tokens": r.decode_tokens,
                "prompt_tokens": r.prompt_tokens,
                "kv_tokens": r.kv_tokens,
            }
            for r in recent
        ],
    }
