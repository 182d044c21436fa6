"""Starting, stopping, and telling how it is."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from alphabet import write_alphabet
from live import Live, Reply, echo_assembly, running, serving

import legato
from legato.completion import Completion, Output, Timings
from legato.config import ServeConfig
from legato.core.account import Trace
from legato.core.sequence import FinishReason
from legato.errors import ModelFileError, UsageError
from legato.measure.ledger import StepRecord
from legato.server import engine_loop, lifecycle
from legato.server.ask import Result
from legato.server.bridge import Snapshot
from legato.server.engine_thread import EngineThread
from legato.server.log import Formatter, RequestLine
from legato.server.meters import Meters
from legato.server.model import Model
from legato.server.progress import Hear, Heard
from legato.server.status import Status
from legato.weights.catalog import Silent

TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_alphabet(tmp_path_factory.mktemp("models") / "endless.gguf", context=1 << 16)


class Program:
    """`legato serve` as a process of its own."""

    def __init__(self, model: Path, *args: str) -> None:
        ours = {
            "LEGATO_BACKEND": "reference",
            "PYTHONPATH": str(Path(legato.__file__).parents[1]),
            "OPENBLAS_NUM_THREADS": "1",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LEGATO_")}
        command = [sys.executable, "-m", "legato", "serve", "-m", str(model), *args]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=kept | ours)
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.decode())

    def ready(self) -> Live:
        end = time.monotonic() + 60
        while not (found := [line for line in self.said if "legato serves" in line]):
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.02)
        return Live(None, None, int(found[0].rsplit(":", 1)[1]), None)  # type: ignore[arg-type]

    def children(self, name: str) -> list[int]:
        """Processes that it started, by a word of their command; empty where the system does not tell."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in found.read_text().split()] if found.exists() else []
        return [pid for pid in pids if name in Path(f"/proc/{pid}/cmdline").read_text()]

    def end(self) -> int:
        code = self.process.wait(20)
        self._reader.join(5)
        return code


@pytest.fixture
def program(endless: Path) -> Iterator[Any]:
    made: list[Program] = []

    def start(*args: str) -> Program:
        made.append(Program(endless, *args))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.mark.parametrize("place", ["--engine-thread", "--engine-process"])
def test_a_signal_drains_and_a_second_one_ends(program: Any, place: str) -> None:
    """In flight: one short answer that is finished, then one without end, which is cut off in so many words."""
    running = program("--port", "0", "--log-format", "json", place)
    live = running.ready()
    engines = running.children("engine_child")
    assert len(engines) == (place == "--engine-process")
    banner = [line for line in running.said if not line.startswith("{")]
    assert len(banner) <= 12 and "curl http://127.0.0.1" in "".join(banner) and "context 65,536" in "".join(banner)
    replies: dict[str, Reply] = {}

    def ask(name: str, tokens: int) -> None:
        body = {"prompt": "pqr", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": name == "long"}
        replies[name] = live.post(TEXT, body)

    threads = [threading.Thread(target=ask, args=a) for a in (("long", 60000), ("short", 1000))]
    for count, thread in enumerate(threads, 1):  # the one without end first: the short one may not be over before
        thread.start()
        live.wait(lambda count=count: live.stats()["running"] == count, 10, f"{count} running")
    for pid in [*engines, running.process.pid]:  # as service managers do: to each process
        os.kill(pid, signal.SIGTERM)
    live.wait(lambda: live.ask("GET", "/ready").status == 503, 2, "not ready")
    assert live.ask("GET", "/ready").json["state"] == "draining" and live.ask("GET", "/live").status == 200
    refused = live.post(TEXT, {"prompt": "a"})
    assert refused.status == 503 and refused.error["code"] == "draining" and "retry-after" in refused.headers
    threads[1].join(20)
    assert replies["short"].status == 200 and replies["short"].json["usage"]["completion_tokens"] == 1000
    assert running.process.poll() is None, "the long one is still in flight"
    begun = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0 and time.monotonic() - begun < 3
    threads[0].join(5)
    assert replies["long"].events[-2]["error"]["code"] == "draining" and replies["long"].events[-1] == "[DONE]"
    lines = [json.loads(line) for line in running.said if line.startswith("{")]
    done = [line for line in lines if line.get("completion_tokens") == 1000]
    assert len(done) == 1 and done[0]["status"] == 200 and done[0]["prompt_tokens"] == 3
    assert "pqr" not in "".join(map(str, lines)), "no prompt in any line"
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)


