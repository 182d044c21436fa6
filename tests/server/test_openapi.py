"""The description of the API, and a fuzzer that reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from live import Live, echo_assembly, running

from legato.server.limits import ServerLimits


def test_every_route_is_described(echo: Live) -> None:
    shown = echo.ask("GET", "/openapi.json").json
    routes = echo.server.routes.routes
    assert {(r.path, r.method.lower()) for r in routes} == {(p, m) for p, ms in shown["paths"].items() for m in ms}
    for route in routes:
        described = shown["paths"][route.path][route.method.lower()]
        assert described["summary"] and ("requestBody" in described) == (route.body is not None), route
    chat = shown["components"]["schemas"]["ChatBody"]
    assert chat["required"] == ["messages"] and "temperature" in chat["properties"]


@pytest.mark.slow
def test_a_fuzzer_finds_no_fault(alphabet: Path) -> None:
    """Schemathesis: every route, valid and invalid input, no status from 500 on but those that say `not offered`."""
    pytest.importorskip("schemathesis")
    with running(echo_assembly(alphabet), limits=ServerLimits(body_s=5.0)) as live:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json", "--max-examples=12"]
        checks = ["--checks=not_a_server_error,content_type_conformance,response_schema_conformance"]
        more = ["--phases=examples,coverage,fuzzing", "--generation-deterministic"]
        more += [f"--exclude-path={path}" for path in ("/v1/embeddings", "/api/embed", "/api/embeddings")]
        done = subprocess.run([*command, *checks, *more], capture_output=True, timeout=300)
        assert done.returncode == 0, done.stdout.decode()[-6000:] + done.stderr.decode()[-2000:]
        live.wait(live.idle, 10, "everything given back")
