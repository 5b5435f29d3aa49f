"""Scores of sums against scikit-learn and seqeval, and intervals that hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import f1_score

from ofa_fast.evaluation.statistics import (
    Measured,
    average,
    bootstrap,
    confusion,
    interval,
    macro_f1,
    micro_f1,
    ratio,
    summarize,
)
from ofa_fast.evaluation.tagging import entity_counts


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_macro_f1_is_that_of_scikit_learn(classes):
    generator = np.random.default_rng(classes)
    for items in (1, 5, 200):
        gold, predicted = generator.integers(0, classes, (2, items))
        ours = macro_f1(confusion(gold, predicted, classes).sum(0))
        assert ours == pytest.approx(f1_score(gold, predicted, average="macro"), abs=1e-12)


def test_entity_f1_is_that_of_seqeval():
    generator = np.random.default_rng(0)
    tags = np.array(["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    gold, predicted = ([list(tags[generator.integers(0, 7, n)]) for n in range(1, 40)] for _ in range(2))
    assert micro_f1(entity_counts(gold, predicted).sum(0)) == pytest.approx(entity_f1(gold, predicted), abs=1e-12)
    assert micro_f1(entity_counts(gold, gold).sum(0)) == 1
    assert micro_f1(np.zeros(3)) == 0


def test_a_resample_scores_what_scikit_learn_scores_on_its_items():
    gold, predicted = np.random.default_rng(1).integers(0, 3, (2, 50))
    drawn = np.random.default_rng(50).integers(0, 50, (4, 50))
    scores = bootstrap([confusion(gold, predicted, 3)], macro_f1, resamples=4)
    expected = [f1_score(gold[row], predicted[row], average="macro") for row in drawn]
    np.testing.assert_allclose(scores[0], expected, atol=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        hits = (generator.random(100) < 0.3).astype(float)
        low, high = interval(bootstrap([np.stack([hits, np.ones(100)], 1)], ratio, 300))
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_seeds_that_differ_widen_the_interval():
    hits = np.zeros((2, 1000, 2))
    hits[..., 1] = 1
    hits[0, :200, 0] = hits[1, :600, 0] = 1
    one, other = ([Measured(run, {})] for run in hits)
    both = summarize({"deu": [*one, *other]}, ratio)[0]["deu"]
    assert (both["score"], both["seeds"]) == (0.4, [0.2, 0.6])
    low, high = both["interval"]
    assert low < 0.25 and high > 0.55


def test_the_average_is_that_of_the_languages():
    generator = np.random.default_rng(3)
    runs = {
        code: [Measured(np.stack([generator.random(80) < p, np.ones(80)], 1).astype(float), {"k": p}) for _ in range(3)]
        for code, p in (("deu", 0.9), ("chr", 0.1))
    }
    summary, draws = summarize(runs, ratio)
    result = average(["deu", "chr"], summary, draws)
    assert result["score"] == pytest.approx((summary["deu"]["score"] + summary["chr"]["score"]) / 2)
    assert result["seeds"] == pytest.approx(np.mean([summary[code]["seeds"] for code in runs], axis=0))
    assert result["interval"][0] < result["score"] < result["interval"][1]
    assert (summary["deu"]["items"], summary["deu"]["k"]) == (80, 0.9)
