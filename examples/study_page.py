"""The page of the study from its numbers: python examples/study_page.py out/study/study.json docs

Writes study.md, study.json (the numbers themselves) and plots/study-*.svg. No number in them is typed by hand, and what
the sentences claim follows from the intervals.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ofa_fast._files import atomic_file
from ofa_fast.study.collect import LOSS
from ofa_fast.study.pages import about, curve, trained_labels
from ofa_fast.study.tables import (
    Table,
    ends,
    initialised,
    labels_of,
    lines_of,
    matched,
    measures_of,
    metric_of,
    scores,
    show,
    steps_while_training,
)

COMPARED = ("mono", "multi")
LONGER = {"long": "", "large": " HyperOFA's 4,000 steps, scaled down from 512 sequences of 512 tokens."}
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
INTRODUCTION = """\
<!-- Written by examples/study_page.py from study.json: edit that, not this. -->
Models get the vocabulary of other languages by OFA and by its rivals, are trained on, and are measured before, while
and after. `ofa-fast compare` does the same on your own data ([how](compare.md))."""
SETUP = """\
James and 1 Peter are held out for retrieval and Titus for the loss: neither word vectors nor tokenizer nor training
sees them; a language without these books is learned, but not measured on them. Scores are accuracies of finding the
translation of an English sentence and the other way round, from the mean of the last layer's states; *layer-N*: of
layer N's; *centered*: after each language's mean is taken from its sentences. The loss is that of masked tokens.
A source without a masked-language-model head gets a neutral one whose bias is the logarithm of each token's frequency,
the same for all arms."""
RECIPES = """\
At rank 100, before training. *unlinked*: word vectors without links to translations; *tenth*: from a tenth of the
verses; *copied_share*: the part of a shared token's own row in its new row, the rest of which is mixed from neighbours
(0 as in WECHSEL, but for tokens without a vector); *word_weights=rank*: a word counts as 1 / its place in its language;
the default is k = 10 neighbours at temperature 0.1, all of a copied row, and all words alike. Differences are from OFA
as it is, with 95 % bootstrap intervals over languages."""
FINE_TUNED = "Where English itself is hardly learned, the others tell nothing."
KEPT = """\
The score after training as a share of the score before it (means of the seeds), from the last layer, whose output the
masked-language-model head reads, and from the middle layer *layer-N*. Below 1 training lost more of what the source
knew than it taught."""
CENTERED = "Where *centered* keeps more, a part of what is lost is that whole languages have moved apart."
NOT_TRIED = """\
OFA leaves {random:,} of {rows:,} rows to chance here ({share:.1%}), so how these are drawn matters little; what a
covariance is worth shows in *gaussian* against *random*. The vectors that `build_word_vectors` makes are of unit
length already. A bias that moves with its token cannot be tried on a source without a head."""


def write_page(numbers: Path, folder: Path) -> None:
    study = json.loads(numbers.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    parts = [part for part in COMPARED if part in study]
    for part in [*parts, *(part for part in LONGER if part in study)]:
        for name, svg in plots(study[part], part):
            with atomic_file(folder / "plots" / name) as file:
                file.write_text(svg, "utf-8")
    if numbers.resolve() != (folder / "study.json").resolve():
        with atomic_file(folder / "study.json") as file:
            shutil.copyfile(numbers, file)
    text = "\n\n".join(paragraph for paragraph in paragraphs(study, parts) if paragraph)
    with atomic_file(folder / "study.md") as file:
        file.write_text(text + "\n", "utf-8")


def plots(report: dict, part: str) -> Iterator[tuple[str, str]]:
    for measure in measures_of(report):
        if any(len(lines_of(report, label, measure)) > 2 for label in trained_labels(report)):
            svg = re.search(r"<svg.*</svg>", curve(report, measure, "step"), re.DOTALL)[0]
            svg = svg.replace("<svg ", '<svg font-family="sans-serif" ', 1)  # on a page the page's own
            svg = re.sub(r"var\(--\w+,(#\w+)\)", r"\1", svg)  # not every viewer of images knows variables
            yield f"study-{part}-{measure.replace(' ', '-')}.svg", svg + "\n"


def paragraphs(study: dict, parts: Sequence[str]) -> Iterator[str]:
    yield "# The study: what an initialisation is worth"
    yield INTRODUCTION
    commands = "\n".join(dict.fromkeys(study["commands"].values()))
    yield f"```\n{commands}\npython examples/study_page.py out/study/study.json docs    # writes this page\n```"
    if study.get("note"):
        yield f"**Note**: {study['note']}"
    words = study["languages"]
    yield "**Languages** (words of text): " + ", ".join(
        f"{NAMES.get(code, code)} {count:,}" for code, count in sorted(words.items(), key=lambda item: -item[1])
    )
    yield SETUP
    for part in parts:
        yield from of_source(study[part], part)
    for part in LONGER:
        if part in study:
            yield from trained_for_longer(study[part], part)
    if "fine-tuned" in study:
        yield "## Fine-tuned on English, tested elsewhere"
        yield from fine_tuned(study["fine-tuned"])
    if "recipes" in study:
        yield from of_recipes(study["recipes"])
    yield "## What it was measured with"
    for part in [*parts, *(part for part in (*LONGER, "recipes") if part in study)]:
        yield f"{part}:\n\n" + "\n".join(f"- {name}: {value}" for name, value in about(study[part]))


def trained_for_longer(report: dict, part: str) -> Iterator[str]:
    arm, batch = report["arms"][0], report["about"]["training"]["batch_size"]
    seen = f"An arm saw {arm['training']['tokens'] / 1e6:.1f} million tokens.{LONGER[part]}"
    yield f"## {report['about']['source']}, {arm['steps']:,} steps of {batch} sequences"
    yield f"Does what OFA gains last, and does retrieval recover? {seen}\n\n{scores(report).markdown()}"
    yield "\n".join([verdicts(report, "after"), *of_losses(report, "after")])
    yield of_gains(report, "after").markdown()
    yield f"By script and language:\n\n{where(report).markdown()}"
    yield kept(report)
    yield f"How much training until random rows are matched?\n\n{matching(report)}"
    yield from while_training(report, part)


def fine_tuned(report: dict) -> Iterator[str]:
    options = next(iter(report["about"]["tasks"].values()))["options"]
    seeds = report["about"]["seeds"]
    yield (
        f"{options['epochs']} epochs over at most {options['max_train']} English sentences at a rate of "
        f"{options['learning_rate']:g}; the epoch is chosen on at most {options['max_dev']} others. "
        f"Seed{'s'[: len(seeds) - 1]} {', '.join(map(str, seeds))}, of the arm and of fine-tuning at once. {FINE_TUNED}"
    )
    yield f"English itself:\n\n{english(report).markdown()}"
    yield f"The mean of the other languages:\n\n{scores(report).markdown()}"
    for stage in ("before", "after"):
        yield f"What OFA gains {stage} training:\n\n{of_gains(report, stage).markdown()}"
    yield f"By script and language:\n\n{where(report).markdown()}"


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


def of_source(report: dict, part: str) -> Iterator[str]:
    kind = "an English" if part == "mono" else "a multilingual"
    source = report["about"]["source"]
    yield f"## {source}, {kind} source"
    for table in (scores(report), initialised(report)):
        yield f"{table.note}\n\n{table.markdown()}"
    for stage in ("before", "after"):
        yield f"### Does OFA beat the others {stage} training?"
        yield "\n".join([verdicts(report, stage), *of_losses(report, stage)])
        yield of_gains(report, stage).markdown()
    yield "### Where"
    yield f"What OFA gains over random rows, by script and language (mean of the seeds).\n\n{where(report).markdown()}"
    yield "### What does training do to retrieval?"
    yield kept(report)
    yield "### Does a lower rank lead early?"
    yield rank_lead(report)
    yield "### How much training until random rows of the highest rank are matched?"
    yield matching(report)
    yield from while_training(report, part)


def while_training(report: dict, part: str) -> Iterator[str]:
    source = report["about"]["source"]
    for measure in measures_of(report):
        name = f"study-{part}-{measure.replace(' ', '-')}.svg"
        if any(len(lines_of(report, label, measure)) > 2 for label in trained_labels(report)):
            yield f"![{measure} of {source} against steps of training](plots/{name})"
    table = steps_while_training(report)
    if table.rows:
        yield f"{table.title}: {table.note}\n\n{table.markdown()}"


def rank_name(rank: int | None) -> str:
    return "full rank" if rank is None else f"rank {rank}"


def verdicts(report: dict, stage: str) -> str:
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


def of_losses(report: dict, stage: str) -> Iterator[str]:
    """OFA's held-out loss less that of the others, paired by rank and seed."""
    end = 0 if stage == "before" else -1
    losses = {
        (arm["recipe"], arm["rank"], arm["seed"]): arm["points"][end]["loss"] for arm in report["arms"] if arm["steps"]
    }
    for over in dict.fromkeys(recipe for recipe, _, _ in losses if recipe != "ofa"):
        for rank in dict.fromkeys(rank for recipe, rank, _ in losses if recipe == over):
            pairs = [
                (losses["ofa", rank, seed], loss)
                for (recipe, own, seed), loss in losses.items()
                if (recipe, own) == (over, rank) and ("ofa", rank, seed) in losses
            ]
            more = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
            if more:
                mean, seeds = sum(more) / len(more), "seed" if len(more) == 1 else "seeds"
                yield (
                    f"- **{over}**, {rank_name(rank)}: OFA's {LOSS} less theirs is {mean:+.3f} nats "
                    f"({len(more)} {seeds}: {', '.join(f'{each:+.3f}' for each in more)}); below 0 OFA's is better."
                )


