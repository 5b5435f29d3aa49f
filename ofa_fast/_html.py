"""Self-contained HTML pages: one file, no scripts, light and dark, readable on a phone and on paper.

    charts = figures(line_chart("Loss", {"OFA": [(0, 9.1), (100, 4.2)], "random": [(0, 9.9), (100, 6.0)]}, "step"))
    page("A run", [("Training", charts), ("Languages", table(rows, ["language", Column("F1", ".3f", bar=1.0)]))])

Strings are text and escaped everywhere; only what these functions return is markup (``Html``). Names have one colour on
all charts of a page that are given the same ``colors``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ofa_fast._axes import legend, ticks
from ofa_fast._markup import (
    COLORS,
    DARK,
    GREY,
    LIGHT,
    Html,
    clock,
    color_of,
    compact,
    element,
    escape,
    finite,
    join,
    number,
    size,
)
from ofa_fast._svg import bar_chart, binned, histogram, line_chart

__all__ = [
    "COLORS",
    "GREY",
    "Column",
    "Html",
    "bar_chart",
    "binned",
    "clock",
    "color_of",
    "compact",
    "details",
    "element",
    "escape",
    "facts",
    "figures",
    "histogram",
    "join",
    "legend",
    "line_chart",
    "number",
    "page",
    "size",
    "table",
    "ticks",
    "tiles",
]

_LIGHT = (
    "--ink:#1d2127;--soft:#5b6470;--line:#dde1e6;--back:#ffffff;--raised:#f5f7f9;--warn:#8a4b00;--warn-back:#fff5e2;"
    "--grey:#989fa8;" + "".join(f"--c{i}:{color};" for i, color in enumerate(LIGHT))
)
_DARK = (
    "--ink:#e6e9ed;--soft:#a2abb6;--line:#343b44;--back:#14171b;--raised:#1d2228;--warn:#f5c987;--warn-back:#33260f;"
    "--grey:#8a939d;" + "".join(f"--c{i}:{color};" for i, color in enumerate(DARK))
)
_STYLE = (
    f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
@media print {{ :root {{ {_LIGHT} }} }}
"""
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.2rem 1.1rem 4rem; max-width: 66rem; background: var(--back); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; text-wrap: balance; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.8rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 44rem; margin: .5rem 0; }
a { color: var(--c0); }
code, pre { font: .86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--raised); padding: .8rem 1rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .5rem 0; }
.subtitle, .note, footer { color: var(--soft); }
.subtitle { margin: 0; max-width: none; }
.note, footer { font-size: .88rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; }
nav { margin-top: 1rem; font-size: .92rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
.warning { background: var(--warn-back); border-left: 4px solid var(--warn); border-radius: 0 6px 6px 0;
  padding: .7rem 1rem; margin: 1.4rem 0 0; }
.warning strong { color: var(--warn); }
.warning ul { margin: .3rem 0 0; padding-left: 1.2rem; max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.4rem, 1fr)); gap: .7rem; margin: 1.4rem 0 0; }
.tile { background: var(--raised); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; line-height: 1.35; display: block; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.6rem 2.2rem;
  margin: 1rem 0; align-items: start; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .35rem; }
svg { display: block; width: 100%; height: auto; max-width: 44rem; font-family: inherit; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .84rem; color: var(--soft);
  margin-bottom: .3rem; }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; line-height: 1.4; }
caption { text-align: left; font-weight: 600; font-size: .95rem; padding-bottom: .35rem; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .84rem; vertical-align: bottom; }
th:last-child, td:last-child { padding-right: .2rem; }
.number { text-align: right; white-space: nowrap; }
.bar { display: inline-block; vertical-align: middle; width: 6rem; height: .62rem; border-radius: 2px; overflow: hidden;
  background: var(--line); margin-left: .6rem; text-align: left; font-size: 0; white-space: nowrap; }
