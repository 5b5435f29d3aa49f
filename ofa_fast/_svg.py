"""Charts as inline SVG: no library, no scripts, readable on light and dark pages, described for those who listen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ofa_fast._axes import (
    BOLD,
    HAIR,
    HEIGHT,
    INK,
    LINE,
    SOFT,
    WIDTH,
    Axis,
    figure,
    frame,
    legend,
    line_between,
    nothing,
    place_axes,
    shorten,
    text_width,
    write,
    x_axis,
)
from ofa_fast._markup import Html, color_of, element, finite, number


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Sequence[float]]],
    x_label: str = "",
    y_label: str = "",
    *,
    x_log: bool = False,
    y_log: bool = False,
    x_format: str = "",
    y_format: str = "",
    zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    colors: Mapping[str, str] | None = None,
    description: str = "",
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Html:
    """Lines, each named at its end.

    Args:
        series: for each name points (x, y), or (x, y, low, high) for a band of error around the line. A point that is
            None or NaN, or not positive on a logarithmic axis, breaks the line.
        x_log, y_log: logarithmic axes.
        x_format, y_format: of the ticks, as for ``number``; by default short numbers.
        zero: let the y axis begin at 0.
        marks: places on the x axis to point out, with a word on each.
        colors: of the names that should not take the next colour.
        description: what to say to those who cannot see the chart; by default the ends of the lines.
    """
    points = [point for line in series.values() for point in line if len(point) > 1 and finite(point[1])]
    x = Axis([p[0] for p in points] + [mark for mark, _ in marks], x_log, x_format, 6, widen=False)
    y = Axis([value for p in points for value in p[1:]], y_log, y_format, 5, widen=True, zero=zero)
    named = len(series) > 1
    names = {name: shorten(name, width / 3 / BOLD) for name in series if named}
    right = 14 + BOLD * max(map(text_width, names.values()), default=0)
    rows = min(3, len(marks))
    place_axes(x, y, width, height, 22 + 15 * rows, right)
    chosen = color_of(series, colors)
    parts = list(frame(x, y, x_label, y_label))
    for i, (mark, word) in enumerate(sorted(marks)):
        if x.holds(mark):
            at = 22 + 15 * (i % rows)
            anchor = "end" if x(mark) + text_width(word) > width else "start"
            parts.append(line_between(x(mark), at - 8, x(mark), y.begin, SOFT, 1.0, stroke_dasharray="2 3"))
            parts.append(write(x(mark) + (4 if anchor == "start" else -4), at, word, anchor))
    ends = []
    for name, line in series.items():
        runs = list(_runs(line, x, y))
        for run in runs:
            parts += _drawn(run, name, chosen[name], x, y, dots=len(line) <= 24)
        if runs:
            ends.append((y(runs[-1][-1][1]), x(runs[-1][-1][0]), name))
    if named:
        for at, (_, end, name) in zip(_apart([place for place, _, _ in sorted(ends)], 15), sorted(ends), strict=True):
            parts.append(write(min(end, x.end) + 7, at + 4, names[name], color=chosen[name], font_weight=600))
    if not ends:
        parts.append(nothing(x, y))
    return figure(title, description or _told_lines(series, x_label, y_label), parts, width, height, None)


def _runs(line: Sequence[Sequence[float]], x: Axis, y: Axis) -> Iterator[list]:
    run = []
    for point in line:
        if len(point) > 1 and x.holds(point[0]) and y.holds(point[1]):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _drawn(run: list, name: str, color: str, x: Axis, y: Axis, dots: bool) -> Iterator[Html]:
    band = [p for p in run if len(p) == 4 and y.holds(p[2]) and y.holds(p[3])]
    if len(band) > 1:
        edge = [f"{x(p[0]):.1f},{y(p[3]):.1f}" for p in band] + [f"{x(p[0]):.1f},{y(p[2]):.1f}" for p in reversed(band)]
        yield element("polygon", points=" ".join(edge), fill=color, opacity=0.18)
    elif band:
        yield line_between(x(band[0][0]), y(band[0][2]), x(band[0][0]), y(band[0][3]), color, 1.5)
    path = " ".join(f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in run)
    yield element("polyline", points=path, fill="none", stroke=color, stroke_width=2.0, stroke_linejoin="round")
    for point in run if dots or len(run) == 1 else ():
        words = element("title", f"{name}: {x.label(point[0])}, {number(point[1], y.spec)}".removeprefix(": "))
        yield element("circle", words, cx=x(point[0]), cy=y(point[1]), r=3.0, fill=color)


def _apart(places: list[float], gap: float) -> list[float]:
    """Rising places moved as little as needed to be ``gap`` apart: crowded ones are spread about their middle."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (middle, many), (other, count) = groups.pop(), groups.pop()
            groups.append([(middle * many + other * count) / (many + count), many + count])
    return [middle + gap * (i - (count - 1) / 2) for middle, count in groups for i in range(int(count))]


