"""A report of ``evaluate`` as one HTML page with plots."""

from __future__ import annotations

from ofa_fast._html import Column, bar_chart, details, facts, figures, line_chart, page, table, tiles
from ofa_fast.evaluation.report import GROUPS, TITLES, column_name, describe, metric_name, numbers_of, percent

_CHARTED = 40  # languages that a chart has room for


def html(report: dict) -> str:
    metric, average = metric_name(report["metric"]), report["average"]
    low, high = average["interval"]
    targets = [one for code, one in report["languages"].items() if code != report["source"]] or [average]
    best, worst = (choose(one["score"] for one in targets) for choose in (max, min))
    top = [
        (f"{percent(average['score'])} %", f"{metric}, mean of {len(targets)} languages"),
        (f"{percent(low)} – {percent(high)}", "95 % interval of the mean"),
        (f"{percent(worst)} – {percent(best)}", "lowest and highest language"),
    ]
    source = report["languages"].get(report["source"])
    if source:
        top.append((f"{percent(source['score'])} %", f"{report['source']}, the source"))
    sections = [
        tiles(top),
        ("Languages", [figures(_chart(f"{metric} in %", report["languages"])), _languages(report)]),
        *((f"By {name}", _group(report, kind, metric)) for kind, name in GROUPS.items()),
    ]
    if report.get("fine_tuning"):
        sections.append(("Fine-tuning", figures(*_tuning(report, metric))))
    settings = {**report["settings"], "seeds": report["seeds"], "seconds": report["seconds"], **report["versions"]}
    sections.append(("Settings", details("all settings and versions", facts(_flat(settings)))))
    return page(TITLES[report["task"]], sections, subtitle=describe(report), footer="ofa-fast evaluate")


def _chart(title: str, entries: dict[str, dict]):
    """The highest first; beyond ``_CHARTED`` every n-th one, so that the chart still spans all."""
    ordered = sorted(entries, key=lambda name: -entries[name]["score"])
    step = -(-len(ordered) // _CHARTED)
    shown = ordered[::step]
    return bar_chart(
        title if step == 1 else f"{title}, one in {step} languages",
        shown,
        [100 * entries[name]["score"] for name in shown],
        errors=[[100 * bound for bound in entries[name]["interval"]] for name in shown],
        format=".1f",
        horizontal=len(shown) > 8,
    )


def _languages(report: dict):
    columns = list(dict.fromkeys(name for one in report["languages"].values() for name in numbers_of(report, one)))
    counts = {"items", "words", "entities", "dropped", "empty", "cut"}
    shares = [name for name in columns if name not in counts]
    head = [
        "language",
        "script",
        "family",
        Column("items", ",.0f"),
        Column(metric_name(report["metric"]), ".1%", bar=1.0),
        Column("low", ".1%"),
        Column("high", ".1%"),
        *(Column(column_name(name), ".1%" if name in shares else ",.0f") for name in columns),
    ]
    lines = []
    for code, one in sorted(report["languages"].items(), key=lambda item: -item[1]["score"]):
        numbers = numbers_of(report, one)
        name = f"{code} (source)" if code == report["source"] else code
        cells = [name, one["script"], one["family"], one["items"], one["score"], *one["interval"]]
        lines.append([*cells, *(numbers.get(column) for column in columns)])
    return table(lines, head, limit=60)


def _group(report: dict, kind: str, metric: str):
    head = [GROUPS[kind], "languages", Column(metric, ".1%", bar=1.0), Column("low", ".1%"), Column("high", ".1%")]
    lines = [
        [name, len(one["languages"]), one["score"], *one["interval"]]
        for name, one in sorted(report[kind].items(), key=lambda item: -item[1]["score"])
    ]
    return table(lines, head)


def _tuning(report: dict, metric: str) -> list:
    seeds = [f"seed {seed}" for seed in report["seeds"]]
    runs = dict(zip(seeds, report["fine_tuning"], strict=True))
    losses = {name: list(enumerate(run["loss"], 1)) for name, run in runs.items()}
    devs = {
        name: [(epoch, 100 * score) for epoch, score in enumerate(run["dev_scores"], 1)] for name, run in runs.items()
    }
    charts = [line_chart("Training loss", losses, "epoch", x_format=".0f")]
    if any(devs.values()):
        charts.append(line_chart(f"{metric} on dev in %", devs, "epoch", x_format=".0f"))
    return charts


def _flat(settings: dict, prefix: str = "") -> list[tuple[str, object]]:
    pairs = []
    for name, value in settings.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{name} ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            pairs.append((f"{prefix}{name}", shown))
    return pairs
