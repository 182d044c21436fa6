"""Whatever is wrong: one line on standard error, the right exit code, nothing on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alphabet import CONTEXT, model_tensors, write_folder, write_safetensors

Run = Callable[..., Any]


def refused(ran: Any, code: int, *said: str) -> None:
    assert ran.code == code, ran
    assert ran.out == ""
    [line] = ran.err.splitlines()
    assert line.startswith("error: ") and all(words in line for words in said), line
    assert "Traceback" not in line and "unexpected" not in line


def test_an_unknown_model_name(run: Run) -> None:
    refused(run("generate", "hi", "-m", "smolm2"), 2, "unknown model 'smolm2'", "did you mean smollm2-135m")
    refused(run("chat", "-m", "no-such"), 2, "unknown model 'no-such'")
    refused(run("check", "/no/such.gguf"), 2, "no such file")


def test_an_empty_prompt(run: Run, alphabet: Path) -> None:
    refused(run("generate", "", "-m", alphabet), 2, "prompt=''")
    refused(run("generate", "-", "-m", alphabet, stdin=b"\n"), 2, "prompt=''")
    refused(run("generate", "-", "-m", alphabet), 2, "prompt=''")


def test_a_prompt_longer_than_the_context(run: Run, alphabet: Path) -> None:
    refused(run("generate", "x" * 300, "-m", alphabet, "--raw"), 2, "301", str(CONTEXT))


@pytest.mark.parametrize(
    "line",
    [
        "calibrate --seconds {}",
        "bench serve --itl-slo-ms {}",
        "bench serve --timeout {}",
        "bench compare --patience {}",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_no_number_where_a_number_belongs(run: Run, line: str, value: str) -> None:
    refused(run(*line.format(value).split()), 2, "in the range")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--itl-slo-ms", "0"), ("--itl-slo-ms", "nan"), ("--max-seqs", "0"), ("--queue", "-1"), ("--kv-memory", "1K")],
)
def test_a_server_of_absurd_limits(run: Run, option: str, value: str) -> None:
    name = option.removeprefix("--").replace("-", "_")
    refused(run("serve", option, value), 2, f"{name}='{value}' is not allowed")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "warm"),
        ("--top-k", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "3"),
        ("--frequency-penalty", "-3"),
        ("--max-tokens", "0"),
        ("--max-tokens", "1.5"),
        ("--min-tokens", "-1"),
        ("--n", "0"),
        ("--n", "17"),
        ("--stop", ""),
        ("--seed", "99999999999999999999999"),
        ("--threads", "0"),
        ("--kv", "int2"),
        ("--isa", "mmx"),
        ("--backend", "gpu"),
        ("--context", "1"),
        ("--kv-memory", "-5G"),
        ("--weights", "q9"),
    ],
)
def test_values_out_of_range(run: Run, option: str, value: str) -> None:
    refused(run("generate", "hi", "-m", "no-model-is-read", option, value), 2, option.strip("-")[:2])


def test_options_that_do_not_go_together(run: Run, alphabet: Path) -> None:
    refused(run("generate", "u", "-m", alphabet, "--raw", "--system", "S"), 2, "--system")
    refused(run("generate", "u", "-m", alphabet, "--logprobs", "2"), 2, "--json")
    refused(run("generate", "u", "-m", alphabet, "--kv", "int8"), 2, "kv=int8")
    refused(run("generate", "u", "-m", alphabet, "--context", "4096"), 2, "4096", str(CONTEXT))


def test_wrong_use(run: Run) -> None:
    refused(run("generat", "u"), 2, "did you mean generate")
    refused(run("generate"), 2, "PROMPT")
    refused(run("generate", "u", "--maxtokens", "3"), 2, "--max-tokens")
    refused(run("--frobnicate"), 2, "--frobnicate")
    refused(run("perplexity", "/no/such/text"), 2, "/no/such/text")


def test_text_that_is_not_utf8(run: Run, alphabet: Path, tmp_path: Path) -> None:
    refused(run("generate", "-", "-m", alphabet, stdin=b"ab\xff"), 2, "byte 2 is not UTF-8")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    refused(run("perplexity", tmp_path / "latin.txt", "-m", alphabet), 2, "byte 3")
    refused(run("generate", "\udcff", "-m", alphabet), 2, "prompt")


def test_a_gguf_file_cut_anywhere(run: Run, alphabet: Path, tmp_path: Path) -> None:
    whole = alphabet.read_bytes()
    for sixteenth in range(16):
        cut = tmp_path / f"cut{sixteenth}.gguf"
        cut.write_bytes(whole[: len(whole) * sixteenth // 16])
        refused(run("generate", "u", "-m", cut, "--raw"), 3, str(cut))
        refused(run("check", cut), 3, str(cut))
    assert len(list(tmp_path.iterdir())) == 16


@pytest.mark.parametrize("offsets", [[0, 331520], [331520, 10**12], [-4, 8], [8, 4]])
def test_a_safetensors_file_that_lies(run: Run, tmp_path: Path, offsets: list[int]) -> None:
    folder = write_folder(tmp_path / "folder")
    tensors = {"lm_head.weight": model_tensors(259)[1], "model.embed_tokens.weight": model_tensors(259)[0]}
    write_safetensors(folder / "model.safetensors", tensors, embed_tokens=offsets)
    refused(run("generate", "u", "-m", folder), 3, "model.safetensors", "embed_tokens")


def test_a_rope_type_that_nobody_knows(run: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", rope_scaling={"rope_type": "mystery", "factor": 2.0})
    refused(run("check", folder), 3, "rope", "mystery")


def test_a_setting_that_nobody_reads(run: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", attention_by_magic=True)
    refused(run("generate", "u", "-m", folder), 3, "attention_by_magic")


def test_a_folder_that_is_no_model(run: Run, tmp_path: Path) -> None:
    refused(run("generate", "u", "-m", tmp_path), 2, str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(run("generate", "u", "-m", tmp_path), 3, "config.json")


def test_an_unexpected_fault_is_one_line_and_debug_shows_the_rest(
    run: Run, alphabet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("legato.assemble.read_blueprint", lambda *_: json.loads("oops"))
    ran = run("generate", "u", "-m", alphabet)
    assert ran.code == 1 and ran.err.startswith("error: unexpected JSONDecodeError: ")
    assert len(ran.err.splitlines()) == 1 and "--debug" in ran.err
    ran = run("generate", "u", "-m", alphabet, "--debug")
    assert ran.code == 1 and "Traceback" in ran.err


def test_a_fault_in_the_engine_ends_the_answer_with_a_word(
    run: Run, alphabet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, plan: object) -> None:
        raise RuntimeError("the device caught fire")

    monkeypatch.setattr("legato.runtime.runner.Runner.run", broken)
    refused(run("generate", "u", "-m", alphabet), 1, "the step failed: RuntimeError")
    ran = run("chat", "-m", alphabet, stdin=b"one\ntwo\n")
    assert ran.code == 0 and ran.err.count("error: the step failed") == 2
