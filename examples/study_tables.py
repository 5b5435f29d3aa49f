"""Tables of the study's page beyond a comparison's own report: ranks side by side, and languages by name."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ofa_fast.study.arms import rank_name
from ofa_fast.study.collect import LOSS
from ofa_fast.study.pages import trained_labels
from ofa_fast.study.tables import Table, ends, labels_of, lines_of, measures_of, metric_of, show

NAMES = {
    "cha": "Chamorro",
    "chr": "Cherokee",
    "cmn": "Chinese",
    "cop": "Coptic",
    "deu": "German",
    "eng": "English",
    "epo": "Esperanto",
    "heb": "Hebrew",
    "san": "Sanskrit",
    "spa": "Spanish",
    "swh": "Swahili",
    "ukr": "Ukrainian",
    "zho": "Chinese",
}
LEAD = """\
How many of the {recipes} recipes are ahead of their own full rank in every seed; a lead in score, or a lower loss:"""
PACE = """\
Steps to where {reference} ends (the value in the head) and their share of its time, by the mean curves of the seeds,
linear between the points of evaluation. 0: before training already. Seconds and watt-hours are steps times the median
of all arms of the rank ({paces}); initialisation and evaluation do not count."""


def ranks_of(report: dict) -> list[int | None]:
    """Lowest first, full rank last."""
    return sorted({arm["rank"] for arm in report["arms"]}, key=lambda rank: (rank is None, rank))


def difference(mean: float, low: float, high: float) -> str:
    return f"{mean:+.3f} ({low:+.3f} … {high:+.3f})"


def losses_over(report: dict, stage: str) -> dict[tuple[str, int | None], list[float]]:
    """OFA's held-out loss less that of (recipe, rank), a number a seed."""
    end = 0 if stage == "before" else -1
    losses = {
        (arm["recipe"], arm["rank"], arm["seed"]): arm["points"][end]["loss"] for arm in report["arms"] if arm["steps"]
    }
    found = {}
    for (recipe, rank, seed), theirs in losses.items():
        ours = losses.get(("ofa", rank, seed))
        if recipe != "ofa" and ours is not None and theirs is not None:
            found.setdefault((recipe, rank), []).append(ours - theirs)
    return found


def gains(report: dict, stage: str) -> Table:
    own = [gain for gain in report["gains"] if gain["stage"] == stage and gain["recipe"] == "ofa"]
    cells = {(gain["over"], gain["task"], gain["rank"]): difference(gain["mean"], *gain["interval"]) for gain in own}
    for (over, rank), more in losses_over(report, stage).items():
        cells[over, f"{LOSS} (below 0: better)", rank] = difference(sum(more) / len(more), min(more), max(more))
    ranks = [rank for rank in ranks_of(report) if any(rank == cell[2] for cell in cells)]
    rows = [
        [over, measure, *(cells.get((over, measure, rank), "–") for rank in ranks)]
        for over in dict.fromkeys(over for over, _, _ in cells)
        for measure in dict.fromkeys(measure for other, measure, _ in cells if other == over)
    ]
    return Table("", "", ["OFA over", "measure", *map(rank_name, ranks)], rows)


def verdicts(report: dict, stage: str) -> str:
    """How often OFA's interval is above zero, and how often below."""
    found = [gain for gain in report["gains"] if gain["stage"] == stage and gain["recipe"] == "ofa"]
    lines = []
    for over in dict.fromkeys(gain["over"] for gain in found):
        own = [gain for gain in found if gain["over"] == over]
        better = [gain for gain in own if gain["interval"][0] > 0]
        worse = [gain for gain in own if gain["interval"][1] < 0]
        low, high = min(own, key=lambda g: g["mean"]), max(own, key=lambda g: g["mean"])
        text = f"**{over}**: OFA is better in {len(better)} of {len(own)} comparisons (task × rank)"
        text += f", worse in {len(worse)}" if worse else ""
        text += f"; the differences are from {low['mean']:+.3f} ({low['task']}, {rank_name(low['rank'])})"
        lines.append(f"- {text} to {high['mean']:+.3f} ({high['task']}, {rank_name(high['rank'])}).")
    return "\n".join(lines) or "No other arm was measured."


