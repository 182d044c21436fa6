"""Experiments on tiny models: what their commands print, keep and report, also when they are cut short."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato import LLM, SamplingParams
from legato.bench.beside import Beside
from legato.bench.cache import CacheResult, _counts_cached, _counts_naive, bench_cache, ratios_by_sums
from legato.bench.drive import drive
from legato.bench.fits import costs_of, fit, fit_rising
from legato.bench.tradeoff import sizes
from legato.errors import UsageError
from legato.kernels.cpu import load_library
from legato.measure import cost
from legato.weights.hub import Silent
from legato.weights.tensor import WeightFormat

Run = Callable[..., Any]
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "decode": ("--depths", "0,20", "--decode", "4"),
    "prefill": ("--prompts", "1,20,60", "--runs", "2"),
    "tradeoff": ("--batch", "1,3", "--depth", "20", "--decode", "4"),
    "cache": ("--tokens", "12", "--runs", "2", "--prompt", "abc"),
}
FIELDS = {
    "prefill": {
        "prompt",
        "runs",
        "ttft_ms",
        "ttft_std_ms",
        "prompt_tok_s",
        "attention_share",
        "wall_ms",
        "share_of_wall",
    },
    "tradeoff": {"batch", "depth", "itl_ms", "itl_p99_ms", "out_tok_s", "tok_s_each", "wall_ms", "share_of_wall"},
    "cache": {"with", "without", "ratio", "tokens", "runs", "curve", "fits", "positions"},
    "decode": {"depth", "decode_ms", "wall_ms"},
}


def only_json(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def memory_of_known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading memory takes a second each time; one test of commands does it really."""
    for module in ("beside", "decode"):
        monkeypatch.setattr(f"legato.bench.{module}.read_gb_s", lambda backend, threads, seconds: [10.0, 11.0, 12.0])


@pytest.fixture(scope="module")
def random_model() -> ModuleType:
    """The script that writes models of random weights."""
    path = Path(__file__).parents[2] / "benchmarks" / "random_model.py"
    spec = importlib.util.spec_from_file_location("random_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_model"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("what", EXPERIMENTS)
def test_an_experiment_ends_in_json_and_in_a_report(run: Run, alphabet: Path, tmp_path: Path, what: str) -> None:
    report = tmp_path / "out.html"
    ran = run("bench", what, "-m", alphabet, *EXPERIMENTS[what], "--json", "--save", tmp_path, "--report", report)
    rows = only_json(ran.out)
    assert ran.code == 0 and f"report in {report}" in ran.err, ran.err
    assert all(FIELDS[what] <= row.keys() for row in rows)
    saved = json.loads(report.with_suffix(".json").read_text())
    assert saved["rows"] == rows and saved["what"] == what and "partial" not in saved
    assert saved["settings"]["kv"] == "f32" and saved["command"].startswith("legato")
    assert "<svg" in report.read_text() and "http:" not in report.read_text()
    assert [path.suffix for path in tmp_path.glob(f"{what}_*")] == [".json"]


def test_a_saved_record_is_shown_again_and_an_experiment_may_just_print(
    run: Run, alphabet: Path, tmp_path: Path
) -> None:
    assert run("bench", "prefill", "-m", alphabet, "--prompts", "1,9,30", "--runs", "1", "--save", tmp_path).code == 0
    [saved] = tmp_path.iterdir()
    shown = run("report", saved)
    assert shown.code == 0 and f"report in {saved.with_suffix('.html')}" in shown.err
    assert saved.with_suffix(".html").read_text().count("<svg") == 2
    assert run("report", tmp_path / "nothing.json").code == 2
    saved.write_text("{}")
    assert run("report", saved).code == 3
    for what, args in EXPERIMENTS.items():
        plain = run("bench", what, "-m", alphabet, *args)
        assert plain.code == 0 and plain.out and "report" not in plain.err


@pytest.mark.parametrize(
    "args",
    [
        ["prefill", "--prompts", "0"],
        ["prefill", "--prompts", "64,x"],
        ["prefill", "--prompts", "128"],
        ["prefill", "--runs", "0"],
        ["tradeoff", "--batch", "0"],
        ["tradeoff", "--batch", "2", "--depth", "120"],
        ["tradeoff", "--batch", "4096", "--depth", "100", "--kv-memory", "1MB"],
        ["cache", "--tokens", "5", "--report", "no/such/folder/x.html"],
        ["decode", "--depths", "0", "--report", "x.txt"],
        ["decode", "--depths", "0", "--save", "no/such/folder/x.json"],
    ],
)
def test_impossible_experiments_are_refused_before_they_start(run: Run, alphabet: Path, args: list[str]) -> None:
    ran = run("bench", *args, "-m", alphabet)
    assert ran.code == 2 and ran.out == "" and "error: " in ran.err and len(ran.err.splitlines()) <= 3, ran.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--batch", "1,100000000"], "--batch=100000000 is not allowed: at most 512 streams share a step"),
        (["--batch", "100", "--depth", "1", "--decode", "1"], "lower --batch\n"),
        (["--batch", "2", "--depth", "126", "--decode", "130"], "lower --batch and --depth and --decode\n"),
        (["--batch", "2", "--depth", "20", "--decode", "130"], "lower --decode\n"),
        (["--batch", "30", "--depth", "20", "--decode", "4", "--kv-memory", "1M"], " MB of cache, 1.0"),
    ],
)
def test_a_tradeoff_is_refused_with_what_would_help(run: Run, alphabet: Path, args: list[str], words: str) -> None:
    ran = run("bench", "tradeoff", "-m", alphabet, *args)
    assert ran.code == 2 and ran.out == "" and words in ran.err, ran.err


