"""Our own server in a process of its own, for as long as it is measured.

Knows: `legato serve`, its banner and its signals. Does not know: what it is asked.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from legato.errors import EngineError

READY_S = 300.0  # a large model from a cold disk
STOP_S = 10.0
_URL = re.compile(r" at (http://\S+)")


@contextmanager
def own_server(options: Sequence[str]) -> Iterator[str]:
    """Starts `legato serve` on a free port of this machine; gives its URL; ends it in any case.

    Raises `EngineError` with its own words when it does not get ready.
    """
    command = [
        sys.executable,
        "-m",
        "legato",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--drain-s",
        "1",
        *options,
    ]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said, _ended_in_order():
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for the load first: it ends the server after its last figures
        )
        try:
            yield _url(server, said.fileno())
        finally:
            server.terminate()
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end this program as Ctrl-C does: the server would outlive it."""
    numbers = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    kept = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _url(server: subprocess.Popen[bytes], said: int) -> str:
    import os

    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        text = os.pread(said, 1 << 20, 0).decode("utf-8", "replace")
        if found := _URL.search(text):
            return found[1]
        if server.poll() is not None:
            lines = [line for line in text.splitlines() if line.strip()]
            last = lines[-1].removeprefix("error: ") if lines else f"exit {server.returncode}"
            raise EngineError(f"our own server did not start: {last}")
        time.sleep(0.02)
    raise EngineError(f"our own server was not ready within {READY_S:g} s")
