"""The rivals of the recipe, each against its own definition computed plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ofa_fast.initialization import initialize, match_vocabularies, plan, subword_vectors
from ofa_fast.initialization.explain import explain
from ofa_fast.initialization.methods import METHODS, sparsemax
from ofa_fast.initialization.result import COPIED, RANDOM, SIMILAR
from ofa_fast.initialization.tokenization import special_ids

DIM = 12


@pytest.fixture(scope="module")
def inputs(tokenizers, word_vectors):
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(len(tokenizers["wordpiece"]), DIM, generator=generator) @ torch.randn(
        DIM, DIM, generator=generator
    )
    return table + 0.3, tokenizers["wordpiece"], tokenizers["metaspace"], word_vectors


@pytest.fixture(scope="module")
def results(inputs):
    return {method: initialize(*inputs, rank=None, method=method) for method in METHODS}


def project(z: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by bisection of its threshold."""
    low, high = z.min() - 1, z.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(z - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(z - low, 0)


def test_sparsemax_is_the_projection_onto_the_simplex():
    rng = np.random.default_rng(0)
    for scale in (0.01, 1, 10):
        scores = np.sort(scale * rng.standard_normal((200, 9)))[:, ::-1].copy()
        weights = sparsemax(torch.from_numpy(scores))
        np.testing.assert_allclose(weights, [project(row) for row in scores], atol=1e-12)
    padded = torch.tensor([[0.5, 0.4, -torch.inf], [-torch.inf] * 3])
    torch.testing.assert_close(sparsemax(padded), torch.tensor([[0.55, 0.45, 0.0], [0.0, 0.0, 0.0]]))


def test_origins(inputs, results):
    matched = torch.from_numpy(match_vocabularies(inputs[1], inputs[2])) >= 0
    vector = torch.from_numpy(subword_vectors(inputs[2], inputs[3])).any(1)
    special = torch.zeros(len(matched), dtype=torch.bool)
    special[list(special_ids(inputs[2]))] = True
    for method, result in results.items():
        copied = matched & special if method == "wechsel" else matched
        similar = vector & ~copied if METHODS[method].keys else torch.zeros_like(vector)
        assert torch.equal(result.origin == COPIED, copied), method
        assert torch.equal(result.origin == SIMILAR, similar), method
        assert plan(inputs[0].shape, *inputs[1:], rank=None, method=method)["counts"]["random"] == int(
            (result.origin == RANDOM).sum()
        )


def test_focus_mixes_the_rows_of_all_shared_tokens_by_sparsemax(inputs, results):
    result = results["focus"]
    vectors = torch.from_numpy(subword_vectors(inputs[2], inputs[3])).double()
    shared = (result.origin == COPIED) & vectors.any(1)
    assert 50 < shared.sum() < METHODS["focus"].neighbors * 3
    unit = torch.nn.functional.normalize(vectors)
    cosines = unit[result.origin == SIMILAR] @ unit[shared].T
    weights = torch.from_numpy(np.stack([project(row) for row in cosines.numpy()]))
    expected = weights @ inputs[0].double()[result.sources[shared]]
    torch.testing.assert_close(result.coordinates[result.origin == SIMILAR], expected.float(), rtol=1e-4, atol=1e-4)


def test_wechsel_mixes_the_nearest_source_subwords_of_every_token(inputs, results):
    result = results["wechsel"]
    source, target = (
        torch.nn.functional.normalize(torch.from_numpy(subword_vectors(tokenizer, inputs[3])).double())
        for tokenizer in inputs[1:3]
    )
    similar = result.origin == SIMILAR
    cosines = target[similar] @ source.T
    cosines[:, ~source.any(1)] = -torch.inf
    # Subwords of the same words have the same vector: rounded, so that ties go to the lowest id.
    scores, nearest = (found[:, :10] for found in cosines.round(decimals=10).sort(dim=1, descending=True, stable=True))
    expected = (torch.softmax(scores / 0.1, 1)[:, :, None] * inputs[0].double()[nearest]).sum(1)
    torch.testing.assert_close(result.coordinates[similar], expected.float(), rtol=1e-4, atol=1e-4)


def test_rows_without_a_match_have_the_moments_that_their_method_promises(inputs):
    rows = {
        method: initialize(*inputs[:3], None, rank=None, method=method, target_rows=60_000).coordinates[5000:].double()
        for method in ("mean", "gaussian", "random")
    }
    table = inputs[0].double()
    covariance = torch.cov(table.T, correction=0)
    assert torch.equal(rows["mean"], table.mean(0).float().double().expand_as(rows["mean"]))
    for method, expected in (("gaussian", covariance), ("random", covariance.diag().diag())):
        torch.testing.assert_close(rows[method].mean(0), table.mean(0), rtol=0, atol=0.05)
        torch.testing.assert_close(torch.cov(rows[method].T), expected, rtol=0.05, atol=0.3)


def test_a_drawn_row_depends_on_the_seed_its_id_and_the_rank_alone(inputs):
    short, long = (
        initialize(*inputs[:3], None, rank=None, method="gaussian", target_rows=rows).coordinates
        for rows in (3000, 9000)
    )
    assert torch.equal(short, long[:3000])
    other = initialize(*inputs[:3], None, rank=None, method="gaussian", target_rows=3000, seed=1).coordinates
    assert not torch.equal(short[2000:], other[2000:])


def test_another_weighting_and_more_neighbours_for_any_method(inputs):
    result = initialize(*inputs, rank=None, neighbors=40, weighting="sparsemax", temperature=0.5)
    similar = result.origin == SIMILAR
    assert result.neighbors.shape[1] == 40 and result.report["weighting"] == "sparsemax"
    torch.testing.assert_close(result.weights[similar].sum(1), torch.ones(int(similar.sum())))
    assert (result.weights[similar] == 0).any(1).float().mean() > 0.5


def test_without_fuzzy_rules_only_equal_texts_are_copied(inputs):
    loose, strict = (initialize(*inputs, rank=None, fuzzy=fuzzy) for fuzzy in (True, False))
    exact = torch.from_numpy(match_vocabularies(*inputs[1:3], fuzzy=False))
    assert torch.equal(strict.sources, exact)
    assert int((strict.origin == COPIED).sum()) < int((loose.origin == COPIED).sum())
    assert plan(inputs[0].shape, *inputs[1:], rank=None, fuzzy=False)["counts"]["copied"] == int((exact >= 0).sum())
    assert (loose.report["fuzzy"], strict.report["fuzzy"]) == (True, False)


def test_words_may_count_by_their_rank_or_their_count(inputs):
    words = inputs[3]
    ranks = {code: 0 for code in words.languages}
    weights = []
    for code in words.languages:
        ranks[code] += 1
        weights.append(1 / ranks[code])
    by_rank = initialize(*inputs, rank=None, word_weights="rank")
    given = initialize(*inputs, rank=None, word_weights=[4 * weight for weight in weights])
    alike = initialize(*inputs, rank=None)
    assert by_rank.report["word_weights"] == "rank" and given.report["word_weights"] == "given"
    assert torch.equal(by_rank.coordinates, given.coordinates)
    similar = alike.origin == SIMILAR
    assert torch.equal(by_rank.origin, alike.origin)
    assert (by_rank.weights[similar] - alike.weights[similar]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ofam"}, "method must be one of ofa, wechsel, focus, mean, gaussian, random, got 'ofam'"),
        ({"method": "focus", "parity": True}, "parity=True takes the methods of the published implementation"),
        ({"word_weights": "log"}, "word_weights must be \"rank\", a number for each word or None, got 'log'"),
        ({"copied_share": 1.5}, r"copied_share must lie in \[0, 1\], got 1.5"),
        (
            {"copied_share": 0.5, "method": "focus"},
            'copied_share=0.5 is for method="ofa" without parity, got method="focus"',
        ),
        ({"copied_share": 0.5, "parity": True}, "copied_share=0.5 is for .* got parity=True"),
        ({"word_weights": [1.0]}, r"word_weights must be \[1200\], a number for each word, got \[1\]"),
        ({"word_weights": [0.0] * 1200}, "word_weights must be above 0 and finite, but that of 'the' is not"),
        ({"word_weights": "rank", "parity": True}, "word_weights: the published implementation weighs all words alike"),
        ({"weighting": "entmax"}, "weighting must be one of softmax, sparsemax, got 'entmax'"),
    ],
)
def test_what_cannot_be_done_is_refused(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        initialize(*inputs, rank=None, **options)
    with pytest.raises(ValueError, match='method="wechsel" needs word vectors; mean, gaussian, random do without'):
        initialize(*inputs[:3], None, method="wechsel")


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_shared_rows_are_partly_mixed(inputs, share, rank):
    bias = torch.linspace(-1, 1, len(inputs[0]))
    whole = initialize(*inputs, rank=rank, source_bias=bias)
    wechsel = initialize(*inputs, rank=rank, source_bias=bias, method="wechsel")
    result = initialize(*inputs, rank=rank, source_bias=bias, copied_share=share)
    blended = (whole.origin == COPIED) & (wechsel.origin == SIMILAR)
    assert torch.equal(result.origin, whole.origin) and torch.equal(result.sources, whole.sources)
    assert 50 < blended.sum() < (whole.origin == COPIED).sum()
    for name in ("coordinates", "bias"):
        made, copied, mixed = (getattr(own, name) for own in (result, whole, wechsel))
        assert torch.equal(made[~blended], copied[~blended])
        expected = share * copied[blended] + (1 - share) * mixed[blended]
        torch.testing.assert_close(made[blended], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.weights[blended], (1 - share) * wechsel.weights[blended])
    assert result.report["copied_share"] == share
    shown = explain(result, int(blended.nonzero()[0]))
    assert "the row of the source's" in shown and "cosine" in shown


def test_all_of_a_shared_row_is_the_default(inputs, results):
    assert torch.equal(initialize(*inputs, rank=None, copied_share=1).coordinates, results["ofa"].coordinates)
