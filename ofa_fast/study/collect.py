"""From the files of a comparison to its numbers: one dict that everything else is drawn from."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import ofa_fast
from ofa_fast._machine import cpu_name
from ofa_fast.study.arms import Arm
from ofa_fast.study.statistics import interval, reached

if TYPE_CHECKING:
    from ofa_fast.study.stages import Comparison

LOSS = "held-out loss"
WH_PER_JOULE = 1 / 3600


def collect(comparison: Comparison, arms: Sequence[Arm], title: str) -> dict:
    """``{"about", "source", "arms", "summary", "gains", "matched"}``, as ``compare`` returns it."""
    rows = [_arm(comparison, arm) for arm in arms]
    tasks = [task.name for task in comparison.tasks]
    source = {
        task: _read(comparison.out / "source" / f"{task}-step-0.json")
        for task in tasks
        if (comparison.out / "source" / f"{task}-step-0.json").exists()
    }
    scripts = {
        code: own["script"]
        for task in comparison.tasks
        for code, own in _targets(_read(comparison.evaluation(arms[0], task, 0))).items()
    }
    labels = list(dict.fromkeys(row["label"] for row in rows))
    summary = [line for label in labels for line in _summary(label, [r for r in rows if r["label"] == label])]
    return {
        "title": title,
        "about": _about(comparison, arms) | {"scripts": scripts},
        "source": source,
        "arms": rows,
        "summary": summary,
        "gains": _gains(rows, tasks, scripts),
        "matched": _matched(summary),
    }


def _read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def _about(comparison: Comparison, arms: Sequence[Arm]) -> dict:
    import torch
    import transformers

    return {
        "source": Path(comparison.source).name,
        "target_tokens": len(comparison.tokenizer),
        "vectors": list(comparison.vectors),
        "language": comparison.language,
        "bias": comparison.bias,
        "points": list(comparison.points),
        "seeds": sorted({arm.seed for arm in arms}),
        "tasks": {
            task.name: {
                "kind": task.kind,
                "data": task.data.name,
                "options": json.loads(json.dumps(task.options, default=str)),
            }
            for task in comparison.tasks
        },
        "training": json.loads(json.dumps(comparison.training, default=str)),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "versions": {
            "ofa-fast": ofa_fast.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _arm(comparison: Comparison, arm: Arm) -> dict:
    folder = comparison.folder(arm)
    made = _read(folder / "initialised" / "initialization.json")
    trained = _read(folder / "trained" / "training.json") if arm.steps else None
    steps = [0, *(point for point in comparison.points if point < arm.steps), *([arm.steps] if arm.steps else [])]
    return {
        "label": arm.label,
        "recipe": arm.recipe.name,
        "rank": arm.rank,
        "seed": arm.seed,
        "steps": arm.steps,
        "initialization": {
            "counts": made["counts"],
            "parameters": made["parameters"],
            "explained_variance": made["explained_variance"],
            "seconds": sum(made["seconds"].values()),
        },
        "training": None
        if trained is None
        else {
            name: trained[name]
            for name in (
                "seconds",
                "tokens",
                "tokens_per_second",
                "final_loss",
                "losses",
                "cost",
                "threads",
                "device",
                "finished",
            )
        },
        "points": [_point(comparison, arm, step, trained) for step in steps],
    }


def _point(comparison: Comparison, arm: Arm, step: int, trained: dict | None) -> dict:
    folder = comparison.folder(arm)
    point = {"step": step, "seconds": 0.0, "watt_hours": 0.0, "loss": None, "losses": {}, "tasks": {}}
    if trained is not None:
        point["seconds"] = _seconds_at(folder / "trained" / "losses.csv", step)
        watts = trained["cost"]["watts"]
        point["watt_hours"] = None if watts is None else watts * point["seconds"] * WH_PER_JOULE
        for evaluation in trained["evaluations"]:
            if evaluation["step"] == step:
                point |= {"loss": evaluation["loss"], "losses": evaluation["losses"]}
    for task in comparison.tasks:
        file = comparison.evaluation(arm, task, step)
        if file.exists():
            result = _read(file)
            point["tasks"][task.name] = {
                "metric": result["metric"],
                "score": result["average"]["score"],
                "languages": {code: own["score"] for code, own in _targets(result).items()},
            }
            if result["source"] in result["languages"]:  # what it was fine-tuned on
                point["tasks"][task.name]["source"] = result["languages"][result["source"]]["score"]
    return point


def _targets(result: dict) -> dict[str, dict]:
    """All languages but the one that they were retrieved from or transferred from, unless it is alone."""
    others = {code: own for code, own in result["languages"].items() if code != result["source"]}
    return others or result["languages"]


def _seconds_at(losses: Path, step: int) -> float:
    """Of training up to a step; evaluations are not in them."""
    if step == 0:
        return 0.0
    header, *rows = losses.read_text("utf-8").splitlines()
    row = dict(zip(header.split(","), rows[step - 1].split(","), strict=True))
    return float(row["seconds"])


def _values(point: dict) -> dict[str, float]:
    values = {} if point["loss"] is None else {LOSS: point["loss"]}
    return values | {task: result["score"] for task, result in point["tasks"].items()}


def _summary(label: str, rows: Sequence[dict]) -> list[dict]:
    """Per measure and step: the mean of the seeds, the lowest and the highest, and the mean cost up to there."""
    lines = []
    measures = dict.fromkeys(measure for row in rows for point in row["points"] for measure in _values(point))
    for measure in measures:
        for step in sorted({point["step"] for row in rows for point in row["points"]}):
            points = [p for row in rows for p in row["points"] if p["step"] == step and measure in _values(p)]
            if not points:
                continue
            values = [_values(point)[measure] for point in points]
            energy = [point["watt_hours"] for point in points]
            lines.append(
                {
                    "label": label,
                    "measure": measure,
                    "step": step,
                    "seeds": len(values),
                    "mean": float(np.mean(values)),
                    "low": min(values),
                    "high": max(values),
                    "seconds": float(np.mean([point["seconds"] for point in points])),
                    "watt_hours": None if None in energy else float(np.mean(energy)),
                }
            )
    return lines


def _gains(rows: Sequence[dict], tasks: Sequence[str], scripts: dict[str, str]) -> list[dict]:
    """Scores of the first arm's recipe less those of the others at the same rank, seed and step, before and after."""
    first = rows[0]["recipe"]
    found = []
    for other in dict.fromkeys(row["recipe"] for row in rows if row["recipe"] != first):
        for rank in dict.fromkeys(row["rank"] for row in rows):
            pairs = [
                (ours, theirs)
                for ours in rows
                for theirs in rows
                if (ours["recipe"], theirs["recipe"]) == (first, other)
                and ours["rank"] == theirs["rank"] == rank
                and ours["seed"] == theirs["seed"]
            ]
            for task in tasks:
                for stage in ("before", "after"):
                    compared = [pair for pair in pairs if stage == "before" or all(row["steps"] for row in pair)]
                    gain = _gain(compared, task, stage, scripts)
                    if gain:
                        found.append(
                            {"recipe": first, "over": other, "rank": rank, "task": task, "stage": stage} | gain
                        )
    return found


