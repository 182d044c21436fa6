"""The page of `bench cache`: what a KV cache is worth, and how that grows with the answer's length.

Knows: that record's row and its curve. Does not know: how it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from legato.bench.fits import Fit
from legato.bench.record import Record
from legato.report.page import Axis, Column, Mark, Page, Plot, Series, Table, number

WITH, WITHOUT = "with cache", "without cache"
COLUMNS = (
    Column("tokens", "new tokens"),
    Column("with_s", "with cache (s)"),
    Column("with_std_s", "± (s)", 2),
    Column("without_s", "without (s)"),
    Column("without_std_s", "± (s)", 2),
    Column("ratio", "without / with", 3),
    Column("ratio_by_sums", "the sums say", 3),
    Column("with_wall_s", "wall with (s)", 3),
    Column("without_wall_s", "wall without (s)", 3),
)


def page(record: Record) -> Page:
    [row] = record.rows
    curve: list[Mapping[str, Any]] = row["curve"]
    return Page(
        "What a KV cache is worth",
        _finding(row, curve),
        (_seconds(row, curve), _ratio(curve), _each_token(row, curve)),
        Table(COLUMNS, curve, most=12),
        _notes(row),
    )


def _column(curve: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [point[key] for point in curve]


def _tokens() -> Axis:
    return Axis("length of the answer", "tokens")


def _fit(row: Mapping[str, Any], name: str) -> Fit:
    return Fit(tuple(row["fits"][name]["costs_s"]), row["fits"][name]["r2"])


def _seconds(row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> Plot:
    lengths = _column(curve, "tokens")
    line, parabola = _fit(row, "with_linear"), _fit(row, "without_quadratic")
    square = f" + {number(1e6 * parabola.costs[2], 3)} s (n/1,000)²" if len(parabola.costs) > 2 else ""
    slopes = [number(1000 * f.costs[1], 3) if len(f.costs) > 1 else "0" for f in (line, parabola)]
    series = [
        Series(WITHOUT, lengths, _column(curve, "without_s"), _column(curve, "without_std_s"), Mark.CURVE),
        Series(f"{slopes[1]} s n/1,000{square}", lengths, parabola.over(lengths), None, Mark.FIT, WITHOUT),
        Series(WITH, lengths, _column(curve, "with_s"), _column(curve, "with_std_s"), Mark.CURVE),
        Series(f"{slopes[0]} s n/1,000", lengths, line.over(lengths), None, Mark.FIT, WITH),
        Series("wall without cache", lengths, _column(curve, "without_wall_s"), None, Mark.WALL, WITHOUT),
        Series("wall with cache", lengths, _column(curve, "with_wall_s"), None, Mark.WALL, WITH),
    ]
    return Plot("seconds", "Time until the nth new token", _tokens(), Axis("time since the start", "s"), series)


def _ratio(curve: Sequence[Mapping[str, Any]]) -> Plot:
    lengths = _column(curve, "tokens")
    series = (
        Series("measured", lengths, _column(curve, "ratio"), None, Mark.CURVE),
        Series(
            "as the closed-form sums say",
            lengths,
            _column(curve, "ratio_by_sums"),
            None,
            Mark.FIT,
            "measured",
        ),
        Series("equal", [lengths[0], lengths[-1]], [1.0, 1.0], None, Mark.WALL),
    )
    return Plot(
        "ratio",
        "How many times as long it takes without a cache",
        _tokens(),
        Axis("time without / time with", "ratio"),
        series,
    )


def _each_token(row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> Plot:
    """Slopes of the curves: what each token takes."""
    pairs = list(pairwise(curve)) or [({"tokens": 0, "with_s": 0.0, "without_s": 0.0}, curve[0])]
    middle = [(a["tokens"] + b["tokens"]) / 2 for a, b in pairs]
    series = [
        Series(
            name, middle, [1e3 * (b[key] - a[key]) / (b["tokens"] - a["tokens"]) for a, b in pairs], None, Mark.CURVE
        )
        for name, key in ((WITHOUT, "without_s"), (WITH, "with_s"))
    ]
    return Plot("token", "What each further token takes", _tokens(), Axis("time a token", "ms"), series)


def _finding(row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> str:
    within, without = row["with"], row["without"]
    halfway = curve[(len(curve) - 1) // 2]
    text = (
        f"{number(row['tokens'])} new tokens take {_spread(within)} with a KV cache and {_spread(without)} without: "
        f"{row['ratio']:.1f} times as long"
    )
    if len(curve) > 7:
        text += f", after {halfway['ratio']:.1f} times at {number(halfway['tokens'])} tokens"
    return text + "."


def _spread(spread: Mapping[str, Any]) -> str:
    return f"{number(spread['mean_s'], 3)} s ± {number(spread['std_s'], 2)} s"


def _notes(row: Mapping[str, Any]) -> list[str]:
    within, without = row["positions"]["with"], row["positions"]["without"]
    line, parabola = row["fits"]["with_linear"], row["fits"]["without_quadratic"]
    last = row["curve"][-1]
    error = 100 * (last["ratio_by_sums"] / last["ratio"] - 1)
    notes = [
        f"Greedy, {number(row['prompt_tokens'])} prompt tokens, {row['runs']} runs each way in turn; mean and sample "
        f"standard deviation. {_agreement(row)}",
        f"Without a cache every token computes all before it again: {number(without)} positions, the sum of "
        f"{number(row['prompt_tokens'])} to {number(row['prompt_tokens'] + row['tokens'] - 1)}, in place of "
        f"{number(within)}. Time therefore grows with the square of the length (R² of the parabola: "
        f"{parabola['r2']:.5f}), and along a line with a cache (R²: {line['r2']:.5f}).",
    ]
    if len(row["curve"]) >= 8:
        notes.append(
            "What a step, a row and a comparison of two positions cost was fitted to the first half of the tokens; the "
            f"closed-form sums then say a ratio of {last['ratio_by_sums']:.2f} at the end, {error:+.1f} % from the "
            "measured one."
        )
    tops = row["product_tops"]
    products = f" or its matrix products at {number(tops, 3)} · 10¹² operations/s, whichever is longer" if tops else ""
    notes.append(
        f"The walls: each step's bytes read at {number(row['read_gb_s'], 3)} GB/s{products}; both measured here."
    )
    return notes


def _agreement(row: Mapping[str, Any]) -> str:
    place = row["first_difference"]
    return "All runs wrote the same tokens." if place is None else f"The answers differ from new token {place} on."
