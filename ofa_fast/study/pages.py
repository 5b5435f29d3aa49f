"""A comparison as Markdown and as a page with charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ofa_fast._files import atomic_file
from ofa_fast._html import COLORS, Html, bar_chart, details, facts, figures, line_chart, page, table
from ofa_fast.study.arms import rank_name
from ofa_fast.study.collect import LOSS
from ofa_fast.study.tables import ends, labels_of, lines_of, measures_of, metric_of, tables

COSTS = {"step": "steps", "seconds": "seconds of training", "watt_hours": "watt-hours of training"}


def write_pages(report: dict, out: Path) -> None:
    for name, text in (("report.md", markdown(report)), ("report.html", html(report))):
        with atomic_file(out / name) as file:
            file.write_text(text, "utf-8")


def about(report: dict) -> list[tuple[str, str]]:
    """What the numbers belong to."""
    known = report["about"]
    trained = [arm["training"] for arm in report["arms"] if arm["training"]]
    lines = [
        ("source", known["source"]),
        ("target", f"{known['target_tokens']:,} tokens"),
        ("arms", f"{len(report['arms'])}, seeds {', '.join(map(str, known['seeds']))}"),
        ("tasks", ", ".join(known["tasks"])),
        ("machine", f"{known['cpu']}, {known['cores']} cores; {known.get('processes', 1)} arms at once"),
        ("versions", ", ".join(f"{name} {version}" for name, version in known["versions"].items())),
    ]
    if trained:
        steps = sorted({arm["steps"] for arm in report["arms"]} - {0})
        options = ", ".join(f"{name} {value}" for name, value in known["training"].items())
        lines.insert(3, ("training", f"{', '.join(map(str, steps))} steps" + (f"; {options}" if options else "")))
        threads = sorted({own["threads"] for own in trained})
        lines.insert(-1, ("threads of an arm", ", ".join(map(str, threads))))
        lines.insert(-1, ("trained on", ", ".join(sorted({own["device"] for own in trained}))))
        lines.insert(-1, ("energy", trained[0]["cost"]["energy_source"]))
    return lines


def markdown(report: dict) -> str:
    parts = [f"# {report['title']}", "\n".join(f"- {name}: {value}" for name, value in about(report))]
    for made in tables(report):
        parts += [f"## {made.title}", made.note, made.markdown()]
    return "\n\n".join(parts) + "\n"


def html(report: dict) -> str:
    made = tables(report)
    sections = [("Curves", _curves(report)), ("Scores", _bars(report))]
    sections += [(own.title, [own.note, table(own.rows, own.columns, limit=40)]) for own in made]
    sections += [("How it was measured", facts(about(report)))]
    return page(report["title"], [section for section in sections if section[1]], contents=True)


def trained_labels(report: dict) -> list[str]:
    return list(dict.fromkeys(arm["label"] for arm in report["arms"] if arm["steps"]))


def charts(report: dict, measure: str) -> dict[str, list[str]]:
    """Labels of the arms that share a chart: all; or, where colours would repeat, the first recipe and random rows at
    all ranks, and all that there are at each rank. Arms without a curve are left out."""
    arms = {arm["label"]: arm for arm in report["arms"]}
    labels = [label for label in trained_labels(report) if len(lines_of(report, label, measure)) > 1]
    if len(labels) <= len(COLORS):
        return {"": labels}
    two = report["arms"][0]["recipe"], "random"
    found = {"all ranks": [label for label in labels if arms[label]["recipe"] in two]}
    for rank in dict.fromkeys(arms[label]["rank"] for label in labels):
        found[rank_name(rank)] = [label for label in labels if arms[label]["rank"] == rank]
    groups = [set(own) for own in found.values()]
    return {name: own for name, own in found.items() if not any(set(own) < other for other in groups)}


def curve(report: dict, measure: str, cost: str, labels: Sequence[str], title: str) -> Html:
    """A measure against steps, seconds or energy; the band is from the lowest to the highest seed."""
    series = {
        label: [(line[cost], line["mean"], line["low"], line["high"]) for line in lines_of(report, label, measure)]
        for label in labels
    }
    unit = "nats a token" if measure == LOSS else metric_of(report, measure)
    return line_chart(title, series, COSTS[cost], unit, width=640)


def _curves(report: dict) -> list[Html]:
    own = [cost for cost in COSTS if all(line[cost] is not None for line in report["summary"])]
    found = []
    for measure in measures_of(report):
        for group, labels in charts(report, measure).items():
            name = f"{measure}, {group}" if group else measure
            drawn = [curve(report, measure, cost, labels, f"{name} against {COSTS[cost]}") for cost in own if labels]
            if drawn:
                found += [figures(drawn[0]), details(f"{name} against time and energy", figures(*drawn[1:]))]
    return found


def _bars(report: dict) -> list[Html]:
    labels = labels_of(report)
    found = []
    for task in report["about"]["tasks"]:
        stages = {"before training": 0, "after": 1}
        lines = {stage: [ends(lines_of(report, label, task))[i] for label in labels] for stage, i in stages.items()}
        if not any(lines["after"]):
            del lines["after"]
        names = labels
        series = {stage: [line and line["mean"] for line in own] for stage, own in lines.items()}
        errors = {stage: [line and (line["low"], line["high"]) for line in own] for stage, own in lines.items()}
        if task in report["source"]:
            names = [f"{report['about']['source']} as it is", *labels]
            for stage in series:
                own = report["source"][task]["average"]["score"] if stage == "before training" else None
                series[stage], errors[stage] = [own, *series[stage]], [None, *errors[stage]]
        found.append(
            bar_chart(
                task, names, series, metric_of(report, task), errors=errors, horizontal=True, format=".3f", width=560
            )
        )
    return [figures(*found)] if found else []
