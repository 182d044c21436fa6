"""A report is one file that needs nothing else, says what it shows, and survives whatever it is given."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from records import ROWS, cache_row, decode_row, prefill_row, record, tradeoff_row

from legato.bench.record import read_record
from legato.cli.saving import command_line
from legato.errors import ModelFileError, UsageError
from legato.report import Axis, Bar, Bars, Column, Mark, Page, Plot, Series, Table, draw
from legato.report.page import number
from legato.report.pages import page_of
from legato.report.write import check_target, csv_text, html_text, write_report

VOID = {"meta", "br", "hr", "img", "input", "link"}
SVG = re.compile(r"<svg .*?</svg>", re.DOTALL)


class Strict(HTMLParser):
    """Fails on an element that is not closed in order; collects ids, what could be fetched, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        assert tag not in ("script", "iframe", "object", "embed", "link", "img")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "srcset", "action", "xlink:href") and tag != "a":
                self.fetched.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Strict:
    reader = Strict()
    reader.feed(text)
    assert not reader.open
    return reader


@pytest.mark.parametrize("what", ROWS)
def test_a_report_is_one_well_formed_file_that_asks_for_nothing(what: str) -> None:
    found = record(what)
    page = page_of(found)
    text = html_text(page, found, ["a b.csv"])
    reader = parsed(text)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", text), "something is fetched"
    assert len(set(reader.ids)) == len(reader.ids)
    assert all(target.startswith("#") and target[1:] in reader.ids for target in reader.fetched)
    assert page.finding in reader.text and found.command in reader.text and "Example & Sons <X>" in reader.text
    assert "2026-01-02" in reader.text and "Partial" not in reader.text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("what", ROWS)
def test_every_plot_says_its_axes_units_and_walls(what: str) -> None:
    found = record(what)
    page = page_of(found)
    drawings = SVG.findall(html_text(page, found, []))
    assert len(drawings) == len(page.plots) >= 2
    for plot, drawing in zip(page.plots, drawings, strict=True):
        ElementTree.fromstring(drawing)  # well-formed by itself, too
        assert isinstance(plot, Plot)
        for axis in (plot.x, plot.y):
            assert f">{axis.title}<" in drawing and axis.title.endswith(")")
        for series in plot.series:
            assert series.name in parsed(drawing).text
        assert not re.search(r"#[0-9a-f]{6}\b(?!-)", re.sub(r'"#[^"]*"|url\(#[^)]*\)', "", drawing)), "a fixed colour"
    assert any(series.mark is Mark.WALL for plot in page.plots for series in plot.series)  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ROWS)
def test_png_csv_and_json_lie_beside(what: str, tmp_path: Path) -> None:
    found = record(what)
    page = page_of(found)
    files = write_report(page, found, tmp_path / "out.html")
    names = {path.name for path in files}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert names == {"out.html", "out.csv", "out.json", *(f"out-{plot.name}.png" for plot in page.plots)}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files if path.suffix == ".png")
    assert read_record(tmp_path / "out.json") == found
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == len(page.table.rows) and rows[0].keys() == {column.key for column in page.table.columns}
    key = page.table.columns[0].key
    assert [float(row[key]) for row in rows] == [row[key] for row in page.table.rows]


def test_a_folder_gets_a_name_with_experiment_machine_and_day(tmp_path: Path) -> None:
    found = record("decode")
    assert write_report(page_of(found), found, tmp_path)[0].name == "decode_example-sons-x_2026-01-02.html"


def test_a_partial_report_says_so_and_why() -> None:
    found = record("decode", partial="stopped by <Ctrl-C>")
    assert "Partial: stopped by <Ctrl-C>." in parsed(html_text(page_of(found), found, [])).text


@pytest.mark.parametrize(
    ("what", "row"),
    [
        ("decode", decode_row(0)),
        ("prefill", prefill_row(7)),
        ("tradeoff", tradeoff_row(3)),
        ("cache", cache_row(1, 1)),
        ("cache", cache_row(2, 2)),
    ],
)
def test_one_row_is_enough(what: str, row: dict[str, object]) -> None:
    found = record(what, rows=[row])
    parsed(html_text(page_of(found), found, []))


def test_findings_are_computed_from_the_rows() -> None:
    assert page_of(record("decode")).finding.startswith(
        "A token takes 5.00 ms at 0 tokens of context and 13.0 ms at 8,000, 1.00 ms more a 1,000 tokens"
    )
    assert "106 s ± 2.1 s without: 17.7 times as long" in page_of(record("cache")).finding
    assert "29 % of it grows with the square" in page_of(record("prefill")).finding
    assert page_of(record("tradeoff")).finding.startswith("32 streams get 6.7 times the tokens of 1 stream")


def test_what_is_no_record_or_has_no_page_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(text: str, error: type[Exception], *words: str) -> None:
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(error) as caught:
            page_of(read_record(path))
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)

    good = record("decode").as_json()
    refused("{", ModelFileError, "JSON")
    refused("[]", ModelFileError, "record")
    refused(json.dumps({**good, "rows": 3}), ModelFileError, "rows")
    refused(json.dumps({**good, "rows": [3]}), ModelFileError, "rows")
    refused(json.dumps({**good, "what": "weather"}), UsageError, "weather", "decode")
    refused(json.dumps({**good, "rows": []}), UsageError, "no rows")
    refused(json.dumps({**good, "rows": [{"depth": 3}]}), UsageError, "not those of decode")
    refused("[" * 200_000, ModelFileError, "JSON")
    refused(json.dumps({**good, "what": "cache"}), UsageError, "not those of cache")
    first = good["rows"][0]
    for wrong, error in (("x", UsageError), (0, UsageError), (math.inf, ModelFileError), (math.nan, ModelFileError)):
        row = {name: wrong if isinstance(value, float) else value for name, value in first.items()}
        refused(json.dumps({**good, "rows": [row, *good["rows"][1:]]}), error)
    with pytest.raises(UsageError, match="No such file"):
        read_record(tmp_path / "nothing.json")


