"""HTML and SVG elements from text that is escaped unless it is markup already, numbers for people, and colours."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Mapping

# Characters that neither XML nor UTF-8 may hold, or that change the text around them unseen.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

# Okabe and Ito's palette, its light colours darkened until they stand out from white; a page with a dark background
# sets the variables to lighter ones. Any two can be told apart with each kind of colour blindness.
LIGHT = ("#0072b2", "#d55e00", "#00866a", "#a84a86", "#9a7400", "#4d5560", "#7a4b2a", "#3a8fc4")
DARK = ("#4ea5e0", "#f58a42", "#35bd98", "#dd8cbf", "#dcb443", "#b9c0c9", "#c99a76", "#9ad2f5")
COLORS = tuple(f"var(--c{i},{color})" for i, color in enumerate(LIGHT))
GREY = "var(--grey,#9aa1aa)"  # what is unknown, random or left over

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Html(str):
    """Markup, to be taken as it stands. Any other string is text, and is escaped where it enters an element."""

    __slots__ = ()


def escape(text: object) -> Html:
    """``text`` as markup that shows it; unprintable characters are shown by their codes."""
    return text if isinstance(text, Html) else Html(html.escape(_printable(text)))


def _printable(text: object) -> str:
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))


def join(*parts: object) -> Html:
    """The parts one after the other; None adds nothing."""
    return Html("".join(escape(part) for part in parts if part is not None))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """``element("a", "x < y", href="#top")``: ``<a href="#top">x &lt; y</a>``.

    ``_`` in the name of an attribute stands for ``-`` and is dropped at its end (``class_``); numbers are written to a
    hundredth; None leaves a child or an attribute out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>{join(*children)}</{tag}>") if children else Html(f"<{tag}{written}/>")


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else html.escape(_printable(value))


def color_of(names: Collection[str], colors: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour for each name: that of ``colors``, else the next of ``COLORS`` that is not taken."""
    colors = colors or {}
    free = [color for color in COLORS if color not in colors.values()] or list(COLORS)
    others = iter(free * len(names))
    return {name: colors.get(name) or next(others) for name in names}


def finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: object, spec: str = "") -> str:
    """A number for people; "–" for None, NaN and infinity.

    ``spec`` is a format such as ``".1%"`` or ``",d"``; by default whole numbers have thousands separators and others
    three significant digits.
    """
    if not finite(value):
        return "–"
    if spec:
        text = format(value, spec)
    elif float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif 1000 <= abs(value) < 1e15:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−").replace("%", " %")


def compact(value: float) -> str:
    """A short number for an axis: 250k, 1.5M, 0.05."""
    plain = abs(value) < 1e4 or abs(value) >= 1e15
    unit, name = (1, "") if plain else next(pair for pair in _UNITS if abs(value) >= pair[0])
    return f"{value / unit:.5g}{name}".replace("-", "−")


def size(count: float) -> str:
    """Bytes in the unit that gives one to four digits."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{number(count, ',.0f' if unit in ('bytes', 'KiB', 'MiB') else ',.1f')} {unit}"


def clock(seconds: float) -> str:
    """Seconds for people: 12 ms, 3.4 s, 2 min 5 s."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
