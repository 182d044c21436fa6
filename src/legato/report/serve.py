"""The page of `bench serve`: what a server gives at one load or several.

Knows: that record's rows. Does not know: how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from legato.bench.record import Record
from legato.bench.serve_metrics import QUANTILES
from legato.report.bill import bill_columns
from legato.report.page import Axis, Column, Mark, Page, Plot, Series, Table, number

COLUMNS = (
    Column("load", "load"),
    Column("out_tok_s", "output (tokens/s)"),
    Column("request_s", "answers (1/s)"),
    Column("goodput", "goodput (1/s)"),
    Column("ttft_p50", "TTFT p50 (ms)"),
    Column("ttft_p99", "TTFT p99 (ms)"),
    Column("itl_p50", "ITL p50 (ms)"),
    Column("itl_p99", "ITL p99 (ms)"),
    Column("itl_max", "ITL max (ms)"),
    Column("tpot_p50", "TPOT p50 (ms)"),
    Column("e2e_p50", "E2E p50 (ms)"),
    Column("completed", "whole answers"),
    Column("failed", "failed"),
    Column("lag_p99", "generator's lag p99 (ms)"),
)


def page(record: Record) -> Page:
    rows = [{**row, "at": row["concurrency"] if row["rate"] is None else row["rate"]} for row in record.rows]
    rows.sort(key=lambda row: row["at"])
    open_load = rows[0]["rate"] is not None
    load = Axis("load", "requests sent a second" if open_load else "requests at once")
    names = [f"{row['at']:g} {'a second' if open_load else 'at once'}" for row in rows]
    plots = [
        _distribution(rows, names, "itl_ms", "itl", "gaps between chunks"),
        _distribution(rows, names, "ttft_ms", "ttft", "times to the first token"),
    ]
    if len(rows) > 1:
        latencies = [_latency(rows, load, key, word) for key, word in (("itl_ms", "ITL"), ("ttft_ms", "TTFT"))]
        plots = [_throughput(rows, load), *latencies, *plots]
    settings = record.settings
    return Page(
        f"Load on {settings.get('model', 'a server')}",
        _finding(rows, names),
        plots,
        Table(
            (*COLUMNS, *bill_columns(rows)),
            [_flat(row, name) for row, name in zip(rows, names, strict=True)],
        ),
        (
            *(f"{name}: {text}." for name, text in settings.get("formulas", {}).items()),
            f"{settings.get('prompt')} prompt tokens ({settings.get('prompt_length')}), "
            f"{settings.get('decode')} tokens an answer, {settings.get('requests')} requests a level, "
            f"at {settings.get('endpoint')}.",
            "The generator's lag is how late its own event loop woke; latencies of that size are its own.",
        ),
    )


def _throughput(rows: Sequence[Mapping[str, Any]], load: Axis) -> Plot:
    at = [row["at"] for row in rows]
    made = Series("output", at, [row["out_tok_s"] for row in rows])
    return Plot(
        "throughput", "Output of all streams together, as load grows", load, Axis("output", "tokens/s"), (made,)
    )


def _latency(rows: Sequence[Mapping[str, Any]], load: Axis, key: str, word: str) -> Plot:
    at = [row["at"] for row in rows]
    series = [Series(p, at, [row[key][p] for row in rows]) for p in ("p50", "p90", "p99")]
    return Plot(f"{word.lower()}-load", f"{word} as load grows", load, Axis(word, "ms"), series)


def _distribution(rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str, name: str, words: str) -> Plot:
    """The share of values up to each, a curve a level."""
    series = [
        Series(label, row["quantiles"][key], list(QUANTILES), mark=Mark.CURVE)
        for row, label in zip(rows, names, strict=True)
        if row["quantiles"][key]
    ]
    title = f"How the {words} are spread"
    return Plot(f"{name}-spread", title, Axis(name.upper(), "ms"), Axis("not longer", "% of them"), series)


def _flat(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    spreads = {"ttft": row["ttft_ms"], "itl": row["itl_ms"], "tpot": row["tpot_ms"], "e2e": row["e2e_ms"]}
    flat = {f"{word}_{p}": spread[p] for word, spread in spreads.items() for p in ("p50", "p99", "max")}
    lag = row["generator"]["lag_ms"]["p99"]
    return {**row, **flat, "load": name, "failed": row["requests"] - row["completed"], "lag_p99": lag}


def _finding(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    first, last = rows[0], rows[-1]
    if len(rows) == 1:
        return (
            f"At {names[0]} the server writes {number(first['out_tok_s'], 3)} tokens/s; the first token comes after "
            f"{number(first['ttft_ms']['p50'], 3)} ms (p99 {number(first['ttft_ms']['p99'], 3)} ms), the next ones "
            f"{number(first['itl_ms']['p50'], 3)} ms apart (p99 {number(first['itl_ms']['p99'], 3)} ms)."
        )
    growth = last["out_tok_s"] / first["out_tok_s"] if first["out_tok_s"] else 0.0
    return (
        f"From {names[0]} to {names[-1]} the output goes from {number(first['out_tok_s'], 3)} to "
        f"{number(last['out_tok_s'], 3)} tokens/s, {number(growth, 3)} times as much; the median gap between a "
        f"stream's tokens goes from {number(first['itl_ms']['p50'], 3)} to {number(last['itl_ms']['p50'], 3)} ms, its "
        f"p99 from {number(first['itl_ms']['p99'], 3)} to {number(last['itl_ms']['p99'], 3)} ms."
    )