def test_more_streams_fit_where_a_step_takes_more_tokens(run: Run, alphabet: Path, environ: dict[str, str]) -> None:
    environ["LEGATO_MAX_STEP_TOKENS"] = "65536"
    assert "at most 4096 streams" in run("bench", "tradeoff", "-m", alphabet, "--batch", "4097").err


@pytest.mark.parametrize(
    ("more", "less", "told"),
    [
        (9_000_000, 1_000_000, ("9.00 MB", "1.00 MB")),
        (2_000_000_001, 2_000_000_000, ("2.000000001 GB", "2.000000000 GB")),
        (12_500, 700, ("12.50 kB", "0.70 kB")),
    ],
)
def test_sizes_show_that_they_differ(more: int, less: int, told: tuple[str, str]) -> None:
    assert sizes(more, less) == told


@pytest.mark.parametrize(("what", "option"), [("decode", "depths"), ("prefill", "prompts"), ("tradeoff", "batch")])
def test_an_empty_list_is_not_the_default(run: Run, alphabet: Path, what: str, option: str) -> None:
    ran = run("bench", what, "-m", alphabet, f"--{option}", "")
    assert ran.code == 2 and ran.out == "" and f"--{option}= is not allowed" in ran.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("decode", "--depths", "0,2000", "--decode", "4"), "lower --depths or --decode, or raise --kv-memory"),
        (("cache", "--tokens", "2000", "--runs", "1"), "lower --tokens, or raise --kv-memory"),
        (("prefill", "--prompts", "10,2000", "--runs", "1"), "lower --prompts, or raise --kv-memory"),
    ],
)
def test_a_small_cache_is_told_by_the_options_of_the_command(
    run: Run, endless: Path, args: tuple[str, ...], words: str
) -> None:
    """A megabyte holds 512 tokens of this model."""
    ran = run("bench", *args, "-m", endless, "--kv-memory", "1M")
    assert ran.code == 2 and ran.out == "" and words in ran.err and "max_tokens" not in ran.err


def test_depths_of_the_default_are_those_that_the_cache_holds(run: Run, endless: Path) -> None:
    ran = run("bench", "decode", "-m", endless, "--kv-memory", "2M", "--decode", "2", "--json")
    assert ran.code == 0 and [row["depth"] for row in only_json(ran.out)] == [0, 512], ran.err