def of_gains(report: dict, stage: str) -> Table:
    rows = [
        [
            gain["over"],
            rank_name(gain["rank"]),
            gain["task"],
            str(gain["seeds"]),
            f"{gain['mean']:+.3f}",
            "{:+.3f} … {:+.3f}".format(*gain["interval"]),
        ]
        for gain in report["gains"]
        if gain["stage"] == stage
    ]
    return Table("", "", ["OFA over", "rank", "task", "seeds", "gain", "95 % interval"], rows)


def where(report: dict) -> Table:
    chosen = [gain for gain in report["gains"] if gain["over"] == "random"]
    kinds = list(dict.fromkeys((gain["stage"], gain["rank"]) for gain in chosen))
    scripts, rows = report["about"]["scripts"], []
    for task in dict.fromkeys(gain["task"] for gain in chosen):
        own = {(gain["stage"], gain["rank"]): gain for gain in chosen if gain["task"] == task}
        codes = next(iter(own.values()))["languages"]
        for code in sorted(codes, key=lambda code: (scripts[code] == "Latn", scripts[code], code)):
            name = NAMES.get(code.split("_")[0], code)
            gains = [own[kind]["languages"][code]["mean"] if kind in own else None for kind in kinds]
            rows.append([task, scripts[code], name, *("–" if gain is None else f"{gain:+.3f}" for gain in gains)])
    head = [f"{stage}, {rank_name(rank)}" for stage, rank in kinds]
    return Table("", "", ["task", "script", "language", *head], rows)


