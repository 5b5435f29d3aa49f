"""What an initialisation says about itself: numbers that agree with its rows, warnings, the page, explanations."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from ofa_fast import initialize
from ofa_fast.initialization import Initialization, diagnosis, explain, plan
from ofa_fast.initialization.html_report import html_report, write_html_report
from ofa_fast.initialization.matching import read_vocabulary


@pytest.fixture(scope="module")
def inputs(tokenizers, word_vectors):
    source, target = tokenizers["wordpiece"], tokenizers["metaspace"]
    table = torch.randn(len(source), 32, generator=torch.Generator().manual_seed(0))
    return table, source, target, word_vectors


@pytest.fixture(scope="module")
def results(inputs) -> list[Initialization]:
    return initialize(*inputs, rank=[4, 8, None])


@pytest.fixture
def folder(results, tmp_path):
    for result, name in zip(results, ("rank-4", "rank-8", "rank-full"), strict=True):
        result.write(tmp_path / name, tables=False)
    return tmp_path


def kinds(report: dict) -> set[str]:
    return {warning["kind"] for warning in report["warnings"]}


def test_the_report_agrees_with_the_rows(inputs, results):
    result, (table, source, target, vectors) = results[1], inputs
    report = json.loads(json.dumps(result.report, allow_nan=False))
    energy = torch.linalg.svdvals(table.double()).square().cumsum(0)
    np.testing.assert_allclose(report["explained_variance_by_rank"], (energy / energy[-1])[:8], atol=1e-5)
    assert report["explained_variance_by_rank"][7] == pytest.approx(report["explained_variance"], abs=1e-5)
    overlap = report["overlap"]
    assert overlap["same_text"] + overlap["other_case"] + overlap["special"] == report["counts"]["copied"]
    assert overlap["source_tokens_used"] == len(result.sources[result.sources >= 0].unique())
    similar = result.origin == 1
    assert sum(report["similarity"]["counts"]) == int(similar.sum()) == report["counts"]["similar"]
    assert report["similarity"]["median"] == pytest.approx(
        float(result.similarities[similar, 0].float().median()), abs=0.01
    )
    assert set(report["languages"]) == {"eng", "deu", "spa", "chr"}
    pieces = {
        code: sum(c[k] for k in ("copied", "similar", "random", "unknown")) for code, c in report["languages"].items()
    }
    words = [word for word, code in zip(vectors.words, vectors.languages, strict=True) if code == "deu"]
    assert report["languages"]["deu"]["sampled"] == len(words[::2]) == 150
    assert pieces["deu"] == sum(
        map(len, target([f" {word}" for word in words[::2]], add_special_tokens=False).input_ids)
    )
    before = sum(map(len, source([f" {word}" for word in words[::2]], add_special_tokens=False).input_ids))
    assert report["languages"]["deu"]["source_pieces_per_word"] == pytest.approx(before / 150, abs=1e-3)


def test_similarities_are_the_cosines_behind_the_weights(results):
    result = results[0]
    similar = (result.origin == 1) & (result.neighbors[:, -1] >= 0)
    weights = torch.softmax(result.similarities[similar].float() / 0.1, 1)
    torch.testing.assert_close(weights, result.weights[similar], atol=5e-3, rtol=0)
    assert not result.similarities[result.origin != 1].any()


def test_examples_are_ordered_and_real(inputs, results):
    examples = results[0].report["examples"]
    nearest = {name: [e["neighbors"][0]["similarity"] for e in listed] for name, listed in examples.items()}
    assert nearest["most_certain"] == sorted(nearest["most_certain"], reverse=True)
    assert nearest["least_certain"] == sorted(nearest["least_certain"])
    assert nearest["most_certain"][0] > nearest["least_certain"][-1]
    for example in examples["spread"]:
        assert inputs[2].convert_ids_to_tokens(example["id"]) == example["token"]


def test_tokens_survive_the_file(results, tmp_path):
    results[0].write(tmp_path, tables=False)
    read = Initialization.read(tmp_path)
    assert read.source_tokens == results[0].source_tokens and read.target_tokens == results[0].target_tokens
    assert torch.equal(read.similarities, results[0].similarities)


def test_bytes_and_gaps_can_be_displayed(tokenizers):
    assert [diagnosis.display(text) for text in (" the", "the", b"\xe2\x82", None)] == [
        "▁the",
        "the",
        "<0xE2><0x82>",
        "",
    ]
    assert "▁the" in map(diagnosis.display, read_vocabulary(tokenizers["byte-level"]).texts)


def test_the_page_is_whole_and_made_of_saved_files_alone(folder):
    page = html_report(folder)
    root = ElementTree.fromstring(page.encode())
    assert write_html_report(folder).read_text("utf-8") == page == html_report(folder)
    text = " ".join("".join(root.itertext()).split())
    report = json.loads((folder / "rank-8" / "initialization.json").read_text("utf-8"))
    assert "Initialisation at ranks 4, 8, 32 (full)" in text and "Cherokee" in text and "spa" in text
    assert all(digest in text for digest in report["sha256"].values())
    assert report["examples"]["least_certain"][0]["token"] in text
    assert {"Tokens by script", "Similarity of the nearest source token", "Seconds a stage"} <= {
        "".join(caption.itertext()) for caption in root.iter("figcaption")
    }
    assert not re.search(r"<script|src=|https?://(?!www.w3.org/2000/svg)", page)


def test_a_page_for_a_rank_of_its_own_and_for_none(folder, tmp_path):
    assert "Initialisation at rank 8<" in html_report(folder / "rank-8")
    with pytest.raises(FileNotFoundError, match=r"initialization\.json is missing"):
        html_report(tmp_path / "rank-4" / "nothing")


@pytest.mark.parametrize("method", ["random", "mean", "focus", "wechsel"])
def test_every_method_has_a_page(inputs, method, tmp_path):
    vectors = inputs[3] if method in ("focus", "wechsel") else None
    result = initialize(*inputs[:3], vectors, rank=None, method=method)
    result.write(tmp_path, tables=False)
    page = html_report(tmp_path)
    ElementTree.fromstring(page.encode())
    assert ("No row was made from neighbours alone" in page) == (vectors is None)
    assert "copied share" in page and "word weights" in page


def test_tokens_with_markup_are_escaped(results, tmp_path):
    results[0].write(tmp_path, tables=False)
    file = tmp_path / "initialization.json"
    report = json.loads(file.read_text("utf-8"))
    report["examples"]["spread"][0]["token"] = "<img src=x>"
    report["command"] = "ofa-fast init --out '<b>&'"
    file.write_text(json.dumps(report))
    page = html_report(tmp_path)
    assert "<img" not in page and "&lt;img src=x&gt;" in page and "&lt;b&gt;&amp;" in page


def test_an_old_report_still_has_a_page(results, tmp_path):
    results[0].write(tmp_path, tables=False)
    file = tmp_path / "initialization.json"
    report = json.loads(file.read_text("utf-8"))
    for name in ("overlap", "similarity", "languages", "examples", "warnings", "case", "explained_variance_by_rank"):
        del report[name]
    file.write_text(json.dumps(report))
    ElementTree.fromstring(html_report(tmp_path).encode())


def test_what_is_fine_is_not_warned_of(inputs):
    table, source, target, vectors = inputs
    report = initialize(table, source, target, vectors.select(["eng", "deu", "spa"]), rank=None).report
    # The words of these vectors are in lower case, and the target tokenizer is not; its Cherokee has no vectors.
    assert kinds(report) <= {"coverage", "script", "case"}, report["warnings"]


@pytest.mark.parametrize("count, dim", [(1000, 16), (20_000, 100), (500, 300)])
def test_what_random_vectors_would_reach(count, dim):
    random = np.random.default_rng(0)
    queries, keys = random.standard_normal((200, dim)), random.standard_normal((count, dim))
    cosines = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (keys / np.linalg.norm(keys, axis=1)[:, None]).T
    assert diagnosis.nearest_by_chance(count, dim) == pytest.approx(np.median(cosines.max(1)), rel=0.05)


def test_warnings_tell_what_is_too_low(inputs, word_vectors):
    table, source, target, _ = inputs
    latin = word_vectors.select(["eng", "deu", "spa"])
    report = initialize(table, source, target, latin, rank=None).report
    script = next(warning for warning in report["warnings"] if warning["kind"] == "script")
    assert (
        "Cherokee" in script["message"] and script["value"] < script["limit"] == diagnosis.THRESHOLDS["script_coverage"]
    )
    left_out = initialize(*inputs, rank=None, target_languages=["eng"]).report
    assert "language" in kinds(left_out) and "chr" in str(left_out["warnings"])
    nothing = initialize(table, source, target, None, rank=None, method="random").report
    assert "coverage" in kinds(nothing)
    unknown = initialize(table, source, source, word_vectors, rank=None).report
    assert "unknown" in kinds(unknown) and unknown["languages"]["chr"]["unknown"] > 0
    assert {"coverage", "script"} & {
        w["kind"] for w in diagnosis.warnings_of(plan(table.shape, source, target, latin, rank=8))
    }


def test_warnings_of_case_special_tokens_and_vectors(results):
    report = dict(results[0].report)
    report["case"] = {
        "capital": {"copied": 5, "similar": 10, "random": 190},
        "lower": {"copied": 5, "similar": 900, "random": 100},
    }
    report["special_random"] = ["<mask>"]
    report["similarity"] = {"median": 0.2, "chance": 0.3}
    report["counts"] = report["counts"] | {"source_tokens_with_vector": 10}
    found = {warning["kind"]: warning["message"] for warning in diagnosis.warnings_of(report)}
    assert "5% of those with a capital, but 90% of the others" in found["case"] and "<mask>" in found["special"]
    assert "aligned" in found["alignment"] and "1.2% of the source's tokens" in found["source"]
    report["case"]["capital"] = {"copied": 5, "similar": 3, "random": 20}
    assert "case" not in {warning["kind"] for warning in diagnosis.warnings_of(report)}


def test_explain_names_sources_weights_and_words(inputs, results):
    result = results[0]
    copied = int((result.origin == 0).nonzero()[10])
    similar = int((result.origin == 1).nonzero()[10])
    assert result.source_tokens[result.sources[copied]] in explain.explain(result, copied)
    words = explain.words_of([similar], inputs[2], inputs[3])[similar]
    told = explain.explain(result, similar, words)
    assert result.target_tokens[similar] in told and f"id {similar}, similar" in told and words[0] in told
    assert f"{result.weights[similar, 0]:.3f}" in told and result.source_tokens[result.neighbors[similar, 0]] in told
    word, code = words[0].removesuffix(")").split(" (")
    assert word in inputs[3].words and code in inputs[3].languages
    random = int((result.origin == 2).nonzero()[0])
    assert "neither copied nor reached" in explain.explain(result, random)


def test_find_takes_texts_and_ids(results):
    result = results[0]
    index = result.target_tokens.index("▁the")
    assert explain.find(result, "▁the")[0] == explain.find(result, "the")[-1] == index or "the" in result.target_tokens
    assert index in explain.find(result, "the") and explain.find(result, "1234") == [1234]
    with pytest.raises(ValueError, match=r"no token 'thexyz', .*; there are .*▁the"):
        explain.find(result, "thexyz")
    with pytest.raises(ValueError, match=r"nor an id below"):
        explain.find(result, "99999999")
