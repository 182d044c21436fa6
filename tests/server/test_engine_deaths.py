"""The engine's process dies, hangs, or talks nonsense; everybody is told at once, and the next answer is exact."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apart import PATIENT, Apart, apart, echo_command, echo_text, rogue_command, tokenizer_of
from live import NAME, UNSPEAKABLE, Live, Reply
from scripted import check_golden

from legato import __version__
from legato.errors import EngineError, ModelFileError
from legato.server import wire
from legato.server.engine_process import Watch

TEXT = "/v1/completions"
LONG = {"prompt": [1, 2, 3], "max_tokens": 300, "ignore_eos": True, "temperature": 0}
COLD: dict[str, Any] = {"temperature": 0, "stream": True}
PROBE = {"prompt": [9, 8, 7] * 8, "max_tokens": 20, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def paced(alphabet: Path) -> Iterator[Apart]:
    with apart(alphabet, echo_command(pace=0.005, deadly=True)) as made:
        yield made
        made.live.wait(made.idle, 3.0, "everything given back")


def talk(letter: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": letter}]


def streams_of(letter: str, tokens: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """One streaming request of each protocol, by name."""
    chat = {"messages": talk(letter), "stream": True}
    return {
        "completions": (TEXT, {"prompt": letter, "max_tokens": tokens, "temperature": 0, "stream": True}),
        "chat": ("/v1/chat/completions", {**chat, "max_tokens": tokens, "temperature": 0}),
        "responses": (
            "/v1/responses",
            {"input": letter, "max_output_tokens": tokens, "temperature": 0, "stream": True},
        ),
        "anthropic": ("/v1/messages", {**chat, "max_tokens": tokens, "temperature": 0}),
        "ollama": ("/api/chat", {**chat, "model": NAME, "options": {"temperature": 0, "num_predict": tokens}}),
    }


ENDS = {
    "completions": r'data: \{"error":\{[^\n]*"code":"engine_error"\}\}\n\ndata: \[DONE\]\n\n$',
    "chat": r'data: \{"error":\{[^\n]*"code":"engine_error"\}\}\n\ndata: \[DONE\]\n\n$',
    "responses": r'event: response.failed\ndata: \{[^\n]*"error":\{"code":"server_error"[^\n]*\n\n$',
    "anthropic": r'event: error\ndata: \{"type":"error","error":\{[^\n]*\}\n\n$',
    "ollama": r'\n\{"error":"[^\n]*"\}\n$',
}


def ends_in_an_error(name: str, reply: Reply) -> bool:
    return reply.status == 200 and re.search(ENDS[name], reply.body.decode()) is not None


def exact(made: Apart, text: str) -> None:
    reply = made.live.post(TEXT, PROBE)
    assert reply.status == 200 and reply.json["choices"][0]["text"] == text


@pytest.fixture(scope="module")
def probe_text(alphabet: Path) -> str:
    ids: Any = PROBE["prompt"]
    return echo_text(tokenizer_of(alphabet), ids, max_tokens=20, ignore_eos=True)


# -- deaths -----------------------------------------------------------------------------------------------------------


def kill_under_load(made: Apart, draw: random.Random, text: str) -> None:
    """A stream of each protocol and two plain requests; the process is killed at some moment of them."""
    replies: dict[str, Reply] = {}
    asks = streams_of("m", 250) | {f"plain {i}": (TEXT, LONG | {"prompt": [i]}) for i in range(2)}
    threads = [
        threading.Thread(target=lambda n=name, a=ask: replies.update({n: made.live.post(*a)}))
        for name, ask in asks.items()
    ]
    for thread in threads:
        thread.start()
    made.live.wait(lambda: made.live.stats()["running"] == len(asks), 5, "all running")
    time.sleep(draw.random() * 0.1)
    pid, restarts = made.pid, made.bridge.num_restarts
    os.kill(pid, signal.SIGKILL)
    assert made.live.wait(lambda: made.health() == 503, 1.0, "health says so") < 1.0
    for thread in threads:
        thread.join(5)
    for name in ENDS:
        assert ends_in_an_error(name, replies[name]), (name, replies[name].body[-300:])
    for name in ("plain 0", "plain 1"):
        reply = replies[name]
        assert reply.status == 503 and int(reply.headers["retry-after"]) >= 1 and reply.error["code"] == "engine_error"
    made.ready_again()
    assert made.pid != pid and made.bridge.num_restarts == restarts + 1
    exact(made, text)
    made.live.wait(made.idle, 2, "everything given back")


def test_a_kill_under_load(paced: Apart, probe_text: str) -> None:
    for _ in range(2):
        kill_under_load(paced, random.Random(1), probe_text)


@pytest.mark.slow
def test_twenty_kills_under_load(paced: Apart, probe_text: str) -> None:
    draw = random.Random(2)
    for _ in range(20):
        kill_under_load(paced, draw, probe_text)


def masked_ids(data: bytes) -> bytes:
    text = re.sub(r'"((?:chat)?cmpl)-[0-9a-f]{24}"', r'"\1-ID"', data.decode())
    text = re.sub(r'"created":\d+', '"created":0', text)
    return re.sub(r'"obfuscation":"[^"]*"', '"obfuscation":""', text).encode()


def test_the_bytes_of_streams_whose_engine_dies(alphabet: Path) -> None:
    """After three tokens the process is gone: what had come, then each protocol's own error."""
    with apart(alphabet, echo_command(pace=0.05, deadly=True)) as made:
        for name, (path, body) in streams_of("!", 20).items():
            reply = made.live.post(path, body)
            assert ends_in_an_error(name, reply), reply.body
            check_golden(f"died_{name}.{'ndjson' if name == 'ollama' else 'sse'}", masked_ids(reply.body))
            made.ready_again()