def where(report: dict) -> Table:
    """What OFA gains over random rows, by script and language."""
    chosen = [gain for gain in report["gains"] if gain["over"] == "random"]
    kinds = [
        (stage, rank)
        for rank in ranks_of(report)
        for stage in ("before", "after")
        if any((gain["stage"], gain["rank"]) == (stage, rank) for gain in chosen)
    ]
    scripts, rows = report["about"]["scripts"], []
    for task in dict.fromkeys(gain["task"] for gain in chosen):
        own = {(gain["stage"], gain["rank"]): gain for gain in chosen if gain["task"] == task}
        codes = next(iter(own.values()))["languages"]
        for code in sorted(codes, key=lambda code: (scripts[code] == "Latn", scripts[code], code)):
            name = NAMES.get(code.split("_")[0], code)
            means = [own[kind]["languages"][code]["mean"] if kind in own else None for kind in kinds]
            rows.append([task, scripts[code], name, *("–" if mean is None else f"{mean:+.3f}" for mean in means)])
    head = [f"{stage}, {rank_name(rank)}" for stage, rank in kinds]
    return Table("", "", ["task", "script", "language", *head], rows)


def kept(report: dict) -> Table:
    """Scores after training as shares of those before."""
    tasks, rows = list(report["about"]["tasks"]), []
    for label in trained_labels(report):
        found = [ends(lines_of(report, label, task)) for task in tasks]
        rows.append([label, *(f"{after['mean'] / before['mean']:.2f}" if after else "–" for before, after in found)])
    return Table("", "", ["arm", *tasks], rows)


def english(report: dict) -> Table:
    """Scores of the language that was fine-tuned on; the means of the seeds."""
    tasks, source, rows = list(report["about"]["tasks"]), report["source"], []
    if source:
        own = [source[task]["languages"][source[task]["source"]]["score"] for task in tasks]
        rows.append([f"{report['about']['source']} as it is", *(cell for score in own for cell in (show(score), "–"))])
    for label in labels_of(report):
        arms = [arm["points"] for arm in report["arms"] if arm["label"] == label]
        columns = [[points[end]["tasks"][task]["source"] for points in arms] for task in tasks for end in (0, -1)]
        rows.append([label, *(show(sum(column) / len(column)) for column in columns)])
    head = [cell for task in tasks for cell in (f"{task} ({metric_of(report, task)}), before", "after")]
    return Table("", "", ["arm", *head], rows)


def leads(report: dict) -> dict[tuple[str, int], dict[str, dict[int, list[float]]]]:
    """(measure, rank): recipe: step: each seed's lead over full rank, of recipes that were trained at both."""
    points = {}
    for arm in report["arms"]:
        for point in arm["points"] if arm["steps"] else ():
            own = {task: result["score"] for task, result in point["tasks"].items()}
            for measure, value in (own | ({} if point["loss"] is None else {LOSS: -point["loss"]})).items():
                points[measure, arm["recipe"], arm["rank"], arm["seed"], point["step"]] = value
    found = {}
    for (measure, recipe, rank, seed, step), value in points.items():
        full = points.get((measure, recipe, None, seed, step))
        if rank is not None and full is not None:
            found.setdefault((measure, rank), {}).setdefault(recipe, {}).setdefault(step, []).append(value - full)
    return found


