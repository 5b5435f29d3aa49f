"""The tables of a comparison, as text: (title, note, columns, rows), the same on every kind of page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ofa_fast.study.arms import rank_name
from ofa_fast.study.collect import LOSS


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        marks = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [self.columns, marks, *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(report: dict) -> list[Table]:
    """All that have a row."""
    made = [
        scores(report),
        gains(report),
        by_language(report),
        steps_while_training(report),
        matched(report),
        initialised(report),
    ]
    return [table for table in made if table.rows]


def show(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _spread(line: dict | None, digits: int = 3) -> str:
    if line is None:
        return "–"
    ends = f" ({show(line['low'], digits)} – {show(line['high'], digits)})" if line["seeds"] > 1 else ""
    return show(line["mean"], digits) + ends


def lines_of(report: dict, label: str, measure: str) -> list[dict]:
    return [line for line in report["summary"] if (line["label"], line["measure"]) == (label, measure)]


def labels_of(report: dict) -> list[str]:
    return list(dict.fromkeys(arm["label"] for arm in report["arms"]))


def measures_of(report: dict) -> list[str]:
    return list(dict.fromkeys(line["measure"] for line in report["summary"]))


def ends(lines: Sequence[dict]) -> tuple[dict | None, dict | None]:
    """Before training and after it."""
    before = next((line for line in lines if line["step"] == 0), None)
    return before, (lines[-1] if lines and lines[-1]["step"] else None)


def metric_of(report: dict, task: str) -> str:
    return next(
        point["tasks"][task]["metric"] for arm in report["arms"] for point in arm["points"] if task in point["tasks"]
    )


def scores(report: dict) -> Table:
    tasks = list(report["about"]["tasks"])
    columns = ["arm", "seeds"]
    for task in tasks:
        columns += [f"{task} ({metric_of(report, task)}), before", "after"]
    has_loss = LOSS in measures_of(report)
    columns += [f"{LOSS} (nats a token), before", "after"] if has_loss else []
    rows = []
    if report["source"]:
        row = [f"{report['about']['source']} as it is", ""]
        for task in tasks:
            row += [show(report["source"][task]["average"]["score"]) if task in report["source"] else "–", "–"]
        rows.append(row + ["–", "–"] * has_loss)
    for label in labels_of(report):
        row = [label, str(sum(arm["label"] == label for arm in report["arms"]))]
        for measure in [*tasks, *([LOSS] if has_loss else [])]:
            row += map(_spread, ends(lines_of(report, label, measure)))
        rows.append(row)
    return Table("Before and after training", "The mean of the seeds (lowest – highest seed).", columns, rows)


def gains(report: dict) -> Table:
    rows = []
    for gain in report["gains"]:
        low, high = gain["interval"]
        rank = "full" if gain["rank"] is None else str(gain["rank"])
        verdict = "yes" if low > 0 else "worse" if high < 0 else "not shown"
        rows.append(
            [
                gain["over"],
                rank,
                gain["task"],
                gain["stage"],
                str(gain["seeds"]),
                f"{gain['mean']:+.3f}",
                f"{low:+.3f} … {high:+.3f}",
                verdict,
            ]
        )
    first = report["arms"][0]["recipe"]
    return Table(
        f"What {first} gains over others",
        "Difference in score at the same rank and seed, averaged over languages and seeds, with its 95 % bootstrap "
        "interval; both languages and seeds are drawn anew.",
        ["over", "rank", "task", "training", "seeds", "gain", "95 % interval", "better"],
        rows,
    )


def by_language(report: dict) -> Table:
    """Gains over random rows, or what comes first, by language at each rank."""
    over = [gain["over"] for gain in report["gains"]]
    over = "random" if "random" in over else over[0] if over else ""
    chosen = [gain for gain in report["gains"] if gain["over"] == over]
    codes = sorted({(gain["task"], code) for gain in chosen for code in gain["languages"]})
    kinds = list(dict.fromkeys((gain["rank"], gain["stage"]) for gain in chosen))
    rows = []
    for task, code in codes:
        row = [f"{task}: {code}"]
        for rank, stage in kinds:
            own = next((g for g in chosen if (g["task"], g["rank"], g["stage"]) == (task, rank, stage)), None)
            row.append("–" if own is None or code not in own["languages"] else f"{own['languages'][code]['mean']:+.3f}")
        rows.append(row)
    head = [f"{rank_name(rank)}, {stage} training" for rank, stage in kinds]
    first = report["arms"][0]["recipe"]
    return Table(
        f"What {first} gains over {over}, by language", "Mean of the seeds.", ["task and language", *head], rows
    )


def steps_while_training(report: dict) -> Table:
    rows = []
    steps = sorted({line["step"] for line in report["summary"]})
    for measure in measures_of(report):
        for label in labels_of(report):
            at = {line["step"]: line for line in lines_of(report, label, measure)}
            if len(at) > 2:
                rows.append([f"{measure}: {label}", *(show(at[step]["mean"]) if step in at else "–" for step in steps)])
    return Table("While it trains", "Mean of the seeds after so many steps.", ["", *map(str, steps)], rows)


def matched(report: dict) -> Table:
    rows = []
    for line in report["matched"]:
        costs = [line[cost] for cost in ("step", "seconds", "watt_hours")]
        whole = line["reference_costs"]["seconds"]
        share = None if line["seconds"] is None or not whole else line["seconds"] / whole
        texts = ["never" if line["step"] is None else show(costs[0], 0), show(costs[1], 0), show(costs[2], 2)]
        rows.append(
            [
                f"{line['measure']}: {line['label']}",
                show(line["target"]),
                *texts,
                "–" if share is None else f"{share:.0%}",
            ]
        )
    reference = report["matched"][0]["reference"] if report["matched"] else ""
    return Table(
        f"What it costs to reach where {reference} ends",
        "By the mean curves of the seeds, linear between the points of evaluation; initialisation and evaluation "
        "do not count. 0 steps: before training already.",
        ["", "target", "steps", "seconds", "watt-hours", "of its time"],
        rows,
    )


def initialised(report: dict) -> Table:
    rows = []
    for label in labels_of(report):
        own = next(arm for arm in report["arms"] if arm["label"] == label)
        made = own["initialization"]
        trained = [arm["training"] for arm in report["arms"] if arm["label"] == label and arm["training"]]
        speed = sum(t["tokens_per_second"] for t in trained) / len(trained) if trained else None
        watts = [t["cost"]["watts"] for t in trained if t["cost"]["watts"] is not None]
        rows.append(
            [
                label,
                *(f"{made['counts'][kind]:,}" for kind in ("copied", "similar", "random")),
                f"{made['parameters']['factorized'] / 1e6:,.1f} M",
                show(made["seconds"], 1),
                show(speed, 0),
                show(sum(watts) / len(watts), 1) if watts else "–",
            ]
        )
    return Table(
        "How they were made",
        "Of the first seed: where rows come from, parameters of the table, seconds of initialisation; of all seeds: "
        "speed and power of training.",
        ["arm", "copied", "similar", "random", "table", "seconds", "tokens/s", "watts"],
        rows,
    )
