"""The columns of what a run cost: energy and price, where they were asked for.

Knows: their keys in a record's rows. Does not know: experiments, how energy is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from legato.report.page import Column

_BILL = (
    Column("energy_j_per_token", "energy (J/token)", 3),
    Column("energy_source", "energy's source"),
    Column("price_per_million_tokens", "a million tokens (price)", 3),
)


def bill_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Those that any of the rows has."""
    told = {key for row in rows for key in row}
    return tuple(column for column in _BILL if column.key in told)
