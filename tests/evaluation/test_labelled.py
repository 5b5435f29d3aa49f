"""Labelled texts and tagged words from the layouts in which they are published."""

from __future__ import annotations

import pytest

from ofa_fast.evaluation.labelled import read_labelled
from ofa_fast.evaluation.languages import find_language, script_and_family
from ofa_fast.evaluation.tagged import read_tagged

CONLLU = """# sent_id = 1
# text = Im Haus
1-2\tIm\t_\t_\t_\t_\t_\t_\t_\t_
1\tIn\tin\tADP\t_\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\t_\t_\t3\tdet\t_\t_
3\tHaus\tHaus\tNOUN\t_\t_\t0\troot\t_\t_
3.1\tist\tsein\tVERB\t_\t_\t_\t_\t_\t_

1\t#\t#\t_\t_\t_\t0\troot\t_\t_
2\t10 000\t10000\tNUM\t_\t_\t1\tdep\t_\t_
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def test_folders_with_a_header(tmp_path):
    for language in ("eng_Latn", "deu_Latn"):
        write(tmp_path / language / "test.tsv", 'index_id\tcategory\ttext\n1\tsports\t"A ""jump"" up"\n2\ttravel\t\n')
    write(tmp_path / "eng_Latn" / "train.tsv", "text\tlabel\nA train.\ttravel\n")
    found = read_labelled(tmp_path)
    assert (found.source, found.dev, list(found.test)) == ("eng_Latn", None, ["deu_Latn", "eng_Latn"])
    assert (found.train.texts, found.train.labels) == (["A train."], ["travel"])
    german = found.test["deu_Latn"]
    assert (german.texts, german.labels, german.dropped) == (['A "jump" up'], ["sports"], 1)
    assert list(read_labelled(tmp_path, languages=["eng"]).test) == ["eng_Latn"]


def test_taxi1500_files(tmp_path):
    write(tmp_path / "eng_data" / "eng_train.tsv", "1\tSin\tHe sinned.\n")
    write(tmp_path / "eng_data" / "eng_dev.tsv", "2\tFaith\tHe believed.\n")
    write(tmp_path / "swh_test.tsv", "3\tSin\tAlitenda dhambi.\n")
    found = read_labelled(tmp_path)
    assert (found.dev.labels, found.test["swh"].texts) == (["Faith"], ["Alitenda dhambi."])


SPEECH = ['"He said: go.', "He went.", 'He said "go."', '"Peace', 'be with you."', '"So."', "'Tis"]


def test_taxi1500_files_have_a_verse_a_line(tmp_path):
    """Written without quotation, as the publisher does: a speech that begins in a verse ends in another or never."""
    lines = "".join(f"{i}\tSin\t{verse}\n" for i, verse in enumerate(SPEECH))
    write(tmp_path / "eng_train.tsv", lines)
    write(tmp_path / "eng_test.tsv", lines.replace("Sin\t", "Sin\t ") + '9\tSin\t"' + "x" * 200_000 + "\n")
    found = read_labelled(tmp_path)
    assert found.train.texts == SPEECH
    assert found.test["eng"].texts == [*SPEECH, '"' + "x" * 200_000]


def test_quotation_marks_of_a_table_may_match_or_not(tmp_path):
    quoted = '3\t"a ""b"""\n4\t" c "\n'
    for split in ("train", "test"):
        write(tmp_path / "eng" / f"{split}.tsv", "label\ttext\n" + "".join(f"x\t{s}\n" for s in SPEECH) + quoted)
    kept = [s for s in SPEECH if s != '"So."']
    assert read_labelled(tmp_path).train.texts == [*kept[:-1], "So.", kept[-1], 'a "b"', "c"]


def test_a_table_with_an_unnamed_first_column(tmp_path):
    """As pandas writes it."""
    for split in ("train", "test"):
        write(
            tmp_path / "eng" / f"{split}.tsv", "\ttext\tlabel \r\n0\tgood film\tpos\r\n1\t\tneg\r\n\n2\tbad film\tneg\n"
        )
    found = read_labelled(tmp_path).train
    assert (found.texts, found.labels, found.dropped) == (["good film", "bad film"], ["pos", "neg"], 1)
    write(tmp_path / "eng" / "train.tsv", 'label\ttext\npos\t"a text of\ntwo lines"\n')
    with pytest.raises(ValueError, match=r"train.tsv, line 3: 1 columns, expected 2"):
        read_labelled(tmp_path)


