"""Spaces that are rotations of each other are found to be; chains of dictionaries reach every language."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_fast.initialization import WordVectors, align_word_vectors, translation_precision

WORDS, DIM = 1500, 24


def spaces(*languages: str, noise: float = 0.02) -> dict[str, WordVectors]:
    """Word i of every language means the same; each space is rotated and shifted in its own way."""
    rng = np.random.default_rng(3)
    meaning = rng.standard_normal((WORDS, DIM)) @ np.diag(np.linspace(2, 0.3, DIM))
    made = {}
    for language in languages:
        rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
        table = (meaning + noise * rng.standard_normal(meaning.shape)) @ rotation + 0.2 * rng.standard_normal(DIM)
        made[language] = WordVectors([f"{language}{i}" for i in range(WORDS)], table.astype(np.float32), language)
    return made


def dictionary(a: str, b: str, words) -> list[tuple[str, str]]:
    return [(f"{a}{i}", f"{b.upper()}{i}") for i in words]


def test_a_rotation_is_found_from_some_pairs_and_holds_for_all_words():
    aligned, report = align_word_vectors(spaces("eng", "deu"), {("eng", "deu"): dictionary("eng", "deu", range(200))})
    assert report["pivot"] == "eng" and report["languages"]["deu"]["pairs"] == 180
    assert report["precision"]["eng-deu"] == {
        "queries": 20, "candidates": WORDS, "precision@1": 1.0, "precision@10": 1.0,
    }  # fmt: skip
    unseen = dictionary("eng", "deu", range(200, WORDS))
    assert translation_precision(aligned, unseen, "eng", "deu")["precision@1"] == 1.0
    np.testing.assert_allclose(np.linalg.norm(aligned.vectors, axis=1), 1, atol=1e-5)
    english, german = aligned.vectors[:WORDS], aligned.vectors[WORDS:]
    assert (english * german).sum(1).mean() > 0.99


def test_refinement_repairs_what_a_small_noisy_dictionary_leaves():
    pairs = dictionary("eng", "deu", range(16))
    pairs += [("eng20", "deu700"), ("eng21", "deu900"), ("eng22", "deu1100")]
    precision = []
    for refinements in (0, 10):
        aligned, report = align_word_vectors(
            spaces("eng", "deu", noise=0.1), {("eng", "deu"): pairs}, refinements=refinements, held_out=0
        )
        assert report["precision"] == {}
        unseen = dictionary("eng", "deu", range(100, WORDS))
        precision.append(translation_precision(aligned, unseen, "eng", "deu")["precision@1"])
    assert precision[0] < 0.8 and precision[1] > 0.95, precision


def test_languages_are_joined_through_others_with_and_without_vectors():
    dictionaries = {
        ("fra", "deu"): dictionary("fra", "deu", range(300)),
        ("eng", "rus"): dictionary("eng", "rus", range(400)),
        ("eng", "fra"): dictionary("eng", "fra", range(100, 500)),
    }
    aligned, report = align_word_vectors(spaces("deu", "fra", "rus"), dictionaries, pivot="deu", seed=1)
    assert list(report["languages"]) == ["fra", "rus"] and report["pivot"] == "deu"
    assert set(report["precision"]) == {"deu-fra", "fra-rus"}
    unseen = dictionary("rus", "deu", range(600, WORDS))
    assert translation_precision(aligned, unseen, "rus", "deu")["precision@1"] > 0.99


def test_the_same_call_gives_the_same_vectors_and_another_seed_other_held_out_pairs():
    made, pairs = spaces("eng", "deu", noise=0.3), {("eng", "deu"): dictionary("eng", "deu", range(200))}
    first, second, other = (align_word_vectors(made, pairs, seed=seed, refinements=0)[0].vectors for seed in (0, 0, 1))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pivot": "fra"}, "pivot: expected one of eng, deu, got 'fra'"),
        ({"held_out": 1.0}, "held_out: expected a share"),
        ({"refinements": -1}, "refinements must be 0 or more"),
        ({"dictionaries": {("eng", "fra"): [("eng1", "fra1")]}}, "no pair of words joins deu to eng"),
    ],
)
def test_what_cannot_be_aligned_is_refused(options, message):
    arguments = {"dictionaries": {("eng", "deu"): dictionary("eng", "deu", range(50))}} | options
    with pytest.raises(ValueError, match=message):
        align_word_vectors(spaces("eng", "deu"), **arguments)
    one = spaces("eng")
    with pytest.raises(ValueError, match="at least two languages, got 1"):
        align_word_vectors(one, {})
    two = {**one, "deu": WordVectors(["a"], np.ones((1, 3), dtype=np.float32), "deu")}
    with pytest.raises(ValueError, match=r"one dimension, got \{'eng': 24, 'deu': 3\}"):
        align_word_vectors(two, {})
