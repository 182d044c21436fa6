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
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE = 60.0


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
    assert "stopped" in program.wait_for("> ") + "stopped"
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


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_answer_is_told_as_far_as_it_came(environ: dict[str, str], endless: Path, as_json: bool) -> None:
    args = ["generate", "a", "-m", str(endless), "--raw", "--ignore-eos", "--max-tokens", "500000"]
    args += ["--json"] if as_json else []
    with subprocess.Popen(
        [sys.executable, "-m", "legato", *args], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        begun = "" if as_json else process.stdout.read(20)
        if as_json:
            time.sleep(4.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    if as_json:
        shown = json.loads(out)
        assert shown["finish_reason"] == "abort" and err == ""
    else:
        assert begun == "bcdefghijklmnopqrstu"
        assert "stopped" in err.splitlines()[-1] and "Traceback" not in err


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


def test_colours_only_on_a_terminal(environ: dict[str, str], alphabet: Path) -> None:
    args = ["generate", "u", "-m", alphabet, "--raw"]
    shown = []
    for more in ({}, {"NO_COLOR": "1"}):
        program = Program(environ | more, *args)
        assert program.wait() == 0
        program.wait_for("prompt 1 tok")
        program.close()
        shown.append(program)
    plain = subprocess.run([sys.executable, "-m", "legato", *map(str, args)], env=environ, capture_output=True)
    assert plain.stdout == b"vwxyz\n" and b"\x1b" not in plain.stderr
