"""Sentences that are translations of each other, from the layouts in which they are published."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofa_fast._text import read_headed, read_lines
from ofa_fast.evaluation.languages import find_language

# How eBible files mark a verse that is merged into the one above.
RANGE = "<range>"
SIB_SPLITS = ("train", "dev", "test")
_NO_LANGUAGES = ("vref", "readme", "license", "copying", "copyright", "labels")


@dataclass(frozen=True)
class Pair:
    """``source[i]`` and ``target[i]`` mean the same. Neither has an empty sentence: ``dropped`` counts such lines."""

    source_language: str
    target_language: str
    source: list[str]
    target: list[str]
    dropped: int = 0


def keep_pairs(source: Sequence[str], target: Sequence[str]) -> tuple[list[str], list[str], int]:
    """The pairs of which neither side is empty, and how many are dropped."""
    if len(source) != len(target):
        raise ValueError(
            f"source_sentences and target_sentences must be aligned, got {len(source)} and {len(target)} sentences"
        )
    kept = [(s.strip(), t.strip()) for s, t in zip(source, target, strict=True)]
    kept = [pair for pair in kept if all(side and side != RANGE for side in pair)]
    return [s for s, _ in kept], [t for _, t in kept], len(source) - len(kept)


def read_pairs(
    data: str | os.PathLike,
    source: str = "eng",
    languages: Sequence[str] | None = None,
    lines: Sequence[int] | np.ndarray | None = None,
    splits: Sequence[str] = SIB_SPLITS,
    max_pairs: int | None = None,
    seed: int = 0,
) -> list[Pair]:
    """The pairs of ``source`` with every other language in a folder, by language.

    Three layouts are known by their files:

    - ``<language>.txt``: line i means the same in all files (eBible corpus: ``<range>`` counts as an empty line, and
      ``vref.txt``, ``README.txt``, ``LICENSE.txt`` and the like as no language)
    - ``<name>.<a>-<b>.<a>`` and ``<name>.<a>-<b>.<b>``: line-aligned pairs (Tatoeba as in LASER and XTREME)
    - ``<language>_<Script>/{train,dev,test}.tsv``: columns index_id and text, joined by index_id (SIB-200)

    Args:
        source: a language code; "eng" also stands for "eng_Latn" where only one folder begins so.
        languages: only these, and no other file is read; default: all.
        lines: of the line-aligned layouts, which lines to use (from 0): indices, or one bool a line.
        splits: of SIB-200, which parts to join.
        max_pairs: at most so many a language, drawn by ``seed`` in the order of the files.

    Raises:
        FileNotFoundError: no such folder, or no such language in it.
        ValueError: no layout is recognised; files differ in length; no pair is left.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"data: there is no folder {data}")
    found = (
        _sib200(data, source, languages, splits)
        or _tatoeba(data, source, languages, lines)
        or _line_aligned(data, source, languages, lines)
    )
    if not found:
        raise ValueError(
            f"data: {data} has neither <language>.txt files, nor <name>.<a>-<b>.<a> pairs with {source!r}, nor "
            "<language>/{train,dev,test}.tsv folders"
        )
    for pair in found:
        if not pair.source:
            raise ValueError(f"data: {data} has no line with both {pair.source_language} and {pair.target_language}")
    return [sample(pair, max_pairs, seed) for pair in sorted(found, key=lambda pair: pair.target_language)]


def line_aligned(folder: Path) -> dict[str, Path]:
    """The files ``<language>.txt`` of a folder, by language."""
    return {path.stem: path for path in sorted(folder.glob("*.txt")) if path.stem.lower() not in _NO_LANGUAGES}


def _others(names: Iterable[str], source: str, languages: Sequence[str] | None, data: Path) -> list[str]:
    """The languages to pair with ``source``: those that are named, or all."""
    names = sorted(name for name in names if name != source)
    if not names:
        raise ValueError(f"data: {data} has {source} alone; add another language")
    return names if languages is None else sorted({find_language(names, one, data) for one in languages})


def _pair(source_language: str, target_language: str, source: Sequence[str], target: Sequence[str]) -> Pair:
    return Pair(source_language, target_language, *keep_pairs(source, target))