def rank_lead(report: dict) -> str:
    """How many recipes are ahead of their own full rank at lower ones, and by how much."""
    found = leads(report)
    if not found:
        return "No recipe was trained at several ranks."
    ranks = sorted({rank for _, rank in found})
    measures = [measure for measure in measures_of(report) if any(measure == name for name, _ in found)]
    recipes = list(dict.fromkeys(recipe for own in found.values() for recipe in own))
    steps = sorted({step for own in found.values() for lead in own.values() for step in lead})
    columns = [(rank, step) for rank in ranks for step in steps]
    counts, amounts = [], []
    for measure in measures:
        cells = [[found[measure, rank].get(recipe, {}).get(step) for recipe in recipes] for rank, step in columns]
        counts.append(
            [measure, *(str(sum(min(own) > 0 for own in cell if own)) if any(cell) else "–" for cell in cells)]
        )
        for recipe, row in zip(recipes, zip(*cells, strict=True), strict=True):
            amounts.append([f"{recipe}, {measure}", *(f"{sum(own) / len(own):+.3f}" if own else "–" for own in row)])
    head = [f"{rank_name(rank)}, step {step}" for rank, step in columns]
    first, second = (Table("", "", ["", *head], rows).markdown() for rows in (counts, amounts))
    return f"{LEAD.format(recipes=len(recipes))}\n\n{first}\n\nBy how much, the mean of the seeds:\n\n{second}"


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def matching(report: dict) -> str:
    """What it costs to reach where random rows of the highest rank end: OFA in words, and steps of all in a table."""
    lines = report["matched"]
    if not lines:
        return "Random rows were not trained."
    reference, paces = lines[0]["reference"], {rank: pace(report, rank) for rank in ranks_of(report)}
    ranks = {arm["label"]: arm["rank"] for arm in report["arms"]}
    gained = [line["measure"] for line in lines if line["label"] == reference and line["step"]]
    sentences = [
        f"- {line['label']}, {line['measure']}: {cost(line, paces[ranks[line['label']]], paces[ranks[reference]])}."
        for line in lines
        if line["label"].startswith("ofa, ") and line["measure"] in gained
    ]
    lost = [line["measure"] for line in lines if line["label"] == reference and line["step"] == 0]
    if lost:
        sentences.append(f"- In {listed(lost)} random rows end no higher than they began: there is nothing to match.")
    measures = {line["measure"]: f"{line['measure']} ({show(line['target'])})" for line in lines}
    whole = paces[ranks[reference]]
    cells = {(line["label"], line["measure"]): steps_to(line, paces[ranks[line["label"]]], whole) for line in lines}
    rows = [
        [label, *(cells.get((label, measure), "–") for measure in measures)]
        for label in dict.fromkeys(line["label"] for line in lines)
    ]
    text = ", ".join(f"{rank_name(rank)} {own[0]:.2f} s a step" for rank, own in paces.items())
    note = PACE.format(reference=reference, paces=text)
    return "\n".join(sentences) + f"\n\n{note}\n\n{Table('', '', ['arm', *measures.values()], rows).markdown()}"


def pace(report: dict, rank: int | None) -> tuple[float, float | None]:
    """Seconds and watt-hours a step, the median of all arms of the rank: they differ in numbers, not in work."""
    arms = [arm for arm in report["arms"] if arm["rank"] == rank and arm["steps"]]
    seconds = median(arm["points"][-1]["seconds"] / arm["steps"] for arm in arms)
    energy = [arm["points"][-1]["watt_hours"] for arm in arms]
    if None in energy:
        return seconds, None
    return seconds, median(own / arm["steps"] for own, arm in zip(energy, arms, strict=True))


def cost(line: dict, own: tuple, whole: tuple) -> str:
    step, end = line["step"], line["reference_costs"]["step"]
    if step is None:
        return f"not reached ({show(line['target'])} after {end:,} steps of random rows)"
    if step == 0:
        return "matched before training already"
    text = f"{step:,.0f} steps instead of {end:,}, {step * own[0]:.0f} s instead of {end * whole[0]:.0f}"
    known = own[1] is not None and whole[1] is not None
    return text + (f" and {step * own[1]:.2f} Wh instead of {end * whole[1]:.2f}" if known else "")


def steps_to(line: dict, own: tuple, whole: tuple) -> str:
    step, end = line["step"], line["reference_costs"]["step"]
    if not step:
        return "never" if step is None else "0"
    return f"{step:,.0f} ({step * own[0] / (end * whole[0]):.0%})"