def test_ctrl_c_while_idle_ends_at_once(program: Any) -> None:
    running = program("--port", "0")
    running.ready()
    begun = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 0 and time.monotonic() - begun < 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stopped", [False, True])
def test_an_engines_process_ends_with_its_server(program: Any, stopped: bool) -> None:
    """Whatever ends the server, and whatever the engine is doing: nobody keeps its memory."""
    running = program("--port", "0", "--engine-process")
    live = running.ready()
    (pid,) = running.children("engine_child")
    with live.open({"prompt": "pqr", "max_tokens": 60000, "ignore_eos": True, "stream": True}) as link:
        assert b"200 OK" in link.recv(100)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        running.process.kill()
        live.wait(lambda: gone(pid), 1, "the engine's process is gone")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_engine_that_ends_again_and_again_is_given_up(program: Any) -> None:
    """Killed six times within a minute, whatever it was doing: the server says why, and leaves with an exit code."""
    running = program("--port", "0", "--engine-process", "--log-format", "text")
    running.ready()
    killed: set[int] = set()
    end = time.monotonic() + 60
    while running.process.poll() is None:
        assert time.monotonic() < end, running.said
        for pid in set(running.children("engine_child")) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.02)
    assert running.end() == 1 and len(killed) == 6
    assert "ended 6 times within 60 s" in running.said[-1] and "SIGKILL" in running.said[-1]
    assert sum("it is started again" in line for line in running.said) == 5


