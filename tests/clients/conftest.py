"""What the clients' tests share: the built-in model served with a key and without, and a search for a client.

`LEGATO_CLIENTS_PYTHON` names the Pythons to look in, as PATH names folders; this interpreter comes last. A client that
none of them has is skipped aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from installed import KEY, NAME, SETTING, Client, Served, pythons, version_in

from legato.bench.own_server import own_server


@pytest.fixture(scope="session")
def find() -> Callable[[str], Client]:
    """Finds an installed distribution by what pip calls it, extras included; skips aloud where nobody has it.

    Tests take their client before their server, so that none is started for a client that is not there.
    """

    def found(wanted: str) -> Client:
        name = wanted.partition("[")[0]
        for python in pythons():
            if version := version_in(python, name):
                return Client(python, f"{name} {version}")
        pytest.skip(f"{name} is not installed: pip install '{wanted}' anywhere, and {SETTING}=that Python")

    return found


@pytest.fixture(autouse=True)
def _named(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Clients of the whole session are there before what belongs to one test."""
    for value in request.node.funcargs.values():
        if isinstance(value, Client):
            record_property("client", value.version)


@pytest.fixture(scope="session")
def keyed(builtin_native: Path) -> Iterator[Served]:
    """The built-in model behind a key."""
    with own_server(["--model", str(builtin_native), "--served-name", NAME, "--api-key", KEY]) as url:
        yield Served(url, KEY)


@pytest.fixture(scope="session")
def open_to_all(builtin_native: Path) -> Iterator[Served]:
    """The same without keys, as it starts by default."""
    with own_server(["--model", str(builtin_native), "--served-name", NAME]) as url:
        yield Served(url)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which clients passed, by version."""
    reports = terminalreporter.stats.get("passed", ())
    passed = {value for report in reports for key, value in report.user_properties if key == "client"}
    if passed:
        terminalreporter.write_line(f"clients that passed: {', '.join(sorted(passed))}")
