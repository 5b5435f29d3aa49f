"""Formats of text, languages, and temperature sampling over them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from ofa_fast.cli import _parser
from ofa_fast.training import train
from ofa_fast.training.data import Stream, quotas
from ofa_fast.training.packing import packed_sequences
from ofa_fast.training.text import check_files, labelled, passages

OPTIONS = {"steps": 6, "batch_size": 4, "max_length": 32, "learning_rate": 1e-3, "save_steps": 3, "progress": False}


def lines_of(path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").split("\n") if line.strip()]


def write(lines: list[str], kind: str, folder):
    """``lines`` as a file or folder of the kind, with another column that nobody asked for."""
    rows = [{"id": i, "text": line} for i, line in enumerate(lines)]
    path = folder / f"eng{kind}"
    if kind == ".txt":
        path.write_text("\n".join(lines), "utf-8")
    elif kind == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=row["id"] % 2 > 0) for row in rows), "utf-8")
    elif kind == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


KINDS = [".txt", ".jsonl", ".parquet", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_passages(kind, texts, tmp_path):
    for language, own in zip(("eng", "chr"), texts, strict=True):
        (tmp_path / language).mkdir()
        path = write(lines_of(own), kind, tmp_path / language)
        assert list(passages(path, language, "files")) == [(language, line) for line in lines_of(own)]


def test_every_format_trains_to_the_same_curve(factorized_dir, texts, tmp_path):
    curves = []
    for kind in KINDS:
        (tmp_path / f"in{kind}").mkdir()
        path = write(lines_of(texts[0]), kind, tmp_path / f"in{kind}")
        curves.append(train(factorized_dir, path, tmp_path / f"out{kind}", **OPTIONS)["losses"])
    assert curves[0] == curves[1] == curves[2] == curves[3]


def test_a_language_comes_from_the_row_the_label_or_the_stem(texts, tmp_path):
    path = tmp_path / "news.jsonl"
    rows = [{"text": "one", "language": "eng"}, {"text": "two"}, {"text": "three", "language": None}]
    path.write_text("\n".join(map(json.dumps, rows)))
    own = [("eng", "one"), ("news", "two"), ("news", "three")]
    assert labelled(path) == labelled([path]) == [("news", path)]
    assert labelled({"deu": path}) == labelled([("deu", str(path))]) == [("deu", path)]
    assert list(passages(path, "news", "files")) == own

    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "news.parquet")
    assert list(passages(tmp_path / "news.parquet", "news", "files")) == own


def test_languages_of_one_file_are_packed_apart(texts, dense_dir, tokenizer, tmp_path):
    """Interleaved in one file, two languages give the sequences that they give from a file each."""
    path = tmp_path / "mixed.jsonl"
    pairs = zip(lines_of(texts[0]), lines_of(texts[1]), strict=False)
    rows = [{"text": text, "language": language} for pair in pairs for language, text in zip("ab", pair, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    mixed = packed_sequences(path, "texts", dense_dir, "digest", 32, tmp_path / "cache", progress=False)
    assert mixed.languages == ["a", "b"]
    for code, name in enumerate(mixed.languages):
        (tmp_path / name).write_text("\n".join(row["text"] for row in rows if row["language"] == name))
        alone = packed_sequences(tmp_path / name, "texts", dense_dir, "digest", 32, tmp_path / "cache", progress=False)
        ours = [mixed[i].tolist() for i in np.flatnonzero(mixed.rows["language"] == code)]
        assert ours == [ids.tolist() for ids in alone]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": "cut', r"a.jsonl, line 3: not JSON, Unterminated string"),
        (
            "a.jsonl",
            b'{"text": "fine"}\n["list"]\n',
            r'a.jsonl, line 2: expected an object with the key "text", got \[',
        ),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "a", "id": 1}', r'a.jsonl, line 2: no "text" among its keys: txt, id'),
        ("a.jsonl", b'{"text": "fine"}\n{"text": 5}', r'a.jsonl, line 2: "text" is 5, expected a string'),
        ("a.jsonl", b'{"text": "fine", "language": 5}', r'a.jsonl, line 1: "language" is 5, expected a string'),
        ("a.jsonl", b'{"text": "na\xefve"}', r"a.jsonl, line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": " "}\n', r"a.jsonl has no text"),
        ("a.parquet", b"fine", r"a.parquet: .*[Pp]arquet"),
    ],
)
def test_a_malformed_line_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"files: .*{message}"):
        for language, path in check_files(tmp_path / name, "files"):
            list(passages(path, language, "files"))


def test_a_table_without_text_or_with_several_splits(tmp_path):
    rows = datasets.Dataset.from_list([{"sentence": "one"}])
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r'files: .*a.parquet: no column "text" among sentence'):
        check_files(tmp_path / "a.parquet", "files")
    datasets.Dataset.from_list([{"text": "one"}, {"text": None}]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r'files: .*saved, row 2: "text" is None, expected a string'):
        list(passages(tmp_path / "saved", "eng", "files"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"files: .*splits: it holds several splits, name one of them: .*splits/train"):
        check_files(tmp_path / "splits", "files")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"files: .*folder: .*neither"):
        check_files(tmp_path / "folder", "files")


def test_quotas_follow_the_temperature():
    sizes = np.array([900, 90, 9, 1])
    assert quotas(sizes, 1.0).tolist() == sizes.tolist()
    for temperature in (1.5, 3.0, 100.0, float("inf")):
        counts, expected = quotas(sizes, temperature), sizes ** (1 / temperature)
        assert counts.sum() == 1000
        assert np.abs(counts - 1000 * expected / expected.sum()).max() < 1
    assert quotas(np.array([10_000, 1]), 1.01).min() >= 1


def test_sampling_draws_each_language_by_its_quota_and_each_sequence_evenly(texts, dense_dir, tmp_path):
    texts = [*texts, tmp_path / "few.txt"]
    texts[2].write_text("\n".join(lines_of(texts[0])[:8]))
    sequences = packed_sequences(texts, "texts", dense_dir, "digest", 32, tmp_path, progress=False)
    codes = sequences.rows["language"]
    n, sizes = len(sequences), np.bincount(codes)
    expected = quotas(sizes, 3.0)
    assert expected[2] > 5 * sizes[2]

    stream = Stream(sequences, 4 * n, seed=3, temperature=3.0)
    rows = [stream._row(p) for p in range(4 * n)]
    for epoch in range(4):
        assert np.bincount(codes[rows[epoch * n : (epoch + 1) * n]]).tolist() == expected.tolist()
    times = Counter(rows)
    for language in range(3):
        own = [times[row] for row in np.flatnonzero(codes == language)]
        assert max(own) - min(own) <= 1
    shuffled = codes[rows[:n]]
    assert 0.3 * n < (shuffled[1:] != shuffled[:-1]).sum()  # languages are mixed, not one after the other

    later = [3 * n + 5, 2 * n, 7]
    assert [Stream(sequences, 4 * n, 3, 3.0)._row(p) for p in later] == [rows[p] for p in later]
    assert [Stream(sequences, 4 * n, 4, 3.0)._row(p) for p in range(n)] != rows[:n]


def test_a_run_at_a_temperature_is_resumed_exactly(factorized_dir, texts, tmp_path, killed):
    options = OPTIONS | {"temperature": 5.0}
    whole = train(factorized_dir, texts, tmp_path / "whole", **options)
    shares = [part["share"] for part in whole["data"].values()]
    assert sum(shares) == pytest.approx(1)
    assert abs(shares[0] - 0.5) < 0.1

    with killed():
        train(factorized_dir, texts, tmp_path / "out", **options)
    with pytest.raises(ValueError, match=r"temperature: 1.0 differs from 5.0"):
        train(factorized_dir, texts, tmp_path / "out", resume=True, **OPTIONS)
    assert train(factorized_dir, texts, tmp_path / "out", resume=True, **options)["losses"] == whole["losses"]


def test_labels_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=deu").mkdir()
    (tmp_path / "lang=deu" / "part.txt").touch()
    files = ["eng.txt", "deu=a=b.txt", "lang=deu/part.txt"]
    args = _parser().parse_args(["train", "model", "--train-file", *files, "--out", "out", "--temperature", "2"])
    expected = [("eng", "eng.txt"), ("deu", "a=b.txt"), ("part", "lang=deu/part.txt")]
    assert labelled(args.train_files) == [(language, Path(path)) for language, path in expected]
    assert args.temperature == 2.0
