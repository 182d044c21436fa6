"""The page of `bench prefill`: what a first token takes as prompts grow, the quadratic part made visible.

Knows: that record's rows. Does not know: how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from legato.bench.fits import Fit, along, fit_rising
from legato.bench.record import Record
from legato.report.page import Axis, Column, Mark, Page, Plot, Series, Table, number

COLUMNS = (
    Column("prompt", "prompt (tokens)"),
    Column("ttft_ms", "first token (ms)"),
    Column("ttft_std_ms", "± (ms)", 2),
    Column("prompt_tok_s", "prompt (tokens/s)"),
    Column("attention_share", "looking back (share of work)", 2),
    Column("linear_flops", "operations of products", on_page=False),
    Column("attention_flops", "operations of looking back", on_page=False),
    Column("wall_ms", "wall (ms)"),
    Column("share_of_wall", "wall / measured", 3),
    Column("read_gb_s", "memory read (GB/s)", 3),
)
MEASURED = "measured"
AXIS = Axis("prompt", "tokens")


def page(record: Record) -> Page:
    rows = sorted(record.rows, key=lambda row: row["prompt"])
    lengths = [row["prompt"] for row in rows]
    parabola = fit_rising(lengths, [row["ttft_ms"] for row in rows], 2, relative=True)
    return Page(
        "Prefill: time to the first token against the prompt's length",
        _finding(rows, parabola),
        (_time(rows, lengths, parabola), _each(rows, lengths, parabola)),
        Table(COLUMNS, rows),
        _notes(rows, parabola),
    )


def _time(rows: Sequence[Mapping[str, Any]], lengths: Sequence[int], parabola: Fit) -> Plot:
    series = [Series(MEASURED, lengths, [row["ttft_ms"] for row in rows], [row["ttft_std_ms"] for row in rows])]
    if len(parabola.costs) > 2 and parabola.costs[2] > 0:
        places = along(lengths[0], lengths[-1])
        straight = Fit(parabola.costs[:2], 1.0)
        series += [
            Series(f"fitted: {_formula(parabola)}", places, parabola.over(places), None, Mark.FIT, MEASURED),
            Series(
                "its straight part",
                places,
                straight.over(places),
                None,
                Mark.FIT,
            ),
        ]
    series.append(
        Series("wall: its products at their best rate", lengths, [row["wall_ms"] for row in rows], None, Mark.WALL)
    )
    return Plot("ttft", "Time to the first token", AXIS, Axis("time to first token", "ms"), series)


def _each(rows: Sequence[Mapping[str, Any]], lengths: Sequence[int], parabola: Fit) -> Plot:
    series = [
        Series(
            MEASURED,
            lengths,
            [row["ttft_ms"] / row["prompt"] for row in rows],
            [row["ttft_std_ms"] / row["prompt"] for row in rows],
        )
    ]
    if len(parabola.costs) > 2:
        places = along(lengths[0], lengths[-1], 200)
        series.append(Series("fitted", places, [parabola(x) / x for x in places], None, Mark.FIT, MEASURED))
    series.append(Series("wall", lengths, [row["wall_ms"] / row["prompt"] for row in rows], None, Mark.WALL))
    return Plot("each", "The same, for each token of the prompt", AXIS, Axis("time a prompt token", "ms"), series)


def _formula(parabola: Fit) -> str:
    start, slope, square = (*parabola.costs, 0.0, 0.0)[:3]
    return f"{number(start, 3)} ms + {number(1e3 * slope, 3)} ms n/1,000 + {number(1e6 * square, 3)} ms (n/1,000)²"


def _finding(rows: Sequence[Mapping[str, Any]], parabola: Fit) -> str:
    first, last = rows[0], rows[-1]
    text = (
        f"The first token after a prompt of {number(last['prompt'])} tokens takes {_seconds(last['ttft_ms'])} "
        f"({number(last['prompt_tok_s'], 3)} tokens/s)"
    )
    if last is first:
        return f"{text}, {100 * last['share_of_wall']:.0f} % of the speed that this machine's products allow."
    text += f", after {_seconds(first['ttft_ms'])} at {number(first['prompt'])}"
    if len(parabola.costs) > 2 and parabola.costs[2] > 0:
        share = 100 * parabola.costs[2] * last["prompt"] ** 2 / last["ttft_ms"]
        text += f"; {share:.0f} % of it grows with the square of the length"
    return text + "."


def _seconds(ms: float) -> str:
    return f"{number(ms / 1e3, 3)} s" if ms >= 1e3 else f"{number(ms, 3)} ms"


def _notes(rows: Sequence[Mapping[str, Any]], parabola: Fit) -> list[str]:
    last = rows[-1]
    tops = last["product_tops"]
    rate = f", {number(tops, 3)} · 10¹² operations/s" if tops else ""
    return [
        f"One prompt at a time, random tokens, nothing cached; the median of {last['runs']} runs and their standard "
        "deviation.",
        f"What lies between the fitted curve and its straight part grows with the square of the length: products take "
        "operations in proportion to the length, looking back (causal attention) with its square: "
        f"{100 * last['attention_share']:.1f} % of all operations at {number(last['prompt'])} tokens. R² of the fitted "
        f"parabola: {parabola.r2:.5f}.",
        f"The wall is the prompt's matrix products at the best rate that large ones reach here{rate}, or reading the "
        "weights once where that takes longer; looking back is not in it.",
    ]
