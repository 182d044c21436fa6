"""A receipt's answer once more: the same tokens, the first difference, or a refusal that says why."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legato.kernels.cpu import Library, load_library

Run = Callable[..., Any]
SAMPLED = ("--temperature", "1", "--max-tokens", "12", "--ignore-eos", "--raw")  # as long with every seed drawn


def record(run: Run, model: Path, path: Path, *options: str, prompt: str = "q") -> dict[str, Any]:
    ran = run("generate", prompt, "-m", model, "--save-receipt", path, *options)
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(
    "options",
    [
        (),
        SAMPLED,
        ("--raw", "--n", "3", "--temperature", "1", "--max-tokens", "9", "--seed", "3"),
        ("--raw", "--stop", "xy", "--stop", "z"),
        ("--raw", "--min-tokens", "20", "--top-k", "30", "--repetition-penalty", "1.2", "--temperature", "0.9"),
    ],
)
def test_the_same_machine_answers_the_same(run: Run, alphabet: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    saved = record(run, alphabet, tmp_path / "r", *options)
    count = sum(len(output["token_ids"]) for output in saved.get("outputs", [saved]))
    ran = run("replay", tmp_path / "r", "-m", alphabet)
    assert (ran.code, ran.out) == (0, f"same {count} tokens\n")
    shown = json.loads(run("replay", tmp_path / "r", "-m", alphabet, "--json").out)
    assert shown == {"same": True, "tokens": count, "first_difference": None}


def test_what_generate_prints_as_json_is_a_receipt_too(run: Run, alphabet: Path, tmp_path: Path) -> None:
    (tmp_path / "r").write_text(run("generate", "q", "-m", alphabet, *SAMPLED, "--json").out)
    assert run("replay", tmp_path / "r", "-m", alphabet).out == "same 12 tokens\n"


def test_other_threads_and_settings_of_this_machine_change_nothing(run: Run, alphabet: Path, tmp_path: Path) -> None:
    record(run, alphabet, tmp_path / "r", *SAMPLED)
    ran = run("replay", tmp_path / "r", "-m", alphabet, "--kv-memory", "20M", "--threads", "1")
    assert ran.out == "same 12 tokens\n"


def test_the_first_difference_is_named(run: Run, alphabet: Path, tmp_path: Path) -> None:
    saved = record(run, alphabet, tmp_path / "r", "--raw", "--max-tokens", "9", prompt="a")
    saved["token_ids"][4] = ord("X")
    (tmp_path / "r").write_text(json.dumps(saved))
    ran = run("replay", tmp_path / "r", "-m", alphabet)
    assert (ran.code, ran.out) == (1, "differs at token 4: was 'X' (88), now 'f' (102)\n")
    shown = json.loads(run("replay", tmp_path / "r", "-m", alphabet, "--json").out)
    assert shown["first_difference"] == {
        "answer": 0, "index": 4, "was": 88, "now": 102, "was_text": "X", "now_text": "f",
    }  # fmt: skip


def test_an_answer_that_went_on_longer_differs_at_its_end(run: Run, alphabet: Path, tmp_path: Path) -> None:
    saved = record(run, alphabet, tmp_path / "r", "--raw", prompt="x")
    saved["token_ids"] += [99]
    (tmp_path / "r").write_text(json.dumps(saved))
    assert "differs at token 3: was 'c' (99), the answer ended" in run("replay", tmp_path / "r", "-m", alphabet).out


def test_a_cut_answer_is_compared_as_far_as_it_goes(run: Run, alphabet: Path, tmp_path: Path) -> None:
    saved = record(run, alphabet, tmp_path / "r", "--raw", prompt="a")
    saved |= {"token_ids": saved["token_ids"][:7], "finish_reason": "abort"}
    (tmp_path / "r").write_text(json.dumps(saved))
    assert run("replay", tmp_path / "r", "-m", alphabet).out == "same 7 tokens\n"


def test_another_model_is_refused_before_it_is_loaded(run: Run, alphabet: Path, endless: Path, tmp_path: Path) -> None:
    record(run, alphabet, tmp_path / "r", *SAMPLED)
    ran = run("replay", tmp_path / "r", "-m", endless)
    assert ran.code == 2 and "is not the model of this receipt (alphabet.gguf)" in ran.err
    ran = run("replay", tmp_path / "r")
    assert ran.code == 2 and "give its file with -m" in ran.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("replay"), "is no receipt"),
        (lambda d: d.pop("receipt"), "is no receipt"),
        (lambda d: d["replay"]["params"].update(temperature=-1), "temperature=-1"),
        (lambda d: d["replay"]["params"].update(surprise=1), "surprise"),
        (lambda d: d["replay"]["params"].update(n=2), "1 answers where n is 2"),
        (lambda d: d["replay"]["params"].update(logit_bias={"x": 1}), "logit_bias"),
        (lambda d: d["replay"]["params"].update(grammar={"kind": "poem", "text": "x"}), "poem"),
        (lambda d: d["replay"].update(prompt_ids=[]), "prompt"),
        (lambda d: d["replay"].update(prompt_ids=[10**6]), "prompt_ids=1000000"),
        (lambda d: d["receipt"].update(kv="int9"), "kv"),
        (lambda d: d["receipt"].update(isa="pdp11"), "isa"),
        (lambda d: d["receipt"].update(weights="q9"), "weights"),
        (lambda d: d["receipt"].update(context=-4), "context"),
        (lambda d: d["token_ids"].__setitem__(3, -5), "token_ids"),
        (lambda d: d["token_ids"].__setitem__(3, 10**6), "token_ids=1000000"),
    ],
)
def test_a_receipt_that_is_none_is_refused_in_a_line(
    run: Run, alphabet: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    saved = record(run, alphabet, tmp_path / "r", *SAMPLED)
    change(saved)
    (tmp_path / "r").write_text(json.dumps(saved))
    ran = run("replay", tmp_path / "r", "-m", alphabet)
    assert ran.code == 2 and said in ran.err and ran.out == ""
    assert f"{tmp_path / 'r'}: " in ran.err  # which file
    assert len([line for line in ran.err.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 5000, b'{"receipt": 1}'])
def test_files_of_nonsense(run: Run, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r").write_bytes(text)
    ran = run("replay", tmp_path / "r")
    assert ran.code == 2 and "is no receipt" in ran.err
    assert run("replay", tmp_path / "nowhere").code == 2


@pytest.mark.parametrize("target", ["no/r", "file/r", "folder", "", "n" * 300])
def test_a_receipt_that_could_not_be_written_is_refused_before_the_answer(
    run: Run, alphabet: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    ran = run("generate", "q", "-m", alphabet, *SAMPLED, "--save-receipt", tmp_path / target if target else "")
    assert ran.code == 2 and ran.out == "" and "error: --save-receipt=" in ran.err
    assert "give a file in a folder that can be written" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_receipt_goes_through_links_and_into_pipes(run: Run, alphabet: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "r")
    record(run, alphabet, tmp_path / "link", *SAMPLED)
    assert (tmp_path / "link").is_symlink() and run("replay", tmp_path / "r", "-m", alphabet).code == 0
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("generate", "q", "-m", alphabet, *SAMPLED, "--save-receipt", tmp_path / "pipe").code == 0
        assert json.loads(os.read(reader, 1 << 16))["receipt"]
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_disk_that_fills_up_meanwhile_is_told_and_the_old_receipt_stays(
    run: Run, alphabet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").write_text("old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    ran = run("generate", "q", "-m", alphabet, *SAMPLED, "--save-receipt", tmp_path / "r")
    assert ran.code == 1 and "cannot be written: No space left on device" in ran.err
    assert (tmp_path / "r").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(isinstance(load_library(), str), reason="needs the native kernels")
def test_each_instruction_set_repeats_its_own(
    run: Run, alphabet: Path, tmp_path: Path, environ: dict[str, str]
) -> None:
    environ["LEGATO_BACKEND"] = "native"
    library = load_library()
    assert isinstance(library, Library)
    for isa in library.isas():
        if isa.obstacle:
            continue
        saved = record(run, alphabet, tmp_path / "r", *SAMPLED, "--isa", isa.name)
        assert saved["receipt"]["isa"] == isa.name
        assert run("replay", tmp_path / "r", "-m", alphabet).out == "same 12 tokens\n"
    missing = next((isa.name for isa in library.isas() if isa.obstacle), None)
    if missing is not None:
        saved["receipt"]["isa"] = missing
        (tmp_path / "r").write_text(json.dumps(saved))
        ran = run("replay", tmp_path / "r", "-m", alphabet)
        assert ran.code == 2 and re.search(f"made with the instruction set {missing}.* that has it", ran.err)
