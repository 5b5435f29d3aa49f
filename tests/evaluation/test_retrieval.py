"""Retrieval accuracy against plain numpy, perfect and random encoders, and the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ofa_fast.evaluation import encode, evaluate, retrieval, retrieval_accuracy


def numpy_accuracy(queries, keys, k):
    queries, keys = (x.numpy().astype(np.float64) for x in (queries, keys))
    cosine = queries @ keys.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(keys, axis=1)
    own = cosine.diagonal()[:, None]
    above = (cosine > own) | ((cosine == own) & (np.arange(len(keys)) < np.arange(len(keys))[:, None]))
    return (above.sum(1) < k).mean()


def numpy_csls(queries, keys, k):
    """Its definition, with both terms; the similarities are in float64."""
    queries, keys = (x.numpy().astype(np.float64) for x in (queries, keys))
    queries, keys = (x / np.linalg.norm(x, axis=1)[:, None] for x in (queries, keys))
    cosine = queries @ keys.T
    of_queries, of_keys = (np.sort(c, axis=1)[:, -10:].mean(1) for c in (cosine, cosine.T))
    csls = 2 * cosine - of_queries[:, None] - of_keys
    return ((csls > csls.diagonal()[:, None]).sum(1) < k).mean()


@pytest.mark.parametrize("similarity", ["cosine", "csls", "centered"])
def test_a_perfect_encoder_finds_every_translation(model, tokenizer, english, similarity):
    result = retrieval(model, tokenizer, english, [verse.upper() for verse in english], similarity=similarity)
    assert result["source_to_target"] == result["target_to_source"] == {"top1": 1.0, "top5": 1.0, "top10": 1.0}
    assert (result["pairs"], result["dropped"], result["layer"], result["pooling"]) == (200, 0, 2, "mean")


def test_csls_is_its_definition_and_helps_against_hubs():
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(300, 24, generator=generator)
    target = source + 1.2 * torch.randn(300, 24, generator=generator)
    target[:10] *= 0.2
    target[:10] += source.mean(0) + 3 * source.std(0)
    target += 1.5  # all near one direction
    result = retrieval_accuracy(source, target, (1, 5), "csls")
    for direction, (queries, keys) in (("source_to_target", (source, target)), ("target_to_source", (target, source))):
        for k in (1, 5):
            assert result[direction][f"top{k}"] == pytest.approx(numpy_csls(queries, keys, k), abs=1e-12)
    assert result["mean"]["top1"] > retrieval_accuracy(source, target, (1,))["mean"]["top1"]


def test_centered_is_its_definition_and_ignores_what_a_language_has_in_common():
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(300, 24, generator=generator)
    shift = 4 * torch.randn(2, 24, generator=generator)
    source, target = source + shift[0], source + 0.8 * torch.randn(300, 24, generator=generator) + shift[1]
    result = retrieval_accuracy(source, target, (1, 5), "centered")
    for direction, pair in (("source_to_target", (source, target)), ("target_to_source", (target, source))):
        queries, keys = (x.double() - x.double().mean(0) for x in pair)
        for k in (1, 5):
            assert result[direction][f"top{k}"] == pytest.approx(numpy_accuracy(queries, keys, k), abs=1e-12)
    assert result["mean"]["top1"] > retrieval_accuracy(source, target, (1,))["mean"]["top1"] + 0.2


@pytest.mark.parametrize("similarity", ["cosine", "csls", "centered"])
def test_unrelated_vectors_are_at_chance(similarity):
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 2000, 64, generator=generator)
    result = retrieval_accuracy(source, target, (1, 10, 100), similarity)
    assert result["chance"] == {"top1": 1 / 2000, "top10": 10 / 2000, "top100": 100 / 2000}
    for direction in ("source_to_target", "target_to_source"):
        assert result[direction]["top1"] < 0.004
        assert result[direction]["top100"] == pytest.approx(0.05, abs=0.02)  # four standard deviations


def test_accuracies_agree_with_numpy(model, tokenizer, english):
    # A shortened verse is a translation of middling quality.
    target = [verse[: len(verse) // 3] for verse in english]
    result = retrieval(model, tokenizer, english, target, layer=1, k=(1, 3, 20))
    vectors = [encode(model, tokenizer, side, layer=1) for side in (english, target)]
    for direction, (queries, keys) in (("source_to_target", vectors), ("target_to_source", vectors[::-1])):
        for k in (1, 3, 20):
            assert result[direction][f"top{k}"] == numpy_accuracy(queries, keys, k)
    assert 0.05 < result["mean"]["top1"] < 0.95
    for name, mean in result["mean"].items():
        assert mean == (result["source_to_target"][name] + result["target_to_source"][name]) / 2


def test_ties_go_to_the_lower_index():
    source = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert retrieval_accuracy(source, source, (1, 2))["mean"] == {"top1": 2 / 3, "top2": 1.0}


def test_pairs_with_an_empty_side_are_dropped(model, tokenizer):
    source = ["one", "", "three", "four", " \t", "six"]
    target = ["eins", "zwei", "", "vier", "", "<range>"]
    result = retrieval(model, tokenizer, source, target, k=(1,))
    assert (result["pairs"], result["dropped"]) == (2, 4)


def test_bad_input_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="must be aligned, got 1 and 2 sentences"):
        retrieval(model, tokenizer, ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"k: expected numbers from 1 to the 2 pairs, got \(1, 5, 10\)"):
        retrieval(model, tokenizer, ["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="aligned rows"):
        retrieval_accuracy(torch.ones(2, 3), torch.ones(3, 3), (1,))


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(english, tmp_path):
    texts = {"eng": english[:30], "upp": [verse.upper() for verse in english[:30]], "xyz": english[60:90]}
    texts["xyz"][3] = ""
    (tmp_path / "data").mkdir()
    for language, text in texts.items():
        (tmp_path / "data" / f"{language}.txt").write_text("\n".join(text) + "\n")
    return tmp_path / "data", texts


def test_the_report_is_that_of_each_pair(folder, model, tokenizer, data, tmp_path):
    data, texts = data
    report = evaluate(folder, data, "retrieval", k=(1, 5), out=tmp_path / "report", seeds=(0, 1))

    assert (report["metric"], list(report["languages"])) == ("top5", ["upp", "xyz"])
    expected = retrieval(model, tokenizer, texts["eng"], texts["xyz"], k=(1, 5))
    measured = report["languages"]["xyz"]
    assert {name: measured[name] for name in expected.keys() & measured.keys()} == {
        name: expected[name] for name in expected.keys() & measured.keys()
    }
    assert measured["score"] == pytest.approx(expected["mean"]["top5"])
    assert (measured["items"], measured["dropped"]) == (29, 1)
    assert measured["seeds"] == [measured["score"]] * 2
    low, high = measured["interval"]
    assert low < measured["score"] < high
    assert (report["languages"]["upp"]["score"], report["languages"]["upp"]["interval"]) == (1.0, [1.0, 1.0])
    assert report["average"]["score"] == pytest.approx((1 + measured["score"]) / 2)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert "| upp | other | other | 30 | 100.0 | 100.0 – 100.0 |" in (tmp_path / "report.md").read_text()


def test_seeds_draw_their_own_pairs(folder, data):
    one, other, both = (
        evaluate(folder, data[0], "retrieval", languages=["xyz"], max_pairs=15, k=(1, 2, 3, 5), seeds=seeds)[
            "languages"
        ]["xyz"]
        for seeds in ([1], [2], [1, 2])
    )
    assert both["seeds"] == [one["score"], other["score"]]
    directions = "source_to_target", "target_to_source"  # one accuracy of one direction may be the same by chance
    assert [one[direction] for direction in directions] != [other[direction] for direction in directions]
    assert both["items"] == 15


def test_a_report_names_the_language_with_too_few_pairs(folder, tmp_path):
    (tmp_path / "data").mkdir()
    for language in ("eng", "deu"):
        (tmp_path / "data" / f"{language}.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="k: 10 exceeds the 2 pairs of deu"):
        evaluate(folder, tmp_path / "data", "retrieval")
