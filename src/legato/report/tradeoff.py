"""The page of `bench tradeoff`: latency against throughput over batch sizes.

Knows: that record's rows. Does not know: how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from legato.bench.record import Record
from legato.report.page import Axis, Column, Mark, Page, Plot, Series, Table, number

COLUMNS = (
    Column("batch", "streams"),
    Column("itl_ms", "between tokens (ms)"),
    Column("itl_p99_ms", "p99 (ms)"),
    Column("out_tok_s", "all streams (tokens/s)"),
    Column("tok_s_each", "each (tokens/s)"),
    Column("wall_ms", "wall (ms)"),
    Column("share_of_wall", "wall / measured", 3),
    Column("bytes_per_step", "bytes a step"),
    Column("read_gb_s", "memory read (GB/s)", 3),
    Column("context", "context (tokens)"),
    Column("steps", "steps", on_page=False),
)


def page(record: Record) -> Page:
    rows = sorted(record.rows, key=lambda row: row["batch"])
    return Page(
        "Latency against throughput, over batch sizes",
        _finding(rows),
        (_tradeoff(rows), _throughput(rows)),
        Table(COLUMNS, rows),
        _notes(rows),
    )


def _of(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows]


def _tradeoff(rows: Sequence[Mapping[str, Any]]) -> Plot:
    together = [1e3 * row["batch"] / row["itl_ms"] for row in rows]
    streams = [str(row["batch"]) for row in rows]
    series = (
        Series("median step, and its number of streams", together, _of(rows, "itl_ms"), labels=streams),
        Series("wall: below and right is out of reach", _of(rows, "wall_tok_s"), _of(rows, "wall_ms"), None, Mark.WALL),
    )
    return Plot(
        "tradeoff",
        "What each stream waits, for what all get together",
        Axis("throughput of all streams", "tokens/s"),
        Axis("time between two tokens", "ms"),
        series,
    )


def _throughput(rows: Sequence[Mapping[str, Any]]) -> Plot:
    batches, alone = _of(rows, "batch"), rows[0]["out_tok_s"] / rows[0]["batch"]
    most = 1.1 * max(*_of(rows, "out_tok_s"), *_of(rows, "wall_tok_s"))
    shown = min(batches[-1], most / alone)  # beyond it, it would only press the others flat
    series = (
        Series("measured", batches, _of(rows, "out_tok_s")),
        Series("as many times one stream's", [0, shown], [0.0, alone * shown], None, Mark.FIT),
        Series("wall", batches, _of(rows, "wall_tok_s"), None, Mark.WALL),
    )
    return Plot(
        "throughput",
        "Tokens a second of all streams",
        Axis("streams in each step", "number"),
        Axis("throughput of all streams", "tokens/s"),
        series,
    )


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    first, last = rows[0], max(rows, key=lambda row: row["out_tok_s"])
    if first is last:
        return f"{_streams(first)}: {_pace(first)}, {100 * first['share_of_wall']:.0f} % of this machine's wall."
    return (
        f"{_streams(last)} get {last['out_tok_s'] / first['out_tok_s']:.1f} times the tokens of {_streams(first)} "
        f"({_pace(last)}, against {_pace(first)}); each waits {last['itl_ms'] / first['itl_ms']:.1f} times as long for "
        "a token."
    )


def _streams(row: Mapping[str, Any]) -> str:
    return f"{row['batch']} streams" if row["batch"] > 1 else "1 stream"


def _pace(row: Mapping[str, Any]) -> str:
    return f"{number(row['out_tok_s'], 3)} tokens/s at {number(row['itl_ms'], 3)} ms a token"


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    tops = rows[0]["product_tops"]
    products = (
        f", or its matrix products at {number(tops, 3)} · 10¹² operations/s where that takes longer" if tops else ""
    )
    return [
        f"Streams of {number(rows[0]['depth'])} tokens each that share nothing; only steps are counted in which all of "
        "them decode and no prompt is read. A step gives each stream one token, so its time is the time between two "
        "tokens.",
        f"The wall: a step's bytes (weights once, each stream's keys and values) at the speed at which memory was read "
        f"before and after{products}. More streams share the reading of weights, until products or keys and values "
        "take over.",
    ]
