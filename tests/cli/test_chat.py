"""The conversation in the terminal: lines in, answers out, /commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Talk = Callable[..., Any]
ABC = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def talk(run: Callable[..., Any], alphabet: Path) -> Talk:
    """Runs a chat on the given lines, greedy unless told otherwise."""

    def talk(*lines: str, options: tuple[str, ...] = ("--temperature", "0")) -> Any:
        return run("chat", "-m", alphabet, *options, stdin="".join(line + "\n" for line in lines).encode())

    return talk


def stats(ran: Any) -> list[str]:
    return [line for line in ran.err.splitlines() if "tok" in line]


def test_a_line_is_a_message_and_the_end_of_input_ends(talk: Talk) -> None:
    ran = talk("hello", "", "  ", "again")
    assert (ran.code, ran.out) == (0, f"{ABC}\n{ABC}\n")
    assert len(stats(ran)) == 2


def test_later_turns_read_the_first_from_the_cache(talk: Talk) -> None:
    ran = talk("hello there", "more", "more")
    assert [("cached" in line) for line in stats(ran)] == [False, True, True]


def test_several_lines_between_quotes_are_one_message(talk: Talk, tmp_path: Path) -> None:
    ran = talk('"""first', "second", 'third"""', f"/save {tmp_path / 'talk.json'}")
    assert ran.out == f"{ABC}\n"
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"] == "first\nsecond\nthird"


def test_help_and_exit(talk: Talk) -> None:
    ran = talk("/help", "/exit", "never asked")
    assert ran.code == 0 and ran.out == ""
    for name in ("/system", "/temp", "/seed", "/clear", "/retry", "/save", "/load", "/stats", "/exit"):
        assert name in ran.err


def test_retry_replaces_the_last_answer(talk: Talk, tmp_path: Path) -> None:
    target = tmp_path / "talk.json"
    ran = talk("/retry", "hi", "/retry", f"/save {target}", options=("--temperature", "1", "--max-tokens", "9"))
    assert "nothing to retry" in ran.err
    saved = json.loads(target.read_text())
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"]
    assert len(stats(ran)) == 2
    assert "gives the same answer" in talk("hi", "/retry").err


def test_system_and_clear(talk: Talk, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    ran = talk("hi", "/system be brief", "/system", "yes", f"/save {one}", "/clear", f"/save {two}")
    assert "be brief" in ran.err
    assert [m["role"] for m in json.loads(one.read_text())["messages"]] == ["system", "user", "assistant"]
    assert json.loads(two.read_text())["messages"] == [{"role": "system", "content": "be brief"}]


def test_a_saved_conversation_goes_on(talk: Talk, tmp_path: Path) -> None:
    target, after = tmp_path / "talk.json", tmp_path / "after.json"
    talk("one", f"/save {target}")
    ran = talk(f"/load {target}", "two", f"/save {after}")
    assert "2 messages loaded" in ran.err
    assert [m["content"] for m in json.loads(after.read_text())["messages"]] == ["one", ABC, "two", ABC]


def test_temperature_and_seed(talk: Talk) -> None:
    ran = talk("/temp 1", "/seed 5", "hi", "/retry", "/seed off", "/temp", "/stats")
    first, second = ran.out.splitlines()[0], ran.out.splitlines()[-1]
    assert "temperature 1" in ran.err and "seed 5" in ran.err and "drawn for each answer (last answer: 5)" in ran.err
    assert first == second or ran.out.count(first) == 2
    assert "2 answers" in ran.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/nothing", "no command /nothing"),
        ("/temp warm", "needs a number"),
        ("/temp -3", "temperature=-3"),
        ("/seed 1.5", "needs a number"),
        ("/save", "needs a file name"),
        ("/save /no/such/folder/x", "/no/such/folder/x"),
        ("/load /no/such/file", "/no/such/file"),
        ("x" * 500, "context"),
    ],
)
def test_a_refusal_is_a_line_and_the_chat_goes_on(talk: Talk, line: str, said: str) -> None:
    ran = talk(line, "hello")
    assert ran.code == 0 and ran.out == f"{ABC}\n"
    [error] = [text for text in ran.err.splitlines() if text.startswith("error: ")]
    assert said in error


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[" * 200_000, '{"messages": [{"role": "boss", "content": "x"}]}', "\x00"]
)
def test_a_file_that_is_no_conversation(talk: Talk, tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    ran = talk(f"/load {tmp_path / 'file'}", "hello")
    assert "give a file that /save wrote" in ran.err and ran.out == f"{ABC}\n"


@pytest.mark.parametrize(
    "locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_bytes_that_are_no_text_cost_one_line(
    spawn: Callable[..., Any], alphabet: Path, tmp_path: Path, locale: dict[str, str]
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("an earlier conversation")
    lines = b"h\xff i\n\xc3\xa9\n/save %b\n/save %b\n" % (bytes(kept), bytes(tmp_path / "none" / "x"))
    ran = spawn("chat", "-m", alphabet, "--max-tokens", "2", stdin=lines, **locale)
    assert ran.code == 0 and "error: byte 1 of this line is not UTF-8" in ran.err and "unexpected" not in ran.err
    assert [m["content"] for m in json.loads(kept.read_text(encoding="utf-8"))["messages"]][:1] == ["\u00e9"]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["kept.json"], (
        "and no half-written file"
    )
