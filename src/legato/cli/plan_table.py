"""A plan as tables for a terminal of 80 columns.

Knows: rich's tables, units for people. Does not know: how anything in a plan came about.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from legato.cli.terminal import Terminal
from legato.measure.plan import GIB, Limit, Plan, Span

BAR = 24
WIDTH = 100  # on a pipe


def draw(plan: Plan, terminal: Terminal) -> None:
    """Prints it on standard output."""
    console = _console(terminal)
    with console.capture() as caught:
        _draw(plan, console)
    terminal.answer("\n".join(line.rstrip() for line in caught.get().splitlines()), end="\n")


def _console(terminal: Terminal) -> Console:
    styled = terminal.styled_output()
    width = None if sys.stdout.isatty() else WIDTH
    return Console(file=sys.stdout, no_color=not styled, highlight=False, width=width, force_terminal=styled or None)


def _draw(plan: Plan, console: Console) -> None:
    console.print(Text(f"{plan.model} on {plan.machine}", style="bold"), Text(f"({plan.machine_kind})", style="dim"))
    size = _count(plan.parameters)
    if plan.active_parameters < 0.7 * plan.parameters:
        size += f" ({_count(plan.active_parameters)} of them active)"
    users = "1 user" if plan.users == 1 else f"{plan.users:,} users, each"
    console.print(
        f"{size} parameters, weights {plan.weights}, keys and values {plan.kv}; {users} with {plan.context:,} tokens "
        f"of context, {plan.output:,} of them answer"
    )
    base, slope = plan.itl_line
    _section(console, "Memory", _memory(plan))
    _section(console, "Time", _time(plan))
    _section(console, "What limits it", _limits(plan))
    title = f"Between tokens, by context: {_ms(base)}, and {_ms(slope)} more for each 1,000 tokens"
    _section(console, title, _depths(plan))
    _section(console, "By users at once", _users(plan))
    _section(console, "A million tokens", _prices(plan))
    console.print(plan.why_output_costs_more)
    if plan.notes:
        console.print()
    for note in plan.notes:
        console.print(Text("note: ", style="yellow").append(note, style="default"))


def _section(console: Console, title: str, table: Table) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(table)


def _table(*columns: str, left: Sequence[int] = (0,)) -> Table:
    """A right-aligned table, but for the columns in `left`; without a head where all names are empty."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right", header_style="dim", no_wrap=i not in left)
    return table


def _memory(plan: Plan) -> Table:
    table = _table("", "", "", left=(0, 2))
    table.add_row("weights", _gib(plan.weights_bytes), "")
    each = f"{plan.kv_bytes_per_token:,} bytes a token, {_gib(plan.kv_bytes_per_user)} a user"
    table.add_row("keys and values", _gib(plan.kv_bytes), each)
    if plan.kv_bytes_in_windows < plan.kv_bytes_per_user:
        table.add_row("", "", f"{_gib(plan.kv_bytes_in_windows)} a user if only windows were kept")
    if plan.usable_bytes is None or plan.memory_bytes is None or plan.max_users is None:
        table.add_row("fits", "not known", "the machine's memory is not known")
        return table
    table.add_row("there is", _gib(plan.usable_bytes), f"of {_gib(plan.memory_bytes)}")
    crowd = f"{plan.max_users.mid:,.0f} users at most"
    if plan.max_users.low != plan.max_users.high:
        crowd += f" ({plan.max_users.low:,.0f} to {plan.max_users.high:,.0f})"
    fits = Text("yes", style="green") if plan.fits else Text("no", style="bold red")
    table.add_row("fits", fits, crowd)
    return table


def _time(plan: Plan) -> Table:
    table = _table("", "expected", "low to high")
    table.add_row("first token", *_times(plan.ttft_ms))
    table.add_row("between tokens", *_times(plan.itl_ms))
    table.add_row("tokens a second, all users", *_rates(plan.tok_s))
    table.add_row("requests a minute, prompts too", *_rates(plan.requests_s, 60.0))
    return table


def _limits(plan: Plan) -> Table:
    table = _table("", "", left=(0, 1))
    for name, words in (("ttft", "first token"), ("itl", "between tokens"), ("users", "users")):
        if name in plan.limits:
            table.add_row(words, _limit(plan.limits[name]))
    return table


def _depths(plan: Plan) -> Table:
    table = _table("tokens", "expected", "low to high", "", left=(3,))
    longest = max(span.mid for span in plan.itl_ms_at.values())
    depths = list(plan.itl_ms_at)
    for depth, after in zip(depths, [*depths[1:], None], strict=True):
        if after is not None and depth > 0.95 * after:
            continue  # the next one tells the same
        span = plan.itl_ms_at[depth]
        bar = "█" * max(1, round(BAR * span.mid / longest))
        table.add_row(f"{depth:,}", *_times(span), Text(bar, style="cyan"))
    return table


def _users(plan: Plan) -> Table:
    priced = plan.price_per_million is not None
    columns = ["users", "between tokens", "low to high", "tokens/s", "first token", *["output"] * priced]
    table = _table(*columns, "", left=(len(columns),))
    for row in plan.by_users:
        price = [f"{row.output_price.mid:.3g}"] if row.output_price is not None else []
        note = "<" * (row.users == plan.users) + ("" if row.fits else " does not fit")
        cells = [*_times(row.itl_ms), f"{row.tok_s.mid:,.0f}", _ms(row.ttft_ms.mid), *price]
        table.add_row(f"{row.users:,}", *cells, note.strip(), style=None if row.fits else "dim")
    return table


def _prices(plan: Plan) -> Table:
    million = plan.price_per_million
    table = _table("", "price" if million is not None else "machine seconds", "low to high")
    for kind, span in (million if million is not None else plan.seconds_per_million).items():
        table.add_row(kind, *_rates(span))
    return table


def _limit(limit: Limit) -> str:
    return f"{limit.by} ({limit.share:.0%}), {limit.what}" if limit.parts else f"{limit.by}: {limit.what}"


def _times(span: Span) -> tuple[str, str]:
    return _ms(span.mid), f"{_ms(span.low)} to {_ms(span.high)}"


def _rates(span: Span, factor: float = 1.0) -> tuple[str, str]:
    low, mid, high = (_digits(factor * x) for x in (span.low, span.mid, span.high))
    return mid, f"{low} to {high}"


def _ms(ms: float) -> str:
    if ms >= 60_000:
        return f"{ms / 60_000:.3g} min"
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms" if ms >= 0.1 or ms <= 0 else f"{1000 * ms:.3g} us"


def _digits(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _gib(nbytes: float) -> str:
    return f"{nbytes / GIB:,.2f} GiB" if nbytes >= GIB / 10 else f"{nbytes / 2**20:,.1f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e9:,.2f} B" if number >= 1e9 else f"{number / 1e6:,.1f} M"
