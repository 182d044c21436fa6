"""A hung engine and a dead one are told from one that works, within seconds and without false alarms."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from live import Live, echo_assembly, running

from legato.core.plan import Plan, Slice
from legato.server import engine_loop
from legato.server.engine_loop import HANG_FACTOR, MIN_HANG_S, hang_limit

TEXT = "/v1/completions"
LONG = {"prompt": [1, 2], "max_tokens": 300, "ignore_eos": True}


def health(live: Live) -> int:
    return live.ask("GET", "/health").status


def test_the_limit_is_that_of_the_step_in_flight(echo: Live) -> None:
    """Ten seconds, unless the step itself is expected to be long; what may come some day does not count."""
    engine = echo.parts.engine
    echo.wait(lambda: engine.in_flight is None, 5, "idle")
    assert hang_limit(engine, Plan(())) == MIN_HANG_S == 10.0
    assert echo.stats()["hung_after_s"] == 10.0

    class Costly:
        scheduler, in_flight = engine.scheduler, Plan(())

        class model:
            seconds = staticmethod(lambda load: 0.5 * load.rows)

    costly: Any = Costly
    request: Any = type("R", (), {"prompt_ids": range(100)})
    sequence: Any = type("S", (), {"request": request})
    for rows, limit in ((1, MIN_HANG_S), (5, MIN_HANG_S), (64, HANG_FACTOR * 32)):
        Costly.in_flight = Plan((Slice(sequence, 0, rows, 1),))
        assert hang_limit(costly, Costly.in_flight) == limit
    Costly.in_flight = Plan((Slice(sequence, 0, 1, 1),))
    assert hang_limit(costly, Costly.in_flight) == MIN_HANG_S, "it comes down again"


@pytest.mark.slow
def test_an_executor_that_blocks_is_found_out_within_ten_seconds(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, pace=0.01)) as live, live.open(LONG):
        live.wait(lambda: live.server.service.num_in_flight == 1, 5, "running")
        gate = threading.Event()
        live.parts.runner.during = lambda plan: gate.wait(30)  # type: ignore[attr-defined]
        took = live.wait(lambda: health(live) == 503, 12, "found out")
        assert 9 < took < 11 and live.ask("GET", "/live").status == 200
        gate.set()
        live.parts.runner.during = lambda plan: None  # type: ignore[attr-defined]
        live.wait(lambda: health(live) == 200, 3, "healthy again")


def test_long_steps_that_were_expected_are_no_hang(alphabet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.2 s where 0.1 s is the floor: after a few the prediction carries the limit with it."""
    with running(echo_assembly(alphabet, pace=0.2)) as live:
        assert live.post(TEXT, LONG | {"max_tokens": 8}).status == 200
        monkeypatch.setattr(engine_loop, "MIN_HANG_S", 0.1)
        with live.open(LONG):
            live.wait(lambda: live.server.service.num_in_flight == 1, 5, "running")
            begun, seen = time.monotonic(), 0.0
            while time.monotonic() - begun < 2:
                reply = live.ask("GET", "/health")
                assert reply.status == 200, reply.body
                seen = max(seen, live.server.service.bridge.pulse().busy_s)
            assert seen > 0.12, "it was past the floor and in a step"


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_a_runner_that_raises_anything_at_all(alphabet: Path, fault: type[BaseException]) -> None:
    """What is no `Exception` ends the engine; every stream hears of it, health says so at once, the loop lives."""
    with running(echo_assembly(alphabet, pace=0.005)) as live:
        replies: list[Any] = []
        asking = threading.Thread(target=lambda: replies.append(live.post(TEXT, LONG | {"stream": True})))
        asking.start()
        live.wait(lambda: live.parts.engine.scheduler.num_running == 1, 5, "running")

        def broken(plan: Plan) -> None:
            live.parts.runner.during = lambda plan: None  # type: ignore[attr-defined]
            raise fault("secret")

        live.parts.runner.during = broken  # type: ignore[attr-defined]
        asking.join(5)
        events = replies[0].events
        assert "error" in events[-2] and events[-1] == "[DONE]" and b"secret" not in replies[0].body
        assert live.ask("GET", "/live").status == 200
        if issubclass(fault, Exception):
            assert health(live) == 200 and live.post(TEXT, {"prompt": "a", "max_tokens": 1}).status == 200
        else:
            live.wait(lambda: health(live) == 503, 1, "told")
            assert live.post(TEXT, {"prompt": "a"}).status == 503
