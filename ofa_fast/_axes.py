"""Axes of charts in SVG: round ticks, linear or logarithmic, and the words and lines around them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from ofa_fast._markup import Html, compact, element, finite

WIDTH, HEIGHT, FONT = 460, 290, 12.5
INK, SOFT, LINE = "var(--ink,#7a838d)", "var(--soft,#7a838d)", "var(--line,#7a838d40)"
HAIR = 0.75
BOLD = 1.12  # times as wide as regular letters, in the widest of the usual fonts


def ticks(low: float, high: float, most: int = 6, log: bool = False) -> list[float]:
    """Round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten; for ``log`` powers of ten at best."""
    if not (finite(low) and finite(high) and low < high):
        return [low] if finite(low) else []
    if log:
        return _log_ticks(low, high, most)
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        marks = [float(f"{factor * 10.0**decade:.6g}") for decade in decades for factor in factors]
        marks = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
        if len(marks) <= most:
            return marks if len(marks) > 1 else ticks(low, high, most)
    return marks[:: -(-len(marks) // most)]


def text_width(text: str, font: float = FONT) -> float:
    """About how wide a text is: fonts differ, so with a little room to spare."""
    return font * sum(map(_ems, text))


def _ems(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if character in "%WMmw—" or unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if character in " .,:;il|!'jtfr":
        return 0.34
    return 0.76 if character.isupper() else 0.64


def shorten(text: str, room: float) -> str:
    if text_width(text) <= room:
        return text
    while text and text_width(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"


def _widened(low: float, high: float, within: list[float], log: bool) -> tuple[float, float]:
    """The range out to the next round numbers: those after the ticks, or on a logarithmic axis 1, 2 or 5 times 10ⁿ."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        rounds = [float(f"{factor * 10.0**decade:.6g}") for decade in decades for factor in (1, 2, 5)]
    else:
        step = within[1] - within[0]
        rounds = [float(f"{tick:.12g}") for tick in (within[0] - step, *within, within[-1] + step)]
    slack = 1e-9 * (high - low)
    return max(r for r in rounds if r <= low + slack), min(r for r in rounds if r >= high - slack)


class Axis:
    """From values to places between ``begin`` and ``end``."""

    def __init__(
        self, values: Sequence[float], log: bool, spec: str, most: int, widen: bool, zero: bool = False
    ) -> None:
        self.log, self.spec = log, spec
        values = [value for value in values if finite(value) and (value > 0 or not log)]
        self.empty = not values
        low, high = (min(values), max(values)) if values else (1.0, 10.0) if log else (0.0, 1.0)
        if zero and not log:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2)
        self.ticks = ticks(low, high, most, log)
        if widen and len(self.ticks) > 1:
            low, high = _widened(low, high, self.ticks, log)
            self.ticks = ticks(low, high, most + 1, log)
        self.low, self.high = low, high
        self.begin, self.end = 0.0, 1.0

    def __call__(self, value: float) -> float:
        f = math.log10 if self.log else float
        return self.begin + (self.end - self.begin) * (f(value) - f(self.low)) / (f(self.high) - f(self.low))

    def holds(self, value: object) -> bool:
        return finite(value) and (value > 0 or not self.log)

    def label(self, value: float) -> str:
        return f"{compact(100 * value)} %" if self.spec.endswith("%") else compact(value)

    def along(self, begin: float, end: float) -> None:
        """Lie from ``begin`` to ``end``, with no more ticks than their labels have room for."""
        self.begin, self.end = begin, end
        room = (end - begin) / (14 + max((text_width(self.label(tick)) for tick in self.ticks), default=0.0))
        if len(self.ticks) - 1 > room:
            self.ticks = self.ticks[:: math.ceil((len(self.ticks) - 1) / max(room, 1.0))]


def write(x: float, y: float, words: str, anchor: str = "start", color: str = SOFT, **more: object) -> Html:
    anchor = None if anchor == "start" else anchor
    return element("text", words, x=float(x), y=float(y), text_anchor=anchor, fill=color, **more)


def line_between(
    x1: float, y1: float, x2: float, y2: float, color: str = LINE, width: float = 1.0, **more: object
) -> Html:
    places = {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}
    return element("line", stroke=color, stroke_width=width, **places, **more)


def legend(colors: Mapping[str, str]) -> Html:
    """Names with their colours."""
    entries = (element("span", element("i", "", style=f"background:{color}"), name) for name, color in colors.items())
    return element("div", *entries, class_="legend")


def figure(title: str, description: str, parts: Sequence[Html], width: float, height: float, key: Html | None) -> Html:
    svg = element(
        "svg",
        element("title", title),
        element("desc", description),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        font_size=FONT,
        role="img",
        aria_label=f"{title}. {description}",
    )
    return element("figure", element("figcaption", title), key, svg, class_="chart")


def frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterator[Html]:
    """Grid and labels of two axes of numbers."""
    for tick in y.ticks:
        yield line_between(x.begin, y(tick), x.end, y(tick), SOFT if tick == 0 else LINE, HAIR)
        yield write(x.begin - 7, y(tick) + 4, y.label(tick), "end")
    yield from x_axis(x, y.begin, x_label)
    yield write(0, 11, y_label)


def x_axis(x: Axis, bottom: float, label: str) -> Iterator[Html]:
    yield line_between(x.begin, bottom, x.end, bottom, SOFT, HAIR)
    for tick in x.ticks:
        yield line_between(x(tick), bottom, x(tick), bottom + 4, SOFT, HAIR)
        yield write(x(tick), bottom + 17, x.label(tick), "middle")
    yield write((x.begin + x.end) / 2, bottom + 35, label, "middle")


def nothing(x: Axis, y: Axis) -> Html:
    return write((x.begin + x.end) / 2, (y.begin + y.end) / 2, "no data", "middle")


def place_axes(x: Axis, y: Axis, width: float, height: float, top: float, right: float) -> None:
    x.along(8 + max(text_width(y.label(tick)) for tick in y.ticks), width - right)
    y.begin, y.end = height - 42, top
