"""Scores, each a function of sums over test items, and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_CHUNK = 1 << 22  # draws held at once


@dataclass(frozen=True)
class Measured:
    """What one seed's model did on the test items of one language.

    Attributes:
        counts: [items, m] what each item adds to the sums that a score is made of.
        numbers: further numbers for the report, such as the accuracies at other k.
    """

    counts: np.ndarray
    numbers: dict


@dataclass(frozen=True)
class Task:
    """What ``evaluate`` needs of a task.

    Attributes:
        metric: the name of ``score``, which maps sums of ``Measured.counts`` [..., m] to [...].
        source: the language that is left out of averages, as the data names it.
        settings: for the report.
        measure: what a seed's model did in each language, and notes on its fine-tuning.
        corpus: all that was read, to tell it from another.
        seeded: whether seeds make a difference.
    """

    metric: str
    score: Callable[[np.ndarray], np.ndarray]
    source: str
    settings: dict
    measure: Callable[[int], tuple[dict[str, Measured], dict]]
    corpus: object
    seeded: bool = True


def ratio(sums: np.ndarray) -> np.ndarray:
    """[..., 2] (share of the hits, items) to ``hits / items``."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """[..., 3] (true positives, predicted, gold) to ``2 tp / (predicted + gold)``, and 0 where there is nothing."""
    return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """[..., C · C] (pairs gold · C + predicted) to the mean of ``2 tp / (predicted + gold)`` over the classes there.

    As in scikit-learn, a class counts if it is among the gold or the predicted ones.
    """
    classes = round(sums.shape[-1] ** 0.5)
    pairs = sums.reshape(*sums.shape[:-1], classes, classes)
    size = pairs.sum(-1) + pairs.sum(-2)
    f1 = 2 * np.diagonal(pairs, axis1=-2, axis2=-1) / np.maximum(size, 1)
    return f1.sum(-1) / np.maximum((size > 0).sum(-1), 1)


def confusion(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """[items] labels 0 … C - 1 to what ``macro_f1`` takes, [items, C · C]."""
    counts = np.zeros((len(gold), classes * classes))
    counts[np.arange(len(gold)), gold * classes + predicted] = 1
    return counts


def bootstrap(
    counts: Sequence[np.ndarray], score: Callable[[np.ndarray], np.ndarray], resamples: int = RESAMPLES
) -> np.ndarray:
    """The score of every seed on test items drawn with replacement: from [items, m] a seed to [seeds, resamples].

    All seeds get the same draws, and so do all test sets of as many items: in a parallel test set, where an item has
    the same meaning in each language, scores go up and down together, and an average must not be taken for more
    certain than it is.
    """
    items = len(counts[0])
    generator = np.random.default_rng(items)
    stacked = np.concatenate(counts, axis=1)
    used = stacked.any(0)
    sums = np.zeros((resamples, stacked.shape[1]))
    step = max(1, _CHUNK // max(items, 1))
    for begin in range(0, resamples, step):
        drawn = generator.integers(0, items, (min(step, resamples - begin), items))
        times = np.stack([np.bincount(row, minlength=items) for row in drawn])
        sums[begin : begin + len(times), used] = times @ stacked[:, used]
    return np.stack([score(part) for part in np.split(sums, len(counts), axis=1)])


def interval(draws: np.ndarray, confidence: float = 0.95) -> list[float]:
    """The percentile interval of the mean over seeds, [seeds, resamples]; they are drawn with replacement, too."""
    seeds, resamples = draws.shape
    if seeds > 1:
        chosen = np.random.default_rng(seeds).integers(0, seeds, (seeds, resamples))
        draws = np.take_along_axis(draws, chosen, axis=0)
    low, high = np.quantile(draws.mean(0), [(1 - confidence) / 2, (1 + confidence) / 2])
    return [float(low), float(high)]


def summarize(
    measured: dict[str, Sequence[Measured]],
    score: Callable[[np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Each language's "score", "interval", "seeds", "items" and further numbers (means over seeds), and its draws."""
    languages, draws = {}, {}
    for language, runs in measured.items():
        draws[language] = bootstrap([run.counts for run in runs], score, resamples)
        seeds = [float(score(run.counts.sum(0))) for run in runs]
        languages[language] = {
            "score": float(np.mean(seeds)),
            "interval": interval(draws[language]),
            "seeds": seeds,
            "items": len(runs[0].counts),
            **_means([run.numbers for run in runs]),
        }
    return languages, draws


def average(languages: Sequence[str], summary: dict[str, dict], draws: dict[str, np.ndarray]) -> dict:
    """The mean over languages, with the seeds and the interval of that mean."""
    seeds = np.mean([summary[language]["seeds"] for language in languages], axis=0)
    return {
        "score": float(seeds.mean()),
        "interval": interval(np.mean([draws[language] for language in languages], axis=0)),
        "seeds": seeds.tolist(),
    }


def _means(numbers: list[dict]) -> dict:
    """The mean of each number over seeds; what is a dict, likewise; what is the same for all, as it is."""
    means = {}
    for name, first in numbers[0].items():
        values = [one[name] for one in numbers]
        if isinstance(first, dict):
            means[name] = _means(values)
        else:
            means[name] = first if all(value == first for value in values) else float(np.mean(values))
    return means