def test_an_error_in_mid_run_keeps_what_was_measured(
    run: Run, alphabet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import legato.bench.prefill as prefill

    measured = prefill._row

    def fails(llm: LLM, prompt: int, *rest: Any) -> Any:
        if prompt == 60:
            raise UsageError("the sky fell")
        return measured(llm, prompt, *rest)

    monkeypatch.setattr(prefill, "_row", fails)
    report = tmp_path / "out.html"
    ran = run("bench", "prefill", "-m", alphabet, *EXPERIMENTS["prefill"], "--json", "--report", report)
    assert ran.code == 2 and ran.err.splitlines()[-1] == "error: the sky fell"
    assert "note: partial results are kept (the sky fell)" in ran.err
    assert [row["prompt"] for row in only_json(ran.out)] == [1, 20]
    assert "<b>Partial:</b> the sky fell." in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())["partial"] == "the sky fell"


def test_a_cache_experiment_that_fails_prints_and_keeps_what_it_has(
    run: Run, alphabet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import legato.bench.cache as module

    drives = iter(range(100))

    def fails(*args: Any) -> Any:
        if next(drives) == 4:  # a warm-up, a run each way, then the second run without a cache
            raise OSError("out of luck")
        return drive(*args)

    monkeypatch.setattr(module, "drive", fails)
    report = tmp_path / "out.html"
    ran = run("bench", "cache", "-m", alphabet, *EXPERIMENTS["cache"], "--json", "--report", report)
    [shown] = only_json(ran.out)
    assert ran.code == 1 and "error: unexpected OSError: out of luck" in ran.err
    assert shown["partial"] and shown["runs"] == 1 and shown["tokens"] == 12
    assert "stopped early: 12 tokens, 1 whole runs each way" in ran.err
    assert "<b>Partial:</b> out of luck." in report.read_text()


def test_ctrl_c_in_mid_run_keeps_what_was_measured(endless: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    report = tmp_path / "out.html"
    args = ["bench", "prefill", "-m", str(endless), "--prompts", "8,60000", "--runs", "1", "--report", str(report)]
    command = [sys.executable, "-m", "legato", *args, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["prompt"] == 8
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        assert process.wait(60) == 130, errors
    assert "partial results are kept (stopped by Ctrl-C)" in errors
    assert "Partial:" in report.read_text()


def test_a_cache_experiment_cut_short_compares_as_far_as_both_ways_came(alphabet: Path) -> None:
    kept: list[CacheResult] = []
    with LLM(str(alphabet), backend="reference") as llm:

        class Stops(Silent):
            """Stops in the second run without cache."""

            def __init__(self) -> None:
                self.left = 2 * (3 + 12 - 1) + cost.decode_positions(3, 12) + cost.decode_positions(3, 5)

            def advance(self, n: int) -> None:
                self.left -= n
                if self.left < 0:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bench_cache(llm, [1, 2, 3], 12, 3, Stops(), kept.append)
        [one] = kept
        assert one.tokens == 12 and one.runs == 1 and one.naive.std_s == 0 and one.cached.std_s > 0
        assert [point.tokens for point in one.curve] == [*range(1, 13)]
        assert one.curve[3].naive.std_s > 0 == one.curve[-1].naive.std_s  # both runs came to token 4, one to token 12
        whole = bench_cache(llm, [1, 2, 3], 4, 1, Silent())  # the engine is fit for more
    assert whole.tokens == 4 and whole.first_difference is None and whole.positions == (3 + 4 + 5 + 6, 6)


def test_walls_beside_a_run_are_of_this_machine(alphabet: Path) -> None:
    if isinstance(problem := load_library(), str):
        pytest.skip(problem)
    with LLM(str(alphabet), backend="native", threads=1) as llm, Beside(llm) as beside:
        beside.measure()
        assert beside.tops is not None and 1e-4 < beside.tops < 100
        assert beside.read_gb_s == 11.0  # the median of what the fixture reads
        few, many = beside.step_s(1, 1, (5,)), beside.step_s(5000, 1, (5000,))
        assert few == pytest.approx(beside.step_bytes(1, 1, (5,)) / 11e9)
        assert many == pytest.approx(beside.products_s(5000, 1)) and many > few
    with LLM(str(alphabet), backend="reference") as llm, Beside(llm) as beside:
        beside.measure()
        assert beside.tops is None and beside.products_s(5000, 1) == 0


def test_the_worth_of_a_cache_follows_the_sums() -> None:
    """Times made from known costs: the first half of the lengths tells them, the sums say the rest exactly."""
    prompt, lengths = 19, list(range(10, 1001, 10))
    cached = [0.05 + 0.006 * (n - 1) + 1e-7 * sum(prompt + k for k in range(1, n)) for n in lengths]
    naive = [
        0.004 * n + sum(3e-4 * (prompt + k) + 2e-8 * (prompt + k) * (prompt + k + 1) / 2 for k in range(n))
        for n in lengths
    ]
    said = ratios_by_sums(prompt, lengths, cached, naive)
    assert said == pytest.approx([b / a for a, b in zip(cached, naive, strict=True)], rel=1e-6)
    assert said == sorted(said) and said[-1] > 4 * said[len(said) // 10]


@pytest.mark.parametrize(("prompt", "tokens"), [(1, 1), (3, 4), (19, 30)])
def test_what_both_ways_count_is_what_they_do(prompt: int, tokens: int) -> None:
    """Counted one by one, as each way does it."""
    rows = pairs = looked_back = 0
    for step in range(tokens):
        computed = range(prompt + step)
        rows += len(computed)
        pairs += sum(row + 1 for row in computed)
        looked_back += prompt + step if step else 0
    assert _counts_naive(prompt, tokens) == (tokens, rows, pairs)
    assert _counts_cached(prompt, tokens) == (1, tokens - 1, looked_back)


def test_gpt2_shapes_of_random_weights_run_with_and_without_cache(
    run: Run, random_model: ModuleType, tmp_path: Path
) -> None:
    shape = random_model.SHAPES["gpt2-medium"]
    assert (shape.layers, shape.width, shape.heads, shape.context, shape.vocab) == (24, 1024, 16, 1024, 50257)
    small = random_model.replace(shape, layers=2, width=64, heads=2, kv_heads=2, head_dim=32, mlp=256, vocab=300)
    random_model.SHAPES["tiny-gpt2"] = random_model.replace(small, context=64)
    path = tmp_path / "tiny.gguf"
    random_model.write("tiny-gpt2", WeightFormat.Q8_0, WeightFormat.Q8_0, path)
    ran = run("bench", "cache", "-m", path, "--tokens", "40", "--runs", "1", "--json")
    [shown] = only_json(ran.out)
    assert ran.code == 0 and shown["first_difference"] is None
    assert shown["prompt_tokens"] == 64 - 40  # its vocabulary spells our prompt in more tokens than are left
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    answers = []
    for naive in (False, True):
        with LLM(str(path), backend="reference", naive=naive) as llm:
            answers.append(llm.generate([[5, 6, 7]], params)[0].token_ids)
    assert answers[0] == answers[1]


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.floats(0.001, 10), min_size=3, max_size=3))
def test_a_parabola_is_found_again(costs: list[float]) -> None:
    lengths = [1, 5, 64, 300, 1000, 8000]
    times = [costs[0] + costs[1] * n + costs[2] * n * n for n in lengths]
    for found in (fit(lengths, times, 2), fit_rising(lengths, times, 2), fit_rising(lengths, times, 2, relative=True)):
        assert found.over(lengths) == pytest.approx(times, rel=1e-5, abs=1e-6 * max(times))
        assert found.r2 == pytest.approx(1.0)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 100)] * 3, st.floats(0.1, 100)), min_size=1, max_size=8))
def test_costs_are_never_negative_and_never_worse_than_nothing(points: list[tuple[float, ...]]) -> None:
    counts, seconds = [point[:3] for point in points], [point[3] for point in points]
    costs = costs_of(counts, seconds)
    said = [sum(c * x for c, x in zip(costs, row, strict=True)) for row in counts]
    error = sum((a - b) ** 2 for a, b in zip(said, seconds, strict=True))
    assert min(costs) >= 0 and error <= sum(s * s for s in seconds) * (1 + 1e-9)