.bar.wide { width: clamp(7rem, 24vw, 16rem); margin-left: 0; }
.bar i { display: inline-block; height: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .92rem; margin: .8rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: var(--c0); font-size: .92rem; padding: .25rem 0; }
bdi { white-space: pre-wrap; }
@media (max-width: 34rem) { body { padding-top: 1.2rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; } h2 { margin-top: 2.1rem; } .bar { width: 3.5rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } a { color: inherit; }
  i, .bar, .tile, .warning { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  tr, .tile { break-inside: avoid; } h2, h3, caption { break-after: avoid; } }
"""
)


def page(
    title: str,
    sections: Iterable[tuple[str, object] | object],
    subtitle: str = "",
    warnings: Sequence[str] = (),
    footer: str = "",
    contents: bool = False,
) -> str:
    """A whole HTML document, which is well-formed XML too.

    Args:
        sections: pairs of a heading and its content; or content alone, without a heading. Content is ``Html``, or text
            that becomes a paragraph, or a list of these.
        warnings: shown before everything else.
        contents: show links to the headings.
    """
    headings, body = [], []
    for section in sections:
        if isinstance(section, tuple):
            anchor = f"s{len(headings) + 1}"
            headings.append(element("a", section[0], href=f"#{anchor}"))
            body.append(element("section", element("h2", section[0]), _content(section[1]), id=anchor))
        else:
            body.append(_content(section))
    noun = "Warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    alert = element("strong", noun), element("ul", *(element("li", warning) for warning in warnings))
    top = element("header", element("h1", title), element("p", subtitle, class_="subtitle") if subtitle else None)
    document = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("style", Html(_STYLE)),
        ),
        element(
            "body",
            top,
            element("nav", *headings) if contents and headings else None,
            element("div", *alert, class_="warning", role="alert") if warnings else None,
            element("main", *body, ""),
            element("footer", footer) if footer else None,
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{document}\n"


def _content(content: object) -> Html:
    if isinstance(content, (list, tuple)):
        return join(*map(_content, content))
    return content if isinstance(content, Html) else element("p", content)


@dataclass(frozen=True)
class Column:
    """How ``table`` shows a column.

    Attributes:
        format: of numbers, as for ``number``; ".1%" for a share.
        bar: draw a bar beside each number, of full width at this value; True: at the largest of the column.
        stack: names of parts; a cell is as many amounts, drawn as one bar of their shares.
        colors: of the parts of ``stack``, as for the charts.
        color: of ``bar``.
    """

    title: str
    format: str = ""
    bar: float | bool = False
    stack: tuple[str, ...] = ()
    colors: dict[str, str] | None = None
    color: str = COLORS[0]


def table(
    rows: Iterable[Sequence[object]], columns: Sequence[str | Column], caption: str = "", limit: int | None = None
) -> Html:
    """Rows in the caller's order. Numbers are aligned to the right; None and NaN are "–".

    Args:
        columns: titles, or ``Column`` for formats and bars.
        limit: rows beyond the first so many can be unfolded.
    """
    rows = [list(row) for row in rows]
    columns = [column if isinstance(column, Column) else Column(column) for column in columns]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} cells for {len(columns)} columns: {row!r:.200}")
    numeric = [
        not column.stack and any(map(finite, cells)) and all(cell is None or _is_number(cell) for cell in cells)
        for column, cells in zip(columns, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True)
    ]
    kinds = ["number" if is_numeric else None for is_numeric in numeric]
    full = [_full(column, [row[i] for row in rows]) for i, column in enumerate(columns)]
    head = element(
        "tr", *(element("th", c.title, scope="col", class_=kind) for c, kind in zip(columns, kinds, strict=True))
    )

    def body(part: list[list]) -> Html:
        lines = (
            element("tr", *(element("td", _cell(*cell), class_=kind) for *cell, kind in zip(row, columns, full, kinds)))  # noqa: B905
            for row in part
        )
        return element("tbody", *lines, "")

    def whole(part: list[list], title: str) -> Html:
        title = element("caption", title) if title else None
        return element("div", element("table", title, element("thead", head), body(part)), class_="scroll", tabindex=0)

    if limit is None or len(rows) <= limit:
        return whole(rows, caption)
    return join(whole(rows[:limit], caption), details(f"{len(rows) - limit:,} more", whole(rows[limit:], "")))


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _full(column: Column, cells: list) -> float:
    if column.bar is True:
        return max((cell for cell in cells if finite(cell)), default=0.0)
    return float(column.bar)


def _cell(cell: object, column: Column, full: float) -> Html:
    if column.stack:
        return _stack(cell, column) if cell else escape("–")
    if cell is None or _is_number(cell):
        bar = None
        if full and finite(cell):
            share = 100.0 * min(1.0, max(0.0, cell / full))
            bar = element("span", element("i", "", style=f"width:{share:.1f}%;background:{column.color}"), class_="bar")
        return join(number(cell, column.format), bar)
    return escape(cell)


def _stack(amounts: Sequence[float], column: Column) -> Html:
    total, colors = sum(amounts), color_of(column.stack, column.colors)
    shares = [(name, amount / total if total else 0.0) for name, amount in zip(column.stack, amounts, strict=True)]
    label = ", ".join(f"{name} {number(share, '.1%')}" for name, share in shares)
    parts = (element("i", "", style=f"width:{100 * share:.2f}%;background:{colors[name]}") for name, share in shares)
    return element("span", *parts, class_="bar wide", role="img", aria_label=label, title=label)


def figures(*charts: Html) -> Html:
    """Charts side by side where there is room."""
    return element("div", *charts, class_="figures")


def tiles(pairs: Iterable[tuple[str, str]]) -> Html:
    """The few numbers that matter most: pairs of a number as text, and what it is."""
    return element(
        "div",
        *(element("div", element("b", top), element("span", what), class_="tile") for top, what in pairs),
        class_="tiles",
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and values, one pair a line."""
    return element("dl", *(join(element("dt", name), element("dd", value)) for name, value in pairs))


def details(summary: str, *content: object, opened: bool = False) -> Html:
    """Content that unfolds under ``summary``."""
    return element("details", element("summary", summary), *map(_content, content), open="open" if opened else None)
