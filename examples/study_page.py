"""The page of the study from its numbers: python examples/study_page.py out/study/study.json docs

Writes study.md, study.json (the numbers themselves) and plots/study-*.svg. No number in them is typed by hand, and what
the sentences claim follows from intervals or from all seeds.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from study_tables import NAMES, english, gains, kept, matching, rank_lead, verdicts, where

from ofa_fast._files import atomic_file
from ofa_fast.study.pages import about, charts, curve
from ofa_fast.study.tables import (
    Table,
    ends,
    initialised,
    labels_of,
    lines_of,
    measures_of,
    metric_of,
    scores,
    show,
    steps_while_training,
)

COMPARED = ("mono", "multi")
LONGER = {"long": "", "large": " HyperOFA's 4,000 steps, scaled down from 512 sequences of 512 tokens."}
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
the same for all arms.

What OFA gains over others: scores less theirs at the same rank and seed, the mean of languages and seeds, with 95 %
bootstrap intervals that draw both anew; of the loss the same in nats, with the lowest and the highest seed. What
training keeps: the score after it as a share of the one before (means of the seeds), from the last layer, whose output
the masked-language-model head reads, and from others. Below 1 it lost more of what the source knew than it taught;
where *centered* keeps more, a part of what is lost is that whole languages have moved apart."""
RECIPES = """\
At rank 100, before training. *unlinked*: word vectors without links to translations; *tenth*: from a tenth of the
verses; *copied_share*: the part of a shared token's own row in its new row, the rest of which is mixed from neighbours
(0 as in WECHSEL, but for tokens without a vector); *word_weights=rank*: a word counts as 1 / its place in its language;
the default is k = 10 neighbours at temperature 0.1, all of a copied row, and all words alike. Differences are from OFA
as it is, with 95 % bootstrap intervals over languages."""
FINE_TUNED = "Where English itself is hardly learned, the others tell nothing."
NOT_TRIED = """\
OFA leaves {random:,} of {rows:,} rows to chance here ({share:.1%}), so how these are drawn matters little; what a
covariance is worth shows in *gaussian* against *random*. The vectors that `build_word_vectors` makes are of unit
length already. A bias that moves with its token cannot be tried on a source without a head."""


def write_page(numbers: Path, folder: Path) -> None:
    study = json.loads(numbers.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    parts = [part for part in COMPARED if part in study]
    for part in [*parts, *(part for part in LONGER if part in study)]:
        for name, (_, svg) in plots(study[part], part).items():
            with atomic_file(folder / "plots" / name) as file:
                file.write_text(svg, "utf-8")
    if numbers.resolve() != (folder / "study.json").resolve():
        with atomic_file(folder / "study.json") as file:
            shutil.copyfile(numbers, file)
    text = "\n\n".join(paragraph for paragraph in paragraphs(study, parts) if paragraph)
    with atomic_file(folder / "study.md") as file:
        file.write_text(text + "\n", "utf-8")


def plots(report: dict, part: str) -> dict[str, tuple[str, str]]:
    """File name to (what it shows, svg), of the measures that were taken while training."""
    found = {}
    for measure in measures_of(report):
        for group, labels in charts(report, measure).items():
            if any(len(lines_of(report, label, measure)) > 2 for label in labels):
                shown = ", ".join(filter(None, [f"{measure} of {report['about']['source']}", group]))
                svg = re.search(r"<svg.*</svg>", curve(report, measure, "step", labels, shown), re.DOTALL)[0]
                svg = svg.replace("<svg ", '<svg font-family="sans-serif" ', 1)  # on a page the page's own
                svg = re.sub(r"var\(--\w+,(#\w+)\)", r"\1", svg)  # not every viewer of images knows variables
                name = "-".join(filter(None, ["study", part, measure, group])).replace(" ", "-")
                found[f"{name}.svg"] = f"{shown} against steps of training", svg + "\n"
    return found


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
    yield of_gains(report, "after")
    yield f"By script and language:\n\n{where(report).markdown()}"
    yield f"What training keeps:\n\n{kept(report).markdown()}"
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
        yield f"What OFA gains {stage} training:\n\n{gains(report, stage).markdown()}"
    yield f"By script and language:\n\n{where(report).markdown()}"


def of_source(report: dict, part: str) -> Iterator[str]:
    kind = "an English" if part == "mono" else "a multilingual"
    source = report["about"]["source"]
    yield f"## {source}, {kind} source"
    for table in (scores(report), initialised(report)):
        yield f"{table.note}\n\n{table.markdown()}"
    for stage in ("before", "after"):
        yield f"### Does OFA beat the others {stage} training?"
        yield of_gains(report, stage)
    yield "### Where"
    yield f"What OFA gains over random rows, by script and language (mean of the seeds).\n\n{where(report).markdown()}"
    yield "### What does training do to retrieval?"
    yield f"What training keeps:\n\n{kept(report).markdown()}"
    yield "### Does a lower rank lead early?"
    yield rank_lead(report)
    yield "### How much training until random rows of the highest rank are matched?"
    yield matching(report)
    yield from while_training(report, part)


def of_gains(report: dict, stage: str) -> str:
    return f"{verdicts(report, stage)}\n\n{gains(report, stage).markdown()}"


def while_training(report: dict, part: str) -> Iterator[str]:
    for name, (shown, _) in plots(report, part).items():
        yield f"![{shown}](plots/{name})"
    table = steps_while_training(report)
    if table.rows:
        yield f"{table.title}: {table.note}\n\n{table.markdown()}"


def of_recipes(report: dict) -> Iterator[str]:
    """OFA made in other ways, none of them trained."""
    yield "## What other word vectors and other recipes buy"
    first = report["arms"][0]
    counts = first["initialization"]["counts"]
    yield f"Source: {report['about']['source']}. {RECIPES}"
    rows = []
    tasks = list(report["about"]["tasks"])
    over_others = {(gain["over"], gain["task"]): gain for gain in report["gains"]}
    for label, arm in zip(labels_of(report), report["arms"], strict=True):
        row = [arm["recipe"]]
        for task in tasks:
            gain = over_others.get((arm["recipe"], task))
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
    for (over, task), gain in over_others.items():
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