@pytest.mark.parametrize("name", ["out.txt", "out", "nowhere/out.html"])
def test_targets_that_cannot_be_are_refused_before_anything_is_measured(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--report="):
        check_target(tmp_path / name)
    check_target(tmp_path / "out.HTML")
    check_target(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    found = record("decode")
    with pytest.raises(UsageError, match=r"out\.csv: .*--report"):
        write_report(page_of(found), found, tmp_path / "out.html")


def test_bars_make_a_waterfall_with_walls_and_any_words() -> None:
    bars = Bars(
        "parts",
        "Where <it> went",
        Axis("time", "ms"),
        (
            Bar("queue & wait", 2.0, text="2 ms"),
            Bar("prompt", 30.0, start=2.0, wall=20.0, text="30 ms", group="compute"),
        ),
    )
    page = Page("T", "F.", (bars,), Table((Column("part", "part"),), ({"part": "queue"}, {"other": 1})))
    text = html_text(page, record("decode"), [])
    reader = parsed(text)
    assert "time (ms)" in reader.text and "queue & wait" in reader.text and "wall: at best" in reader.text
    assert csv_text(page.table) == "part\nqueue\n\n".replace("\n\n", '\n""\n')


def test_a_legend_of_bars_stands_above_them_and_covers_none() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    walled = [Bar(f"part {i}", 10.0, 10.0 * i, 8.0, "10 ms", "decode") for i in range(8)]
    axes = figure().subplots()
    handles = draw._draw_bars(axes, Bars("waterfall", "t", Axis("time", "ms"), walled))
    assert [handle.get_label() for handle in handles] == ["wall: at best"] and axes.get_legend() is None
    assert draw._draw_bars(axes, Bars("memory", "t", Axis("memory", "GiB"), [Bar("weights", 1.0)])) == []


def test_a_plan_is_predicted_and_not_measured() -> None:
    found = record("decode")
    page = page_of(found)
    assert "<h2>What was measured</h2>" in html_text(page, found, [])
    said = html_text(replace(page, done="predicted"), found, [])
    assert "<h2>What was predicted</h2>" in said and "<h2>How it was predicted</h2>" in said


def test_a_plot_without_an_axis_label_or_with_a_bad_name_cannot_be_made() -> None:
    with pytest.raises(AssertionError):
        Axis("time", "")
    with pytest.raises(AssertionError):
        Plot("Has Blanks", "t", Axis("x", "s"), Axis("y", "s"), (Series("a", [1], [1]),))
    with pytest.raises(AssertionError):
        Series("a", [1, 2], [1])


def test_long_tables_are_thinned_on_the_page_and_whole_in_csv() -> None:
    table = Table((Column("n", "n"),), [{"n": n} for n in range(100)], most=12)
    assert len(table.shown) <= 12 and table.shown[-1] == {"n": 99}
    assert len(csv_text(table).splitlines()) == 101


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (1234.56, "1,235"),
        (0.0123456, "0.01235"),
        (9.9996, "10.00"),
        (0.0, "0"),
        (None, ""),
        ("word", "word"),
        (-2.5, "-2.500"),
        (1e-9, "1e-09"),
    ],
)
def test_numbers_have_so_many_digits(value: object, text: str) -> None:
    assert number(value) == text


def test_without_matplotlib_rows_are_kept_and_one_line_says_how_to_get_a_report(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from legato.bench.record import read_record\n"
        "from legato.cli import main\n"
        "from legato.cli.saving import keeping\n"
        "from legato.cli.terminal import Terminal\n"
        "record = read_record(Path(sys.argv[1]))\n"
        "with keeping('decode', None, Path(sys.argv[2]), Terminal()) as kept:\n"
        "    kept.rows += record.rows\n"
        "raise SystemExit(main(['report', sys.argv[1]]))\n"
    )
    saved, target = tmp_path / "saved.json", tmp_path / "new" / "out.html"
    target.parent.mkdir()
    saved.write_text(record("decode").text())
    done = subprocess.run([sys.executable, "-c", program, saved, target], capture_output=True, text=True, timeout=60)
    first, *_, last = done.stderr.splitlines()
    assert done.returncode == 2 and "pip install 'legato[bench]'" in first and "pip install" in last
    assert {path.name for path in target.parent.iterdir()} == {"out.csv", "out.json"}
    assert read_record(target.with_suffix(".json")).rows == record("decode").rows


def test_what_was_typed_is_kept_without_keys() -> None:
    typed = ["bench", "serve", "--api-key", "sk-a b", "--api-key=sk-c", "--url", "http://h", "a b"]
    kept = command_line(typed)
    assert not any("sk-" in word for word in kept)
    assert kept == ["legato", "bench", "serve", "--api-key", "...", "--api-key=...", "--url", "http://h", "'a b'"]
