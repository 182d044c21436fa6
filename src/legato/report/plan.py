"""The page of `plan`: a token's time against context, speed against users, and memory.

Knows: that record's rows (one a number of users) and the plan in its settings. Does not know: how a plan is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from legato.bench.record import Record
from legato.report.page import Axis, Bar, Bars, Column, Mark, Page, Plot, Series, Table, number

GIB = 2**30
COLUMNS = (
    Column("users", "users at once"),
    Column("fits", "fits"),
    Column("itl_ms", "a token (ms)"),
    Column("itl_low", "at least (ms)"),
    Column("itl_high", "at most (ms)"),
    Column("tok_s", "all users (tokens/s)"),
    Column("ttft_ms", "first token (ms)"),
    Column("output_price", "a million tokens of answer (price)", 3),
)


def page(record: Record) -> Page:
    plan = record.settings["plan"]
    rows = [_flat(row) for row in sorted(record.rows, key=lambda row: row["users"])]
    notes = (plan["why_output_costs_more"], *plan["notes"], _source(plan))
    model = "/".join(plan["model"].split("/")[-2:])  # of a long path its end
    where = f"{model} on {plan['machine']}"
    plots = (_pace(plan, where), _throughput(rows, where), _memory(plan, where))
    return Page(f"Plan: {where}", _finding(plan), plots, Table(COLUMNS, rows), notes, done="predicted")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["ranges"]["itl_ms"]
    return {**row, "itl_low": low, "itl_high": high, "fits": "yes" if row["fits"] else "no"}


def _finding(plan: Mapping[str, Any]) -> str:
    users = "one user" if plan["users"] == 1 else f"{plan['users']:,} users"
    low, high = plan["ranges"]["itl_ms"]
    fits = {True: "It fits", False: "It does not fit", None: "Whether it fits is not known"}[plan["fits"]]
    return (
        f"{fits}: {number(plan['weights_bytes'] / GIB)} GiB of weights and {number(plan['kv_bytes'] / GIB)} GiB of "
        f"keys and values for {users} of {plan['context']:,} tokens; a token every {number(plan['itl_ms'], 3)} ms "
        f"({number(low, 3)} to {number(high, 3)}), the first after {number(plan['ttft_ms'] / 1000, 3)} s."
    )


def _pace(plan: Mapping[str, Any], where: str) -> Plot:
    at, ranges = plan["itl_ms_at"], plan["ranges"]["itl_ms_at"]
    depths = [int(depth) for depth in at]
    ends = [[ranges[depth][i] for depth in at] for i in (0, 1)]
    return Plot(
        "pace",
        f"Time a token, as the context grows: {where}",
        Axis("context", "tokens"),
        Axis("time a token", "ms"),
        (
            Series("expected", depths, list(at.values())),
            Series("low", depths, ends[0], mark=Mark.FIT, group="interval"),
            Series("high", depths, ends[1], mark=Mark.FIT, group="interval"),
        ),
    )


def _throughput(rows: Sequence[Mapping[str, Any]], where: str) -> Plot:
    series = []
    for name, fits in (("fits in memory", "yes"), ("does not fit", "no")):
        some = [row for row in rows if row["fits"] == fits]
        if some:
            times, speeds = [row["itl_ms"] for row in some], [row["tok_s"] for row in some]
            series.append(Series(name, times, speeds, labels=[f"{row['users']:,}" for row in some]))
    return Plot(
        "users",
        f"By users at once (labels): {where}",
        Axis("time a token", "ms", log=True),
        Axis("all users", "tokens/s", log=True),
        series,
    )


def _memory(plan: Mapping[str, Any], where: str) -> Bars:
    weights, kept = plan["weights_bytes"] / GIB, plan["kv_bytes"] / GIB
    bars = [
        Bar("weights", weights, text=f"{number(weights)} GiB"),
        Bar("keys and values", kept, start=weights, text=f"{number(kept)} GiB"),
    ]
    if plan["usable_bytes"] is not None:
        there = plan["usable_bytes"] / GIB
        bars.append(Bar("there is", there, text=f"{number(there)} GiB"))
    return Bars("memory", f"Memory: {where}", Axis("memory", "GiB"), bars)


def _source(plan: Mapping[str, Any]) -> str:
    how = {
        "calibrated": "Rates were measured on this machine by legato calibrate.",
        "data sheet": "Rates are usual parts of what a maker's data sheet promises: nobody measured them.",
        "not calibrated": "Rates are a guess for a machine with as many cores: run legato calibrate.",
    }
    return how[plan["machine_kind"]]