def gone(pid: int) -> bool:
    """Ended, even if nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize("place", ["--engine-thread", "--engine-process"])
def test_a_model_that_is_none_ends_the_server_with_its_exit_code(tmp_path: Path, place: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    refused = Program(bad, "--port", "0", place)
    assert refused.end() == 3, refused.said
    assert "bad.gguf" in refused.said[-1] and not any("Traceback" in line for line in refused.said)


@pytest.mark.parametrize("place", ["--engine-thread", "--engine-process"])
def test_memory_that_is_not_there_is_refused_with_its_exit_code(endless: Path, place: str) -> None:
    refused = Program(endless, "--port", "0", place, "--kv-memory", "100T")
    assert refused.end() == 2, refused.said
    assert "kv_memory" in refused.said[-1] and not any("Traceback" in line for line in refused.said)


def test_loading_tells_how_far_it_is(alphabet: Path) -> None:
    """What is being done, and its part that is done, until the first answer can be given."""
    seen: list[Any] = []

    def load(hear: Hear) -> Any:
        report = Heard(hear, Silent())
        report.start(400, "loading weights")
        for _ in range(4):
            time.sleep(0.05)
            report.advance(100)
        parts = echo_assembly(alphabet)()
        return parts, Model.of(parts, "tested")

    def watch(port: int) -> None:
        live = Live(None, None, port, None)  # type: ignore[arg-type]
        while (reply := live.ask("GET", "/ready")).status == 503:
            assert reply.json["state"] == "loading"
            seen.append(reply.json["progress"])
            time.sleep(0.01)

    with serving(lambda loop: EngineThread(load, loop), watch):
        fractions = [entry["fraction"] for entry in seen if entry["what"] == "loading weights"]
        assert fractions == sorted(fractions) and len(set(fractions)) > 2 and set(fractions) <= {0, 0.25, 0.5, 0.75, 1}
        assert {"what": "loading weights", "fraction": 0.5, "done_bytes": 200, "total_bytes": 400} in seen


def test_a_busy_port_is_said_when_it_was_asked_for_and_stepped_over_when_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port={port} is in use"):
            lifecycle.bind(ServeConfig.resolve({"port": port}, {}))
        default = ServeConfig.resolve({}, {})
        other = ServeConfig("127.0.0.1", port, False, None, None, 1.0, "auto", (), {"port": "default"})
        with lifecycle.bind(other) as sock:
            assert port < sock.getsockname()[1] < port + lifecycle.PORTS_TRIED
    assert default.host == "127.0.0.1" and default.port == 8000
    with pytest.raises(UsageError, match="cannot be listened on"):
        lifecycle.bind(ServeConfig.resolve({"host": "203.0.113.7"}, {}))


def test_other_machines_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "127.example.org"):
        with pytest.raises(UsageError, match="--api-key"):
            lifecycle.check_exposure(ServeConfig.resolve({"host": host}, {}))
        lifecycle.check_exposure(ServeConfig.resolve({"host": host, "insecure": True}, {}))
        lifecycle.check_exposure(ServeConfig.resolve({"host": host}, {"LEGATO_API_KEYS": "sk-one-two,sk-three-four"}))
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        lifecycle.check_exposure(ServeConfig.resolve({"host": host}, {}))


def test_keys_are_not_shown() -> None:
    config = ServeConfig.resolve({}, {"LEGATO_API_KEYS": "sk-one-two, sk-three-four"})
    assert config.api_keys == ("sk-one-two", "sk-three-four") and "sk-" not in repr(config)
    with pytest.raises(UsageError, match="8 to 256") as refused:
        ServeConfig.resolve({"api_keys": ["short"]}, {})
    assert "short" not in str(refused.value)


def test_what_loading_raises_ends_the_server() -> None:
    def load() -> Any:
        raise ModelFileError("model.gguf", "magic", "is not GGUF")

    with pytest.raises(ModelFileError), running(load):
        pass


def test_a_hung_engine_is_told_from_a_busy_one(alphabet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "MIN_HANG_S", 0.3)
    monkeypatch.setattr(engine_loop, "HANG_FACTOR", 0.0)
    with running(echo_assembly(alphabet, pace=0.05)) as live:
        gate = threading.Event()
        link = live.open({"prompt": [1], "max_tokens": 30, "ignore_eos": True})
        live.wait(lambda: live.server.service.num_in_flight == 1, 5, "running")
        for _ in range(10):
            assert live.ask("GET", "/health").status == 200, "long work is no hang"
            time.sleep(0.05)
        live.parts.runner.during = lambda plan: gate.wait(20)  # type: ignore[attr-defined]
        live.wait(lambda: live.ask("GET", "/health").status == 503, 3, "found out")
        shown = live.ask("GET", "/health").json
        assert shown["state"] == "hung" and shown["step_s"] > shown["limit_s"]
        assert live.ask("GET", "/live").status == 200
        assert live.stats()["state"] == "hung", "figures answer without the engine"
        gate.set()
        live.wait(lambda: live.ask("GET", "/health").status == 200, 3, "healthy again")
        link.close()


def test_a_dead_engine_ends_every_stream_and_says_so(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, pace=0.002)) as live:
        replies: list[Reply] = []
        body = {"prompt": [1], "max_tokens": 300, "ignore_eos": True}
        asking = [
            threading.Thread(target=lambda s=s: replies.append(live.post(TEXT, body | {"stream": s})))
            for s in (True, False)
        ]
        for thread in asking:
            thread.start()
        live.wait(lambda: live.parts.engine.scheduler.num_running == 2, 5, "running")

        def broken(*args: object) -> None:
            raise RuntimeError("secret")

        live.parts.engine.scheduler.commit = broken  # type: ignore[method-assign,assignment]
        for thread in asking:
            thread.join(5)
        streamed = next(r for r in replies if r.status == 200)
        plain = next(r for r in replies if r.status != 200)
        assert streamed.events[-2]["error"]["code"] == "engine_error" and streamed.events[-1] == "[DONE]"
        assert plain.status == 500 and "secret" not in plain.body.decode() + streamed.body.decode()
        assert live.ask("GET", "/health").status == 503 and live.ask("GET", "/live").status == 200
        after = live.post(TEXT, {"prompt": "a"})
        assert after.status == 503 and after.error["code"] == "engine_error"


def test_figures(echo: Live) -> None:
    echo.post(TEXT, {"prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True})
    stats = echo.stats()
    assert (
        stats["state"] == "ready" and stats["running"] == stats["waiting"] == 0 and stats["total"]["output_tokens"] >= 4
    )
    kv = stats["kv_pages"]
    assert kv["free"] + kv["cached"] + kv["in_use"] == kv["total"] == 512
    metrics = echo.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"\nlegato_up 1\n" in metrics.body and b"legato_requests_running 0\n" in metrics.body
    assert echo.ask("GET", "/version").json == {"version": legato.__version__}


# 100 gaps between tokens, most of 20 ms, some of a step that made two of them, two of half a second.
TRACE = Trace()
for _at, _count in [
    (1.0, 0),
    (1.5, 1),
    *((1.5 + 0.02 * i, 1 + i) for i in range(1, 97)),
    (3.44, 99),
    (3.94, 100),
    (4.44, 101),
]:
    TRACE.add(_at, 0, _count, 0.0)


def test_a_line_of_an_answer_that_was_ended_tells_no_times_of_it() -> None:
    """They come with an answer's end; without it they would be told as nothing at all."""
    for reason in (None, FinishReason.STOP):
        line, output = RequestLine(), Output(0, "abc", [1, 2, 3], reason)
        completion = SimpleNamespace(
            outputs=[output],
            prompt_tokens=4,
            num_output_tokens=3,
            usage=SimpleNamespace(account=SimpleNamespace(trace=TRACE)),
            timings=Timings(queue_ms=1.0, ttft_ms=2.0, decode_tok_s=3.0, cached_tokens=1),
        )
        line.note(Result([cast(Completion, completion)]))
        assert line.completion_tokens == 3 and line.prompt_tokens == 4
        assert (line.queue_ms, line.ttft_ms, line.tok_s) == ((None,) * 3 if reason is None else (1.0, 2.0, 3.0))
        assert (line.itl_p50_ms, line.itl_p99_ms) == ((None,) * 2 if reason is None else (20.0, 500.0))