def test_empty_parts(tmp_path):
    none = "1\tA\t_\t_\t_\t_\t0\troot\t_\t_\n"
    write(tmp_path / "pos" / "eng" / "train.conllu", CONLLU)
    for name, text in (("eng/dev", none), ("eng/test", CONLLU), ("deu/test", ""), ("fra/test", none)):
        write(tmp_path / "pos" / f"{name}.conllu", text)
    found = read_tagged(tmp_path, "pos")
    assert (found.dev, list(found.test)) == (None, ["eng"])
    with pytest.raises(ValueError, match=r"the test part of fra in .* has no labelled text"):
        read_tagged(tmp_path, "pos", languages=["fra"])
    write(tmp_path / "pos" / "eng" / "test.conllu", none)
    with pytest.raises(ValueError, match="has no test part with labelled text"):
        read_tagged(tmp_path, "pos")
    write(tmp_path / "pos" / "eng" / "train.conllu", none)
    with pytest.raises(ValueError, match=r"the training part of eng in .* has no labelled text"):
        read_tagged(tmp_path, "pos")


def test_names_and_parts_of_speech_lie_side_by_side(tmp_path):
    for name in ("UD_English-EWT/en_ewt-ud-train", "UD_German-PUD/de_pud-ud-test"):
        write(tmp_path / f"{name}.conllu", CONLLU)
        write(tmp_path / f"{name.replace('UD_', 'UNER_')}.iob2", "1\tRom\tB-LOC\n")
    for task, tags in (("pos", [["ADP", "DET", "NOUN"], [None, "NUM"]]), ("ner", [["B-LOC"]])):
        found = read_tagged(tmp_path, task)
        assert found.train.tags == found.test["de"].tags == tags
    for path in tmp_path.glob("*/*.iob2"):
        path.unlink()
    with pytest.raises(ValueError, match=r"for ner, .* has neither"):
        read_tagged(tmp_path, "ner")


@pytest.mark.parametrize("bible", ["bible", "../bible", "elsewhere"])
def test_verse_ids_beside_a_bible(tmp_path, bible):
    data = tmp_path / "taxi1500"
    for split, verse in (("train", "GEN 1:1"), ("dev", "GEN 1:2"), ("test", "GEN 1:3")):
        write(data / f"{split}.tsv", f"vref\tlabel\tid\n{verse}\tFaith\t1\nGEN 1:1\tSin\t2\n")
    write(data / bible / "vref.txt", "GEN 1:1\nGEN 1:2\nGEN 1:3\n")
    write(data / bible / "eng.txt", "one\ntwo\nthree\n")
    write(data / bible / "deu.txt", "eins\nzwei\n<range>\n")
    write(data / bible / "fra.txt", "\ndeux\n<range>\n")
    chosen = {"bible": data / bible if bible == "elsewhere" else None}
    found = read_labelled(data, **chosen)
    assert (found.train.texts, found.dev.texts) == (["one", "one"], ["two", "one"])
    assert found.test["eng"].texts == ["three", "one"]
    assert (found.test["deu"].texts, found.test["deu"].dropped) == (["eins"], 1)
    assert list(found.test) == ["deu", "eng"]
    with pytest.raises(ValueError, match=r"the test part of fra in .* has no labelled text"):
        read_labelled(data, languages=["fra"], **chosen)
    (data / "dev.tsv").unlink()
    assert read_labelled(data, **chosen).dev is None


def test_conllu_words_are_syntactic(tmp_path):
    for name in ("eng/train.conllu", "deu/test.conllu"):
        write(tmp_path / "pos" / name, CONLLU)
    found = read_tagged(tmp_path, "pos")
    assert found.test["deu"].words == [["In", "dem", "Haus"], ["#", "10 000"]]
    assert found.test["deu"].tags == [["ADP", "DET", "NOUN"], [None, "NUM"]]
    assert (found.source, list(found.test)) == ("eng", ["deu"])


