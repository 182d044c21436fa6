"""Work on the engine's own thread: between two steps, never during one."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from live import NAME, Live, alphabet_assembly, echo_assembly, running

from legato.server.engine_thread import EngineThread
from legato.server.model import Wall


def between(live: Live, work: object) -> object:
    bridge = live.server.service.bridge
    assert isinstance(bridge, EngineThread) and callable(work)
    return asyncio.run_coroutine_threadsafe(bridge.between_steps(work), live.loop).result(10)


def test_work_is_done_on_the_engines_thread_and_its_end_is_told(echo: Live) -> None:
    assert between(echo, lambda: threading.current_thread().name) == "engine"
    assert between(echo, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        between(echo, lambda: 1 // 0)
    assert echo.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status == 200


def test_no_step_runs_meanwhile(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, pace=0.005, ends=False)) as live:
        link = live.open({"prompt": "a", "max_tokens": 300, "stream": True})
        live.wait(lambda: live.parts.engine.has_work, 5, "it runs")

        def work() -> tuple[int, int]:
            before = live.parts.engine.ledger.total.num_steps
            time.sleep(0.05)
            return before, live.parts.engine.ledger.total.num_steps

        seen = [between(live, work) for _ in range(4)]
        link.close()
        assert all(before == after for before, after in seen)  # type: ignore[misc]
        assert seen[0] != seen[-1], "and between them the steps go on"


def test_the_wall_is_measured_there(alphabet: Path) -> None:
    """The native library turns a second caller away: measured beside the engine, requests would fail."""
    where: list[str] = []

    def measure(parts: object) -> Wall:
        where.append(threading.current_thread().name)
        return Wall(10.0, 1000, 10)

    with running(alphabet_assembly(alphabet), measure=measure) as live:
        live.wait(lambda: live.stats()["wall"] is not None, 10, f"{NAME} is measured")
        assert live.stats()["wall"] == {"read_gb_s": 10.0, "weight_bytes": 1000, "kv_bytes_per_token": 10}
    assert where == ["engine"]
