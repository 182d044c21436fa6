"""What a report is made of: a page of plots and one table, as plain values.

Knows: the words for it. Does not know: how they are drawn, experiments.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Mark(enum.StrEnum):
    """What a series is: measured points, a measured curve, a formula's line, a machine's limit."""

    MEASURED = "measured"
    CURVE = "curve"
    FIT = "fit"
    WALL = "wall"


@dataclass(frozen=True, slots=True)
class Axis:
    """label (unit); starts at 0 unless `log` or `from_zero` is off."""

    label: str
    unit: str
    log: bool = False
    from_zero: bool = True

    def __post_init__(self) -> None:
        assert self.label and self.unit, "every axis says what it shows, and in which unit"

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})"


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind; see `Mark`.

    error   half the height of each point's error bar (or of a curve's band)
    group   series of one group share a colour; "" stands for the series' own name
    labels  a word beside each point
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    mark: Mark = Mark.MEASURED
    group: str = ""
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y), self.name
        assert self.error is None or len(self.error) == len(self.y), self.name
        assert not self.labels or len(self.labels) == len(self.y), self.name


@dataclass(frozen=True, slots=True)
class Plot:
    """Series over two axes. `name` is for files: small letters, digits and dashes."""

    name: str
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from `start` to start + value; `wall` is what `value` could be at best, drawn as a tick inside it."""

    label: str
    value: float
    start: float = 0.0
    wall: float | None = None
    text: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars below one another, the first on top; with `start` a waterfall."""

    name: str
    title: str
    axis: Axis
    bars: Sequence[Bar]

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, slots=True)
class Column:
    """A key of a row and its heading (with its unit); numbers are shown with so many significant digits.

    on_page  whether the page shows it; CSV has every column
    """

    key: str
    heading: str
    digits: int = 4
    on_page: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by key; a key that a row lacks is an empty cell. A page shows about `most` of them, CSV has all."""

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    most: int = 40

    @property
    def shown(self) -> Sequence[Mapping[str, Any]]:
        """All rows, or every nth of too many, always with the last."""
        step = -(-len(self.rows) // self.most)
        return self.rows if step < 2 else self.rows[::-1][::step][::-1]


@dataclass(frozen=True, slots=True)
class Page:
    """One report. `finding` is one sentence with figures from the data; `notes` say how to read them.

    done  what was done to come by the figures: a plan measures nothing
    """

    title: str
    finding: str
    plots: Sequence[Plot | Bars]
    table: Table
    notes: Sequence[str] = ()
    done: str = "measured"


def number(value: Any, digits: int = 4) -> str:
    """A cell's text: so many significant digits, thousands apart, whole numbers whole, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or not abs(value) < float("inf"):
        return f"{value:g}"
    rounded = float(f"{value:.{digits}g}")
    whole = len(f"{abs(int(rounded))}") if abs(rounded) >= 1 else 0
    if whole:
        return f"{rounded:,.{max(0, digits - whole)}f}"
    return f"{rounded:.{digits}g}"


def _check_name(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", name), f"{name!r} is a name for files: small letters, digits and dashes"
