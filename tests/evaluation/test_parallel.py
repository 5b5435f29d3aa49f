"""Pairs from the layouts in which parallel sentences are published."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_fast.evaluation import read_pairs


@pytest.fixture
def bible(tmp_path):
    (tmp_path / "eng.txt").write_text("one\ntwo\n\nfour\nfive\n")
    (tmp_path / "deu.txt").write_text("eins\n<range>\ndrei\nvier\nfünf\n")
    (tmp_path / "chr.txt").write_text("ᏌᏊ\r\nᏔᎵ\r\nᏦᎢ\r\nᏅᎩ\r\nᎯᏍᎩ\r\n", newline="")
    (tmp_path / "vref.txt").write_text("1\n2\n3\n4\n5\n")
    (tmp_path / "README.txt").write_text("Verses.\n")
    return tmp_path


@pytest.fixture
def sib200(tmp_path):
    rows = {
        "eng_Latn": {
            "train": ['7\tsports\t"A ""good"" jump."', "3\ttravel\tA train."],
            "dev": ["12\tscience\tA star."],
        },
        "deu_Latn": {"train": ["3\ttravel\tEin Zug.", "7\tsports\tEin Sprung."], "dev": ["12\tscience\tEin Stern."]},
    }
    for language, splits in rows.items():
        (tmp_path / language).mkdir()
        for split, lines in splits.items():
            (tmp_path / language / f"{split}.tsv").write_text("\n".join(["index_id\tcategory\ttext", *lines]) + "\n")
    return tmp_path


def test_line_aligned_files(bible):
    chr_, deu = read_pairs(bible)
    assert (deu.source_language, deu.target_language) == ("eng", "deu")
    assert list(zip(deu.source, deu.target, strict=True)) == [("one", "eins"), ("four", "vier"), ("five", "fünf")]
    assert deu.dropped == 2
    assert chr_.target == ["ᏌᏊ", "ᏔᎵ", "ᏅᎩ", "ᎯᏍᎩ"]


@pytest.mark.parametrize("lines", [[0, 1, 4], np.array([True, True, False, False, True]), range(0, 5, 4)])
def test_chosen_lines(bible, lines):
    (deu,) = read_pairs(bible, languages=["deu"], lines=lines)
    assert deu.target == ["eins", "fünf"]


def test_a_seeded_sample_keeps_the_order(bible):
    samples = [read_pairs(bible, languages=["chr"], max_pairs=3, seed=seed)[0] for seed in (0, 0, 1, 2, 3)]
    assert samples[0] == samples[1]
    assert len({tuple(sample.target) for sample in samples}) > 1
    order = {"one": 0, "two": 1, "four": 2, "five": 3}
    for sample in samples:
        assert len(sample.source) == len(sample.target) == 3
        assert sorted(sample.source, key=order.get) == sample.source


def test_tatoeba_pairs_in_either_order(tmp_path):
    for name, text in {
        "tatoeba.deu-eng.deu": "eins\nzwei\n",
        "tatoeba.deu-eng.eng": "one\ntwo\n",
        "tatoeba.eng-swh.eng": "three\n",
        "tatoeba.eng-swh.swh": "tatu\n",
        "tatoeba.deu-fra.fra": "un\n",
        "README.md": "text",
    }.items():
        (tmp_path / name).write_text(text)
    deu, swh = read_pairs(tmp_path)
    assert (deu.source, deu.target) == (["one", "two"], ["eins", "zwei"])
    assert (swh.source_language, swh.source, swh.target) == ("eng", ["three"], ["tatu"])


def test_sib200_is_joined_by_index(sib200):
    (pair,) = read_pairs(sib200, splits=("train", "dev"))
    assert (pair.source_language, pair.target_language) == ("eng_Latn", "deu_Latn")
    assert pair.source == ["A train.", 'A "good" jump.', "A star."]
    assert pair.target == ["Ein Zug.", "Ein Sprung.", "Ein Stern."]
    (pair,) = read_pairs(sib200, source="deu_Latn", splits=("dev",))
    assert (pair.source, pair.target) == (["Ein Stern."], ["A star."])


def test_a_table_with_an_unnamed_first_column(sib200):
    """As pandas writes it."""
    for number, path in enumerate(sorted(sib200.glob("*/*.tsv"))):
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([f"\t{header}", *(f"{number + i}\t{row}" for i, row in enumerate(rows))]) + "\n")
    (pair,) = read_pairs(sib200, splits=("train", "dev"))
    assert pair.source == ["A train.", 'A "good" jump.', "A star."]
    assert pair.target == ["Ein Zug.", "Ein Sprung.", "Ein Stern."]


def test_bad_folders_are_named(bible, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_pairs(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no 'fra'; it has chr, deu, eng"):
        read_pairs(bible, source="fra")
    with pytest.raises(FileNotFoundError, match="has no 'ukr'; it has chr, deu"):
        read_pairs(bible, languages=["deu", "ukr"])
    with pytest.raises(IndexError, match="has lines 0 to 4, got 2 to 5"):
        read_pairs(bible, lines=[2, 5])
    with pytest.raises(ValueError, match="3 bools for the 5 lines"):
        read_pairs(bible, lines=np.ones(3, bool))
    with pytest.raises(ValueError, match="no line with both eng and deu"):
        read_pairs(bible, languages=["deu"], lines=[1, 2])
    (bible / "deu.txt").write_text("eins\n")
    with pytest.raises(ValueError, match=r"deu.txt has 1 lines, but .*eng.txt 5"):
        read_pairs(bible)
    assert [pair.target_language for pair in read_pairs(bible, languages=["chr"])] == ["chr"]
    for language in ("deu", "chr"):
        (bible / f"{language}.txt").unlink()
    with pytest.raises(ValueError, match="has eng alone; add another language"):
        read_pairs(bible)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has neither"):
        read_pairs(tmp_path / "empty")


def test_a_malformed_table_is_named_with_its_line(sib200):
    path = sib200 / "deu_Latn" / "dev.tsv"
    path.write_text("index_id\tcategory\ttext\nx\tscience\tEin Stern.\n")
    with pytest.raises(ValueError, match=r"dev.tsv, line 2: index_id 'x' is no number"):
        read_pairs(sib200, splits=("train", "dev"))
    path.write_text("id\ttext\n1\tEin Stern.\n")
    with pytest.raises(ValueError, match="needs the columns index_id and text"):
        read_pairs(sib200, splits=("train", "dev"))