def kept(report: dict) -> str:
    tasks, rows = list(report["about"]["tasks"]), []
    for label in trained_labels(report):
        found = [ends(lines_of(report, label, task)) for task in tasks]
        rows.append([label, *(f"{after['mean'] / before['mean']:.2f}" if after else "–" for before, after in found)])
    note = f"{KEPT} {CENTERED}" if any(task.endswith("-centered") for task in tasks) else KEPT
    return f"{note}\n\n{Table('', '', ['arm', *tasks], rows).markdown()}"


def rank_lead(report: dict) -> str:
    """For each recipe with several ranks, the lowest one's lead over full rank at each step."""
    trained = [arm for arm in report["arms"] if arm["steps"]]
    rows, leads = [], []
    for recipe in dict.fromkeys(arm["recipe"] for arm in trained):
        ranks = {arm["rank"] for arm in trained if arm["recipe"] == recipe}
        if None not in ranks or len(ranks) < 2:
            continue
        low = min(ranks - {None})
        for measure in measures_of(report):
            pair = [
                {line["step"]: line["mean"] for line in lines_of(report, f"{recipe}, {rank_name(rank)}", measure)}
                for rank in (low, None)
            ]
            sign = -1 if measure == LOSS else 1
            steps = [step for step in pair[0] if step in pair[1]]
            lead = {step: sign * (pair[0][step] - pair[1][step]) for step in steps}
            if len(lead) < 2:
                continue
            ahead = [step for step in steps if lead[step] > 0]
            where = (
                f"ahead at {', '.join(map(str, ahead))} of the steps {', '.join(map(str, steps))}"
                if ahead
                else "never ahead"
            )
            leads.append(f"- {recipe}, {measure}: rank {low} is {where}.")
            rows.append(
                [
                    f"{recipe}, {measure}",
                    *(f"{lead[step]:+.3f}" if step in lead else "–" for step in sorted(all_steps(report))),
                ]
            )
    if not rows:
        return "No recipe was trained at several ranks."
    table = Table("", "", ["lead of the low rank at step", *map(str, sorted(all_steps(report)))], rows)
    return (
        "\n".join(leads)
        + "\n\nThe lead is in score, or in nats of the loss that it is lower by.\n\n"
        + table.markdown()
    )


