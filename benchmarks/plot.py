"""Horizontal bars on a logarithmic axis, as SVG text: no library, and readable on light and dark pages alike."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, BAR = 860, 290, 130, 19, 11
INK, FAINT = "#7a838d", "#7a838d55"  # a grey with a contrast of about 4 on white and on near-black
OURS, SLOWER, FASTER = "#e8730c", "#4184e4", "#2da44e"


def bars(heading: str, groups: list[tuple[str, list[tuple[str, float, str]]]]) -> str:
    """Each group is a title and rows of (name, ratio, label); bars grow from ratio 1, to the left below it."""
    logs = [math.log10(ratio) for _, rows in groups for _, ratio, _ in rows]
    low, high = min(-0.1, *logs) - 0.05, max(1.0, *logs) + 0.05
    plot = WIDTH - LEFT - RIGHT

    def x(ratio: float) -> float:
        return LEFT + plot * (math.log10(ratio) - low) / (high - low)

    parts, y = [], 34.0
    for title, rows in groups:
        y += 8
        parts.append(_text(12, y + 13, title, weight="600"))
        y += ROW + 2
        for index, (name, ratio, label) in enumerate(rows):
            start, end = sorted((x(1), x(ratio)))
            middle = y + ROW / 2
            parts.append(_text(LEFT - 10, middle + 4, name, anchor="end"))
            if index == 0:
                parts.append(f'<circle cx="{x(1):.1f}" cy="{middle:.1f}" r="4.5" fill="{OURS}"/>')
            else:
                color = SLOWER if ratio >= 1 else FASTER
                parts.append(
                    f'<rect x="{start:.1f}" y="{middle - BAR / 2:.1f}" width="{max(end - start, 1):.1f}" '
                    f'height="{BAR}" rx="2" fill="{color}"/>'
                )
            words = label if index == 0 else f"{_ratio(ratio)}×  {label}"
            parts.append(_text(max(end, x(1)) + 8, middle + 4, words))
            y += ROW
    bottom = y + 6
    ticks = []
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for factor in (1, 2, 5):
            ratio = factor * 10.0**decade
            if low <= math.log10(ratio) <= high:
                color = INK if ratio == 1 else FAINT
                ticks.append(
                    f'<line x1="{x(ratio):.1f}" x2="{x(ratio):.1f}" y1="34" y2="{bottom:.0f}" stroke="{color}"/>'
                )
                ticks.append(_text(x(ratio), bottom + 15, f"{ratio:g}×", anchor="middle"))
    height = bottom + 26
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, -apple-system, \'DejaVu Sans\', sans-serif" '
            f'font-size="12" fill="{INK}">',
            f"<title>{escape(heading)}</title>",
            _text(12, 20, heading, weight="700", size=14),
            *ticks,
            *parts,
            "</svg>\n",
        ]
    )


def _ratio(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.1f}" if ratio >= 9.95 else f"{ratio:.2f}"


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
        f"{escape(words)}</text>"
    )
