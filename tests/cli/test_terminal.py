"""Bars: none for what is quick, one line on a pipe, none after the end."""

from __future__ import annotations

import pytest

from legato.cli.terminal import LABEL_WIDTH, Terminal


def test_quick_work_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().bar() as bar:
        bar.start(10, "quick")
        for _ in range(10):
            bar.advance(1)
    assert capsys.readouterr() == ("", "")


def test_slow_work_on_a_pipe_is_one_line_and_silent_after_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().bar(patience=0) as bar:
        bar.start(10, "slow")
        bar.advance(1)
        bar.advance(1)
        bar.done()
        bar.advance(1)
        assert capsys.readouterr() == ("", "slow ...\n")
        bar.start(0, "slower")
    assert capsys.readouterr() == ("", "slower ...\n")


def test_a_bar_on_a_terminal_names_its_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    long = "model (small): " + "what, how large, where " * 4
    with Terminal("never").bar(patience=0) as bar:
        bar.start(100, long)
        bar.advance(50)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(long + "\n")
    assert len("model (small)") < LABEL_WIDTH < len(long)
