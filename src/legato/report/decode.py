"""The page of `bench decode`: what a token takes as its context grows.

Knows: that record's rows. Does not know: how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from legato.bench.fits import Fit, along, fit
from legato.bench.record import Record
from legato.report.bill import bill_columns
from legato.report.page import Axis, Column, Mark, Page, Plot, Series, Table, number

COLUMNS = (
    Column("depth", "context (tokens)"),
    Column("decode_ms", "a token (ms)"),
    Column("decode_tok_s", "decode (tokens/s)"),
    Column("wall_ms", "wall (ms)"),
    Column("share_of_wall", "wall / measured", 3),
    Column("read_gb_s", "memory read (GB/s)", 3),
    Column("bytes_per_step", "bytes a step"),
    Column("host_share", "outside kernels (share)", 2),
    Column("ttft_ms", "first token (ms)"),
    Column("prefill_tok_s", "prompt (tokens/s)"),
)


def page(record: Record) -> Page:
    rows = sorted(record.rows, key=lambda row: row["depth"])
    depths = [row["depth"] for row in rows]
    measured, wall = [row["decode_ms"] for row in rows], [row["wall_ms"] for row in rows]
    line = fit(depths, measured, 1)
    places = along(depths[0], depths[-1])
    series = [
        Series("measured", depths, measured),
        Series("wall: reading what a step needs", depths, wall, mark=Mark.WALL),
    ]
    if len(depths) > 2:
        series.insert(
            1, Series(f"fitted: {_formula(line)}", places, line.over(places), mark=Mark.FIT, group="measured")
        )
    pace = Plot("pace", "Time a token, as the context grows", _context(), Axis("time a token", "ms"), series)
    speed = Plot(
        "reading",
        "Bytes that each step must read, over the time it takes",
        _context(),
        Axis("read", "GB/s"),
        (
            Series("achieved", depths, [row["bytes_per_step"] / row["decode_ms"] / 1e6 for row in rows]),
            Series("wall: memory's speed beside the steps", depths, [row["read_gb_s"] for row in rows], mark=Mark.WALL),
        ),
    )
    return Page(
        "Decode: time a token against context",
        _finding(rows, line),
        (pace, speed),
        Table((*COLUMNS, *bill_columns(rows)), rows),
        (
            "One user. A step reads every weight once, and the keys and values of all tokens before it; the wall is "
            "those bytes at the speed at which this machine read memory right before and after the steps, in the "
            "kernels' own pattern.",
            "The time is the median step of each depth; tokens/s is taken over all of them.",
        ),
    )


def _context() -> Axis:
    return Axis("context", "tokens")


def _formula(line: Fit) -> str:
    return f"{number(line.costs[0], 3)} ms + {number(1000 * line.costs[1], 3)} ms a 1,000 tokens"


def _finding(rows: Sequence[Mapping[str, Any]], line: Fit) -> str:
    first, last = rows[0], rows[-1]
    shares = [100 * row["share_of_wall"] for row in rows]
    walls = (
        f"{min(shares):.0f}" if round(min(shares)) == round(max(shares)) else f"{min(shares):.0f} to {max(shares):.0f}"
    )
    if len(rows) == 1:
        return (
            f"At {number(first['depth'])} tokens of context a token takes {number(first['decode_ms'], 3)} ms, "
            f"{walls} % of what this machine's memory allows."
        )
    return (
        f"A token takes {number(first['decode_ms'], 3)} ms at {number(first['depth'])} tokens of context and "
        f"{number(last['decode_ms'], 3)} ms at {number(last['depth'])}, {number(1000 * line.costs[1], 3)} ms more a "
        f"1,000 tokens; that is {walls} % of the speed that this machine's memory allows."
    )