def sample(pair: Pair, count: int | None, seed: int) -> Pair:
    """At most ``count`` of the sentences, in their order."""
    if count is None or count >= len(pair.source):
        return pair
    chosen = np.sort(np.random.default_rng(seed).choice(len(pair.source), count, replace=False))
    return Pair(
        pair.source_language,
        pair.target_language,
        [pair.source[i] for i in chosen],
        [pair.target[i] for i in chosen],
        pair.dropped,
    )


def _select(sentences: list[str], lines: Sequence[int] | np.ndarray | None, path: Path) -> list[str]:
    if lines is None:
        return sentences
    lines = np.asarray(lines)
    if lines.dtype == bool:
        if len(lines) != len(sentences):
            raise ValueError(f"lines: {len(lines)} bools for the {len(sentences)} lines of {path}")
        lines = np.flatnonzero(lines)
    if lines.size and not (lines.min() >= 0 and lines.max() < len(sentences)):
        raise IndexError(f"lines: {path} has lines 0 to {len(sentences) - 1}, got {lines.min()} to {lines.max()}")
    return [sentences[i] for i in lines]


def _line_aligned(data: Path, source: str, languages: Sequence[str] | None, lines) -> list[Pair]:
    files = line_aligned(data)
    if not files:
        return []
    source = find_language(list(files), source, data)
    chosen = [source, *_others(files, source, languages, data)]
    texts = {language: list(read_lines(files[language], "data")) for language in chosen}
    for language, text in texts.items():
        if len(text) != len(texts[source]):
            raise ValueError(
                f"data: {files[language]} has {len(text)} lines, but {files[source]} {len(texts[source])}: "
                "line i must mean the same in all files"
            )
    texts = {language: _select(text, lines, files[language]) for language, text in texts.items()}
    return [_pair(source, language, texts[source], texts[language]) for language in chosen[1:]]


def _tatoeba(data: Path, source: str, languages: Sequence[str] | None, lines) -> list[Pair]:
    files = {}
    for path in sorted(data.iterdir()):
        match = re.fullmatch(r"(.+)\.([^.-]+)-([^.-]+)\.([^.-]+)", path.name)
        if match and match[4] != source and {match[4], source} == {match[2], match[3]}:
            files[match[4]] = path.with_name(f"{match[1]}.{match[2]}-{match[3]}.{source}"), path
    pairs = []
    for language in _others(files, source, languages, data) if files else ():
        other, path = files[language]
        texts = [list(read_lines(file, "data")) for file in (other, path)]
        if len(texts[0]) != len(texts[1]):
            raise ValueError(f"data: {other} has {len(texts[0])} lines, but {path} {len(texts[1])}")
        pairs.append(_pair(source, language, *(_select(text, lines, path) for text in texts)))
    return pairs


def _sib200(data: Path, source: str, languages: Sequence[str] | None, splits: Sequence[str]) -> list[Pair]:
    folders = {path.name: path for path in data.iterdir() if (path / f"{splits[0]}.tsv").exists()}
    if not folders:
        return []
    source = find_language(list(folders), source, data)
    own, pairs = _read_sib200(folders[source], splits), []
    for language in _others(folders, source, languages, data):
        text = _read_sib200(folders[language], splits)
        ids = sorted(own.keys() & text.keys())
        pairs.append(_pair(source, language, [own[i] for i in ids], [text[i] for i in ids]))
    return pairs


def _read_sib200(folder: Path, splits: Sequence[str]) -> dict[int, str]:
    sentences = {}
    for split in splits:
        path = folder / f"{split}.tsv"
        header, rows = read_headed(path, "data")
        if not {"index_id", "text"} <= set(header):
            raise ValueError(f"data: {path} needs the columns index_id and text, it has {', '.join(header) or 'none'}")
        place, text = header.index("index_id"), header.index("text")
        for number, row in rows:
            index = row[place].strip() if place < len(row) else ""
            if not index.isdigit():
                raise ValueError(f"data: {path}, line {number}: index_id {index!r} is no number")
            sentences[int(index)] = row[text] if text < len(row) else ""
    return sentences
