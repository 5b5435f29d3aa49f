"""Zero-shot text classification: fine-tuned on one language, tested on every other."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from ofa_fast._extras import require
from ofa_fast.evaluation.finetuning import Example, Recipe, finetune, input_length, predict
from ofa_fast.evaluation.labelled import Texts, read_labelled
from ofa_fast.evaluation.loading import load
from ofa_fast.evaluation.statistics import Measured, Task, confusion, macro_f1

# Published with the paper for Taxi1500 (40 epochs, 1e-5; its batches of 8, two a step, are taken together here).
DEFAULTS = {"epochs": 40, "learning_rate": 1e-5, "batch_size": 16, "patience": 5}


def prepare(
    model: str | os.PathLike,
    data: str | os.PathLike,
    source: str,
    languages: Sequence[str] | None,
    progress: bool,
    *,
    bible: str | os.PathLike | None = None,
    max_length: int | None = None,
    device: str | torch.device | None = None,
    **recipe,
) -> Task:
    """Text classification for ``evaluate``; ``recipe`` are the fields of ``Recipe``, by default ``DEFAULTS``."""
    metrics = require("sklearn.metrics", "evaluate")
    recipe = Recipe(**DEFAULTS | recipe)
    corpus = read_labelled(data, source, languages, bible)
    classes = sorted(set(corpus.train.labels))
    number = {label: i for i, label in enumerate(classes)}
    for language, texts in {f"{corpus.source} (dev)": corpus.dev or Texts(), **corpus.test}.items():
        unknown = sorted(set(texts.labels) - set(classes))
        if unknown:
            raise ValueError(f"data: {language} has the label {unknown[0]!r}, which no training text has")

    def gold(texts: Texts) -> np.ndarray:
        return np.array([number[label] for label in texts.labels], dtype=np.int64)

    def measure(seed: int) -> tuple[dict[str, Measured], dict]:
        head = {"num_labels": len(classes), "id2label": dict(enumerate(classes)), "label2id": number}
        network, tokenizer = load(model, "AutoModelForSequenceClassification", seed=seed, device=device, **head)
        length = input_length(network, max_length)

        def encoded(texts: Texts) -> list[list[int]]:
            return tokenizer(texts.texts, truncation=True, max_length=length, verbose=False).input_ids

        def predicted(ids: list[list[int]]) -> np.ndarray:
            return np.array(predict(network, ids, recipe.precision), dtype=np.int64)

        def dev_score() -> float:
            return metrics.f1_score(dev_gold, predicted(dev_ids), average="macro")

        if corpus.dev is not None:
            dev_ids, dev_gold = encoded(corpus.dev)[: recipe.max_dev], gold(corpus.dev)[: recipe.max_dev]
        train = [Example(*pair) for pair in zip(encoded(corpus.train), gold(corpus.train).tolist(), strict=True)]
        tuning = finetune(network, train, recipe, seed, dev_score if corpus.dev else None, progress)
        measured = {}
        for language, texts in corpus.test.items():
            right, guessed = gold(texts), predicted(encoded(texts))
            numbers = {
                "macro_f1": metrics.f1_score(right, guessed, average="macro"),
                "accuracy": metrics.accuracy_score(right, guessed),
                "majority": float(np.bincount(right).max() / len(right)),
                "dropped": texts.dropped,
            }
            measured[language] = Measured(confusion(right, guessed, len(classes)), numbers)
        return measured, tuning

    settings = {"labels": classes, "max_length": max_length, "recipe": vars(recipe)}
    return Task("macro_f1", macro_f1, corpus.source, settings, measure, corpus)