def _gain(pairs: Sequence[tuple[dict, dict]], task: str, stage: str, scripts: dict[str, str]) -> dict | None:
    end = 0 if stage == "before" else -1
    scores = [[row["points"][end]["tasks"].get(task) for row in pair] for pair in pairs]
    if not scores or any(score is None for pair in scores for score in pair):
        return None
    languages = list(scores[0][0]["languages"])
    differences = np.array(
        [[ours["languages"][code] - theirs["languages"][code] for code in languages] for ours, theirs in scores]
    )
    return {
        "seeds": len(scores),
        "mean": float(differences.mean()),
        "interval": interval(differences),
        "scripts": {
            script: {"mean": float(own.mean()), "interval": interval(own)}
            for script in dict.fromkeys(scripts[code] for code in languages)
            for own in [differences[:, [scripts[code] == script for code in languages]]]
        },
        "languages": {
            code: {"mean": float(own.mean()), "low": float(own.min()), "high": float(own.max())}
            for code, own in zip(languages, differences.T, strict=True)
        },
    }


def _rank(label: str) -> float:
    """Of an arm's label, "method, rank 100" or "method, full rank"."""
    rank = label.rsplit(" ", 1)[1]
    return float("inf") if rank == "rank" else int(rank)


def _matched(summary: Sequence[dict]) -> list[dict]:
    """What it costs the others to reach where random rows at the highest rank end, by their mean curves."""
    labels = list(dict.fromkeys(line["label"] for line in summary))
    references = [label for label in labels if label.startswith("random, ")]
    if not references:
        return []
    reference = max(references, key=_rank)
    found = []
    for measure in dict.fromkeys(line["measure"] for line in summary):
        curves = {
            label: [line for line in summary if (line["label"], line["measure"]) == (label, measure)]
            for label in labels
        }
        end = curves[reference][-1] if curves[reference] else None
        if end is None or end["step"] == 0:
            continue
        for label in labels:
            curve = curves[label]
            if not curve or curve[-1]["step"] == 0:
                continue
            costs = {
                cost: None
                if any(line[cost] is None for line in curve)
                else reached(
                    [line["mean"] for line in curve], [line[cost] for line in curve], end["mean"], measure == LOSS
                )
                for cost in ("step", "seconds", "watt_hours")
            }
            found.append(
                {
                    "reference": reference,
                    "measure": measure,
                    "target": end["mean"],
                    "label": label,
                    **costs,
                    "reference_costs": {cost: end[cost] for cost in costs},
                }
            )
    return found
