"""Tables of the study's page beyond a comparison's own report: ranks side by side, and languages by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ofa_fast.study.arms import rank_name
from ofa_fast.study.collect import LOSS
from ofa_fast.study.pages import trained_labels
from ofa_fast.study.tables import Table, ends, labels_of, lines_of, matched, measures_of, metric_of, show

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
LEAD = "The lead over full rank is in score, or in nats of the loss that it is lower by."
GAINS = """\
Scores: OFA's less theirs at the same rank and seed, the mean of languages and {seeds} seeds (95 % bootstrap interval,
both drawn anew). Held-out loss: the same in nats (lowest … highest seed); below 0 OFA's is better."""


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
        cells[over, LOSS, rank] = difference(sum(more) / len(more), min(more), max(more))
    ranks = [rank for rank in ranks_of(report) if any(rank == cell[2] for cell in cells)]
    seeds = " or ".join(map(str, sorted({gain["seeds"] for gain in own})))
    rows = [
        [over, measure, *(cells.get((over, measure, rank), "–") for rank in ranks)]
        for over in dict.fromkeys(over for over, _, _ in cells)
        for measure in dict.fromkeys(measure for other, measure, _ in cells if other == over)
    ]
    return Table("", GAINS.format(seeds=seeds), ["OFA over", "measure", *map(rank_name, ranks)], rows)


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
        text += f"; it gains from {low['mean']:+.3f} ({low['task']}, {rank_name(low['rank'])})"
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


def leads(report: dict) -> Iterator[tuple[str, str, int, dict[int, float]]]:
    """(measure, recipe, rank, {step: lead over full rank}) of all recipes that were trained at full rank and others."""
    trained = [arm for arm in report["arms"] if arm["steps"]]
    for measure in measures_of(report):
        for recipe in dict.fromkeys(arm["recipe"] for arm in trained):
            ranks = {arm["rank"] for arm in trained if arm["recipe"] == recipe}
            curves = {
                rank: {line["step"]: line["mean"] for line in lines_of(report, f"{recipe}, {rank_name(rank)}", measure)}
                for rank in ranks
            }
            for rank in sorted(ranks - {None}) if None in ranks else ():
                sign, own, full = (-1 if measure == LOSS else 1), curves[rank], curves[None]
                yield measure, recipe, rank, {step: sign * (own[step] - full[step]) for step in own if step in full}


def rank_lead(report: dict) -> str:
    """How many recipes are ahead of their own full rank at lower ones, and by how much."""
    found = list(leads(report))
    if not found:
        return "No recipe was trained at several ranks."
    sentences, ranks = [], list(dict.fromkeys(rank for _, _, rank, _ in found))
    steps = sorted({step for *_, lead in found for step in lead})
    for rank in ranks:
        for measure in dict.fromkeys(measure for measure, *_ in found):
            own = [lead for name, _, other, lead in found if (name, other) == (measure, rank)]
            at = [step for step in steps if any(step in lead for lead in own)]
            ahead = [str(sum(lead.get(step, 0) > 0 for lead in own)) for step in at]
            sentences.append(
                f"- {rank_name(rank)}, {measure}: ahead in {listed(ahead)} of {len(own)} recipes, "
                f"at steps {listed([str(step) for step in at])}."
            )
    cells = {(measure, recipe, rank): lead for measure, recipe, rank, lead in found}
    rows = [
        [
            f"{recipe}, {measure}",
            *(
                f"{lead[step]:+.3f}" if step in lead else "–"
                for lead in (cells.get((measure, recipe, rank), {}) for rank in ranks)
                for step in steps
            ),
        ]
        for measure, recipe in dict.fromkeys((measure, recipe) for measure, recipe, *_ in found)
    ]
    head = [f"{rank_name(rank)}, step {step}" for rank in ranks for step in steps]
    return "\n".join(sentences) + f"\n\n{LEAD}\n\n{Table('', '', ['', *head], rows).markdown()}"


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def matching(report: dict) -> str:
    """What it costs to reach where random rows of the highest rank end: OFA in words, and steps of all in a table."""
    lines = report["matched"]
    if not lines:
        return "Random rows were not trained."
    sentences = []
    for label in dict.fromkeys(line["label"] for line in lines if line["label"].startswith("ofa, ")):
        own = [line for line in lines if line["label"] == label]
        sentences += [f"- {label}, {line['measure']}: {cost(line)}." for line in own if line["step"] != 0]
        already = [line["measure"] for line in own if line["step"] == 0]
        sentences += [f"- {label}: matched before training already in {listed(already)}."] if already else []
    measures = {line["measure"]: f"{line['measure']} ({show(line['target'])})" for line in lines}
    cells = {(line["label"], line["measure"]): steps_to(line) for line in lines}
    rows = [
        [label, *(cells.get((label, measure), "–") for measure in measures)]
        for label in dict.fromkeys(line["label"] for line in lines)
    ]
    note = f"Steps (share of the time) to the value in brackets, where {lines[0]['reference']} ends."
    made = Table("", "", ["arm", *measures.values()], rows)
    return "\n".join(sentences) + f"\n\n{note} {matched(report).note}\n\n{made.markdown()}"


def cost(line: dict) -> str:
    end = line["reference_costs"]
    if line["step"] is None:
        return f"not reached ({show(line['target'])} after {end['step']} steps of random rows)"
    seconds = f"{line['seconds']:.0f} s instead of {end['seconds']:.0f}"
    energy = (
        "" if line["watt_hours"] is None else f" and {line['watt_hours']:.2f} Wh instead of {end['watt_hours']:.2f}"
    )
    return f"{line['step']:.0f} steps instead of {end['step']}, {seconds}{energy}"


def steps_to(line: dict) -> str:
    if not line["step"]:
        return "never" if line["step"] is None else "0"
    return f"{line['step']:,.0f} ({line['seconds'] / line['reference_costs']['seconds']:.0%})"