def test_treebanks_of_a_language_are_taken_together(tmp_path):
    for name in ("English-EWT/en_ewt-ud-train-a", "English-EWT/en_ewt-ud-train-b-2", "English-GUM/en_gum-ud-train"):
        write(tmp_path / f"UD_{name}.conllu", CONLLU)
    write(tmp_path / "UD_German-PUD" / "de_pud-ud-test.conllu", CONLLU)
    found = read_tagged(tmp_path, "pos", languages=["deu"])
    assert (found.source, len(found.train.words), list(found.test)) == ("en", 6, ["de"])


def test_iob2_and_xtreme_files(tmp_path):
    write(tmp_path / "ner" / "eng" / "train.iob2", "# text = I\n1\tParis\tB-LOC\t-\tx\n2\t,\tO\t-\tx\n\n")
    write(tmp_path / "ner" / "deu" / "test.iob2", "1\tRom\tB-LOC\n")
    found = read_tagged(tmp_path, "ner")
    assert (found.train.words, found.train.tags) == ([["Paris", ","]], [["B-LOC", "O"]])
    for split, language in (("train", "en"), ("test", "de")):
        write(tmp_path / "panx" / f"{split}-{language}.tsv", "#\tO\nRom\tB-LOC \n\n \n\u3000\tO\nich\tO\n")
    found = read_tagged(tmp_path / "panx", "ner")
    assert found.test["de"].words == [["#", "Rom"], ["\u3000", "ich"]]
    assert found.test["de"].tags == [["O", "B-LOC"], ["O", "O"]]


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_labelled(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has neither <language>/"):
        read_labelled(tmp_path)
    with pytest.raises(ValueError, match="has neither <language>/"):
        read_tagged(tmp_path, "ner")
    write(tmp_path / "eng" / "test.tsv", "text\tlabel\na\tb\n")
    with pytest.raises(FileNotFoundError, match="no training part for eng, only test"):
        read_labelled(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no 'fra'; it has eng"):
        read_labelled(tmp_path, source="fra")
    write(tmp_path / "eng" / "train.tsv", "text\tlabel\na\n")
    with pytest.raises(ValueError, match=r"train.tsv, line 2: 1 columns, expected 2"):
        read_labelled(tmp_path)
    write(tmp_path / "eng" / "train.tsv", "text\na\n")
    with pytest.raises(ValueError, match="needs a column category or label or class, it has text"):
        read_labelled(tmp_path)
    for text, line in (("1\tIn\tin\tADP\nx\ty\tz\tX\n", 2), ("1\tIn\tin\n", 1), ("1\t\tin\tADP\n", 1)):
        write(tmp_path / "pos" / "eng" / "train.conllu", text)
        with pytest.raises(ValueError, match=f"train.conllu, line {line}: expected"):
            read_tagged(tmp_path, "pos")


def test_verse_ids_need_texts(tmp_path):
    write(tmp_path / "taxi" / "train.tsv", "vref\tlabel\nGEN 1:1\tSin\n")
    write(tmp_path / "taxi" / "README.txt", "text")
    with pytest.raises(FileNotFoundError, match=r"bible: .* has verse ids but no texts"):
        read_labelled(tmp_path / "taxi")
    write(tmp_path / "bible" / "eng.txt", "one\ntwo\n")
    write(tmp_path / "vref.txt", "GEN 1:2\n")
    with pytest.raises(ValueError, match=r"eng.txt has 2 lines, but vref.txt 1"):
        read_labelled(tmp_path / "taxi")
    write(tmp_path / "bible" / "eng.txt", "two\n")
    with pytest.raises(ValueError, match=r"train.tsv, line 2: no verse id"):
        read_labelled(tmp_path / "taxi")


def test_languages_by_their_codes(tmp_path):
    assert script_and_family("chr") == ("Cher", "Iroquoian")
    assert script_and_family("de") == script_and_family("deu_Latn") == ("Latn", "Indo-European")
    assert script_and_family("zh-Hant") == ("Hant", "Sino-Tibetan")
    assert script_and_family("xyz") == script_and_family("notes") == ("other", "other")
    assert find_language(["deu_Latn", "eng_Latn"], "deu", tmp_path) == "deu_Latn"
    assert find_language(["de", "en"], "deu", tmp_path) == "de"
    with pytest.raises(FileNotFoundError, match="has srp_Cyrl, srp_Latn for 'srp': name one"):
        find_language(["srp_Latn", "srp_Cyrl"], "srp", tmp_path)
