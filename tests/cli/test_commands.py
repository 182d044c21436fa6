"""What each command prints, where, and with which exit code."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alphabet import CONTEXT, write_alphabet, write_folder

from legato.bench.offline import varied
from legato.cli.group import COMMANDS
from legato.config import KV_FORMATS, WEIGHTS
from legato.core.events import Event
from legato.engine import Engine
from legato.kernels.cpu import load_library

TIMINGS = {"queue_ms", "prefill_ms", "ttft_ms", "decode_ms", "decode_tok_s", "prompt_tok_s", "cached_tokens"}
RECEIPT = {"model", "isa", "threads", "kv", "seed", "digest", "weights", "context"}
GENERATE = {
    "text",
    "token_ids",
    "prompt_tokens",
    "finish_reason",
    "stop_reason",
    "timings",
    "receipt",
    "cache",
    "replay",
}
DECODE = {
    "depth",
    "prefill_tok_s",
    "ttft_ms",
    "decode_ms",
    "decode_tok_s",
    "bytes_per_step",
    "read_gb_s",
    "host_share",
    "wall_ms",
    "share_of_wall",
}

Run = Callable[..., Any]


def only_json(text: str) -> list[dict[str, Any]]:
    """Standard output as objects, one a line; fails on anything else."""
    return [json.loads(line) for line in text.splitlines()]


def test_help_names_what_options_take_and_what_they_print(run: Run) -> None:
    def told(*command: str) -> str:
        return " ".join(run(*command, "--help").out.split())

    perplexity = told("perplexity")
    assert all(", ".join(names[:-1]) + f" or {names[-1]}" in perplexity for names in (WEIGHTS, KV_FORMATS))
    assert "tokens a window (default: 2048" in perplexity and "longest prompt + answer" not in perplexity
    assert "longest prompt + answer" in told("generate")
    rows = ("decode", "prefill", "tradeoff", "compare", "serve")
    for command in (["models"], ["doctor"], ["sessions", "list"], *(["bench", name] for name in rows)):
        assert "print JSON Lines, one object a line" in told(*command)
    for command in (["perplexity"], ["generate"], ["sessions", "show"], ["bench", "offline"], ["bench", "cache"]):
        assert "print one JSON object" in told(*command)


def test_help_names_every_command(run: Run) -> None:
    for args in ([], ["--help"], ["-h"]):
        ran = run(*args)
        assert ran.code == 0 and ran.err == ""
        assert all(name in ran.out for name in COMMANDS)
    for name in COMMANDS:
        assert run(name, "--help").code == 0
    assert run("--version").out.startswith("legato 0.")


def test_the_answer_and_nothing_else_on_standard_output(run: Run, alphabet: Path) -> None:
    ran = run("generate", "u", "-m", alphabet, "--raw")
    assert (ran.code, ran.out) == (0, "vwxyz\n")
    [line] = ran.err.splitlines()
    assert line.startswith("6 tokens, ") and "tok/s, first " in line and ", prompt 1 tok" in line
    assert "\x1b" not in ran.err


def test_through_the_template_with_a_system_message(run: Run, alphabet: Path) -> None:
    ran = run("generate", "go", "-m", alphabet, "--max-tokens", "4", "--system", "S")
    assert (ran.code, ran.out) == (0, "abcd\n")
    assert "prompt 6 tok" in ran.err and "cut at the token limit" in ran.err


def test_a_prompt_from_standard_input_loses_only_its_last_line_end(run: Run, alphabet: Path) -> None:
    ran = run("generate", "-", "-m", alphabet, "--raw", "--max-tokens", "2", "--json", stdin=b"a\nc\r\n")
    assert only_json(ran.out)[0]["prompt_tokens"] == 3
    assert only_json(ran.out)[0]["text"] == "de"


def test_generate_json(run: Run, alphabet: Path) -> None:
    ran = run("generate", "u", "-m", alphabet, "--raw", "--seed", "7", "--json")
    [shown] = only_json(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert shown.keys() == GENERATE and shown["timings"].keys() == TIMINGS and shown["receipt"].keys() == RECEIPT
    assert shown["text"] == "vwxyz" and shown["finish_reason"] == "stop" and shown["receipt"]["seed"] == 7


def test_generate_json_with_all_there_is(run: Run, alphabet: Path) -> None:
    line = """generate u --raw --json --n 2 --logprobs 1 --temperature 1 --top-k 40 --top-p 0.9 --min-p 0.01 --seed 3
        --repetition-penalty 1.1 --presence-penalty 0.1 --frequency-penalty 0.1 --min-tokens 2 --max-tokens 5
        --stop zz --stop yy --ignore-eos --context 64 --kv f32 --threads 1"""
    [shown] = only_json(run(*line.split(), "-m", alphabet).out)
    assert shown.keys() == GENERATE | {"outputs", "logprobs"}
    assert [output["index"] for output in shown["outputs"]] == [0, 1]
    assert len(shown["outputs"][1]["logprobs"]) == 5
    assert shown["outputs"][0]["logprobs"][0].keys() == {"token_id", "logprob", "rank", "top"}


def test_several_answers_are_numbered(run: Run, alphabet: Path) -> None:
    ran = run("generate", "u", "-m", alphabet, "--raw", "--n", "2")
    assert ran.out == "[1] vwxyz\n[2] vwxyz\n"


def test_the_seed_in_the_receipt_repeats_the_answer(run: Run, alphabet: Path) -> None:
    args = ["generate", "q", "-m", alphabet, "--raw", "--temperature", "1", "--max-tokens", "12", "--json"]
    [first] = only_json(run(*args).out)
    [again] = only_json(run(*args, "--seed", str(first["receipt"]["seed"])).out)
    assert first["token_ids"] == again["token_ids"]


def test_a_model_without_a_template_goes_on_from_the_prompt(run: Run, tmp_path: Path) -> None:
    bare = write_alphabet(tmp_path / "bare.gguf", template=False)
    ran = run("generate", "u", "-m", bare)
    assert ran.out == "vwxyz\n" and ran.err.startswith("note: this model has no chat template")
    assert run("generate", "u", "-m", bare, "--raw").err.startswith("6 tokens")
    assert run("generate", "u", "-m", bare, "--system", "S").code == 2


def test_a_folder_works_and_its_code_is_left_alone(run: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    (folder / "modeling_evil.py").write_text("raise SystemExit('never run')")
    ran = run("generate", "u", "-m", folder)
    assert (ran.code, ran.out) == (0, "abcdefghijklmnopqrstuvwxyz\n")
    assert "ignored 1 Python file" in ran.err


def test_weights_can_be_made_smaller_while_loading(run: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    for weights in ("q8_0", "q4_0", "bf16"):
        assert run("generate", "u", "-m", folder, "--raw", "--weights", weights).out == "vwxyz\n"


def test_naive_is_slow_and_right(run: Run, alphabet: Path) -> None:
    assert run("generate", "q", "-m", alphabet, "--raw", "--naive").out == "rstuvwxyz\n"


def test_settings_come_from_the_environment(run: Run, environ: dict[str, str], alphabet: Path) -> None:
    environ |= {"LEGATO_MODEL": str(alphabet), "LEGATO_CONTEXT": "32", "LEGATO_COLOR": "always"}
    ran = run("generate", "u", "--raw")
    assert ran.out == "vwxyz\n" and ran.err.startswith("\x1b[2m6 tokens")
    environ |= {"LEGATO_CONTEXT": "0"}
    ran = run("generate", "u", "--raw")
    assert ran.code == 2 and ran.err.startswith("error: LEGATO_CONTEXT='0'")


def test_windows_that_are_no_number_are_refused(run: Run, alphabet: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abc")
    for value in ("abc", "1", "9999"):
        ran = run("perplexity", tmp_path / "text", "-m", alphabet, "--context", value)
        assert ran.code == 2 and ran.err.startswith("error: ") and "context" in ran.err


def test_perplexity(run: Run, alphabet: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abcdefghijklmnop" * 20)
    ran = run("perplexity", text, "-m", alphabet, "--context", "64", "--json")
    [shown] = only_json(ran.out)
    assert shown.keys() == {"tokens", "nll", "perplexity"} and ran.code == 0
    assert shown["tokens"] == 320 - 5 and 1 < shown["perplexity"] < 3
    piped = run("perplexity", "-", "-m", alphabet, stdin=text.read_bytes())
    assert piped.out.startswith("perplexity ") and f"windows of {CONTEXT}" in piped.err


def test_check(run: Run, alphabet: Path) -> None:
    ran = run("check", alphabet)
    assert ran.code == 0 and "family    llama" in ran.out and "backend   reference: runs it" in ran.out
    [shown] = only_json(run("check", alphabet, "--json").out)
    wanted = {"family", "layers", "roles", "weight_bytes", "kv_bytes_per_token", "backends", "tokenizer", "digest"}
    assert wanted <= shown.keys()
    assert set(shown["backends"]) == {"native", "reference"}


def test_models(run: Run) -> None:
    [shown] = only_json(run("models", "--json").out)
    assert shown["name"] == "smollm2-135m" and shown["path"] is None and shown["default"]
    ran = run("models")
    assert "smollm2-135m  98 MB  Apache-2.0" in ran.out and "not here yet" in ran.out


def test_doctor(run: Run, environ: dict[str, str]) -> None:
    environ |= {"LEGATO_THRAEDS": "2"}
    ran = run("doctor", "--json")
    found = only_json(ran.out)
    assert ran.code == 0
    subjects = {"legato", "native library", "cpu", "memory", "huge pages", "cache folder", "model", "extra"}
    assert subjects <= {f["name"] for f in found}
    assert all(f.keys() == {"name", "status", "text", "fix"} for f in found)
    assert all(f["fix"] for f in found if f["status"] != "ok")
    said = [f["text"] for f in found if f["name"] == "setting"]
    assert "backend=reference from LEGATO_BACKEND" in said
    assert any("LEGATO_THRAEDS" in text for text in said)


def test_doctor_says_why_amx_is_not_used(run: Run, environ: dict[str, str]) -> None:
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    [obstacle] = [isa.obstacle for isa in library.isas() if isa.name == "amx"]
    environ |= {"LEGATO_ISA": "auto"}
    [cpu] = [f for f in only_json(run("doctor", "--json").out) if f["name"] == "cpu"]
    assert cpu["status"] == "ok" and (f"no amx: {obstacle}" if obstacle else "level amx") in cpu["text"]
    environ |= {"LEGATO_ISA": "amx"}
    [cpu] = [f for f in only_json(run("doctor", "--json").out) if f["name"] == "cpu"]
    assert cpu["status"] == ("bad" if obstacle else "ok") and "level amx" in cpu["text"]


def test_an_instruction_set_that_cannot_be_had_is_refused_with_those_that_can(
    run: Run, alphabet: Path, environ: dict[str, str]
) -> None:
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    missing = next((isa.name for isa in library.isas() if isa.obstacle), None)
    if missing is None:
        pytest.skip("this machine has every level")
    environ |= {"LEGATO_BACKEND": "native", "LEGATO_ISA": missing}
    ran = run("generate", "u", "-m", alphabet, "--raw")
    assert ran.code == 2 and ran.out == "" and f"error: LEGATO_ISA={missing} cannot be used here: " in ran.err
    assert "portable, or leave it out" in ran.err


def test_more_threads_than_processors_are_told_once_and_doctor_says_where_threads_are(
    run: Run, alphabet: Path, environ: dict[str, str]
) -> None:
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    many = library.topology().allowed_cpus + 1
    environ |= {"LEGATO_BACKEND": "native"}
    ran = run("generate", "u", "-m", alphabet, "--raw", "--max-tokens", "2", "--threads", many)
    assert ran.code == 0 and ran.err.count("leave --threads out") == 1
    assert "leave --threads out" not in run("generate", "u", "-m", alphabet, "--raw", "--max-tokens", "2").err
    [threads] = [f for f in only_json(run("doctor", "--json").out) if f["name"] == "threads"]
    assert "thread on a core" in threads["text"] or "placed by the system" in threads["text"]


def test_doctor_fails_where_nothing_can_be_kept(run: Run, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environ |= {"LEGATO_CACHE_DIR": str(tmp_path / "file" / "cache")}
    ran = run("doctor")
    assert ran.code == 1 and "bad   cache folder" in ran.out


def test_doctor_opens_the_model_file(
    run: Run, tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, mode: str = "r", *args: object, **more: object) -> object:
        if self == shut:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, mode, *args, **more)  # type: ignore[call-overload]

    shut, opened = tmp_path / "kept" / "model.gguf", Path.open
    shut.parent.mkdir()
    shut.write_bytes(b"GGUF")
    monkeypatch.setattr("legato.cli.findings.cached", lambda model, cache_dir: shut)
    assert run("doctor").code == 0
    monkeypatch.setattr(Path, "open", refused)
    ran = run("doctor", "--json")
    [model] = [f for f in only_json(ran.out) if f["name"] == "model"]
    assert ran.code == 1 and model["status"] == "bad"
    assert "cannot be read: Permission denied" in model["text"] and "fetch it again" in model["fix"]


@pytest.mark.parametrize("name", ["--kv-memory", "LEGATO_KV_MEMORY"])
def test_doctor_refuses_the_memory_that_an_answer_would_be_refused(
    run: Run, environ: dict[str, str], name: str
) -> None:
    environ |= {"LEGATO_KV_MEMORY": "1M" if name.startswith("--") else "999T"}
    ran = run("doctor", "--json", *(["--kv-memory", "999T"] if name.startswith("--") else []))
    [memory] = [f for f in only_json(ran.out) if f["name"] == "memory"]
    assert ran.code == 1 and memory["status"] == "bad"
    assert "are asked for keys and values" in memory["text"] and name in memory["fix"]


def test_calibrate(run: Run) -> None:
    [shown] = only_json(run("calibrate", "--seconds", "0.01", "--threads", "2", "--json").out)
    assert shown.keys() >= {"isa", "threads", "read_gb_s", "int8_tops", "bf16_tflops", "step_overhead_us"}
    assert shown["read_gb_s"].keys() == {"1", "all"} and shown["read_gb_s"]["1"] > 0.1


def test_bench_decode(run: Run, alphabet: Path, tmp_path: Path) -> None:
    args = ["bench", "decode", "-m", alphabet, "--depths", "0,20", "--decode", "6", "--json", "--save", tmp_path]
    ran = run(*args)
    rows = only_json(ran.out)
    assert ran.code == 0 and [row["depth"] for row in rows] == [0, 20]
    assert all(row.keys() == DECODE and row["decode_tok_s"] > 0 for row in rows)
    assert rows[1]["bytes_per_step"] - rows[0]["bytes_per_step"] == 19 * 2 * 2 * 64 * 4
    assert all(row["share_of_wall"] > 0 and 0 <= row["host_share"] < 1 for row in rows)
    [saved] = tmp_path.glob("decode_*.json")
    record = json.loads(saved.read_text())
    assert {"what", "date", "command", "version", "commit", "machine", "settings", "rows"} == record.keys()
    assert record["rows"] == rows


def test_bench_decode_leaves_out_what_does_not_fit_unless_asked(run: Run, alphabet: Path) -> None:
    ran = run("bench", "decode", "-m", alphabet, "--decode", "2", "--json")
    assert ran.code == 0 and [row["depth"] for row in only_json(ran.out)] == [0]
    assert run("bench", "decode", "-m", alphabet, "--decode", "2", "--depths", "512").code == 2


def test_bench_cache(run: Run, alphabet: Path) -> None:
    ran = run("bench", "cache", "-m", alphabet, "--tokens", "10", "--runs", "2", "--prompt", "abc", "--json")
    [shown] = only_json(ran.out)
    assert ran.code == 0 and "all wrote the same tokens" in ran.err
    assert {"with", "without", "ratio", "first_difference"} <= shown.keys()
    assert shown["with"].keys() == shown["without"].keys() == {"mean_s", "std_s"}
    assert shown["first_difference"] is None and shown["prompt_tokens"] == 3
    plain = run("bench", "cache", "-m", alphabet, "--tokens", "3", "--runs", "1", "--prompt", "abc")
    assert plain.out.splitlines()[-1].startswith("ratio")


def test_bench_offline(run: Run, alphabet: Path) -> None:
    args = ["bench", "offline", "-m", alphabet, "-n", "5", "--prompt", "12", "--decode", "4", "--json"]
    [shown] = only_json(run(*args).out)
    assert {"out_tok_s", "seconds", "prefill_s", "decode_s"} <= shown.keys() and shown["cached_tokens"] == 0
    assert shown["seconds"] >= shown["prefill_s"] + shown["decode_s"] > 0
    [shared] = only_json(run(*args, "--shared-prefix", "48").out)
    assert shared["cached_tokens"] == 5 * 48
    for more in ([], ["--static"]):
        [varied] = only_json(run(*args, "-n", "20", "--vary", *more).out)
        assert (varied["vary"], varied["static"], varied["decode"]) == (True, bool(more), 4)


def test_bench_offline_of_few_at_once(run: Run, alphabet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[int] = []
    kept = Engine.step

    def step(engine: Engine) -> list[Event]:
        events = kept(engine)
        most.append(engine.ledger.recent[-1].num_seqs if engine.ledger.recent else 0)
        return events

    monkeypatch.setattr(Engine, "step", step)
    args = ["bench", "offline", "-m", alphabet, "-n", "5", "--prompt", "12", "--decode", "4", "--json"]
    for more, at_once in ([], 5), (["--max-seqs", "2"], 2):
        most.clear()
        assert run(*args, *more).code == 0 and max(most) == at_once
    assert "max_seqs='0' is not allowed" in run(*args, "--max-seqs", "0").err


def test_lengths_that_vary_keep_their_mean() -> None:
    for count, mean in ((1, 9), (2, 1), (7, 4), (32, 128)):
        lengths = varied(count, mean)
        assert len(lengths) == count and sum(lengths) == count * mean
        assert min(lengths) >= 1 and max(lengths) < 2 * mean and lengths == varied(count, mean)
    assert len(set(varied(32, 128))) > 16


@pytest.mark.parametrize(
    "args",
    [
        ["bench", "decode", "--depths", "0,200"],
        ["bench", "decode", "--depths", "a"],
        ["bench", "decode", "--depths", "-1"],
        ["bench", "cache", "--tokens", "500"],
        ["bench", "cache", "--tokens", "0"],
        ["bench", "cache", "--prompt", ""],
        ["bench", "offline", "--prompt", "200"],
        ["bench", "offline", "-n", "0"],
        ["bench", "offline", "--vary", "--decode", "60", "--prompt", "60"],
        ["bench", "nothing"],
        ["bench", "cache", "--tokens", "2", "--runs", "1", "--save", "/no/such/folder/x.json"],
    ],
)
def test_impossible_measurements_are_refused_before_they_start(run: Run, alphabet: Path, args: list[str]) -> None:
    ran = run(*args, "-m", alphabet) if args[1] != "nothing" else run(*args)
    assert ran.code == 2 and len(ran.err.splitlines()) <= 2 and "error: " in ran.err


@pytest.mark.parametrize("command", ["plan", "bench", "sessions"])
def test_a_command_without_what_it_needs_shows_its_help(run: Callable[..., Any], command: str) -> None:
    ran = run(command)
    assert ran.code == 2 and not ran.out and ran.err.startswith("Usage: legato") and len(ran.err.splitlines()) > 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_and_closed_streams(environ: dict[str, str], alphabet: Path) -> None:
    def left(shell: str) -> tuple[int, str]:
        command = shell.replace("legato", f"{shlex.quote(sys.executable)} -m legato")
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environ, timeout=60)
        return done.returncode, done.stderr

    answer = f"legato generate ab -m {shlex.quote(str(alphabet))} --max-tokens 2"
    for shell in (f"{answer} > /dev/full", "legato --help > /dev/full"):
        code, said = left(shell)
        assert code == 1 and said.endswith("error: output: no space left on the device; give it a place with room\n")
    for shell, wanted in ((f"{answer} >&-", 0), (f"{answer} 2>&-", 0), (answer.replace("ab", "-") + " <&-", 2)):
        code, said = left(shell)
        assert code == wanted and "unexpected" not in said, said
