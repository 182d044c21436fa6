"""An explanation adds up, its line is the right one, and its advice is what a known law would really save."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.bench.made_up import llama_spec
from legato.bench.record import Record
from legato.cli import waterfall
from legato.core.account import Account, Felt
from legato.core.events import Usage
from legato.measure.advice import Advice, advise, by_kind
from legato.measure.case import Case, Setting
from legato.measure.cost import Role, attention_flops
from legato.measure.explain import LABELS, explain, token_line
from legato.measure.line import Line, fit_line
from legato.measure.machine import AttentionRate, Machine, Sheet
from legato.measure.predict import Predictor, chunks
from legato.measure.step_time import Load, StepCost, StepTimeModel
from legato.measure.visit import Visit
from legato.report.explain import page
from legato.report.page import Bars, Mark, Plot

SPEC = llama_spec(512, heads=8, kv_heads=2, mlp=1024, layers=4, vocab=4096, context=8192, tied=True)
BITS = dict.fromkeys(Role, 8.5)
# Rates of a data sheet, of which 0.8 is assumed to be reached: 40 GB/s; with what only measuring tells.
SHEET = Machine.from_sheet("a machine", memory_gb_s=50.0, tops={8: 1.0, 16: 0.5}, memory_bytes=1 << 34)
MACHINE = replace(
    SHEET, threads=2, read_gb_s={"1": 25.0, "all": 50.0}, int8_tops={"q8_0": {"256": 0.5}}, step_overhead_us=100.0
)

# The hidden law: seconds of a prompt row, of a query-key pair, of a step, of a token of context, of an answer token.
ROW, FLOP, STEP, CONTEXT, TOKEN = 2e-4, 4e-12, 1e-3, 2e-6, 5e-3


def lived(prompt: int, cached: int, tokens: int, kv: str = "int8", noise: float = 0.0, seed: int = 0) -> Case:
    """A request alone on a machine that follows the law exactly, but for noise of its tokens."""
    rng, now = random.Random(seed), 10.001
    account = Account(begun=now)
    chunk = 256
    felt = account.prefill
    for start in range(cached, prompt, chunk):
        length = min(chunk, prompt - start)
        felt.weights, felt.compute = felt.weights + STEP, felt.compute + ROW * length
        felt.kv += FLOP * attention_flops(SPEC, start, length)
        now = 10.001 + felt.seconds
        account.trace.add(now, start + length, int(start + length == prompt), 0.0)
    first, felt = now, account.decode
    for i in range(1, tokens):
        pause = TOKEN * noise * rng.random()
        felt.weights, felt.kv, felt.host = felt.weights + TOKEN, felt.kv + CONTEXT * (prompt + i), felt.host + pause
        now = first + felt.seconds
        account.trace.add(now, prompt + i, 1 + i, 0.0)
    account.num_steps, account.last, account.share = len(account.trace.at), now, now - account.begun
    marks = {"arrived": 10.0005, "scheduled": 10.0009, "first_token": first, "finished": now}
    visit = Visit(lambda: 10.0)
    visit.laps, visit.ended, visit.text = {"template": 2e-4, "tokenise": 2e-4}, now + 1e-4, 1e-4
    usage = Usage(prompt, tokens, cached, 0, marks, None, account)
    return Case(Setting(SPEC, BITS, kv, 2, chunk=chunk), usage, visit, "length")


def advice_of(case: Case) -> dict[str, Advice]:
    return dict(by_kind(advise(case, token_line(case.account.trace))))


def test_parts_add_up_and_what_no_clock_saw_is_named() -> None:
    case = lived(700, 0, 50)
    told = explain(case)
    assert sum(part.ms for part in told.parts) == pytest.approx(told.total_ms)
    assert [part.name for part in told.parts] == list(LABELS)
    by_name = {part.name: part for part in told.parts}
    assert by_name["unexplained"].ms == pytest.approx(0.1)  # 0.5 ms before the engine had it, of which 0.4 have names
    assert by_name["queue"].ms == pytest.approx(0.5) and by_name["stream"].ms == pytest.approx(0.1)
    assert by_name["weights"].ms == pytest.approx(1e3 * TOKEN * 49)
    assert told.explained > 0.999 and sum(part.share for part in told.parts) == pytest.approx(1.0)
    assert all(part.wall_ms is None for part in told.parts)


def test_walls_are_bytes_and_operations_over_what_was_measured() -> None:
    case = lived(700, 0, 51)
    told = explain(replace(case, setting=replace(case.setting, machine=MACHINE, note="")))
    by_name = {part.name: part for part in told.parts}
    weights = by_name["weights"]
    assert weights.wall_ms == pytest.approx(1e3 * weights.figures["bytes"] / 40e9)
    assert weights.wall_ms is not None
    assert weights.share_of_wall == pytest.approx(weights.wall_ms / weights.ms)
    kv_bytes = 4 * 2 * (64 + 64 + 4) * sum(701 + i for i in range(50))  # layers, heads, key + value + scales
    assert by_name["kv"].figures["bytes"] == kv_bytes
    assert by_name["kv"].wall_ms == pytest.approx(1e3 * kv_bytes / 40e9)
    assert by_name["host"].wall_ms == pytest.approx(50 * 0.1)
    assert (by_name["compute"].wall_ms or 0) > 0 and (by_name["prefill_computed"].wall_ms or 0) > 0
    assert by_name["queue"].wall_ms is None and told.machine == "a machine"


@pytest.mark.parametrize("machine", [None, MACHINE])
def test_its_report_has_a_bar_a_part_and_the_wall_where_there_is_one(machine: Machine | None) -> None:
    case = lived(700, 0, 51)
    shown = explain(replace(case, setting=replace(case.setting, machine=machine, note="never calibrated"))).as_json()
    rows = [{k: v for k, v in part.items() if k != "figures"} for part in shown["summary"]["parts"]]
    made = page(Record("explain", "2026-01-01", "", "", None, {}, shown, rows))
    bars, tokens = made.plots
    assert isinstance(bars, Bars) and isinstance(tokens, Plot)
    labels = ["prompt, computed", "decode: reading weights", "decode: keys and values"]
    assert [bar.label for bar in bars.bars if bar.value > 1] == labels
    assert bars.bars[-1].start + bars.bars[-1].value == pytest.approx(shown["summary"]["total_ms"], abs=0.01)
    walls = [series for series in tokens.series if series.mark is Mark.WALL]
    assert len(walls) == (machine is not None) and (machine is not None) != any("walls" in note for note in made.notes)
    if walls:
        told = sum(row["wall_ms"] for row in rows if row["name"] in ("weights", "kv"))
        assert sum(walls[0].y) == pytest.approx(told, rel=1e-3)


def test_the_json_has_the_fields_that_were_promised() -> None:
    shown = explain(lived(40, 16, 8)).as_json()
    assert set(shown) == {"steps", "summary", "advice"}
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    summary = shown["summary"]
    assert (summary["prompt_tokens"], summary["cached_tokens"], summary["output_tokens"]) == (40, 16, 8)
    assert set(summary["fit"]) == {
        "c0_ms",
        "c1_us_per_token",
        "c1_error_us",
        "median_off_ms",
        "points",
        "kv_us_per_token",
    }
    assert len(shown["steps"]) == 8 and sum(step["tokens"] for step in shown["steps"]) == 8
    gaps = [step["ms"] for step in shown["steps"]]
    assert sum(gaps) == pytest.approx(shown["steps"][-1]["at_ms"] - 1.0, abs=1e-3)
    for advice in shown["advice"]:
        assert {"kind", "do", "saves_ms", "share", "of", "figures", "assumed"} == set(advice)


def test_what_the_cache_saved_is_what_the_engine_expected_of_it() -> None:
    case = lived(600, 512, 8)
    model = StepTimeModel(StepCost(1e-3, 2e-4, 1e-5, 1e-6, 1e-7, 1e-4))
    case.account.costs = model.costs
    saved = explain(case).parts[4].figures["saved_ms"]
    assert saved == pytest.approx(1e3 * sum(model.seconds(Load.of_rows(a, a + 256)) for a in (0, 256)))
    assert explain(lived(600, 0, 8)).parts[4].figures == {"tokens": 0, "saved_ms": 0.0}


def test_an_answer_that_never_ran_is_explained_by_what_there_is() -> None:
    visit = Visit(lambda: 5.0)
    visit.ended = 6.0
    usage = Usage(10, 0, 0, 0, {"arrived": 5.0, "finished": 6.0})
    told = explain(Case(Setting(SPEC, BITS, "int8", 2), usage, visit, "abort"))
    assert told.advice == [] and told.line is None and told.steps == []
    assert {part.name: part.ms for part in told.parts}["queue"] == pytest.approx(1000.0)
    assert told.explained == pytest.approx(1.0)
    json.dumps(told.as_json(), allow_nan=False)


# -- the line ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.floats(0.1, 50), st.floats(-1e-2, 1e-1), st.integers(2, 300), st.integers(0, 1000))
def test_the_line_through_exact_points_is_found(c0: float, c1: float, count: int, start: int) -> None:
    x = [float(start + i) for i in range(count)]
    line = fit_line(x, [c0 + c1 * a for a in x])
    assert line is not None
    assert line.c0 == pytest.approx(c0, rel=1e-4, abs=1e-4) and line.c1 == pytest.approx(c1, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_a_few_points_far_off_change_little(seed: int) -> None:
    """Plain least squares (numpy) is pulled away by them; this line is not."""
    rng = random.Random(seed)
    x = [float(500 + i) for i in range(400)]
    y = [4.0 + 2e-3 * a + rng.gauss(0, 0.05) for a in x]
    for i in rng.sample(range(300, 400), 20):
        y[i] += 30.0
    line, plain = fit_line(x, y), np.polyfit(x, y, 1)
    assert line is not None
    assert abs(line.c1 - 2e-3) < 4e-4 < abs(plain[0] - 2e-3)
    assert line.at(700.0) == pytest.approx(5.4, rel=0.02)


def test_no_line_goes_through_one_point() -> None:
    assert fit_line([3.0, 3.0], [1.0, 2.0]) is None
    assert explain(lived(20, 0, 2)).line is None


@pytest.mark.parametrize(
    ("slope", "error", "points", "words"),
    [
        (-36e-3, 10e-3, 19, "cannot make a token cheaper"),
        (-36e-3, 1e-3, 400, "cannot make a token cheaper"),
        (36e-3, 0.0, 2, "2 tokens are too few"),
        (36e-3, 1e-3, 31, "31 tokens are too few"),
        (36e-3, 30e-3, 400, "to tell that slope from none"),
        (36e-3, 1e-3, 32, ""),
    ],
)
def test_a_slope_that_may_be_noise_is_never_told_as_a_fact(slope: float, error: float, points: int, words: str) -> None:
    told = "\n".join(waterfall.told(replace(explain(lived(700, 0, 51)), line=Line(5.5, slope, error, 0.1, points))))
    assert f"{1e3 * slope:+.2f} us x tokens" in told
    assert words in told and ("by attention's own clock it is" in told) == bool(words)


# -- advice, checked by living through it -----------------------------------------------------------------------------


def total_ms(case: Case) -> float:
    return 1e3 * case.total_s


@pytest.mark.parametrize("prompt", [150, 700, 2000, 6000])
@pytest.mark.parametrize("tokens", [2, 40, 400])
def test_a_shorter_prompt_saves_what_was_promised(prompt: int, tokens: int) -> None:
    case = lived(prompt, 0, tokens)
    found = advice_of(case).get("shorter_prompt")
    really = total_ms(case) - total_ms(lived(prompt - 100, 0, tokens))
    if found is None:
        assert really < 0.011 * total_ms(case)
    else:
        assert found.saves_ms == pytest.approx(really, rel=0.15)


@pytest.mark.parametrize(("prompt", "cached", "cut"), [(36, 0, 18), (149, 0, 74), (150, 0, 100), (150, 112, 19)])
def test_a_short_prompt_is_advised_to_be_half_as_long(prompt: int, cached: int, cut: int) -> None:
    found = advice_of(lived(prompt, cached, 12)).get("shorter_prompt")
    assert found is None or (found.figures["tokens"] == cut and f"{prompt - cut} instead of {prompt}" in found.do)
    assert found is not None or cached


@pytest.mark.parametrize("machine", [None, MACHINE])
def test_without_a_cache_the_first_advice_is_to_have_one(machine: Machine | None) -> None:
    """The machine computes prompts by a law; without a cache every token is one."""
    costs = (1e-3, 2e-4, 1e-5, 1e-6, 1e-7, 1e-4)
    predictor = None if machine is None else Predictor(SPEC, BITS, "int8", machine)

    def seconds(start: int, end: int) -> float:
        if predictor is not None:
            return predictor.ttft(end, start, 256).seconds
        return sum(StepTimeModel(StepCost(*costs)).seconds(Load.of_rows(p.start, end)) for p in chunks(start, end, 256))

    prompt, tokens = 100, 40
    naive, once = (sum(seconds(start, at + 1) for start, at in pairs) for pairs in (
        [(0, prompt + i) for i in range(tokens - 1)], [(prompt + i, prompt + i) for i in range(tokens - 1)],
    ))  # fmt: skip
    case = lived(prompt, 0, tokens)
    case.account.costs = costs
    case.account.decode = Felt(compute=naive)
    case = replace(case, setting=replace(case.setting, machine=machine, naive=True))
    first, *others = advise(case, token_line(case.account.trace))
    assert first.kind == "cache" and "leave out --naive" in first.do and f"some {1e3 * once:.1f} ms" in first.do
    assert first.saves_ms == pytest.approx(1e3 * (naive - once))
    assert {a.kind for a in others} == {"max_tokens"}, "nothing that takes a cache for granted"
    told = explain(case)
    assert {p.name for p in told.parts if p.wall_ms is not None} <= {"prefill_computed"}
    assert "no cache (--naive)" in next(waterfall.told(told))
    json.dumps(told.as_json(), allow_nan=False)


@pytest.mark.parametrize("prompt", [150, 2000, 6000])
def test_a_cached_prefix_saves_what_was_promised(prompt: int) -> None:
    case = lived(prompt, 0, 30)
    hit = (prompt - 1) // 16 * 16
    found = advice_of(case)["cached_prefix"]
    assert found.saves_ms == pytest.approx(total_ms(case) - total_ms(lived(prompt, hit, 30)), rel=0.05)
    assert "cached_prefix" not in advice_of(lived(prompt, hit, 30)), "nothing is left to be found"


def test_what_looking_back_takes_by_rows_is_known_from_the_calibration() -> None:
    """A machine on which reading keys, and not their operations, is what looking back takes: less for each token."""
    case = lived(2000, 0, 8)
    bound = replace(SHEET, sheet=Sheet({8: 1e4, 16: 1e4}), read_gb_s={"all": 1.0})
    by_sums, by_rates = (
        advice_of(replace(case, setting=replace(case.setting, machine=machine)))["shorter_prompt"].saves_ms
        for machine in (None, bound)
    )
    rows = 1e3 * ROW * 100 + 7 * 100 * 1e3 * CONTEXT
    assert rows < by_rates < by_sums


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [10, 200])
def test_fewer_tokens_save_what_was_promised(tokens: int, noise: float) -> None:
    case = lived(500, 0, tokens, noise=noise)
    found = advice_of(case)["max_tokens"]
    really = total_ms(case) - total_ms(lived(500, 0, tokens // 2, noise=noise))
    assert found.saves_ms == pytest.approx(really, rel=0.05)


def test_formats_with_fewer_bytes_save_their_share_of_reading() -> None:
    case = lived(6000, 0, 200, kv="bf16")
    offers = [a for a in advise(case, None) if a.kind == "kv_format"]
    assert [a.figures["kv"] for a in offers] == ["int4", "int8"], "the most first"
    kv_ms = 1e3 * case.account.decode.kv
    assert offers[1].saves_ms == pytest.approx(kv_ms * (1 - 132 / 256))
    assert not [a for a in advise(lived(6000, 0, 200, kv="int4"), None) if a.kind == "kv_format"]


def test_formats_save_in_the_prompt_what_the_machine_says() -> None:
    def rate(kv: str, byte: float, prompt_pair: float) -> AttentionRate:
        return AttentionRate(kv, 0.0, 0.0, 0.0, byte, 0.0, prompt_pair)

    machine = replace(SHEET, attention=(rate("bf16", 3e-11, 3e-11), rate("int8", 3e-11, 1e-11)))
    case = lived(6000, 0, 50, kv="bf16")
    case = replace(case, setting=replace(case.setting, machine=machine, kv_formats=("bf16", "int8")))
    found = advice_of(case)["kv_format"]
    first, later = 1e3 * case.account.prefill.kv, 1e3 * case.account.decode.kv
    assert found.saves_ms == pytest.approx(first * 2 / 3 + later * (1 - 132 / 256))


def test_threads_are_advised_only_where_more_were_measured() -> None:
    case = lived(600, 0, 100)
    one = replace(case, setting=replace(case.setting, threads=1, wider=MACHINE))
    found = advice_of(one)["threads"]
    own = case.account.decode.own + case.account.prefill.own
    assert found.figures["decode_left"] == 0.5 and found.saves_ms == pytest.approx(0.5e3 * own)
    slower = replace(MACHINE, threads=1, read_gb_s={"all": 10.0})
    both = replace(one, setting=replace(one.setting, machine=slower))
    assert advice_of(both)["threads"].saves_ms > 1.2 * found.saves_ms, "by what was measured with one thread"
    for setting in (replace(case.setting, wider=MACHINE), case.setting, replace(case.setting, threads=1)):
        assert "threads" not in advice_of(replace(case, setting=setting))


def test_advice_is_sorted_and_small_savings_are_left_out() -> None:
    case = lived(3000, 0, 60)
    case.account.decode.others_prefill, case.account.decode.again = 2.0, 1e-5
    case.visit.ended += 2.0
    case.visit.laps["grammar"] = 0.5
    found = advise(case, token_line(case.account.trace))
    own = [a for a in found if a.of == "latency"]
    assert [a.saves_ms for a in own] == sorted((a.saves_ms for a in own), reverse=True)
    assert all(a.share >= 0.01 and a.figures for a in found)
    kinds = by_kind(found)
    assert kinds["alone"].saves_ms == pytest.approx(2000.5, abs=1.0) and "memory" not in kinds
    assert kinds["same_grammar"].saves_ms == 500.0 and found[-1].kind == "company"


def test_what_was_felt_sums_up() -> None:
    felt = Felt(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert (felt.own, felt.waited, felt.seconds) == (10, 26, 45)
