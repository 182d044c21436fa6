"""Draws a plot with matplotlib: as SVG that takes its colours from the page around it, and as PNG.

Knows: figures, colours by name, what matplotlib writes. Does not know: pages, experiments, files.

Colours go into a figure as the light page's values and come out of the SVG as CSS variables, so that one drawing serves
light and dark; `PALETTE` has both values of each.
"""

from __future__ import annotations

import importlib.util
import io
import re
import textwrap
from typing import TYPE_CHECKING, Any

from legato.report.page import Axis, Bar, Bars, Mark, Plot, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOW_TO_DRAW = "plots need matplotlib: pip install 'legato[bench]'"

# name -> (on light, on dark); the first are for series, told apart also by people who see fewer colours
PALETTE: dict[str, tuple[str, str]] = {
    "series-1": ("#0b5fa5", "#6db3f2"),
    "series-2": ("#c2410c", "#ff9a5c"),
    "series-3": ("#0f766e", "#4fd1b5"),
    "series-4": ("#86329a", "#dd9cf0"),
    "series-5": ("#7a6200", "#e3c341"),
    "ink": ("#1f2328", "#e8eaed"),
    "dim": ("#5b626b", "#a3abb5"),
    "grid": ("#dfe3e8", "#343b44"),
    "paper": ("#fefefe", "#15181d"),
}
_SERIES = [name for name in PALETTE if name.startswith("series-")]
_LIGHT = {name: light for name, (light, _) in PALETTE.items()}
WIDTH, HEIGHT, BAR_HEIGHT, LEGEND_LINE = 7.6, 3.8, 0.38, 0.22  # inches
_SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",
    "axes.edgecolor": _LIGHT["dim"],
    "axes.facecolor": _LIGHT["paper"],
    "axes.labelcolor": _LIGHT["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": _LIGHT["paper"],
    "grid.color": _LIGHT["grid"],
    "text.color": _LIGHT["ink"],
    "xtick.color": _LIGHT["dim"],
    "ytick.color": _LIGHT["dim"],
    "xtick.labelcolor": _LIGHT["ink"],
    "ytick.labelcolor": _LIGHT["ink"],
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def svg(plot: Plot | Bars) -> str:
    """An <svg> element for the inside of an HTML page: without title, ids of its own, colours as variables."""
    text = _render(plot, "svg", title="").decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{plot.name}-", text).replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]+", "font-family: inherit", text)
    for name, light in _LIGHT.items():
        text = text.replace(light, f"var(--{name})")
    head = f'<svg role="img" aria-label="{_attribute(_described(plot))}" class="plot" '
    return re.sub(r'<svg (width|height)="[^"]*" (width|height)="[^"]*" ', head, text, count=1).strip()


def png(plot: Plot | Bars, footer: str = "") -> bytes:
    """A picture of the plot alone, light, with its title and a small line below."""
    return _render(plot, "png", plot.title, footer)


def _described(plot: Plot | Bars) -> str:
    if isinstance(plot, Bars):
        return f"{plot.title}: {plot.axis.title}"
    return f"{plot.title}: {plot.y.title} against {plot.x.title}"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _render(plot: Plot | Bars, kind: str, title: str, footer: str = "") -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    bars = isinstance(plot, Bars)
    settings: Any = {**_SETTINGS, "svg.hashsalt": plot.name}  # Any: stubs list the names that their version knows
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, _height(plot)), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, axis="x" if bars else "both", linewidth=0.8)
        axes.set_axisbelow(True)
        handles = _draw_bars(axes, plot) if isinstance(plot, Bars) else _draw_plot(axes, plot)
        _put_legend(figure, handles if bars or len(handles) > 1 else [], title)
        if footer:
            figure.supxlabel(footer, fontsize=8, color=_LIGHT["dim"], x=0.01, ha="left")
        out = io.BytesIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {}
        figure.savefig(out, format=kind, dpi=160, metadata=metadata)
    return out.getvalue()


def _draw_plot(axes: Axes, plot: Plot) -> list[Any]:
    """Draws all series; returns what a legend shows of each."""
    colors = _colors([_group(s) for s in plot.series])
    handles = [_draw_series(axes, s, colors[_group(s)]) for s in plot.series]
    for which, axis in (("x", plot.x), ("y", plot.y)):
        _set_axis(axes, which, axis)
    for s in plot.series:
        for x, y, word in zip(s.x, s.y, s.labels, strict=False):
            axes.annotate(word, (x, y), xytext=(-5, 5), textcoords="offset points", fontsize=9.5, ha="right")
    return handles


