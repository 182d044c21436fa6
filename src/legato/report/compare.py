"""The page of `bench compare`: our engine beside others, on the same work.

Knows: that record's rows. Does not know: how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from legato.bench.compare import OURS
from legato.bench.record import Record
from legato.report.page import Axis, Bar, Bars, Column, Page, Plot, Series, Table, number

COLUMNS = (
    Column("work", "work"),
    Column("engine", "engine"),
    Column("version", "version"),
    Column("prefill_tok_s", "prompt (tokens/s)"),
    Column("decode_tok_s", "decode (tokens/s)"),
    Column("out_tok_s", "batch output (tokens/s)"),
    Column("prefill_ratio", "ours / theirs, prompt", 3),
    Column("decode_ratio", "ours / theirs, decode", 3),
    Column("out_ratio", "ours / theirs, batch", 3),
)


def page(record: Record) -> Page:
    rows = record.rows
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    depths = [row for row in rows if row["what"] == "depth"]
    batches = [row for row in rows if row["what"] == "batch"]
    plots: list[Plot | Bars] = []
    if depths:
        plots += [
            _by_depth(depths, engines, "decode_tok_s", "decode", "Tokens of one stream, as its context grows"),
            _by_depth([r for r in depths if r["depth"]], engines, "prefill_tok_s", "prompt", "Reading a prompt"),
        ]
    if batches:
        size = f"{batches[0]['n']} requests of {batches[0]['prompt']} + {batches[0]['decode']} tokens at once"
        bars = [Bar(row["engine"], row["out_tok_s"], group=row["engine"]) for row in batches]
        plots.append(Bars("batch", size, Axis("output", "tokens/s"), bars))
    busy = [turn["busy"] for turn in record.settings.get("turns", ()) if turn["busy"] is not None]
    load = f"at most {number(max(busy), 2)} cores were used by others before a turn" if busy else "not told here"
    return Page(
        "Engines in turn, on the same work",
        _finding(rows),
        plots,
        Table(COLUMNS, [_flat(row) for row in rows]),
        (
            "Each turn is a process of its own, with the same number of threads; figures are medians over the rounds. "
            f"Load of the machine: {load}.",
            "Each engine reads the model from the file that suits it, so their weights may differ in format.",
        ),
    )


def _by_depth(rows: Sequence[Mapping[str, Any]], engines: Sequence[str], key: str, name: str, title: str) -> Plot:
    series = []
    for engine in engines:
        own = sorted((row for row in rows if row["engine"] == engine), key=lambda row: row["depth"])
        if own:
            series.append(Series(engine, [row["depth"] for row in own], [row[key] for row in own]))
    return Plot(name, title, Axis("context", "tokens"), Axis(name, "tokens/s"), series)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    one = row["what"] == "depth"
    work = f"depth {row['depth']:,}" if one else f"{row['n']} x ({row['prompt']} in, {row['decode']} out)"
    ratios = {k.removesuffix("_tok_s") + "_ratio": v for k, v in row.get("ours_over_theirs", {}).items()}
    return {**row, **ratios, "work": work}


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    others = [row for row in rows if row["engine"] != OURS and row.get("ours_over_theirs")]
    if not others:
        return "No other engine was measured beside ours."
    ratios = [value for row in others for value in row["ours_over_theirs"].values()]
    names = ", ".join(dict.fromkeys(row["engine"] for row in others))
    ahead = sum(ratio > 1 for ratio in ratios)
    return (
        f"Beside {names}, ours is {number(min(ratios), 3)} to {number(max(ratios), 3)} times as fast; it is ahead in "
        f"{ahead} of {len(ratios)} comparisons."
    )
