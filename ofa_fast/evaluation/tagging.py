"""Zero-shot tagging of words, named entities or parts of speech: fine-tuned on one language, tested on every other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ofa_fast._extras import require
from ofa_fast.evaluation.finetuning import IGNORED, Example, Recipe, finetune, input_length, predict
from ofa_fast.evaluation.loading import load
from ofa_fast.evaluation.statistics import Measured, Task, micro_f1, ratio
from ofa_fast.evaluation.tagged import Tagged, read_tagged
from ofa_fast.evaluation.words import CUT, EMPTY, Words, WordTokenizer

# Published with the paper for NER and POS, and before it with Glot500 and XTREME.
DEFAULTS = {"epochs": 10, "learning_rate": 2e-5, "batch_size": 32}
OUTSIDE = "O"

Tags = list[list[str]]


@dataclass(frozen=True)
class Kind:
    """What is measured of tags, given as gold and predicted ones by sentence.

    Attributes:
        missing: the tag of a word that the model saw no token of.
        counts: [sentences, m], what ``score`` takes the sums of.
        numbers: for the report.
    """

    task: str
    metric: str
    missing: str
    score: Callable[[np.ndarray], np.ndarray]
    counts: Callable[[Tags, Tags], np.ndarray]
    numbers: Callable[[Tags, Tags], dict]


def entity_counts(gold: Tags, predicted: Tags) -> np.ndarray:
    """[sentences, 3]: entities that are right, predicted and gold."""
    entities = require("seqeval.metrics.sequence_labeling", "evaluate").get_entities
    found = [(set(entities(one)), set(entities(other))) for one, other in zip(gold, predicted, strict=True)]
    return np.array([[len(one & other), len(other), len(one)] for one, other in found], dtype=np.float64)


def _entity_numbers(gold: Tags, predicted: Tags) -> dict:
    metrics = require("seqeval.metrics", "evaluate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where nothing is predicted, precision is 0
        return {
            "f1": float(metrics.f1_score(gold, predicted)),
            "precision": float(metrics.precision_score(gold, predicted)),
            "recall": float(metrics.recall_score(gold, predicted)),
            "entities": sum(len(metrics.sequence_labeling.get_entities(sentence)) for sentence in gold),
        }


def word_counts(gold: Tags, predicted: Tags) -> np.ndarray:
    """[sentences, 2]: words that are right, and all."""
    pairs = [np.array(one) == np.array(other) for one, other in zip(gold, predicted, strict=True)]
    return np.array([[right.sum(), len(right)] for right in pairs], dtype=np.float64)


def _word_numbers(gold: Tags, predicted: Tags) -> dict:
    f1_score = require("sklearn.metrics", "evaluate").f1_score
    right, guessed = ([tag for sentence in tags for tag in sentence] for tags in (gold, predicted))
    labels = sorted({*right, *guessed} - {POS.missing})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval: parts of speech are no entities
        runs = float(require("seqeval.metrics", "evaluate").f1_score(gold, predicted))
    return {
        "micro_f1": float(f1_score(right, guessed, labels=labels, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(right, guessed, labels=labels, average="macro", zero_division=0)),
        "seqeval_f1": runs,
    }


NER = Kind("ner", "f1", OUTSIDE, micro_f1, entity_counts, _entity_numbers)
POS = Kind("pos", "accuracy", "_", ratio, word_counts, _word_numbers)


def prepare(
    kind: Kind,
    model: str | os.PathLike,
    data: str | os.PathLike,
    source: str,
    languages: Sequence[str] | None,
    progress: bool,
    *,
    max_length: int | None = None,
    device: str | torch.device | None = None,
    **recipe,
) -> Task:
    """Tagging for ``evaluate``; ``recipe`` are the fields of ``Recipe``, by default ``DEFAULTS``."""
    require("seqeval.metrics", "evaluate")
    recipe = Recipe(**DEFAULTS | recipe)
    corpus = read_tagged(data, kind.task, source, languages)
    classes = sorted({tag for sentence in corpus.train.tags for tag in sentence if tag is not None})
    number = {label: i for i, label in enumerate(classes)}

    def measure(seed: int) -> tuple[dict[str, Measured], dict]:
        head = {"num_labels": len(classes), "id2label": dict(enumerate(classes)), "label2id": number}
        network, tokenizer = load(model, "AutoModelForTokenClassification", seed=seed, device=device, **head)
        tokenize = WordTokenizer(tokenizer, input_length(network, max_length))

        def tag(tokens: list[Words]) -> list[list[str | None]]:
            guessed = predict(network, [one.ids for one in tokens], recipe.precision)
            return [
                [classes[row[i]] if i >= 0 else kind.missing for i in one.first]
                for one, row in zip(tokens, guessed, strict=True)
            ]

        def score(tagged: Tagged, tokens: list[Words]) -> tuple[np.ndarray, Tags, Tags]:
            gold, predicted = _known(tagged, tag(tokens))
            return kind.counts(gold, predicted), gold, predicted

        def dev_score() -> float:
            return float(kind.score(score(dev, dev_tokens)[0].sum(0)))

        if corpus.dev is not None:
            dev = Tagged(corpus.dev.words[: recipe.max_dev], corpus.dev.tags[: recipe.max_dev])
            dev_tokens = tokenize(dev.words)
        train_tokens = tokenize(corpus.train.words)
        train = [_example(*pair, number) for pair in zip(train_tokens, corpus.train.tags, strict=True)]
        train = [one for one in train if any(label != IGNORED for label in one.labels)]
        notes = finetune(network, train, recipe, seed, dev_score if corpus.dev else None, progress)
        measured = {}
        for language, tagged in corpus.test.items():
            tokens = tokenize(tagged.words)
            counts, gold, predicted = score(tagged, tokens)
            lost = {"words": sum(map(len, gold)), **_lost(tokens)}
            measured[language] = Measured(counts, {**kind.numbers(gold, predicted), **lost})
        return measured, {**notes, "train_words_lost": _lost(train_tokens)}

    settings = {"labels": classes, "max_length": max_length, "recipe": vars(recipe)}
    return Task(kind.metric, kind.score, corpus.source, settings, measure, corpus)


ner, pos = partial(prepare, NER), partial(prepare, POS)


def _example(tokens: Words, tags: Sequence[str | None], number: dict[str, int]) -> Example:
    labels = [IGNORED] * len(tokens.ids)
    for place, tag in zip(tokens.first, tags, strict=True):
        if place >= 0 and tag is not None:
            labels[place] = number[tag]
    return Example(tokens.ids, labels)


def _known(tagged: Tagged, predicted: Tags) -> tuple[Tags, Tags]:
    """Gold and predicted tags of the words that have a gold one."""
    pairs = [
        [(one, other) for one, other in zip(*sentence, strict=True) if one is not None]
        for sentence in zip(tagged.tags, predicted, strict=True)
    ]
    return [[one for one, _ in pair] for pair in pairs], [[other for _, other in pair] for pair in pairs]


def _lost(tokens: Sequence[Words]) -> dict[str, int]:
    """How many words have no token of their own, and how many were cut off."""
    places = [place for one in tokens for place in one.first]
    return {"empty": places.count(EMPTY), "cut": places.count(CUT)}
