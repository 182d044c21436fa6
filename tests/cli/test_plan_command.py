"""`legato plan`: its JSON, its tables, local files of every kind, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

Run = Callable[..., Any]

GOLDEN = Path(__file__).parent.parent / "golden" / "plan_llama-3.1-8b_h100.json"
COMMAND = ("plan", "llama-3.1-8b", "--machine", "h100", "--context", "8192", "--output", "512", "--users", "16")
SMALL: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def refused(ran: Any, code: int, *said: str) -> None:
    assert ran.code == code, ran
    assert ran.out == ""
    [line] = ran.err.splitlines()
    assert line.startswith("error: ") and all(words in line for words in said), line
    assert "unexpected" not in line


def planned(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran
    found: dict[str, Any] = json.loads(ran.out)
    return found


def near(found: object, expected: object, where: str = "") -> None:
    """Equal, numbers within a thousandth; names in the same order."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and list(found) == list(expected), where
        for key, value in expected.items():
            near(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected), where
        for i, value in enumerate(expected):
            near(found[i], value, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3), where
    else:
        assert found == expected, where


def test_json_on_a_data_sheet_is_as_kept(run: Run) -> None:
    """Written anew with: legato plan llama-3.1-8b --machine h100 ... --json > tests/golden/plan_....json"""
    near(planned(run(*COMMAND, "--price-per-hour", "3", "--json")), json.loads(GOLDEN.read_text()))


def test_json_has_what_readers_rely_on(run: Run) -> None:
    found = planned(run(*COMMAND, "--json"))
    for name in ("weights_bytes", "kv_bytes_per_token", "kv_bytes", "max_users"):
        assert isinstance(found[name], int)
    for name in ("ttft_ms", "itl_ms", "tok_s"):
        low, high = found["ranges"][name]
        assert isinstance(found[name], float) and low < found[name] < high
    assert found["fits"] is True and set(found["itl_ms_at"]) == set(found["ranges"]["itl_ms_at"])
    assert found["price_per_million"] == {"input": None, "output": None}
    assert set(found["limits"]) == {"ttft", "itl", "tok_s", "users"}


def test_the_large_models_long_context(run: Run) -> None:
    ran = run("plan", "llama-3.1-70b", "--context", "128000", "--output", "500", "--kv", "f16", "--machine", "h100")
    assert ran.code == 0 and ran.err == ""
    assert "39.06 GiB" in ran.out and "data sheet" in ran.out
    assert all(len(line) <= 100 and line == line.rstrip() for line in ran.out.splitlines())


def test_tables_say_what_json_says(run: Run) -> None:
    text = run(*COMMAND, "--price-per-hour", "3", "--color", "never").out
    for words in (
        "Memory",
        "What limits it",
        "first token",
        "memory bandwidth",
        "By users at once",
        "A million tokens",
    ):
        assert words in text
    found = planned(run(*COMMAND, "--price-per-hour", "3", "--json"))
    assert found["why_output_costs_more"] in " ".join(text.split())
    assert f"{found['itl_ms']:.3g} ms" in text and f"{found['price_per_million']['output']:.3g}" in text
    assert "\x1b" not in text and "\x1b" in run(*COMMAND, "--color", "always").out


def test_no_machine_named_is_this_one_or_a_guess_that_says_so(run: Run) -> None:
    found = planned(run("plan", "smollm2-135m", "--context", "512", "--json"))
    assert found["machine_kind"] == "not calibrated" and "legato calibrate" in found["notes"][0]
    assert found["kv"] == "int8"


def test_a_short_model_needs_no_context_named(run: Run) -> None:
    found = planned(run("plan", "gpt2-medium", "--machine", "l4", "--json"))
    assert (found["context"], found["output"], found["prompt"]) == (1024, 128, 896)


def test_options_change_what_they_say(run: Run) -> None:
    base = planned(run(*COMMAND, "--json"))
    half = planned(run(*COMMAND, "--quant", "q8_0", "--kv", "int8", "--memory", "24G", "--depths", "5,50", "--json"))
    assert half["weights_bytes"] < 0.54 * base["weights_bytes"] and half["kv_bytes"] < 0.52 * base["kv_bytes"]
    assert half["memory_bytes"] == 24 * 2**30 and half["max_users"] < base["max_users"]
    assert list(half["itl_ms_at"]) == ["5", "50", "7680", "8191"] and half["weights"] == "q8_0"


