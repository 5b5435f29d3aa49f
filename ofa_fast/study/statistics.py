"""What is said of several seeds, languages and points of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 10_000


def interval(differences: np.ndarray, seed: int = 0) -> list[float]:
    """A 95 % bootstrap interval of the mean of [seeds, languages], where both are drawn anew, with replacement."""
    seeds, languages = differences.shape
    random = np.random.default_rng(seed)
    rows, columns = random.integers(seeds, size=(DRAWS, seeds)), random.integers(languages, size=(DRAWS, languages))
    means = differences[rows[:, :, None], columns[:, None, :]].mean((1, 2))
    return [float(bound) for bound in np.quantile(means, (0.025, 0.975))]


def reached(values: Sequence[float], costs: Sequence[float], target: float, falling: bool) -> float | None:
    """The cost at which a curve first reaches ``target``, linear between its points; None where it never does."""
    sign = -1 if falling else 1
    gaps = [sign * (value - target) for value in values]
    for i, gap in enumerate(gaps):
        if gap >= 0:
            if i == 0:
                return float(costs[0])
            share = -gaps[i - 1] / (gap - gaps[i - 1])
            return float(costs[i - 1] + share * (costs[i] - costs[i - 1]))
    return None
