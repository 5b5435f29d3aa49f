"""Sentences with a tag per word, from the layouts in which UD, Universal NER and XTREME are published."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ofa_fast._text import read_lines
from ofa_fast.evaluation.labelled import Labelled, read_splits

_SPLIT = r"(?P<split>train|dev|test)"
# A file of a language in its folder, of a treebank (its name begins with the language, and a long part comes in several
# files), and of XTREME and Glot500.
_NAMES = (
    re.compile(_SPLIT + r"\.(?P<suffix>conllu|conll|iob2|tsv)"),
    re.compile(r"(?P<language>[a-z]{2,3})_[^-]+-ud-" + _SPLIT + r"(-[a-z0-9]+)*\.(?P<suffix>conllu|iob2)"),
    re.compile(_SPLIT + r"-(?P<language>[^.]+)\.(?P<suffix>tsv)"),
)
# UD and Universal NER name their files alike and lie side by side: of which tags one is, its suffix tells.
_SUFFIXES = {"pos": ("conllu", "conll", "tsv"), "ner": ("iob2", "tsv")}
_FOLDERS = {"pos": ("pos", "udpos"), "ner": ("ner", "panx")}
# The columns of a word and of its tag, from 0; the others have the word and its tag alone.
_COLUMNS = {".conllu": (1, 3), ".conll": (1, 3), ".iob2": (1, 2)}


@dataclass(frozen=True)
class Tagged:
    """``tags[i][j]`` is the tag of ``words[i][j]``, None where the data has none."""

    words: list[list[str]] = field(default_factory=list)
    tags: list[list[str | None]] = field(default_factory=list)

    def __len__(self) -> int:
        """How many sentences have a tag."""
        return sum(any(tag is not None for tag in sentence) for sentence in self.tags)


def read_tagged(
    data: str | os.PathLike, task: str, source: str = "eng", languages: Sequence[str] | None = None
) -> Labelled:
    """The training sentences of ``source`` and the test sentences of every language.

    Known by their names, in ``data`` or one of its folders, or in its folder ``pos`` or ``udpos``, ``ner`` or ``panx``:

    - ``<language>/{train,dev,test}.{conllu,iob2,tsv}``
    - ``<language>_<treebank>-ud-{train,dev,test}.{conllu,iob2}`` (Universal Dependencies, Universal NER), which are
      taken together where a language has several, as are the parts of one (``cs_pdt-ud-train-c.conllu``)
    - ``{train,dev,test}-<language>.tsv`` (XTREME, Glot500)

    ``.conllu`` is read for "pos" alone and ``.iob2`` for "ner" alone. CoNLL-U gives UPOS of syntactic words: the parts
    of a multiword token, not the token itself, and no empty nodes. IOB2 has columns id, word, tag; ``.tsv`` word and
    tag. A tag ``_`` stands for none.

    Args:
        task: "pos" or "ner".
        source: a language code; "eng" also stands for "eng_Latn" and "en".
        languages: test only these and ``source``; default: all that have a test part.

    Raises:
        FileNotFoundError: no such folder or language, or ``source`` has no training part.
        ValueError: no layout is recognised, or a file is malformed, which is named with its line.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"data: there is no folder {data}")
    data = next((data / name for name in _FOLDERS[task] if (data / name).is_dir()), data)
    files: dict[str, dict[str, list[Path]]] = {}
    for path in sorted([*data.glob("*.*"), *data.glob("*/*.*")]):
        match = next(filter(None, (pattern.fullmatch(path.name) for pattern in _NAMES)), None)
        if match is None or match["suffix"] not in _SUFFIXES[task]:
            continue
        language = match.groupdict().get("language", path.parent.name)
        if path.parent != data or "language" in match.groupdict():
            files.setdefault(language, {}).setdefault(match["split"], []).append(path)
    if not files:
        own = _SUFFIXES[task][0]
        raise ValueError(
            f"data: for {task}, {data} has neither <language>/{{train,dev,test}}.{{{own},tsv}}, nor "
            f"<language>_<treebank>-ud-test.{own}, nor {{train,dev,test}}-<language>.tsv"
        )
    return read_splits(files, lambda paths, language: _read(paths), source, languages, data)


def _read(paths: Sequence[Path]) -> Tagged:
    sentences = [sentence for path in paths for sentence in _sentences(path) if set(sentence[0]) != {"_"}]
    return Tagged([words for words, _ in sentences], [tags for _, tags in sentences])


def _sentences(path: Path) -> Iterator[tuple[list[str], list[str | None]]]:
    columns = _COLUMNS.get(path.suffix)
    words, tags = [], []
    for number, line in enumerate(read_lines(path, "data", strip="\r\n"), 1):
        if not line.strip():
            if words:
                yield words, tags
            words, tags = [], []
            continue
        if columns and line.startswith("#"):
            continue
        cells = line.split("\t")
        if columns and not cells[0].isdigit():
            if re.fullmatch(r"\d+[-.]\d+", cells[0]):
                continue
            raise ValueError(f"data: {path}, line {number}: expected a word's number, got {cells[0]!r}")
        word, tag = columns or (0, 1)
        if len(cells) <= tag or not cells[word]:
            raise ValueError(f"data: {path}, line {number}: expected a word and its tag, got {line!r}")
        words.append(cells[word])
        tags.append(None if cells[tag].strip() == "_" else cells[tag].strip())
    if words:
        yield words, tags
