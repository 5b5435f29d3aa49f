"""How well word vectors translate words: their quality in one number a language pair."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ofa_fast._text import read_lines
from ofa_fast.initialization.word_vectors import WordVectors
from ofa_fast.ops import topk_similarity


def read_dictionary(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Pairs from lines of source word, tab, target word.

    Raises:
        ValueError: a line has no tab or is not UTF-8, with file and line.
        FileNotFoundError: no such file.
    """
    pairs = []
    for number, line in enumerate(read_lines(path, "dictionary"), 1):
        if line:
            source, tab, target = line.partition("\t")
            if not tab or "\t" in target:
                raise ValueError(f"{path}, line {number}: expected a word, one tab and a word, got {line[:60]!r}")
            pairs.append((source, target))
    return pairs


def translation_precision(
    word_vectors: WordVectors,
    pairs: str | os.PathLike | Iterable[tuple[str, str]],
    source_language: str,
    target_language: str,
    k: Sequence[int] = (1, 10),
    frequent: int | None = None,
    among: WordVectors | None = None,
) -> dict[str, int | float]:
    """Precision at k of translating words by the nearest vector of the other language.

    Each source word of the dictionary that has a vector, and of whose translations at least one has one too, is a
    query. The candidates are all words of the target language. A query is right at k if any of its translations is
    among the k candidates of highest cosine (ties by the order of the words); the precision is the share of right
    queries. Words are compared without regard to case.

    Args:
        pairs: (source, target) pairs, or a file of lines of source, tab, target; a source may have several targets.
        frequent: only query the first so many words of the source language: the most frequent ones, where the words
            come by frequency, as from ``build_word_vectors`` and in most published files.
        among: of both languages only the words that these vectors have, too, in their order: for a fair comparison of
            vectors with different words.

    Returns:
        ``queries`` and ``candidates`` (numbers of words) and ``precision@k`` for each k.

    Raises:
        ValueError: no languages known, one not there, k < 1, or no pair with both words in the vectors.
    """
    if not k or min(k) < 1:
        raise ValueError(f"k must be numbers from 1, got {k}")
    candidates = _rows(word_vectors, target_language, among)
    sources = _by_text(word_vectors, _rows(word_vectors, source_language, among)[:frequent])
    targets = _by_text(word_vectors, candidates)
    gold: dict[int, set[int]] = {}
    for source, target in read_dictionary(pairs) if isinstance(pairs, (str, os.PathLike)) else pairs:
        found, translated = sources.get(source.casefold()), targets.get(target.casefold())
        if found and translated:
            gold.setdefault(found[0], set()).update(translated)
    if not gold:
        raise ValueError(f"pairs: no pair whose words both have vectors in {source_language} and {target_language}")

    _, nearest = topk_similarity(
        _table(word_vectors, list(gold)), _table(word_vectors, candidates), min(max(k), len(candidates)), "cosine"
    )
    found = zip(nearest.tolist(), gold.values(), strict=True)
    right = np.array([[candidates[index] in wanted for index in row] for row, wanted in found])
    result: dict[str, int | float] = {"queries": len(gold), "candidates": len(candidates)}
    return result | {f"precision@{at}": float(right[:, :at].any(axis=1).mean()) for at in k}


def _rows(word_vectors: WordVectors, language: str, among: WordVectors | None = None) -> list[int]:
    rows = _rows_of("word_vectors", word_vectors, language)
    if among is None:
        return rows
    first = {text: found[0] for text, found in _by_text(word_vectors, rows).items()}
    texts = dict.fromkeys(among.words[row].casefold() for row in _rows_of("among", among, language))
    found = [first[text] for text in texts if text in first]
    if not found:
        raise ValueError(f"among: none of its words in {language!r} has a vector in word_vectors")
    return found


def _rows_of(name: str, word_vectors: WordVectors, language: str) -> list[int]:
    if word_vectors.languages is None:
        raise ValueError(f"{name} has no languages")
    rows = [row for row, code in enumerate(word_vectors.languages) if code == language]
    if not rows:
        known = ", ".join(sorted(set(word_vectors.languages))[:40])
        raise ValueError(f"{name} has no word in {language!r}, only in {known}")
    return rows


def _by_text(word_vectors: WordVectors, rows: list[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(word_vectors.words[row].casefold(), []).append(row)
    return found


def _table(word_vectors: WordVectors, rows: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(word_vectors.vectors[rows], dtype=np.float32))
