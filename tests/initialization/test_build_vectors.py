"""Vectors made from aligned verses translate words, come out the same again, and never see the lines left out."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from ofa_fast.initialization import WordVectors, build_word_vectors, translation_precision
from ofa_fast.initialization.word_alignment import LineCounts, align_words
from ofa_fast.initialization.word_graph import Edges, follow_concepts, meet_words, read_colexification, weigh_links
from ofa_fast.initialization.words import WordSplitter, written_forms

VERSES = Path(__file__).parents[2] / "examples" / "data" / "bible"
GERMAN = [
    ("God", "Gott"), ("Jesus", "Jesus"), ("king", "König"), ("father", "Vater"), ("mother", "Mutter"), ("son", "Sohn"),
    ("house", "Haus"), ("water", "Wasser"), ("bread", "Brot"), ("light", "Licht"), ("law", "Gesetz"), ("death", "Tod"),
    ("spirit", "Geist"), ("heaven", "Himmel"), ("night", "Nacht"), ("day", "Tag"), ("hand", "Hand"), ("name", "Namen"),
]  # fmt: skip


def write(folder: Path, **texts: list[str]) -> dict[str, Path]:
    for code, text in texts.items():
        (folder / f"{code}.txt").write_text("".join(f"{line}\n" for line in text), "utf-8")
    return {code: folder / f"{code}.txt" for code in texts}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    texts = {code: (VERSES / f"{code}.txt").read_text("utf-8").split("\n")[:1500] for code in ("eng", "deu", "chr")}
    return write(tmp_path_factory.mktemp("verses"), **texts)


@pytest.fixture(scope="module")
def built(files) -> WordVectors:
    return build_word_vectors(files, dim=100)


def test_built_vectors_translate_far_above_chance(built):
    result = translation_precision(built, GERMAN, "eng", "deu")
    chance = 10 / result["candidates"]
    assert result["queries"] >= 15 and chance < 0.01
    assert result["precision@1"] >= 0.5 and result["precision@10"] >= 0.7


def test_rows_are_unit_and_ordered_by_frequency_within_each_language(built, files):
    assert built.vectors.dtype == np.float32 and built.vectors.shape[1] == 100
    np.testing.assert_allclose(np.linalg.norm(built.vectors, axis=1), 1, atol=1e-5)
    assert list(dict.fromkeys(built.languages)) == list(files)
    assert {"the", "and", "of"} <= set(built.select(["eng"]).words[:5])
    assert built.keys[0] == f"eng:${built.words[0]}$"


def test_words_are_stored_as_the_text_writes_them(built):
    german, cherokee = built.select(["deu"]).words, built.select(["chr"]).words
    assert {"Vater", "und", "Jesus"} <= set(german) and not {"vater", "Und", "jesus"} & set(german)
    assert all("CHEROKEE LETTER" in unicodedata.name(word[0]) for word in cherokee)
    assert not any("CHEROKEE SMALL" in unicodedata.name(letter, "") for word in cherokee for letter in word)


def test_building_twice_gives_the_same_bytes(files, built):
    again = build_word_vectors(files, dim=100)
    assert again.keys == built.keys
    np.testing.assert_array_equal(again.vectors, built.vectors)


def test_lines_left_out_change_nothing(tmp_path, files):
    used = np.arange(1500) % 5 != 0
    texts = {code: path.read_text("utf-8").split("\n")[:1500] for code, path in files.items()}
    for code, text in texts.items():
        texts[code] = [line if use else f"unseenly {code} words" for line, use in zip(text, used, strict=True)]
    spoilt = write(tmp_path, **texts)
    with_mask = build_word_vectors(files, dim=50, lines=used)
    with_indices = build_word_vectors(spoilt, dim=50, lines=np.flatnonzero(used))
    assert "unseenly" not in with_indices.words and with_indices.keys == with_mask.keys
    np.testing.assert_array_equal(with_indices.vectors, with_mask.vectors)


def test_a_verse_merged_upwards_counts_in_both_lines_and_never_in_half(tmp_path):
    english = ["alpha alpha", "beta beta", "gamma gamma", "delta delta"]
    merged = ["eins zwei eins zwei", "<range>", "drei drei", "vier vier"]
    files = write(tmp_path, eng=english, deu=merged)
    built = build_word_vectors(files, dim=3, iterations=0)
    vector = dict(zip(built.words, built.vectors, strict=True))
    np.testing.assert_allclose(vector["gamma"] @ vector["drei"], 1, atol=1e-5)
    assert vector["eins"] @ vector["alpha"] > 0.5 and vector["eins"] @ vector["beta"] > 0.5
    held = build_word_vectors(files, dim=2, lines=[0, 2, 3])
    assert "eins" not in held.words and "drei" in held.words
    assert "alpha" not in held.words, "a line that is left in one language only is not used"


def counts(lines: list[str]) -> LineCounts:
    words = sorted({word for line in lines for word in line.split()})
    triples = sorted(
        {(words.index(word), i, line.split().count(word)) for i, line in enumerate(lines) for word in line.split()}
    )
    return LineCounts(words, *np.array(triples).T)


def linked(source: LineCounts, target: LineCounts, iterations: int = 3) -> np.ndarray:
    links = np.zeros((len(source.words), len(target.words)))
    row, column, number = align_words(source, target, iterations)
    links[row, column] = number
    return links


def dense_links(source: LineCounts, target: LineCounts, iterations: int) -> np.ndarray:
    """The model of ``align_words`` written with loops over dense tables."""
    lines = 1 + max(source.line.max(), target.line.max())
    s, t = np.zeros((lines, len(source.words))), np.zeros((lines, len(target.words)))
    s[source.line, source.word], t[target.line, target.word] = source.count, target.count
    forward, backward = np.ones((s.shape[1], t.shape[1])), np.ones((s.shape[1], t.shape[1]))
    for step in range(iterations + 1):
        expected = [np.zeros_like(forward), np.zeros_like(forward)]
        for a, b in zip(s, t, strict=True):
            met = np.outer(a > 0, b > 0)
            one = met * forward * b / np.maximum(forward @ b, 1e-300)[:, None]
            two = met * backward * a[:, None] / np.maximum(backward.T @ a, 1e-300)
            expected[0] += one * a[:, None]
            expected[1] += two * b
        if step < iterations:
            forward, backward = expected[0] / expected[0].sum(0), expected[1] / expected[1].sum(1, keepdims=True)
    return np.sqrt(expected[0] * expected[1])


def test_alignment_matches_its_definition():
    english = ["a b a", "b c", "a c d", "d", "e a", "e e b"]
    german = ["x y x", "y z", "x z w w", "w", "", "x v v"]
    for iterations in (1, 2, 5):
        source, target = counts(german), counts(english)
        np.testing.assert_allclose(
            linked(source, target, iterations), dense_links(source, target, iterations), atol=1e-12
        )


def test_a_companion_is_explained_away():
    english = ["king herod"] * 3 + ["king david"] * 3 + ["king"] * 2 + ["herod"]
    german = ["könig herodes"] * 3 + ["könig david"] * 3 + ["könig"] * 2 + ["herodes"]
    source, target = counts(german), counts(english)
    links = linked(source, target)
    of_herod = dict(zip(target.words, links[source.words.index("herodes")], strict=True))
    assert of_herod["herod"] > 3 and of_herod["king"] < 0.3


def dense_weights(words: list[str], links: np.ndarray) -> np.ndarray:
    def grams(word: str) -> set[str]:
        return {word[i:j] for i in range(len(word)) for j in range(i + 2, min(i + 5, len(word)) + 1)} or {word}

    weights = np.zeros_like(links)
    for w, word in enumerate(words):
        masses = [sum(links[v] for v, other in enumerate(words) if gram in grams(other)) for gram in grams(word)]
        weights[w] = np.sqrt(links[w]) * np.mean(masses, axis=0)
    return weights


def test_families_of_words_share_their_evidence():
    words = ["heiligen", "heilig", "heilige", "und", "x", "耶稣", "耶稣说"]
    links = np.array([[4, 0], [3, 0], [1, 0], [0.5, 7], [0, 0.005], [2, 0], [1, 0]])
    word, concept = np.nonzero(links)
    row, column, weight, number = weigh_links(words, (word, concept, links[word, concept]))
    found = np.zeros_like(links)
    np.testing.assert_array_equal(number, links[row, column])
    found[row, column] = weight
    expected = dense_weights(words[:5], links[:5] * (links[:5] >= 0.01))
    np.testing.assert_allclose(found[:5], expected, rtol=1e-12)
    np.testing.assert_allclose(found[5:, 0], [2**1.5, 1])
    assert found[1, 0] > found[0, 0], "the stem has more than a more frequent form"


def normalized(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_the_main_word_for_a_concept_is_nearest_and_an_unlinked_word_stays():
    concepts, own = torch.eye(5)[:2], torch.eye(5)[[2, 2, 3]]
    edges = Edges(np.array([0, 1]), np.array([0, 0]), np.array([8.0, 2.0]), np.array([4.0, 1.0]))
    vectors = follow_concepts(own, concepts, edges)
    one, _, three, four, _ = np.eye(5)
    y = normalized(3 * one + three)
    b = 0.8 * (2.0 / (8.0 * 4.0**-0.3)) ** 0.05
    rest = normalized(three - 0.3 * (three @ y) * y)
    second = normalized(b * y + (1 - b * b) ** 0.5 * rest)
    expected = np.stack([normalized(12 * one + three), second, four])
    np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-6)
    assert vectors[0] @ concepts[0] > vectors[1] @ concepts[0]

    # A word that two concepts share follows its frequent links, and claims by those of its family.
    both = Edges(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([8.0, 2.0, 2.0]), np.array([4.0, 1.0, 16.0]))
    one_and_two = follow_concepts(own, concepts, both)[0].numpy()
    y = normalized(15 * normalized(np.array([8 * 4**0.5, 2, 0, 0, 0])) + three)
    b = 1.0  # the second concept has the other word more often, but this one's family claims it
    np.testing.assert_allclose(one_and_two, normalized(b * y), atol=1e-6)

    more = Edges(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([8.0, 2.0, 1.0]), np.ones(3))
    met = meet_words(concepts, [(vectors, more)])
    means = np.stack([normalized(64 * expected[0] + 4 * expected[1]), four])
    c = np.array([[10 / 11], [1 / 2]])
    drawn = np.eye(5)[:2] + 0.2 * c * (means - (c * means).sum(0) / c.sum())
    np.testing.assert_allclose(met.numpy(), np.stack([normalized(row) for row in drawn]), atol=1e-6)


def test_links_bring_translations_closer(files, built):
    without = build_word_vectors(files, dim=100, iterations=0)
    assert without.keys == built.keys
    found, plain = (translation_precision(vectors, GERMAN, "eng", "deu") for vectors in (built, without))
    assert found["precision@1"] >= plain["precision@1"] and found["precision@10"] >= plain["precision@10"]
    pivoted = translation_precision(build_word_vectors(files, dim=100, pivot="deu"), GERMAN, "eng", "deu")
    assert pivoted["precision@1"] >= 0.5


def test_the_graph_alone_translates_and_takes_concept_edges(files, tmp_path):
    edges = tmp_path / "edges.tsv"
    edges.write_text("source\ttarget\tfamilies\nDAY\tSUN\t9\nHAND OR ARM\tBREAD\t40\nNOSUCH\tDAY\t1\n", "utf-8")
    graph = build_word_vectors(files, dim=100, method="graph")
    assert translation_precision(graph, GERMAN, "eng", "deu")["precision@1"] >= 0.5
    np.testing.assert_array_equal(graph.vectors, build_word_vectors(files, dim=100, method="graph").vectors)
    concepts = build_word_vectors(files, dim=100, method="graph", colexification=edges)
    near = [dict(zip(vectors.words, vectors.vectors, strict=True)) for vectors in (graph, concepts)]
    without, joined = (vector["hand"] @ vector["bread"] for vector in near)
    assert joined > without + 0.3
    row, column, weight = read_colexification(edges, ["hand", "Bread", "arm", "day"])
    assert list(zip(row, column, strict=True)) == [(0, 1), (1, 0), (2, 1), (1, 2)]
    np.testing.assert_allclose(weight, np.log(41))
    edges.write_text("source\ttarget\tfamilies\nDAY\tSUN\n", "utf-8")
    with pytest.raises(ValueError, match=r"edges\.tsv, line 2: expected concept, concept and a count"):
        build_word_vectors(files, dim=100, colexification=edges)


def test_absent_lines_are_not_evidence(tmp_path):
    files = write(
        tmp_path, eng=["one one", "two two", "three three", "four four"], deu=["eins eins", "", "drei drei", ""]
    )
    assert build_word_vectors(files, dim=2).words == ["one", "three", "drei", "eins"]


def test_bitexts_that_share_a_language_are_one_text(tmp_path):
    english = (VERSES / "eng.txt").read_text("utf-8").split("\n")
    german, spanish = ((VERSES / f"{code}.txt").read_text("utf-8").split("\n") for code in ("deu", "spa"))
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    for folder in (first, second, whole):
        folder.mkdir()
    pairs = [
        write(first, eng=english[:600], deu=german[:600]),
        write(second, spa=["<range>", *spanish[601:1000]], eng=english[600:1000]),
    ]
    gaps = {"deu": german[:600] + [""] * 400, "spa": [""] * 601 + spanish[601:1000]}
    joint, padded = build_word_vectors(pairs, dim=50), build_word_vectors(write(whole, eng=english[:1000], **gaps), 50)
    assert list(dict.fromkeys(joint.languages)) == ["eng", "deu", "spa"] and joint.keys == padded.keys
    np.testing.assert_array_equal(joint.vectors, padded.vectors)
    with pytest.raises(ValueError, match=r"spa\.txt has 400 lines, but the first file has 600"):
        build_word_vectors([{"eng": first / "eng.txt", "spa": second / "spa.txt"}])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("“Don’t go,” he said—twice.", ["Don’t", "go", "he", "said", "twice"]),
        ("वृद्धं नमस्ते।", ["वृद्धं", "नमस्ते"]),
        ("well-known 'quoted' 12,345", ["well", "known", "quoted", "12", "345"]),
        ("ᎾᏍᎩ, ᎤᏁᎳᏅᎯ!", ["ᎾᏍᎩ", "ᎤᏁᎳᏅᎯ"]),
        ("耶稣说。", ["耶", "稣", "说", "耶稣", "稣说", "耶稣说"]),
        ("A耶稣B", ["A", "耶", "稣", "耶稣", "B"]),
        ("ที่นี่", ["ที่", "นี่", "ที่นี่"]),
        ("… — !", []),
    ],
)
def test_words_of_a_line(line, words):
    assert list(WordSplitter()(line)) == words


def test_spellings():
    counts = {"The": 9, "the": 1, "Wasser": 5, "WASSER": 1, "ᎠᎹ": 2}
    natural = {"The": "the", "the": "the", "Wasser": "Wasser", "WASSER": "Wasser", "ᎠᎹ": "ᎠᎹ"}
    assert written_forms(counts, "natural") == natural
    assert written_forms(counts, "lower") == {**natural, "Wasser": "wasser", "WASSER": "wasser"}
    assert written_forms(counts, "keep") == {word: word for word in counts}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1"),
        ({"dim": 2000}, "dim must be at most"),
        ({"min_count": 0}, "min_count must be at least 1"),
        ({"ngrams": 0}, "ngrams must be at least 1"),
        ({"case": "title"}, "case must be one of natural, lower, keep"),
        ({"pivot": "fra"}, "pivot must be one of eng, deu, chr, got 'fra'"),
        ({"method": "walks"}, "method must be one of lines, graph, got 'walks'"),
        ({"colexification": "edges.tsv", "pivot": "deu"}, "names its concepts in English, but the pivot is 'deu'"),
        ({"iterations": -1}, "iterations must be at least 0"),
        ({"lines": [0, 1500]}, "lines must be from 0 to 1499"),
        ({"lines": [-1]}, "lines must be from 0 to 1499"),
        ({"lines": [True, False]}, "a mask over 1500 lines"),
        ({"lines": [0.5]}, "mask or indices"),
        ({"lines": []}, "no line that is used is present in two languages"),
    ],
)
def test_bad_options_are_refused_by_name(files, options, message):
    with pytest.raises(ValueError, match=message):
        build_word_vectors(files, **options)


def test_bad_files_are_refused_by_name(tmp_path, files):
    with pytest.raises(ValueError, match="at least two languages, got 1"):
        build_word_vectors({"eng": files["eng"]})
    with pytest.raises(ValueError, match="code of three characters such as 'deu', got 'german'"):
        build_word_vectors({"eng": files["eng"], "german": files["deu"]})
    with pytest.raises(FileNotFoundError, match=r"files\['fra'\].*fra\.txt"):
        build_word_vectors({"eng": files["eng"], "fra": tmp_path / "fra.txt"})
    with pytest.raises(ValueError, match=r"deu\.txt has 1 lines, but the first file has 1500"):
        build_word_vectors({"eng": files["eng"]} | write(tmp_path, deu=["kurz"]))
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\n")
    with pytest.raises(ValueError, match=r"bad\.txt, line 2 is not UTF-8"):
        build_word_vectors({"eng": tmp_path / "bad.txt", "deu": tmp_path / "bad.txt"})


@pytest.fixture
def four_words() -> WordVectors:
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 1]], dtype=np.float32)
    return WordVectors(["water", "bread", "Wasser", "Brot", "und"], vectors, ["eng", "eng", "deu", "deu", "deu"])


def test_precision_by_hand(four_words, tmp_path):
    pairs = [("water", "brot"), ("Bread", "Brot"), ("bread", "Laib"), ("wine", "Wein"), ("water", "und")]
    expected = {"queries": 2, "candidates": 3, "precision@1": 0.5, "precision@2": 1.0}
    assert translation_precision(four_words, pairs, "eng", "deu", k=(1, 2)) == expected
    (tmp_path / "german.txt").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), "utf-8")
    assert translation_precision(four_words, tmp_path / "german.txt", "eng", "deu", k=(1, 2)) == expected
    frequent = translation_precision(four_words, pairs, "eng", "deu", k=(1, 10), frequent=1)
    assert frequent == {"queries": 1, "candidates": 3, "precision@1": 0.0, "precision@10": 1.0}
    languages = ["eng", "eng", "deu", "deu", "deu"]
    fewer = WordVectors(["Bread", "water", "und", "brot", "neu"], np.ones((5, 1), dtype=np.float32), languages)
    among = translation_precision(four_words, pairs, "eng", "deu", k=(1, 2), frequent=1, among=fewer)
    assert among == {"queries": 1, "candidates": 2, "precision@1": 1.0, "precision@2": 1.0}


def test_precision_refuses_what_it_cannot_judge(four_words, tmp_path):
    with pytest.raises(ValueError, match="no word in 'fra', only in deu, eng"):
        translation_precision(four_words, [("water", "eau")], "eng", "fra")
    with pytest.raises(ValueError, match="no pair whose words both have vectors"):
        translation_precision(four_words, [("water", "Wein")], "eng", "deu")
    for among, message in (
        (WordVectors(["water"], np.ones((1, 2), np.float32)), "among has no languages"),
        (WordVectors(["water"], np.ones((1, 2), np.float32), ["eng"]), "among has no word in 'deu', only in eng"),
        (WordVectors(["neu"], np.ones((1, 2), np.float32), ["deu"]), "among: none of its words in 'deu' has a vector"),
    ):
        with pytest.raises(ValueError, match=message):
            translation_precision(four_words, [("water", "Wasser")], "eng", "deu", among=among)
    with pytest.raises(ValueError, match="k must be numbers from 1"):
        translation_precision(four_words, [("water", "Wasser")], "eng", "deu", k=(0,))
    (tmp_path / "bad.txt").write_text("water\tWasser\nbread Brot\n", "utf-8")
    with pytest.raises(ValueError, match=r"bad\.txt, line 2: expected a word, one tab and a word"):
        translation_precision(four_words, tmp_path / "bad.txt", "eng", "deu")
