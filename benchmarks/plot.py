"""Horizontal bars on a logarithmic axis, as SVG text: no library, and readable on light and dark pages alike."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, BAR = 860, 290, 130, 19, 11
INK, FAINT = "#7a838d", "#7a838d40"  # a grey with a contrast of about 4 on white and on near-black
OURS, SLOWER, FASTER = "#e8730c", "#4184e4", "#2da44e"


def bars(heading: str, groups: list[tuple[str, list[tuple[str, float, str]]]]) -> str:
    """Each group is a title and rows of (name, ratio, label), ours first; bars start at 1, below it to the left."""
    logs = [math.log10(ratio) for _, rows in groups for _, ratio, _ in rows]
    low, high = min(-0.1, *logs) - 0.05, max(1.0, *logs) + 0.05

    def x(ratio: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(ratio) - low) / (high - low)

    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    ticks = [ratio for ratio in ticks if low <= math.log10(ratio) <= high]
    parts = [_text(12, 20, heading, weight=700, size=14)]
    y = 30.0
    for title, rows in groups:
        parts.append(_text(12, y + 18, title, weight=600))
        y += 26
        for ratio in ticks:
            parts.append(
                f'<line x1="{x(ratio):.1f}" x2="{x(ratio):.1f}" y1="{y:.0f}" y2="{y + ROW * len(rows):.0f}" '
                f'stroke="{INK if ratio == 1 else FAINT}"/>'
            )
        for index, (name, ratio, label) in enumerate(rows):
            parts += _row(y, name, ratio, label, x, ours=index == 0)
            y += ROW
        y += 6
    parts += [_text(x(ratio), y + 12, f"{ratio:g}×", anchor="middle") for ratio in ticks]
    height = round(y + 22)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="system-ui, -apple-system, \'DejaVu Sans\', sans-serif" fill="{INK}">',
            f"<title>{escape(heading)}</title>",
            *parts,
            "</svg>\n",
        ]
    )


def _row(y: float, name: str, ratio: float, label: str, x, ours: bool) -> list[str]:
    start, end = sorted((x(1), x(ratio)))
    middle = y + ROW / 2
    parts = [_text(LEFT - 10, middle + 4, name, anchor="end")]
    if ours:
        parts.append(f'<circle cx="{x(1):.1f}" cy="{middle:.1f}" r="4.5" fill="{OURS}"/>')
        words = label
    else:
        parts.append(
            f'<rect x="{start:.1f}" y="{middle - BAR / 2:.1f}" width="{max(end - start, 1):.1f}" height="{BAR}" '
            f'rx="2" fill="{SLOWER if ratio >= 1 else FASTER}"/>'
        )
        digits = 0 if ratio >= 99.5 else 1 if ratio >= 9.95 else 2
        words = f"{ratio:.{digits}f}× · {label}"
    return [*parts, _text(max(end, x(1)) + 8, middle + 4, words)]


def _text(x: float, y: float, words: str, anchor: str = "start", weight: int = 400, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
        f"{escape(words)}</text>"
    )
