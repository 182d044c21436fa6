"""Reports: an experiment's record becomes one HTML file that needs nothing else, with PNG, CSV and JSON beside it.

Knows: records, pages made of plots and tables, how they are drawn. Does not know: how anything was measured, terminals.

To give an experiment `what` a report:

1. write `legato/report/WHAT.py` with one pure function

       def page(record: Record) -> Page

   that reads `record.rows` and `record.settings` (plain JSON values, so that a saved record can be shown again) and
   returns a `Page`: a title, a finding in one sentence *computed* from the rows, plots, one table;
2. add its line to `PAGES` in `legato/report/pages.py`;
3. in the command, measure inside `legato.cli.saving.keeping`, with `@save_option` and `@report_option`:

       with keeping("what", save, report, terminal) as kept:
           kept.settings |= {"model": name}
           for row in bench_what(...):
               kept.rows.append(shown(row))

   What was measured is saved and reported when the block ends: whole, or marked as partial (with the reason) when
   Ctrl-C or an error ended it. Targets that cannot be written are refused before the block begins.

A page's words (`legato.report.page`):

    Plot(name, title, x=Axis(label, unit), y=Axis(label, unit), series=(...))
        Series(name, x, y, error=None, mark=Mark.MEASURED, group="", labels=())
            Mark.MEASURED   points joined by a line, with error bars where `error` is given
            Mark.CURVE      a line alone, for many points (error: a band)
            Mark.FIT        a thin dashed line: what a formula says
            Mark.WALL       a dotted line: what this machine's limits allow at best
            group           series of one group share a colour (a fit with what it was fitted to)
            labels          a word beside each point
    Bars(name, title, axis=Axis(label, unit), bars=(...))
        Bar(label, value, start=0.0, wall=None, text="", group="")   start: a waterfall; wall: a tick, drawn in the bar
    Table(columns=(Column(key, heading, digits=4, on_page=True), ...), rows=(mapping, ...), most=40)
        CSV has every column and row, the page those that say on_page, and about `most` rows evenly chosen
    Page(title, finding, plots=(...), table=Table(...), notes=(...))

Drawing needs matplotlib (`pip install 'legato[bench]'`); pages, tables, CSV and JSON do not.
"""

from legato.report.page import Axis, Bar, Bars, Column, Mark, Page, Plot, Series, Table

__all__ = ["Axis", "Bar", "Bars", "Column", "Mark", "Page", "Plot", "Series", "Table"]