def all_steps(report: dict) -> set[int]:
    return {line["step"] for line in report["summary"]}


def matching(report: dict) -> str:
    table = matched(report)
    if not table.rows:
        return "Random rows were not trained."
    sentences = []
    for line in report["matched"]:
        if not line["label"].startswith("ofa, "):
            continue
        end = line["reference_costs"]
        what = f"{line['label']}, {line['measure']}"
        if line["step"] == 0:
            sentences.append(f"- {what}: matched before training already.")
        elif line["step"] is None:
            sentences.append(
                f"- {what}: not reached ({show(line['target'])} after {end['step']} steps of random rows)."
            )
        else:
            energy = (
                ""
                if line["watt_hours"] is None
                else f" and {line['watt_hours']:.2f} Wh instead of {end['watt_hours']:.2f}"
            )
            sentences.append(
                f"- {what}: {line['step']:.0f} steps instead of {end['step']}, {line['seconds']:.0f} s instead of "
                f"{end['seconds']:.0f}{energy}."
            )
    return "\n".join(sentences) + f"\n\n{table.note}\n\n{table.markdown()}"


def of_recipes(report: dict) -> Iterator[str]:
    """OFA made in other ways, none of them trained."""
    yield "## What other word vectors and other recipes buy"
    first = report["arms"][0]
    counts = first["initialization"]["counts"]
    yield f"Source: {report['about']['source']}. {RECIPES}"
    rows = []
    tasks = list(report["about"]["tasks"])
    gains = {(gain["over"], gain["task"]): gain for gain in report["gains"]}
    for label, arm in zip(labels_of(report), report["arms"], strict=True):
        row = [arm["recipe"]]
        for task in tasks:
            gain = gains.get((arm["recipe"], task))
            row.append(show(ends(lines_of(report, label, task))[0]["mean"]))
            row.append(
                ""
                if gain is None
                else "{:+.3f} ({:+.3f} … {:+.3f})".format(-gain["mean"], -gain["interval"][1], -gain["interval"][0])
            )
        rows.append(row)
    head = [cell for task in tasks for cell in (f"{task} ({metric_of(report, task)})", "difference")]
    yield Table("", "", ["recipe", *head], rows).markdown()
    better, worse = ({}, {})
    for (over, task), gain in gains.items():
        low, high = gain["interval"]
        if low > 0 or high < 0:
            (better if high < 0 else worse).setdefault(over, []).append(task)
    better, worse = (
        "\n".join(f"- {over}: {', '.join(of)}" for over, of in found.items()) or "- none" for found in (better, worse)
    )
    yield f"Better than OFA as it is, by the interval:\n\n{better}"
    yield f"Worse:\n\n{worse}"
    share = counts["random"] / counts["rows"]
    yield NOT_TRIED.format(random=counts["random"], rows=counts["rows"], share=share)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
