"""Ctrl-C, closed pipes, and a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from legato.core.plan import Plan, SliceResult
from legato.runtime.runner import Runner

PATIENCE = 60.0
MOMENT = 0.8  # between a prompt and Ctrl-C: in its first instant, before it waits for keys, input() misses an interrupt


class Program:
    """A running command on a terminal of its own; keys go in, everything it shows comes out."""

    def __init__(self, environ: dict[str, str], *args: str | Path) -> None:
        ours, theirs = pty.openpty()
        self._terminal, self.shown = ours, ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "legato", *map(str, args)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the controlling terminal
        )
        os.close(theirs)

    def press(self, keys: str) -> None:
        if "\x03" in keys:
            time.sleep(MOMENT)
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str) -> str:
        """Waits until `text` is shown after all that was waited for before; returns what came until then."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} not in {self.shown[-500:]!r}"
            if select.select([self._terminal], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self._terminal, 65536).decode("utf-8", "replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, self.shown[-500:]
            if select.select([self._terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self._terminal, 65536).decode("utf-8", "replace")
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def program(environ: dict[str, str], endless: Path) -> Iterator[Program]:
    talk = Program(environ, "chat", "-m", endless, "--ignore-eos", "--max-tokens", "500000", "--temperature", "0")
    yield talk
    talk.close()


def test_ctrl_c_stops_the_answer_and_twice_the_program(program: Program) -> None:
    program.wait_for("> ")
    program.press("hello\r")
    program.wait_for("abcdefgh")
    program.press("\x03")
    program.wait_for("stopped")
    program.wait_for("> ")
    program.press("more\r")
    program.wait_for("abcdefgh")
    program.press("\x03")
    program.wait_for("stopped")
    program.wait_for("> ")
    program.press("\x03")
    assert program.wait() == 130


def test_ctrl_c_at_the_prompt_asks_again(program: Program) -> None:
    program.wait_for("> ")
    program.press("\x03")
    program.wait_for("Ctrl-C again")
    program.wait_for("> ")
    program.press("/temp\r")
    program.wait_for("temperature 0")
    program.wait_for("> ")
    program.press("\x03")
    program.wait_for("Ctrl-C again")
    program.press("\x03")
    assert program.wait() == 130


def test_ctrl_d_ends(program: Program) -> None:
    program.wait_for("> ")
    program.press("\x04")
    assert program.wait() == 0


def test_an_interrupted_answer_is_told_as_far_as_it_came(environ: dict[str, str], endless: Path) -> None:
    args = ["generate", "a", "-m", str(endless), "--raw", "--ignore-eos", "--max-tokens", "500000"]
    with subprocess.Popen(
        [sys.executable, "-m", "legato", *args], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        begun = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and begun == "bcdefghijklmnopqrstu"
    assert "stopped" in err.splitlines()[-1] and "Traceback" not in err


def test_an_interrupted_answer_is_still_an_object(
    run: Callable[..., Any], alphabet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, steps = Runner.run, 0

    def interrupted(self: Runner, plan: Plan) -> list[SliceResult]:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGINT)
        return inner(self, plan)

    monkeypatch.setattr(Runner, "run", interrupted)
    ran = run("generate", "a", "-m", alphabet, "--raw", "--json")
    shown = json.loads(ran.out)
    assert (ran.code, ran.err) == (130, "")
    assert (shown["text"], shown["finish_reason"]) == ("bcd", "abort")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_reader_that_leaves_is_no_fault(environ: dict[str, str], endless: Path) -> None:
    args = ["generate", "a", "-m", str(endless), "--raw", "--ignore-eos", "--max-tokens", "500000"]
    with subprocess.Popen(
        [sys.executable, "-m", "legato", *args], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=PATIENCE)
    assert process.returncode == 1 and err == ""


def test_colours_only_on_a_terminal_that_wants_them(environ: dict[str, str], alphabet: Path) -> None:
    args = ["generate", "u", "-m", alphabet, "--raw"]
    for more, colored in (({}, True), ({"NO_COLOR": "1"}, False)):
        program = Program(environ | more, *args)
        before = program.wait_for("prompt 1 tok")
        assert "vwxyz" in before and ("\x1b[2m" in before) == colored
        assert program.wait() == 0
        program.close()
