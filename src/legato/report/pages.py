"""Which experiment has which page.

Knows: names of experiments and modules, loaded when one is shown. Does not know: what is on a page.
"""

from __future__ import annotations

from importlib import import_module

from legato.bench.record import Record
from legato.errors import UsageError
from legato.report.page import Page

# what -> a module with `page(record) -> Page`
PAGES: dict[str, str] = {
    "cache": "legato.report.cache",
    "decode": "legato.report.decode",
    "prefill": "legato.report.prefill",
    "tradeoff": "legato.report.tradeoff",
    "explain": "legato.report.explain",
    "plan": "legato.report.plan",
    "serve": "legato.report.serve",
    "compare": "legato.report.compare",
}


def page_of(record: Record) -> Page:
    """The page of a record. `UsageError` for an experiment without one, or rows that are not its own."""
    if record.what not in PAGES:
        raise UsageError(f"no report shows {record.what!r}; there is one for {', '.join(PAGES)}")
    if not record.rows:
        raise UsageError(f"the record of {record.what} holds no rows; measure again")
    try:
        page = import_module(PAGES[record.what]).page(record)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UsageError(f"these rows are not those of {record.what} ({problem}); measure again") from error
    assert isinstance(page, Page)
    return page