def _told_lines(series: Mapping, x_label: str, y_label: str) -> str:
    told = [f"Line chart of {y_label or 'y'} by {x_label or 'x'}."]
    for name, line in series.items():
        seen = [point for point in line if len(point) > 1 and finite(point[0]) and finite(point[1])]
        ends = " to ".join(f"{number(point[1])} at {number(point[0])}" for point in seen[:1] + seen[-1:])
        told.append(f"{name or 'The line'}: from {ends}." if seen else f"{name or 'The line'}: no data.")
    return " ".join(told)


def bar_chart(
    title: str,
    categories: Sequence[str],
    series: Mapping[str, Sequence[float]] | Sequence[float],
    label: str = "",
    *,
    stacked: bool = False,
    horizontal: bool | None = None,
    errors: Mapping[str, Sequence[Sequence[float]]] | Sequence[Sequence[float]] | None = None,
    format: str = "",
    colors: Mapping[str, str] | None = None,
    description: str = "",
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Html:
    """Bars from 0 for each category: side by side, or ``stacked``.

    Args:
        series: for each name a value for each category, None or NaN where there is none; or the values alone.
        label: of the axis of values.
        horizontal: by default where the categories' names would not fit below upright bars.
        errors: for each name (low, high) for each category, or None; not for stacked bars.
        format: of the values, as for ``number``.
        height: of upright bars; the height of a horizontal chart is that of its bars.

    Raises:
        ValueError: a series or its errors have not one value for each category.
    """
    series = series if isinstance(series, Mapping) else {"": series}
    errors = errors if isinstance(errors, Mapping) else {"": errors} if errors is not None else {}
    for name, values in [*series.items(), *errors.items()]:
        if len(values) != len(categories):
            raise ValueError(f"bar chart {title!r}: {len(values)} values of {name!r} for {len(categories)} categories")
    bars = list(_bars(categories, series, errors, stacked))
    values = [value for bar in bars for value in bar[2:] if finite(value)]
    axis = Axis(values, False, format, 5, widen=True, zero=True)
    lanes = 1 if stacked else max(1, len(series))
    chosen = color_of(series, colors)
    if horizontal is None:
        room = (width - 60) / max(1, len(categories))
        horizontal = any(text_width(category) > 0.95 * room for category in categories)
    draw = _horizontal if horizontal else _upright
    parts, height = draw(categories, axis, lanes, bars, chosen, label, width, height, values_shown=not stacked)
    told = (
        f"{category}: " + ", ".join(f"{name} {number(v[i], format)}".strip() for name, v in series.items()) + "."
        for i, category in enumerate(categories)
    )
    description = description or " ".join([f"Bar chart of {label or 'values'}.", *told])
    return figure(title, description, parts, width, height, legend(chosen) if len(series) > 1 else None)


def _bars(categories: Sequence[str], series: Mapping, errors: Mapping, stacked: bool) -> Iterator[tuple]:
    """(category, name, begin, end, low, high) of each bar."""
    for i in range(len(categories)):
        top = 0.0
        for name, values in series.items():
            if finite(values[i]):
                begin = top if stacked else 0.0
                top = begin + values[i]
                low, high = (errors.get(name) or {i: None})[i] or (None, None)
                yield i, name, begin, top, low, high


def _horizontal(categories, axis, lanes, bars, colors, label, width, height, values_shown) -> tuple[list[Html], float]:
    thick = 15.0 if lanes == 1 else 11.0
    row = thick * lanes + (8 if lanes == 1 else 12)
    left = 10 + max((text_width(shorten(category, width * 0.42)) for category in categories), default=0)
    shown = [number(bar[3], axis.spec) for bar in bars] if values_shown else []
    edge = text_width(axis.label(axis.ticks[-1])) / 2 if axis.ticks else 0
    axis.along(left, width - max(edge, 12 + max(map(text_width, shown), default=0)))
    bottom = 6 + row * len(categories)
    parts = [line_between(axis(tick), 4, axis(tick), bottom, LINE, HAIR) for tick in axis.ticks]
    parts += x_axis(axis, bottom, label)
    for i, category in enumerate(categories):
        parts.append(write(left - 8, 6 + row * (i + 0.5) + 4, shorten(category, width * 0.42), "end", INK))
    place = {name: i for i, name in enumerate(colors)}
    for i, name, begin, end, low, high in bars:
        y = 6 + row * (i + 0.5) - thick * lanes / 2 + thick * (place[name] if lanes > 1 else 0)
        x1, x2 = sorted((axis(begin), axis(end)))
        parts.append(_rectangle(x1, y, x2 - x1, thick - 1, colors[name], categories[i], name, end - begin, axis.spec))
        reach = x2
        if finite(low) and finite(high):
            parts.append(line_between(axis(low), y + thick / 2, axis(high), y + thick / 2, INK, 1.2))
            reach = max(x2, axis(high))
        if values_shown:
            parts.append(write(reach + 5, y + thick / 2 + 4, number(end, axis.spec)))
    if not bars:
        parts.append(write((left + axis.end) / 2, bottom - 4, "no data", "middle"))
    return parts, bottom + (42 if label else 24)


def _upright(categories, axis, lanes, bars, colors, label, width, height, values_shown) -> tuple[list[Html], float]:
    left = 8 + max(text_width(axis.label(tick)) for tick in axis.ticks)
    axis.begin, axis.end = height - 26, 24
    parts = [write(0, 11, label)]
    for tick in axis.ticks:
        parts.append(line_between(left, axis(tick), width - 4, axis(tick), SOFT if tick == 0 else LINE, HAIR))
        parts.append(write(left - 7, axis(tick) + 4, axis.label(tick), "end"))
    room = (width - 4 - left) / max(1, len(categories))
    thick = min(34.0, 0.76 * room / lanes)
    for i, category in enumerate(categories):
        parts.append(write(left + room * (i + 0.5), height - 8, category, "middle", INK))
    place = {name: i for i, name in enumerate(colors)}
    for i, name, begin, end, low, high in bars:
        x = left + room * (i + 0.5) - thick * lanes / 2 + thick * (place[name] if lanes > 1 else 0)
        y1, y2 = sorted((axis(begin), axis(end)))
        parts.append(_rectangle(x, y1, thick - 1, y2 - y1, colors[name], categories[i], name, end - begin, axis.spec))
        if finite(low) and finite(high):
            parts.append(line_between(x + thick / 2 - 0.5, axis(low), x + thick / 2 - 0.5, axis(high), INK, 1.2))
        shown = number(end, axis.spec)
        if values_shown and text_width(shown) <= thick + 6 and not finite(high):
            parts.append(write(x + thick / 2, y1 - 4 if end >= 0 else y2 + 13, shown, "middle"))
    if not bars:
        parts.append(write((left + width) / 2, height / 2, "no data", "middle"))
    return parts, height


def _rectangle(x, y, width, height, color, category, name, value, spec) -> Html:
    words = element("title", f"{category}{', ' if category and name else ''}{name}: {number(value, spec)}")
    return element("rect", words, x=float(x), y=float(y), width=float(width), height=float(height), fill=color)


def binned(values: Sequence[float], bins: int = 30) -> tuple[list[int], list[float]]:
    """Counts and edges of a histogram with round edges, about ``bins`` of them; what is not finite is left out."""
    values = [float(value) for value in values if finite(value)]
    if not values:
        return [], [0.0]
    axis = Axis(values, False, "", bins, widen=True)
    edges = axis.ticks
    counts = [0] * (len(edges) - 1)
    for value in values:
        place = int((value - edges[0]) / (edges[-1] - edges[0]) * len(counts))
        counts[min(place, len(counts) - 1)] += 1
    return counts, edges


def histogram(
    title: str,
    counts: Mapping[str, Sequence[float]] | Sequence[float],
    edges: Sequence[float],
    x_label: str = "",
    y_label: str = "",
    *,
    x_format: str = "",
    marks: Sequence[tuple[float, str]] = (),
    colors: Mapping[str, str] | None = None,
    description: str = "",
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Html:
    """Bars of ``counts`` between ``edges``, one more than counts (``binned`` makes both); several names are stacked.

    Raises:
        ValueError: there is not one edge more than counts.
    """
    series = counts if isinstance(counts, Mapping) else {"": counts}
    for name, values in series.items():
        if len(values) != len(edges) - 1:
            raise ValueError(f"histogram {title!r}: {len(values)} counts of {name!r} for {len(edges)} edges")
    totals = [sum(column) for column in zip(*series.values(), strict=True)]
    x = Axis(edges if totals else [], False, x_format, 7, widen=False)
    y = Axis(totals, False, "", 4, widen=True, zero=True)
    place_axes(x, y, width, height, 24 + 15 * bool(marks), 14)
    chosen = color_of(series, colors)
    parts = list(frame(x, y, x_label, y_label))
    for i, _ in enumerate(totals):
        base, begin, end = 0.0, x(edges[i]), x(edges[i + 1])
        for name, values in series.items():
            between = f"{number(edges[i])} to {number(edges[i + 1])}"
            high, low = y(base + values[i]), y(base)
            parts.append(
                _rectangle(
                    begin, high, max(0.5, end - begin - 0.8), low - high, chosen[name], between, name, values[i], ""
                )
            )
            base += values[i]
    for mark, word in marks:
        parts.append(line_between(x(mark), 30, x(mark), y.begin, INK, 1.0, stroke_dasharray="2 3"))
        parts.append(write(x(mark) + 4, 32, word, color=INK))
    if not sum(totals):
        parts.append(nothing(x, y))
    total = number(sum(totals))
    mode = max(range(len(totals)), key=totals.__getitem__) if totals else None
    peak = (
        ""
        if mode is None
        else f" The most, {number(totals[mode])}, lie from {number(edges[mode])} to {number(edges[mode + 1])}."
    )
    told = f"Histogram of {total} values of {x_label or 'x'}.{peak}"
    return figure(title, description or told, parts, width, height, legend(chosen) if len(series) > 1 else None)