def _put_legend(figure: Figure, handles: list[Any], title: str) -> None:
    """Above the axes, where it covers nothing; the title, if there is one, above it."""
    if not handles and not title:
        return
    legend = figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=_legend_columns([str(handle.get_label()) for handle in handles]),
        title=textwrap.fill(title, 78) or None,
        alignment="left",
    )
    legend.get_title().set_fontsize(12.5)
    legend.get_title().set_fontweight("bold")


def _legend_columns(names: list[str]) -> int:
    """Two beside each other, unless one is too long for that."""
    return 2 if max(map(len, names), default=0) <= 44 else 1


def _height(plot: Plot | Bars) -> float:
    """Inches: the axes stay as high however many lines a legend has."""
    if isinstance(plot, Bars):
        legend = LEGEND_LINE if any(bar.wall is not None for bar in plot.bars) else 0.0
        return 1.1 + legend + BAR_HEIGHT * len(plot.bars)
    names = [s.name for s in plot.series]
    return HEIGHT + LEGEND_LINE * -(-len(names) // _legend_columns(names))


def _draw_series(axes: Axes, s: Series, color: str) -> Any:
    style: dict[str, Any] = {"color": color, "label": s.name}
    if s.mark is Mark.WALL:
        return axes.plot(s.x, s.y, linestyle=(0, (1, 1.6)), linewidth=2.2, **style)[0]
    if s.mark is Mark.FIT:
        return axes.plot(s.x, s.y, linestyle=(0, (5, 3)), linewidth=1.4, **style)[0]
    if s.mark is Mark.CURVE:
        if s.error is not None:
            low = [y - e for y, e in zip(s.y, s.error, strict=True)]
            high = [y + e for y, e in zip(s.y, s.error, strict=True)]
            axes.fill_between(s.x, low, high, color=color, alpha=0.22, linewidth=0)
        return axes.plot(s.x, s.y, linewidth=2, **style)[0]
    return axes.errorbar(s.x, s.y, yerr=s.error, marker="o", markersize=5, linewidth=1.8, capsize=3, **style)


def _group(s: Series) -> str:
    """What decides a series' colour; walls are grey unless they belong to somebody."""
    return s.group or ("" if s.mark is Mark.WALL else s.name)


def _colors(groups: list[str]) -> dict[str, str]:
    """A colour a group, in order of appearance; more groups than colours begin again."""
    different = list(dict.fromkeys(group for group in groups if group))
    return {"": _LIGHT["dim"]} | {group: _LIGHT[_SERIES[i % len(_SERIES)]] for i, group in enumerate(different)}


def _set_axis(axes: Axes, which: str, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter

    ticks = axes.xaxis if which == "x" else axes.yaxis
    ticks.set_label_text(axis.title)
    set_scale, set_limit = (axes.set_xscale, axes.set_xlim) if which == "x" else (axes.set_yscale, axes.set_ylim)
    if axis.log:
        set_scale("log")
        _round_ticks(axes, which)
    elif axis.from_zero:
        set_limit(0)
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _round_ticks(axes: Axes, which: str) -> None:
    """Ticks at 1, 2 and 5 of each power of ten, as far as there are few powers; none between."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    ticks = axes.xaxis if which == "x" else axes.yaxis
    ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 2000 * low else (1.0,)))
    ticks.set_minor_formatter(NullFormatter())


def _draw_bars(axes: Axes, plot: Bars) -> list[Any]:
    """Draws all bars; returns what a legend has to explain: the marks of walls, if there are any."""
    colors = _colors([bar.group or "bars" for bar in plot.bars])
    places = range(len(plot.bars))
    most = max((bar.start + max(bar.value, bar.wall or 0.0) for bar in plot.bars), default=0.0) or 1.0
    for place, bar in zip(places, plot.bars, strict=True):
        axes.barh(place, bar.value, left=bar.start, height=0.62, color=colors[bar.group or "bars"])
        if bar.wall is not None:
            at = bar.start + bar.wall
            axes.plot([at, at], [place - 0.4, place + 0.4], color=_LIGHT["ink"], linewidth=2.2)
        _bar_text(axes, place, bar, most)
    axes.set_yticks(list(places), [textwrap.shorten(bar.label, 44) for bar in plot.bars])
    axes.set_ylim(len(plot.bars) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    _set_axis(axes, "x", plot.axis)
    axes.set_xlim(0, 1.2 * most)
    if all(bar.wall is None for bar in plot.bars):
        return []
    return axes.plot([], [], color=_LIGHT["ink"], linewidth=2.2, label="wall: at best")


def _bar_text(axes: Axes, place: int, bar: Bar, most: float) -> None:
    end = bar.start + max(bar.value, bar.wall or 0.0)
    axes.annotate(bar.text, (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5)
