"""Pages and charts: well-formed, escaped, round ticks, and something sensible for no data, one point and NaN."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from ofa_fast import _html
from ofa_fast._html import GREY, Column, Html, bar_chart, binned, element, histogram, line_chart, page, table, ticks

NASTY = "<b>\"&'\x00\ud800\u202e]]>"
SVG = "{http://www.w3.org/2000/svg}"


def parsed(content) -> ElementTree.Element:
    """The content in a page, read as XML and as UTF-8; fails where it is not well-formed."""
    return ElementTree.fromstring(page("Title", [("Section", content)]).encode("utf-8"))


def texts(root: ElementTree.Element, tag: str) -> list[str]:
    return ["".join(found.itertext()) for found in root.iter(tag)]


def all_charts(name: str, values: list) -> list[Html]:
    return [
        line_chart(name, {name: [(i, v) for i, v in enumerate(values)]}, name, name, marks=[(1, name)]),
        line_chart(name, {name: [(i, v, v, v) for i, v in enumerate(values)]}, x_log=True, y_log=True),
        bar_chart(name, [name] * len(values), {name: values, "other": values}, name, horizontal=False),
        bar_chart(name, [name] * len(values), values, name, horizontal=True, errors=[(0, 1)] * len(values)),
        bar_chart(name, [name] * len(values), {name: values, "other": values}, name, stacked=True),
        histogram(name, *binned(values), name, name),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [[], [None], [math.nan], [0], [5.0], [-3.0], [7, 7, 7], [1e-300, 1e300], [-1, None, math.inf, 2], [1, 2, 3]],
    ids=str,
)
def test_charts_of_any_data_are_well_formed_and_stay_in_their_box(values):
    for chart in all_charts("series", values):
        root = parsed(chart)
        svg = next(root.iter(f"{SVG}svg"))
        _, _, width, height = map(float, svg.get("viewBox").split())
        assert svg.get("role") == "img" and svg.get("aria-label").startswith("series. ")
        assert svg.find(f"{SVG}title").text == "series" and svg.find(f"{SVG}desc").text
        for shape in svg.iter():
            for attribute, limit in (("x", width), ("cx", width), ("y", height), ("cy", height), ("y1", height)):
                if shape.get(attribute):
                    assert -1 <= float(shape.get(attribute)) <= limit + 1, ElementTree.tostring(shape)
        if not [value for value in values if value is not None and math.isfinite(value)]:
            assert "no data" in "".join(svg.itertext())


def test_everything_that_is_text_is_escaped():
    content = [*all_charts(NASTY, [1.0, 2.0]), table([[NASTY, 1]], [NASTY, "n"], NASTY), NASTY]
    content += [_html.facts([(NASTY, NASTY)]), _html.tiles([(NASTY, NASTY)]), _html.details(NASTY, NASTY)]
    document = page(NASTY, [(NASTY, content)], subtitle=NASTY, warnings=[NASTY], footer=NASTY, contents=True)
    root = ElementTree.fromstring(document.encode("utf-8"))
    assert not list(root.iter("b")) or {found.text for found in root.iter("b")} == {
        "<b>\"&'\\u0000\\ud800\\u202e]]>"
    }, "the only <b> is the tile's"
    assert "<b>\"&'\\u0000\\ud800\\u202e]]>" in texts(root, "td")
    assert root.find("head/title").text == "<b>\"&'\\u0000\\ud800\\u202e]]>"


def test_markup_is_kept_and_attributes_are_quoted():
    assert element("a", "x < y", Html("<i/>"), href='?a&"', title=None) == '<a href="?a&amp;&quot;">x &lt; y<i/></a>'


def test_a_page_stands_alone():
    document = page("T", [("One", "text"), "alone"], contents=True)
    assert "<script" not in document and not re.search(r"(src|@import|url\()", document)
    assert re.findall(r'href="([^"]*)"', document) == ["#s1"]
    assert "prefers-color-scheme: dark" in document and "@media print" in document and 'name="viewport"' in document


@pytest.mark.parametrize(
    "low, high, log, expected",
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.3, False, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (-7, 12, False, [-5, 0, 5, 10]),
        (1e6, 1.5e6, False, [1e6, 1.1e6, 1.2e6, 1.3e6, 1.4e6, 1.5e6]),
        (1, 384, True, [1, 3, 10, 30, 100, 300]),
        (1e-3, 1e9, True, [1e-3, 1e-1, 1e1, 1e3, 1e5, 1e7, 1e9][:7]),
        (30, 50, True, [30, 35, 40, 45, 50]),
        (3, 3, False, [3]),
        (math.nan, 1, False, []),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    found = ticks(low, high, log=log)
    assert found == expected or (log and low == 1e-3 and found == [1e-3, 1e0, 1e3, 1e6, 1e9])


def test_numbers_for_people():
    assert [_html.number(v) for v in (1234567, 0.12345, -2.0, None, math.nan, 12345.6)] == [
        "1,234,567", "0.123", "−2", "–", "–", "12,346",
    ]  # fmt: skip
    assert (_html.number(0.5, ".1%"), _html.compact(250_000), _html.compact(1500)) == ("50.0 %", "250k", "1500")
    assert (_html.size(3 * 2**30), _html.size(100)) == ("3.0 GiB", "100 bytes")
    assert (_html.clock(0.0123), _html.clock(3.21), _html.clock(125)) == ("12 ms", "3.2 s", "2 min 5 s")


def test_a_name_has_one_colour():
    colors = _html.color_of(["copied", "similar", "random"], {"random": GREY})
    assert list(colors) == ["copied", "similar", "random"] and len(set(colors.values())) == 3
    line = line_chart("L", {"similar": [(0, 1), (1, 2)]}, colors=colors)
    bars = bar_chart("B", ["a"], {"copied": [1], "similar": [2]}, colors=colors)
    assert colors["similar"] in line and colors["similar"] in bars and colors["copied"] not in line


def test_bars_are_as_long_as_their_values():
    root = parsed(bar_chart("B", ["a", "b"], {"x": [10, 20], "y": [30, None]}, stacked=True, horizontal=True))
    widths = [float(bar.get("width")) for bar in root.iter(f"{SVG}rect")]
    assert len(widths) == 3 and widths[1] == pytest.approx(3 * widths[0], abs=0.05)
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.05)
    with pytest.raises(ValueError, match=r"1 values of 'x' for 2 categories"):
        bar_chart("B", ["a", "b"], {"x": [1]})


def test_histogram_counts_every_value_once():
    values = [i / 997 for i in range(997)] + [1.0, math.nan, None]
    counts, edges = binned(values, 20)
    assert sum(counts) == 998 and len(edges) == len(counts) + 1
    assert edges == ticks(0, 1, 20) and max(counts) - min(counts) <= 2
    with pytest.raises(ValueError, match=r"2 counts of '' for 2 edges"):
        histogram("H", [1, 2], [0, 1])


def test_lines_break_where_there_is_no_value_and_names_do_not_overlap():
    close = {f"line {i}": [(0, 1), (1, 2 + i / 1000), (2, None), (3, 5 + i / 1000)] for i in range(6)}
    root = parsed(line_chart("L", close))
    assert len(list(root.iter(f"{SVG}polyline"))) == 12
    labels = [float(t.get("y")) for t in root.iter(f"{SVG}text") if (t.text or "").startswith("line ")]
    assert len(labels) == 6 and min(b - a for a, b in zip(sorted(labels), sorted(labels)[1:], strict=False)) >= 14.9


def test_names_at_the_ends_of_lines_have_room_in_a_wide_font():
    widths = {"random, rank 100": 10.03, "gaussian, rank 100": 10.73}  # in ems of DejaVu Sans Bold
    root = parsed(line_chart("T", {name: [(0, 1), (1, i)] for i, name in enumerate(widths)}, width=640))
    found = {text.text: float(text.get("x")) for text in root.iter(f"{SVG}text") if text.text in widths}
    assert found.keys() == widths.keys()
    for name, x in found.items():
        assert x + 12.5 * widths[name] <= 640


def test_tables_align_numbers_and_draw_bars():
    rows = [["deu", 0.5, (1, 1, 2)], ["chr", None, ()], ["eng", math.nan, (0, 0, 0)]]
    columns = ["language", Column("F1", ".2f", bar=1.0), Column("origin", stack=("copied", "similar", "random"))]
    root = parsed(table(rows, columns, limit=2))
    assert [cell.get("class") for cell in root.iter("td")][:3] == [None, "number", None]
    assert texts(root, "td") == ["deu", "0.50", "", "chr", "–", "–", "eng", "–", ""]
    assert re.search(r"width:50.0%", page("T", [table(rows, columns)]))
    assert root.find(".//td/span[@role]").get("aria-label") == "copied 25.0 %, similar 25.0 %, random 50.0 %"
    assert texts(root, "summary") == ["1 more"]
    with pytest.raises(ValueError, match=r"a row has 1 cells for 2 columns"):
        table([[1]], ["a", "b"])
    assert texts(parsed(table([], ["a"])), "th") == ["a"]