def some_stats(steps: int, prompt: int, output: int, waiting: int = 0) -> Any:
    total = StepRecord(num_steps=steps, prompt_tokens=prompt, output_tokens=output)
    return SimpleNamespace(num_running=2, num_waiting=waiting, total=total, kv=SimpleNamespace(in_use=5, total=40))


def test_a_busy_server_says_now_and_then_what_it_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing while nobody asks anything of it, nor after nonsense that a new engine's counts would make."""
    status, meters = Status(), SimpleNamespace(prompt_tokens=0, cached_tokens=0)

    def told(at: float, stats: Any) -> dict[str, object] | None:
        caplog.clear()
        status.tell(Snapshot(at, stats, (), 0.0, frozenset()), cast(Meters, meters))
        return vars(caplog.records[0])["fields"] if caplog.records else None

    caplog.set_level("INFO", "legato.server.status")
    monkeypatch.setattr(logging.getLogger("legato"), "propagate", True)
    status.tell(None, cast(Meters, meters))
    assert told(10.0, some_stats(0, 0, 0)) is None
    meters.prompt_tokens, meters.cached_tokens = 400, 100
    busy = {"running": 2, "waiting": 0, "prompt_tok_s": 30.0, "output_tok_s": 5.0, "kv_percent": 12.5}
    assert told(20.0, some_stats(60, 300, 50)) == {**busy, "cached_percent": 25.0}
    assert told(30.0, some_stats(60, 300, 50)) is None
    waits = told(40.0, some_stats(60, 300, 50, waiting=3))
    assert waits is not None and waits["waiting"] == 3 and waits["output_tok_s"] == 0.0
    assert told(50.0, some_stats(3, 300, 50)) == busy


def test_a_line_has_no_control_characters() -> None:
    for as_json in (False, True):
        out = io.StringIO()
        handler = logging.StreamHandler(out)
        handler.setFormatter(Formatter(as_json))
        record = logging.LogRecord("x", logging.INFO, "f", 1, "request", (), None)
        record.fields = {"path": "/a\r\nx\x1b[31m\u2028y", "status": 404}
        handler.emit(record)
        assert out.getvalue().count("\n") == 1 and "\x1b" not in out.getvalue() and "\r" not in out.getvalue()
