"""Labelled texts from the layouts in which topic classification is published."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ofa_fast._text import read_headed, read_lines, read_table
from ofa_fast.evaluation.languages import find_language
from ofa_fast.evaluation.parallel import RANGE, line_aligned

SPLITS = ("train", "dev", "test")
_TEXT, _LABEL = ("text", "sentence", "verse"), ("category", "label", "class")


@dataclass(frozen=True)
class Texts:
    """``labels[i]`` is the label of ``texts[i]``; ``dropped`` counts the items that had no text."""

    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Labelled:
    """``train`` and ``dev`` (None if there is none) of ``source``, and the ``test`` part of every language.

    None of them is empty: a language without a labelled test item is not there.
    """

    source: str
    train: object
    dev: object | None
    test: dict


def read_labelled(
    data: str | os.PathLike,
    source: str = "eng",
    languages: Sequence[str] | None = None,
    bible: str | os.PathLike | None = None,
) -> Labelled:
    """The training texts of ``source`` and the test texts of every language, from one of three layouts.

    - ``<language>/{train,dev,test}.tsv`` with a header that names a column text (or sentence, verse) and a column
      category (or label, class), as in SIB-200
    - ``<language>_{train,dev,test}.tsv`` without a header: id, label, text, in the folder or in its folders (Taxi1500)
    - ``{train,dev,test}.tsv`` with columns vref and label, beside line-aligned ``<language>.txt``: verse i is line i of
      ``vref.txt`` (Taxi1500's labels on any Bible)

    Args:
        source: a language code; "eng" also stands for "eng_Latn" and "en".
        languages: test only these and ``source``; default: all that have a test part.
        bible: of the third layout, the folder of the texts; default: ``data``, ``data/bible`` or ``data/../bible``.

    Raises:
        FileNotFoundError: no such folder or language, or ``source`` has no training part.
        ValueError: no layout is recognised, or a file is malformed, which is named with its line.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"data: there is no folder {data}")
    files = _folders(data) or _named_files(data)
    if files:
        read = _read_table
    elif (data / "train.tsv").exists():
        verses = _Verses(data, bible)
        splits = {split: data / f"{split}.tsv" for split in SPLITS if (data / f"{split}.tsv").exists()}
        files = dict.fromkeys(verses.files, splits)
        read = verses.read
    else:
        raise ValueError(
            f"data: {data} has neither <language>/{{train,dev,test}}.tsv, nor <language>_{{train,dev,test}}.tsv, nor "
            "train.tsv with verse ids beside a bible; if it holds several data sets, name one of its folders"
        )
    return read_splits(files, read, source, languages, data)


def read_splits(files: dict[str, dict[str, Path]], read, source: str, languages: Sequence[str] | None, data: Path):
    """``Labelled`` from files by language and split, with ``read(path, language)`` of those that are needed."""
    source = find_language(list(files), source, data)
    if "train" not in files[source]:
        have = ", ".join(sorted(files[source]))
        raise FileNotFoundError(f"source: {data} has no training part for {source}, only {have}")
    tested = [language for language, splits in files.items() if "test" in splits]
    if languages is not None:
        tested = {find_language(tested, language, data) for language in languages} | ({source} & set(tested))
    parts = {split: read(files[source][split], source) for split in ("train", "dev") if split in files[source]}
    test = {language: read(files[language]["test"], language) for language in sorted(tested)}
    if not len(parts["train"]):
        raise ValueError(f"data: the training part of {source} in {data} has no labelled text")
    if languages is not None:
        for language, part in test.items():
            if not len(part) and language != source:
                raise ValueError(f"data: the test part of {language} in {data} has no labelled text")
    test = {language: part for language, part in test.items() if len(part)}
    if not test:
        raise ValueError(f"data: {data} has no test part with labelled text")
    return Labelled(source, parts["train"], parts.get("dev") or None, test)


def _folders(data: Path) -> dict[str, dict[str, Path]]:
    found = {}
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        splits = {split: folder / f"{split}.tsv" for split in SPLITS if (folder / f"{split}.tsv").exists()}
        if splits and "vref" not in next(read_lines(next(iter(splits.values())), "data"), "").split("\t"):
            found[folder.name] = splits
    return found


def _named_files(data: Path) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in sorted([*data.glob("*.tsv"), *data.glob("*/*.tsv")]):
        match = re.fullmatch(r"(.+)_(train|dev|test)\.tsv", path.name)
        if match:
            found.setdefault(match[1], {})[match[2]] = path
    return found


def _column(header: list[str], names: Sequence[str], path: Path) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise ValueError(f"data: {path} needs a column {' or '.join(names)}, it has {', '.join(header)}")


def _read_table(path: Path, language: str) -> Texts:
    text, label = 2, 1  # of Taxi1500: id, label, verse, written as they are
    with_header = path.stem in SPLITS
    if with_header:
        header, rows = read_headed(path, "data")
        text, label = _column(header, _TEXT, path), _column(header, _LABEL, path)
    else:
        rows = read_table(path, "data", quoted=False)
    pairs = []
    for number, row in rows:
        if len(row) <= (max(text, label) if with_header else label):
            raise ValueError(f"data: {path}, line {number}: {len(row)} columns, expected {max(text, label) + 1}")
        pairs.append((row[text].strip() if text < len(row) else "", row[label].strip()))
    return _kept(pairs)


def _kept(pairs: list[tuple[str, str]]) -> Texts:
    kept = [pair for pair in pairs if pair[0] and pair[0] != RANGE]
    return Texts([text for text, _ in kept], [label for _, label in kept], len(pairs) - len(kept))


class _Verses:
    """Verses by their id, of the languages of a line-aligned folder."""

    def __init__(self, data: Path, bible: str | os.PathLike | None) -> None:
        folders = [data, data / "bible", data.parent / "bible"] if bible is None else [Path(bible)]
        self.folder = next((folder for folder in folders if line_aligned(folder)), None)
        ids = [path / "vref.txt" for path in (self.folder, self.folder.parent, data)] if self.folder else []
        ids = next((path for path in ids if path.exists()), None)
        if ids is None:
            raise FileNotFoundError(
                f"bible: {data} has verse ids but no texts; expected <language>.txt and vref.txt, line-aligned, in "
                f"{' or '.join(map(str, folders))}"
            )
        self.files = line_aligned(self.folder)
        self.line = {verse: i for i, verse in enumerate(read_lines(ids, "bible"))}

    def read(self, path: Path, language: str) -> Texts:
        text = list(read_lines(self.files[language], "bible"))
        if len(text) != len(self.line):
            raise ValueError(f"bible: {self.files[language]} has {len(text)} lines, but vref.txt {len(self.line)}")
        header, rows = read_headed(path, "data")
        verse, label = _column(header, ("vref",), path), _column(header, _LABEL, path)
        pairs = []
        for number, row in rows:
            if len(row) <= max(verse, label) or row[verse].strip() not in self.line:
                raise ValueError(f"data: {path}, line {number}: no verse id of vref.txt and label in {row}")
            pairs.append((text[self.line[row[verse].strip()]], row[label].strip()))
        return _kept(pairs)
