"""``ofa-fast vectors``: what it takes, writes and says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gensim.models import FastText
from gensim.models.fasttext import save_facebook_model

from ofa_fast import WordVectors
from ofa_fast.cli import main

BIBLE = Path(__file__).parents[1] / "examples" / "data" / "bible"


def bitext(folder: Path, code: str, first: int, last: int) -> str:
    for language in (code, "eng"):
        lines = (BIBLE / f"{language}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"nt.{code}-eng.{language}").write_text("".join(lines[first:last]), encoding="utf-8")
    return str(folder / f"nt.{code}-eng")


def test_bitexts_that_share_english_are_built_together_and_judged(tmp_path, capsys):
    german, spanish = bitext(tmp_path, "deu", 0, 400), bitext(tmp_path, "spa", 400, 800)
    named = f"spa-eng={spanish}.spa,{spanish}.eng"
    (tmp_path / "german.txt").write_text("God\tGott\nJesus\tJesus\nson\tSohn\nheaven\tHimmel\n", "utf-8")
    out = tmp_path / "v.safetensors"
    command = ["vectors", "build", "--bitext", german, named, "--dim", "50", "--out", str(out)]
    assert main([*command, "--dictionary", f"eng-deu={tmp_path / 'german.txt'}"]) == 0
    said = capsys.readouterr().out
    report = json.loads(said[: said.index("\n}") + 2])["precision"]["eng-deu"]
    assert report["queries"] == 4 and report["precision@1"] >= 0.5 and report["precision@10"] >= report["precision@1"]
    lines = WordVectors.load(out)
    assert set(lines.languages) == {"eng", "deu", "spa"}
    assert main([*command, "--method", "graph"]) == 0
    assert WordVectors.load(out).keys == lines.keys and not np.array_equal(WordVectors.load(out).vectors, lines.vectors)
    assert main(["vectors", "build", "--dim", "5", "--out", str(out)]) != 0
    assert "--parallel or --bitext" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["vectors", "build", "--bitext", "corpus.de-en", "--out", str(out)])


def test_bytes_the_first_of_each_language_and_unseen_words(tmp_path):
    (tmp_path / "keys.vec").write_text("4 2\ndeu:$haus$ 1 0\neng:$house$ 0 1\ndeu:$wein$ 1 2\neng:$wine$ 1 1\n")
    out = tmp_path / "v.safetensors"
    assert main(["vectors", "convert", str(tmp_path / "keys.vec"), "--max-rank", "1", "--int8", "--out", str(out)]) == 0
    vectors = WordVectors.load(out)
    assert vectors.keys == ["deu:$haus$", "eng:$house$"] and vectors.vectors.values.dtype == np.int8
    np.testing.assert_array_equal(vectors.vectors[:], [[1, 0], [0, 1]])
    model = FastText([["Wasser", "Brot"]] * 5, vector_size=4, bucket=50, min_count=1, epochs=1, workers=1, seed=1)
    save_facebook_model(model, str(tmp_path / "model.bin"))
    (tmp_path / "words.txt").write_text("Wasserfall\nBrot\n", "utf-8")
    command = ["vectors", "convert", str(tmp_path / "model.bin"), "--language", "deu", "--out", str(out)]
    assert main([*command, "--words", str(tmp_path / "words.txt")]) == 0
    assert WordVectors.load(out).keys == ["deu:$Wasserfall$", "deu:$Brot$"]


def test_vectors_convert_filters_and_stores_half(tmp_path):
    text = tmp_path / "keys.vec"
    text.write_text("4 2\ndeu:$haus$ 1 0\neng:$house$ 0 1\ndeu:$wein$ 1\neng:$wine$ 1 1\n")
    out = tmp_path / "eng.safetensors"
    command = ["vectors", "convert", str(text), "--languages", "eng", "--half", "--out", str(out)]
    assert main(command) != 0
    with pytest.warns(UserWarning, match="1 bad lines skipped"):
        assert main([*command, "--skip-bad-lines"]) == 0
    vectors = WordVectors.load(out)
    assert vectors.keys == ["eng:$house$", "eng:$wine$"] and vectors.vectors.dtype == np.float16


def test_vectors_align_writes_one_space_and_says_how_good_it_is(tmp_path, capsys):
    for language, sign in (("eng", 1), ("deu", -1)):
        rows = np.random.default_rng(0).standard_normal((60, 5)) * sign
        lines = [" ".join([f"w{i}", *map(str, row)]) for i, row in enumerate(rows)]
        (tmp_path / f"{language}.txt").write_text("\n".join(lines))
    (tmp_path / "german.txt").write_text("".join(f"w{i}\tw{i}\n" for i in range(30)))
    files = [str(tmp_path / "eng.txt"), f"deu={tmp_path / 'deu.txt'}"]
    command = ["vectors", "align", *files, "--dictionary", f"eng-deu={tmp_path / 'german.txt'}"]
    assert main([*command, "--out", str(tmp_path / "v.safetensors")]) == 0
    assert '"precision@1": 1.0' in capsys.readouterr().out
    assert len(WordVectors.load(tmp_path / "v.safetensors")) == 120
    with pytest.raises(SystemExit):
        main(["vectors", "align", *files, "--dictionary", "german.txt", "--out", "x.safetensors"])
