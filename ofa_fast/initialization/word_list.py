"""The distinct words of word vectors, and the rows of each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np


@dataclass(frozen=True)
class WordList:
    """W distinct words in the order in which they first come."""

    words: list[str]
    rows: np.ndarray  # rows of the word vectors, those of one distinct word next to each other
    row_starts: np.ndarray  # [W + 1] where each distinct word's rows begin


def published_words(keys: list[str]) -> tuple[list[str], list[str]]:
    """Language and word of each key: English where the key has no ``xyz:`` in front."""
    languages, words = [], []
    for key in keys:
        prefixed = len(key) > 4 and key[3] == ":"
        if prefixed and key.count(":") != 1:
            raise ValueError(f"word_vectors: the key {key!r} has a second colon, which parity=True cannot take")
        languages.append(key[:3] if prefixed else "eng")
        words.append(key[4:] if prefixed else key)
    return languages, words


def distinct_words(word_vectors, languages: set[str] | None, parity: bool) -> WordList:
    """The same word in several languages is one, and enters with the sum of its vectors.

    Raises:
        ValueError: vectors or languages that do not fit the words; no word of ``languages``.
    """
    _check(word_vectors)
    words, of = word_vectors.words, word_vectors.languages
    if parity:
        of, words = published_words(list(word_vectors.keys))
    wanted = range(len(words))
    if languages is not None:
        if of is None:
            raise ValueError("word_vectors has no languages, so none can be selected")
        wanted = [i for i in wanted if of[i] in languages]
        if not wanted:
            raise ValueError(f"no word of word_vectors is of the languages {', '.join(sorted(languages))}")
    words = words if languages is None else [words[i] for i in wanted]
    index = dict(zip(dict.fromkeys(words), count()))
    distinct = np.fromiter(map(index.__getitem__, words), np.int64, count=len(words))
    order = np.argsort(distinct, kind="stable")
    rows = np.asarray(wanted, dtype=np.int64)[order]
    row_starts = np.zeros(len(index) + 1, dtype=np.int64)
    np.cumsum(np.bincount(distinct, minlength=len(index)), out=row_starts[1:])
    return WordList(list(index), rows, row_starts)


def _check(word_vectors) -> None:
    vectors = word_vectors.vectors
    if vectors.ndim != 2 or vectors.shape[0] != len(word_vectors.words) or vectors.shape[1] == 0:
        raise ValueError(
            f"word_vectors.vectors must be [{len(word_vectors.words)}, d], one row a word, got {list(vectors.shape)}"
        )
    languages = word_vectors.languages
    if languages is not None and len(languages) != len(word_vectors.words):
        raise ValueError(
            f"word_vectors.languages must hold a code for each of {len(word_vectors.words)} words, got {len(languages)}"
        )