@pytest.mark.parametrize("letter", ["#", "$", "%"], ids=["segfault", "raises", "exits"])
def test_other_ways_to_die(paced: Apart, probe_text: str, letter: str) -> None:
    replies: list[Reply] = []
    neighbour = threading.Thread(target=lambda: replies.append(paced.live.post(TEXT, LONG | {"stream": True})))
    neighbour.start()
    paced.live.wait(lambda: paced.live.stats()["running"] == 1, 5, "running")
    reply = paced.live.post(TEXT, {"prompt": letter, "max_tokens": 50, "ignore_eos": True})
    assert reply.status == 503 and "retry-after" in reply.headers and not UNSPEAKABLE.search(reply.body.decode())
    neighbour.join(5)
    assert ends_in_an_error("completions", replies[0])
    paced.ready_again()
    exact(paced, probe_text)


def test_while_there_is_no_engine(alphabet: Path, probe_text: str) -> None:
    """Words need none; answers are refused with the time to come back; figures and probes go on."""
    with apart(alphabet, echo_command(parts=10, part_s=0.1)) as made:
        live, seen = made.live, []
        os.kill(made.pid, signal.SIGKILL)
        live.wait(lambda: made.health() == 503, 1, "told")
        refused = live.post(TEXT, {"prompt": "a"})
        assert refused.status == 503 and refused.error["code"] == "loading" and "retry-after" in refused.headers
        assert live.post("/tokenize", {"prompt": "abc"}).json["tokens"] == [97, 98, 99]
        assert live.ask("GET", "/v1/models").status == live.ask("GET", "/live").status == 200
        assert b"legato_up 0" in live.ask("GET", "/metrics").body
        while (reply := live.ask("GET", "/ready")).status == 503:
            seen.append(reply.json["progress"])
            time.sleep(0.02)
        shown = {entry["what"] for entry in seen}
        assert {"starting the engine again", "loading weights"} <= shown
        exact(made, probe_text)
        assert b"legato_engine_restarts_total 1\n" in live.ask("GET", "/metrics").body
        assert live.stats()["engine_restarts"] == 1 and live.stats()["state"] == "ready"


def test_a_death_while_draining_is_the_end(alphabet: Path) -> None:
    """Nobody starts an engine for a server that is leaving."""
    with apart(alphabet, echo_command(pace=0.005), drain_s=60) as made:
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(made.live.post(TEXT, LONG | {"stream": True})))
        asking.start()
        made.live.wait(lambda: made.live.stats()["running"] == 1, 5, "running")
        made.live.on_loop(made.live.server.stop)
        made.live.wait(lambda: made.live.ask("GET", "/ready").json["state"] == "draining", 2, "draining")
        os.kill(made.pid, signal.SIGKILL)
        asking.join(5)
        assert ends_in_an_error("completions", replies[0])
        thread_ended(made.live)
        assert made.live.codes == [0] and made.bridge.num_restarts == 0


# -- hanging ----------------------------------------------------------------------------------------------------------

BRISK = replace(PATIENT, silent_s=0.8, kill_after_s=0.8)


def test_a_stopped_process_is_hung_not_dead_and_goes_on_where_it_was(alphabet: Path, probe_text: str) -> None:
    with apart(alphabet, echo_command(pace=0.002), replace(BRISK, kill_after_s=30)) as made:
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(made.live.post(TEXT, LONG | {"stream": True})))
        asking.start()
        made.live.wait(lambda: made.live.stats()["running"] == 1, 5, "running")
        os.kill(made.pid, signal.SIGSTOP)
        made.live.wait(lambda: made.health() == 503, 3, "found out")
        shown = made.live.ask("GET", "/health").json
        assert shown["state"] == "hung" and shown["step_s"] > shown["limit_s"] == 0.8
        os.kill(made.pid, signal.SIGCONT)
        made.live.wait(lambda: made.health() == 200, 2, "healthy again")
        asking.join(10)
        assert replies[0].events[-1] == "[DONE]" and "error" not in replies[0].events[-2]
        assert made.bridge.num_restarts == 0
        exact(made, probe_text)


