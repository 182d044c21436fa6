"""The page of `explain`: a waterfall of one request, its tokens' latencies, and what would help.

Knows: that record's rows and settings. Does not know: how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from legato.bench.fits import along
from legato.bench.record import Record
from legato.measure.explain import LABELS
from legato.report.page import Axis, Bar, Bars, Column, Mark, Page, Plot, Series, Table, number

LEAST_MS = 0.05  # a bar for less would show nothing
COLUMNS = (
    Column("part", "part"),
    Column("ms", "time (ms)"),
    Column("share", "share of the request", 3),
    Column("wall_ms", "its wall (ms)"),
    Column("share_of_wall", "wall / time", 3),
)


def page(record: Record) -> Page:
    summary, steps = record.settings["summary"], record.settings["steps"]
    rows = [{**row, "part": LABELS[row["name"]]} for row in record.rows]
    bars, at = [], 0.0
    for row in rows:
        text = f"{number(row['ms'], 3)} ms"
        if row["ms"] >= LEAST_MS or row["name"] == "unexplained":
            bars.append(Bar(row["part"], row["ms"], at, row["wall_ms"], text, row["phase"]))
        at += row["ms"]
    plots: list[Plot | Bars] = [Bars("waterfall", "Where the time went", Axis("since the request came", "ms"), bars)]
    tokens = [step for step in steps if step["tokens"] > 0][1:]
    if len(tokens) > 1:
        plots.append(_latencies(tokens, summary["fit"], _wall(tokens, rows)))
    notes = [_advised(a) for a in record.settings["advice"]]
    if summary["machine"] is None:
        notes.append(f"No share of walls is told: {summary['note']}.")
    if summary["miss"]:
        notes.append(f"Not found in the cache: {summary['miss']}.")
    return Page(
        "One request, millisecond by millisecond", _finding(summary, rows), plots, Table(COLUMNS, rows), tuple(notes)
    )


def _wall(tokens: list[Mapping[str, Any]], rows: list[dict[str, Any]]) -> list[float]:
    """The least milliseconds that reading took for each token: weights alike for all, keys and values by context."""
    walls = {row["name"]: row["wall_ms"] for row in rows}
    if walls["weights"] is None:
        return []
    count, seen = sum(step["tokens"] for step in tokens), sum(step["tokens"] * step["context"] for step in tokens)
    return [walls["weights"] / count + walls["kv"] * step["context"] / seen for step in tokens]


def _latencies(tokens: list[Mapping[str, Any]], fit: Mapping[str, Any] | None, wall: list[float]) -> Plot:
    x = [step["context"] for step in tokens]
    series = [Series("each token", x, [step["ms"] / step["tokens"] for step in tokens], mark=Mark.CURVE)]
    if any(step["waited_ms"] > 0 for step in tokens):
        own = [(step["ms"] - step["waited_ms"]) / step["tokens"] for step in tokens]
        series.append(Series("without what others took", x, own, mark=Mark.CURVE))
    if fit is not None:
        places = along(x[0], x[-1])
        name = f"fitted: {fit['c0_ms']:.3g} ms {fit['c1_us_per_token']:+.3g} us x tokens"
        line = [fit["c0_ms"] + fit["c1_us_per_token"] / 1e3 * at for at in places]
        series.append(Series(name, places, line, mark=Mark.FIT))
    if wall:
        series.append(Series("wall: reading what a step needs", x, wall, mark=Mark.WALL))
    return Plot(
        "tokens",
        "Each token, by the tokens before it",
        Axis("context", "tokens", from_zero=False),
        Axis("time", "ms"),
        series,
    )


def _finding(summary: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    most = max(rows, key=lambda row: row["ms"])
    return (
        f"{number(summary['output_tokens'])} tokens after {number(summary['prompt_tokens'])} of prompt took "
        f"{number(summary['total_ms'], 4)} ms; most of it, {100 * most['share']:.0f} %, was {most['part']}."
    )


def _advised(advice: Mapping[str, Any]) -> str:
    whose = "" if advice["of"] == "latency" else " of the machine's time"
    assumed = f" (if {advice['assumed']})" if advice["assumed"] else ""
    return f"{number(advice['saves_ms'], 3)} ms{whose} less: {advice['do']}{assumed}."