def test_it_can_be_saved(run: Run, tmp_path: Path) -> None:
    ran = run(*COMMAND, "--json", "--save", tmp_path)
    [file] = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert record["rows"] == planned(ran)["by_users"] and record["settings"]["users"] == 16
    assert record["settings"]["plan"]["kv_bytes"] == planned(ran)["kv_bytes"]


def test_it_can_be_reported(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run(*COMMAND, "--report", tmp_path / "plan.html").code == 0
    assert "<h2>What was predicted</h2>" in (tmp_path / "plan.html").read_text()
    text = (tmp_path / "plan.html").read_text()
    for words in ("Plan: llama-3.1-8b on NVIDIA H100", "It fits: 14.96 GiB of weights", "data sheet"):
        assert words in text
    names = {path.name for path in tmp_path.iterdir()}
    assert {"plan.csv", "plan.json", "plan-pace.png", "plan-users.png", "plan-memory.png"} <= names


# --- local files ---


def write_config(folder: Path, **change: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in {**SMALL, **change}.items() if v != "absent"}))
    return path


def write_gguf(path: Path, arch: str = "llama", drop: str = "", experts: int = 0) -> Path:
    """A GGUF file with the header that its own library writes, and zeros for weights."""
    writer = gguf.GGUFWriter(path, arch)
    numbers = {"block_count": 2, "context_length": 4096, "embedding_length": 64, "feed_forward_length": 96}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    numbers |= {"expert_count": experts, "expert_used_count": 2} if experts else {}
    for key, value in numbers.items():
        if key != drop:
            writer.add_uint32(f"{arch}.{key}", value)
    shapes = {"token_embd": (320, 64), "output": (320, 64)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_{n}": (s, 64) for n, s in (("q", 64), ("k", 32), ("v", 32), ("output", 64))}
        if experts:
            shapes[f"blk.{i}.ffn_gate_inp"] = (experts, 64)
            shapes |= {f"blk.{i}.ffn_{n}_exps": (experts, 96, 64) for n in ("gate", "up")}
            shapes[f"blk.{i}.ffn_down_exps"] = (experts, 64, 96)
        else:
            shapes |= {f"blk.{i}.ffn_gate": (96, 64), f"blk.{i}.ffn_up": (96, 64), f"blk.{i}.ffn_down": (64, 96)}
    for name, shape in shapes.items():
        data = np.zeros((*shape[:-1], shape[-1] // 32 * 18), np.uint8)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_config_a_folder_and_a_gguf_file_tell_the_same(run: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    files = [config, tmp_path, write_gguf(tmp_path / "model.gguf")]
    found = [planned(run("plan", f, "--machine", "m1", "--quant", "4.5", "--json")) for f in files]
    counts = [{k: f[k] for k in ("parameters", "kv_bytes_per_token", "ttft_ms", "itl_ms")} for f in found]
    assert counts[0] == counts[1] == counts[2]
    # The matrices; norms are vectors.
    assert found[0]["parameters"] == 2 * 320 * 64 + 2 * (192 * 64 + 3 * 96 * 64) + 5 * 64


def test_a_gguf_files_header_is_enough(run: Run, tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "model.gguf")
    weights = (2 * 320 * 64 + 2 * (192 * 64 + 3 * 96 * 64)) * 18 // 32
    found = planned(run("plan", whole, "--machine", "m1", "--json"))
    assert found["weights_bytes"] == weights and found["weights"] == "q4_0"
    header = tmp_path / "header.gguf"
    header.write_bytes(whole.read_bytes()[: whole.stat().st_size - weights])
    again = planned(run("plan", header, "--machine", "m1", "--json"))
    assert {**again, "model": ""} == {**found, "model": ""}


def test_a_gguf_file_with_experts(run: Run, tmp_path: Path) -> None:
    found = planned(run("plan", write_gguf(tmp_path / "moe.gguf", experts=8), "--machine", "m1", "--json"))
    expert = 3 * 96 * 64
    assert found["parameters"] - found["active_parameters"] == 2 * 6 * expert + 320 * 64 + 5 * 64


@pytest.mark.parametrize("cut", [3, 10, 40, 200, 400, 1200])
def test_a_truncated_gguf_header(run: Run, tmp_path: Path, cut: int) -> None:
    whole = write_gguf(tmp_path / "model.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:cut])
    refused(run("plan", path, "--machine", "m1"), 3, "cut.gguf")


def test_a_gguf_file_without_a_needed_key(run: Run, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", drop="block_count")
    refused(run("plan", path, "--machine", "m1"), 3, "llama.block_count: missing")
    path = write_gguf(tmp_path / "other.gguf", drop="attention.head_count")
    refused(run("plan", path, "--machine", "m1"), 3, "llama.attention.head_count: missing")


def test_the_built_in_file_is_as_its_preset_says(builtin_path: Path, run: Run) -> None:
    file = planned(run("plan", builtin_path, "--machine", "m1", "--json"))
    preset = planned(run("plan", "smollm2-135m", "--machine", "m1", "--json"))
    for name in ("parameters", "weights_bytes", "kv_bytes", "ttft_ms", "itl_ms"):
        assert file[name] == preset[name]


# --- whatever is wrong ---


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_config_without_a_needed_field(run: Run, tmp_path: Path, missing: str) -> None:
    path = write_config(tmp_path, **{missing: "absent"})
    refused(run("plan", path), 3, f"config.json: {missing}: missing")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1, "a": 2}', "\x00", '{"hidden_size": NaN}'])
def test_a_config_that_is_no_object(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refused(run("plan", tmp_path), 3, "config.json")


def test_a_config_that_is_no_json_is_named_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 64')
    ran = run("plan", path)
    refused(ran, 3, "config.json: content: is not valid JSON")
    assert ran.err.count("config.json") == 1


def test_names_that_mean_nothing(run: Run, tmp_path: Path) -> None:
    refused(run("plan", "llama-3.1-7b"), 2, "no model 'llama-3.1-7b'", "did you mean", "llama-3.1-70b", "qwen3-0.6b")
    refused(run("plan", "/no/such/model.gguf"), 2, "no file /no/such/model.gguf")
    refused(run("plan", "hf:some/model"), 2, "plan downloads nothing")
    refused(run("plan", ""), 2, "no model ''")
    refused(run("plan", "x" * 5000), 2, "no model")
    refused(run("plan", tmp_path), 3, "config.json: missing")
    refused(run("plan", "gpt2-medium", "--machine", "h1000"), 2, "no machine 'h1000'", "did you mean h100")


def test_a_machine_never_calibrated(run: Run) -> None:
    refused(run("plan", "gpt2-medium", "--machine", "this"), 2, "never calibrated", "legato calibrate")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--context", "1000000"), "context=1000000 is not allowed: at most 131072 tokens"),
        (("--context", "-5"), "context=-5"),
        (("--context", "a lot"), "--context"),
        (("--context", "100", "--output", "100"), "output=100 is not allowed: a whole number from 1 to 99"),
        (("--users", "0"), "users=0"),
        (("--users", "99999999999"), "users=99999999999"),
        (("--kv", "q3"), "kv='q3' is not allowed: one of f32, bf16, f16, fp8, int8, int4"),
        (("--quant", "1000"), "quant='1000' is not allowed"),
        (("--quant", ""), "quant='' is not allowed"),
        (("--price-per-hour", "-1"), "price_per_hour=-1.0"),
        (("--price-per-hour", "free"), "--price-per-hour"),
        (("--memory", "24 apples"), "memory='24 apples' is not allowed: a size from 1M"),
        (("--memory", "nanG"), "memory='nanG'"),
        (("--memory", "1e99G"), "memory='1e99G'"),
        (("--depths", "1,2,x"), "depths='1,2,x'"),
        (("--depths", "-1"), "depths='-1'"),
        (("--save", "/no/such/folder/file.json"), "/no/such/folder"),
    ],
)
def test_absurd_numbers(run: Run, options: tuple[str, ...], said: str) -> None:
    refused(run("plan", "llama-3.1-8b", "--machine", "h100", *options), 2, said)


# --- at once, and alone ---


def test_a_preset_needs_no_arrays_no_network_and_no_engine() -> None:
    code = (
        "import sys; from legato.cli import main; code = main(['plan', 'llama-3.1-70b', '--machine', 'h100'])\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'socket', 'http', 'legato.llm', 'legato.engine', 'legato.models'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "0 []"


def test_a_plan_takes_less_than_half_a_second() -> None:
    """Of processor time, imports and all: a busy machine makes the wall clock tell of others."""
    took = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "legato", *COMMAND], capture_output=True, check=True)
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(took) < 0.5