@pytest.mark.parametrize("how", ["stopped", "in one step"])
def test_what_hangs_too_long_is_killed_and_started_again(alphabet: Path, probe_text: str, how: str) -> None:
    with apart(alphabet, echo_command(pace=0.002, min_hang_s=0.5, deadly=True), BRISK) as made:
        replies: list[Reply] = []
        body = LONG if how == "stopped" else LONG | {"prompt": "&"}
        asking = threading.Thread(target=lambda: replies.append(made.live.post(TEXT, body | {"stream": True})))
        asking.start()
        if how == "stopped":  # the other one hangs before anything is told
            made.live.wait(lambda: made.live.stats()["running"] == 1, 5, "running")
            os.kill(made.pid, signal.SIGSTOP)
        made.live.wait(lambda: made.health() == 503, 3, "found out")
        assert made.live.ask("GET", "/health").json["state"] == "hung"
        asking.join(5)
        assert ends_in_an_error("completions", replies[0])
        made.ready_again()
        assert made.bridge.num_restarts == 1
        exact(made, probe_text)


def test_a_pause_of_the_server_is_not_the_engines(alphabet: Path, probe_text: str) -> None:
    with apart(alphabet, echo_command(), BRISK) as made:
        made.live.on_loop(lambda: time.sleep(2.5))
        assert made.health() == 200
        time.sleep(0.3)
        assert made.bridge.num_restarts == 0
        exact(made, probe_text)


# -- no engine at all -------------------------------------------------------------------------------------------------

FEW = Watch(restarts=1, pause_s=0.01, most_pause_s=0.05, tick_s=0.05, kill_after_s=0.2)
HELLO = wire.frame(wire.Hello(__version__))
HOPELESS: dict[str, tuple[list[str], str]] = {
    "leaves": (rogue_command(), "exit code 5|closed its socket"),
    "long frame": (rogue_command(HELLO, b"\xff\xff\xff\xff", "stays"), "a frame of 4294967295 bytes"),
    "empty frame": (rogue_command(HELLO, b"\0\0\0\0", "stays"), "a frame of 0 bytes"),
    "garbage": (rogue_command(HELLO, b"\0\0\0\x05hello", "stays"), "no message"),
    "half a frame": (rogue_command(HELLO, b"\0\0\1\0abc"), "exit code 5|closed its socket"),
    "our own words": (rogue_command(HELLO, wire.frame(wire.Start("1", {})), "stays"), "no message"),
    "other version": (rogue_command(wire.frame(wire.Hello("0.0.1")), then="stays"), "the package was changed"),
    "silent": (rogue_command(then="stays"), "no sign of progress"),
}


@pytest.mark.parametrize("how", HOPELESS)
def test_what_never_works_is_given_up(alphabet: Path, how: str) -> None:
    command, said = HOPELESS[how]
    watch = replace(FEW, loading_silent_s=0.3) if how == "silent" else FEW
    with (
        pytest.raises(EngineError, match=f"ended 2 times within 60 s.*({said})"),
        apart(alphabet, command, watch),
    ):
        pass


def test_a_command_that_is_none(alphabet: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.write_text("#!/bin/sh\n")
    for command, said in ((str(tmp_path / "none"), "No such file"), (str(locked), "Permission denied")):
        with pytest.raises(EngineError, match=said), apart(alphabet, [command], FEW):
            pass


def test_a_model_that_cannot_be_loaded_is_refused_at_once(alphabet: Path, tmp_path: Path) -> None:
    fault = wire.fault_of(ModelFileError("m.gguf", "magic", "is not GGUF"))
    with (
        pytest.raises(ModelFileError, match=r"^m\.gguf: magic: is not GGUF$") as raised,
        apart(alphabet, rogue_command(HELLO, wire.frame(wire.Refused(fault))), FEW),
    ):
        pass
    assert raised.value.exit_code == 3 and raised.value.field == "magic"
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelFileError), apart(bad):
        pass


def test_a_process_that_dies_again_and_again_ends_the_server(alphabet: Path) -> None:
    replies: list[Reply] = []
    with pytest.raises(EngineError, match="ended 2 times"), apart(alphabet, echo_command(deadly=True), FEW) as made:
        for _ in range(2):
            made.ready_again()
            replies.append(made.live.post(TEXT, {"prompt": "%", "max_tokens": 50, "ignore_eos": True}))
        thread_ended(made.live)
    assert [reply.status for reply in replies] == [503, 503]


def thread_ended(live: Live) -> None:
    end = time.monotonic() + 5
    while live.loop.is_running():
        assert time.monotonic() < end, "the server goes on without an engine"
        time.sleep(0.02)
