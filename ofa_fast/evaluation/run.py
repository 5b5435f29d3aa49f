"""Evaluate a saved model on a folder of test data."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

import ofa_fast
from ofa_fast.evaluation.classification import prepare as classification
from ofa_fast.evaluation.finetuning import Recipe
from ofa_fast.evaluation.languages import script_and_family
from ofa_fast.evaluation.report import write
from ofa_fast.evaluation.report_page import html
from ofa_fast.evaluation.retrieval import prepare as retrieval
from ofa_fast.evaluation.seeds import Finished
from ofa_fast.evaluation.statistics import RESAMPLES, average, summarize
from ofa_fast.evaluation.tagging import ner, pos

TASKS = {"retrieval": retrieval, "classification": classification, "ner": ner, "pos": pos}


def evaluate(
    model: str | os.PathLike,
    data: str | os.PathLike,
    task: str,
    *,
    source: str = "eng",
    languages: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    out: str | os.PathLike | None = None,
    progress: bool = False,
    resamples: int = RESAMPLES,
    **options,
) -> dict:
    """Measure a saved model, ours or stock, in every language of a folder, as the paper does (section 4).

    "retrieval": how often a sentence's translation is among the k nearest (``retrieval_accuracy``).
    "classification", "ner", "pos": fine-tuned on ``source``, its dev part choosing the epoch; tested on all languages.

    Args:
        model: a folder or hub id of a model with its tokenizer.
        data: a folder in one of the layouts of docs/evaluation.md.
        source: what is retrieved from, or trained on; an ISO 639-3 code, such as "eng" for "eng_Latn".
        languages: only these; default: all.
        seeds: one run each. A seed draws the new head, the order, dropout and samples.
        out: ``out``.json, .md, .tex and .html are written. Meanwhile each finished seed is kept beside them, so that
            the same call goes on where an interrupted one stopped.
        progress: show bars.
        resamples: of the bootstrap.
        options: of the task: see ``prepare`` in ``evaluation/retrieval.py`` (layer, pooling, similarity, k, lines,
            max_pairs, …), ``classification.py`` and ``tagging.py`` (epochs, learning_rate, batch_size, max_train,
            max_length, freeze_table, …).

    Returns:
        A dict ready for JSON: "task", "metric", "model", "data", "source", "seeds", "settings", "languages": {code:
        {"score": mean over seeds, "interval": [low, high] 95 %, "seeds": [score a seed], "items", "script", "family",
        and further numbers}}, "average", "scripts" and "families" (means over the languages other than the source),
        "fine_tuning" (a seed each), "seconds", "versions". All scores are from 0 to 1.

    Raises:
        ValueError, FileNotFoundError: an unknown task, option or layout, a missing language, no package that the task
            needs; before the model is loaded.
    """
    start = time.perf_counter()
    seeds = list(dict.fromkeys(seeds))
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    if not seeds:
        raise ValueError("seeds: expected at least one")
    _check_options(task, options)
    prepared = TASKS[task](model, data, source, languages, progress, **options)
    finished = Finished(out, model, [prepared.corpus, task, source, languages, options, _versions()])
    runs, tuning = [], []
    for seed in seeds if prepared.seeded else seeds[:1]:
        measured, notes = finished.get(seed) or finished.put(seed, *prepared.measure(seed))
        runs.append(measured)
        tuning.append(notes)
    runs *= len(seeds) // len(runs)
    summary, draws = summarize({code: [run[code] for run in runs] for code in runs[0]}, prepared.score, resamples)
    for code, numbers in summary.items():
        numbers["script"], numbers["family"] = script_and_family(code)
    report = {
        "task": task,
        "metric": prepared.metric,
        "model": str(model),
        "data": str(data),
        "source": prepared.source,
        "seeds": seeds,
        "settings": {**prepared.settings, "resamples": resamples},
        "languages": summary,
        **_groups(summary, draws, prepared.source),
        **({"fine_tuning": tuning} if any(tuning) else {}),
        "seconds": round(time.perf_counter() - start, 2),
        "versions": _versions(),
    }
    if out is not None:
        write(report, html(report), Path(out))
        finished.clear()
    return report


def _check_options(task: str, options: dict) -> None:
    known = {
        name
        for name, parameter in inspect.signature(TASKS[task]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    if task != "retrieval":
        known |= set(Recipe.__dataclass_fields__)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{unknown[0]}: no option of {task}, which has {', '.join(sorted(known))}")


def _groups(summary: dict, draws: dict, source: str) -> dict:
    """The averages over all languages but the source, or over it where it is alone."""
    targets = [code for code in summary if code != source] or list(summary)
    groups: dict[str, dict] = {"scripts": {}, "families": {}}
    for kind, name in (("scripts", "script"), ("families", "family")):
        for value in sorted({summary[code][name] for code in targets}):
            members = [code for code in targets if summary[code][name] == value]
            groups[kind][value] = {**average(members, summary, draws), "languages": members}
    return {"average": average(targets, summary, draws), **groups}


def _versions() -> dict[str, str]:
    return {"ofa-fast": ofa_fast.__version__, "torch": torch.__version__, "transformers": version("transformers")}
