"""`legato bench compare`: other engines are found, run in turn, and named when they are not there.

Another engine's Python is a script that answers as the real one would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legato.bench import compare
from legato.bench.compare import PEERS, Turn, compared, found, ours
from legato.errors import LegatoError

WORK = ("--depths", "0,16", "--decode", "4", "-n", "2", "--prompt", "8", "--answer", "6", "--patience", "0")
FAKE = """#!{python}
import json, sys
if sys.argv[1] == "-c":
    sys.exit(3) if {missing} else print("9.9")
else:
    script, engine, model, depths, decode, batch, prompt, answer, threads = sys.argv[1:]
    for depth in depths.split(","):
        print(json.dumps(dict(what="depth", depth=int(depth), prefill_tok_s=10.0, decode_ms=50.0, decode_tok_s=20.0)))
    print("not a row", flush=True)
    if {fails}:
        sys.exit("no memory for the batch")
    batch = dict(what="batch", n=int(batch), prompt=int(prompt), decode=int(answer), out_tok_s=30.0, seconds=1.0)
    print(json.dumps(batch))
"""


def fake(path: Path, missing: bool = False, fails: bool = False) -> Path:
    path.write_text(FAKE.format(python=sys.executable, missing=missing, fails=fails))
    path.chmod(0o755)
    return path


def test_engines_take_turns_and_ours_is_divided_by_theirs(
    run: Callable[..., Any], alphabet: Path, tmp_path: Path
) -> None:
    python = fake(tmp_path / "python")
    kept = ("--save", tmp_path / "kept.json", "--report", tmp_path / "page.html")
    peer = ("--peers", "llama.cpp", "--python", python)
    ran = run("bench", "compare", "-m", alphabet, *peer, *WORK, "--rounds", "2", "--json", *kept)
    assert ran.code == 0, ran.err
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [(row["engine"], row["what"], row.get("depth", row.get("n"))) for row in rows] == [
        ("legato", "depth", 0),
        ("legato", "depth", 16),
        ("legato", "batch", 2),
        ("llama.cpp", "depth", 0),
        ("llama.cpp", "depth", 16),
        ("llama.cpp", "batch", 2),
    ]
    own, theirs = rows[1], rows[4]
    assert theirs["ours_over_theirs"]["decode_tok_s"] == pytest.approx(own["decode_tok_s"] / 20, rel=1e-3)
    assert theirs["ours_over_theirs"]["prefill_tok_s"] == pytest.approx(own["prefill_tok_s"] / 10, rel=1e-3)
    assert "prefill_tok_s" not in rows[3]["ours_over_theirs"]  # a prompt of one token tells nothing
    assert rows[5]["ours_over_theirs"]["out_tok_s"] == pytest.approx(rows[2]["out_tok_s"] / 30, rel=1e-3)
    assert theirs["version"] == "9.9" and theirs["rounds"] == 2
    record = json.loads((tmp_path / "kept.json").read_text())
    assert [turn["engine"] for turn in record["settings"]["turns"]] == ["legato", "llama.cpp"] * 2
    assert all("busy" in turn for turn in record["settings"]["turns"])
    assert "Beside llama.cpp, ours is" in (tmp_path / "page.html").read_text()


def test_the_absent_are_named_with_how_to_get_them(run: Callable[..., Any], alphabet: Path, tmp_path: Path) -> None:
    gone = fake(tmp_path / "python", missing=True)
    ran = run("bench", "compare", "-m", alphabet, "--python", gone, "--rounds", "1", *WORK)
    assert ran.code == 0
    for words in ("pip install llama-cpp-python", "pip install openvino-genai", "pip install torch transformers"):
        assert words in ran.err
    assert "decode at 16" in ran.out and "ours / theirs" in ran.out


def test_an_engine_that_fails_is_told_and_keeps_what_it_measured(
    run: Callable[..., Any], alphabet: Path, tmp_path: Path
) -> None:
    broken = fake(tmp_path / "python", fails=True)
    ran = run("bench", "compare", "-m", alphabet, "--peers", "llama.cpp", "--python", broken, "--rounds", "1", *WORK)
    assert ran.code == 0 and "llama.cpp ended with 1: no memory for the batch" in ran.err
    lines = [line for line in ran.out.splitlines() if "llama.cpp" in line]
    assert len(lines) == 3 and "20.0" in lines[1] and lines[1].endswith("x")


def test_each_engine_has_its_own_files(run: Callable[..., Any], alphabet: Path, tmp_path: Path) -> None:
    python = fake(tmp_path / "python")
    ran = run("bench", "compare", "-m", alphabet, "--peers", "openvino", "--python", python, "--rounds", "1", *WORK)
    assert ran.code == 0 and "openvino 9.9 cannot read" in ran.err and "optimum-cli export openvino" in ran.err
    assert not PEERS["openvino"].takes(tmp_path) and not PEERS["transformers"].takes(tmp_path)
    (tmp_path / "openvino_model.xml").touch()
    (tmp_path / "model.safetensors").touch()
    assert PEERS["openvino"].takes(tmp_path) and PEERS["transformers"].takes(tmp_path)
    assert PEERS["llama.cpp"].takes(alphabet) and not PEERS["llama.cpp"].takes(tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--peers", "vllm"), "none of llama.cpp, openvino, transformers"),
        (("--peer-model", "llama.cpp"), "--peer-model=llama.cpp"),
        (("--peer-model", "else=x"), "--peer-model=else=x"),
        (("--peers", ""), "--peers= is not allowed"),
        (("--peers", " , "), "--peers= , is not allowed"),
        (("--depths", "-1"), "--depths=-1"),
        (("--depths", ""), "--depths= is not allowed"),
        (("--depths", "0,100000"), "lower --depths or --decode"),
        (("--depths", "0", "--context", "64", "--decode", "64"), "lower --depths or --decode"),
        (("--depths", "0", "--decode", "4", "--prompt", "100", "--answer", "29"), "lower --prompt or --answer"),
        (("--python", "/nowhere/python", "--depths", "0", "--decode", "4", "-n", "0"), "--python /nowhere/python"),
        (("-m", "nosuch"), "unknown model"),
    ],
)
def test_what_is_refused(run: Callable[..., Any], alphabet: Path, args: tuple[str, ...], words: str) -> None:
    ran = run("bench", "compare", *(() if "-m" in args else ("-m", alphabet)), *args)
    assert ran.code == 2 and words in ran.err and "round 1" not in ran.err  # nobody was waited for


def test_our_own_refusal_is_a_failure_that_keeps_what_others_measured(
    run: Callable[..., Any], endless: Path, tmp_path: Path
) -> None:
    """How much cache there is shows when the model is loaded; the advice is of options that this command has."""
    args = ("--peers", "llama.cpp", "--python", fake(tmp_path / "python"), "--kv-memory", "1M", "--rounds", "1")
    ran = run("bench", "compare", "-m", endless, *WORK, *args, "--depths", "2000", "--json", "--save", tmp_path / "x")
    assert ran.code == 1, ran.err
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [(row["engine"], row["what"]) for row in rows] == [
        ("legato", "batch"),
        ("llama.cpp", "depth"),
        ("llama.cpp", "batch"),
    ]
    (line,) = (line for line in ran.err.splitlines() if line.startswith("error:"))
    assert "in 1 of 1 rounds: legato ended with 2: " in line
    assert line.endswith("; lower --depths, -n, --prompt or --answer, or raise --kv-memory")
    assert line.removeprefix("error: ") == json.loads((tmp_path / "x").read_text())["partial"]


def test_medians_and_ranges_over_the_rounds() -> None:
    work = compare.Work((5,), 2, 0, 1, 1, 1)
    engines = [ours("m", [], work, "1"), compare.Contender("llama.cpp", "2", "m", ())]
    speeds = {"legato": (10.0, 30.0, 20.0), "llama.cpp": (5.0, 4.0, 10.0)}
    done = [
        Turn(name, i, 0.0, [{"what": "depth", "depth": 5, "prefill_tok_s": v, "decode_tok_s": v, "decode_ms": 1e3 / v}])
        for name, values in speeds.items()
        for i, v in enumerate(values)
    ]
    own, theirs = compared(engines, done)
    assert own["decode_tok_s"] == 20 and own["least_and_most"]["decode_tok_s"] == [10, 30]
    assert theirs["ours_over_theirs"] == {"prefill_tok_s": 4.0, "decode_tok_s": 4.0}
    assert [words[3:5] for words in engines[0].commands] == [("bench", "decode")]


def test_a_python_without_the_engine_is_known_without_importing_it() -> None:
    python = sys.executable
    with pytest.raises(LegatoError, match="is not installed"):
        found(compare.Peer("llama.cpp", "no_such_module", "x", "", "pip install x"), python, "m.gguf", WORK_OF_ONE)
    assert compare._version(compare.Peer("numpy", "numpy", "numpy", "", ""), python)


WORK_OF_ONE = compare.Work((0,), 2, 0, 1, 1, 1)


def test_the_script_needs_nothing_of_ours() -> None:
    """It runs in another engine's environment, so a bare Python must read it."""
    code = f"import sys, runpy; runpy.run_path({str(compare.SCRIPT)!r}); print('legato' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_others_at_work_are_seen() -> None:
    busy = compare.busy_cores(0.05)
    if busy is None:
        pytest.skip("this system does not count its processors' time")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        beside = compare.quiet(0.0)
        spinning.kill()
    assert beside is not None and 0.2 < beside <= (os.cpu_count() or 1) + 0.01


@pytest.mark.slow
def test_transformers_is_really_measured(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=64, max_position_embeddings=64, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    work = compare.Work((0, 20), 3, 2, 6, 4, 1)
    (command,) = found(PEERS["transformers"], sys.executable, str(tmp_path), work).commands
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["what"], row.get("depth", row.get("n"))) for row in rows] == [
        ("depth", 0),
        ("depth", 20),
        ("batch", 2),
    ]
    assert all(row["decode_tok_s"] > 0 and row["prefill_tok_s"] > 0 for row in rows[:2]) and rows[2]["out_tok_s"] > 0
