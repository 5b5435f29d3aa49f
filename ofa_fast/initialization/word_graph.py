"""The graph of words that translate each other: its edges weighed by families of words, and vectors drawn along it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ofa_fast._text import read_lines
from ofa_fast.initialization.words import UNSPACED

_NGRAMS = range(2, 6)
_SMALLEST = 0.01
_CLAIM = 0.2
_SECOND = 0.8
_DOMINANCE = 0.05
_TRUST = 3.0
_REMOVED = 0.3
_PULL = 0.2

Triples = tuple[np.ndarray, np.ndarray, np.ndarray]


class Edges(NamedTuple):
    """Word, concept, the weight of the edge, and the number of links behind it."""

    word: np.ndarray
    concept: np.ndarray
    weight: np.ndarray
    number: np.ndarray


def weigh_links(words: Sequence[str], links: Triples) -> Edges:
    """Edges (word, concept, weight) from expected numbers of links n(w, p) between words and those of the pivot.

        weight(w, p) = sqrt(n(w, p)) · mean over character n-grams g of w of Σ_{w' contains g} n(w', p)

    Forms of one word share n-grams, hence their evidence, and the form that is common to the others, mostly the bare
    stem or the lemma, has most of it. n-grams are of 2 to 5 characters; a shorter word, and one of a script without
    spaces, whose words are themselves substrings, is its own only n-gram. Numbers below 0.01 are left out.
    """
    word, concept, number = links
    kept = number >= _SMALLEST
    word, concept, number = word[kept], concept[kept], number[kept]
    grams, begin = _grams(words)
    size = np.diff(begin)
    of = np.repeat(np.arange(len(word)), size[word])
    step = np.arange(len(of)) - np.repeat(np.cumsum(size[word]) - size[word], size[word])
    gram = grams[begin[word[of]] + step]
    _, pair = np.unique(gram * (1 + concept.max(initial=0)) + concept[of], return_inverse=True)
    shared = np.bincount(pair, weights=number[of])
    family = np.bincount(of, weights=shared[pair], minlength=len(word)) / size[word]
    return Edges(word, concept, np.sqrt(number) * family, number)


def _grams(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of each word's distinct n-grams, one word after the other, and [W + 1] where each word's begin."""
    index: dict[str, int] = {}
    numbers: list[int] = []
    begin = [0]
    for word in words:
        text = word.casefold()
        found = {text}
        if len(text) >= _NGRAMS.start and not UNSPACED.search(text):
            found = {text[at : at + length] for length in _NGRAMS for at in range(len(text) - length + 1)}
        numbers += [index.setdefault(gram, len(index)) for gram in sorted(found)]
        begin.append(len(numbers))
    return np.array(numbers, dtype=np.int64), np.array(begin)


def follow_concepts(own: torch.Tensor, concepts: torch.Tensor, edges: Edges) -> torch.Tensor:
    """Vectors [W, d] of a language's words, each as near to its concepts as it is the word for them.

        y(w) = unit(3 n(w) unit(Σ_p m(w, p) concept(p)) + own(w)),   n(w) = Σ_p number(w, p)
        d(w, p) = (c(w, p) / max_w' c(w', p)) ** 0.05, times 0.8 if another word has that largest c
        b(w) = Σ_p m(w, p) d(w, p) / Σ_p m(w, p)
        vector(w) = unit(b(w) y(w) + sqrt(1 - b(w)²) unit(own(w) - 0.3 (own(w) · y(w)) y(w)))

    so that of several words for one concept the main one is nearest, and a word that no concept claims keeps ``own``.
    With F(w, p) = weight(w, p) / sqrt(number(w, p)), the evidence of w's family, what w means is told by
    m(w, p) = number · F, the more by the more frequent of its links; which word is the main one, by c(w, p) =
    number ** 0.2 · F, for a lemma may be rarer than its forms.
    """
    word, concept, weight, number = edges
    meaning, claim = weight * number**0.5, weight * number ** (_CLAIM - 0.5)
    best = np.zeros(len(concepts))
    np.maximum.at(best, concept, claim)
    ratio = claim / np.maximum(best, np.finfo(float).tiny)[concept]
    dominance = ratio**_DOMINANCE * np.where(ratio == 1, 1, _SECOND)
    total, share, evidence = (
        torch.from_numpy(np.bincount(word, weights=values, minlength=len(own)))[:, None]
        for values in (meaning, meaning * dominance, number)
    )
    b = (share / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(max=1).float()
    told = unit(Sparse.of(word, concept, meaning, len(own)) @ concepts)
    y = unit(_TRUST * evidence.float() * told + own)
    rest = unit(own - _REMOVED * (own * y).sum(1, keepdim=True) * y)
    return unit(b * y + (1 - b * b).sqrt() * rest)


def meet_words(concepts: torch.Tensor, languages: Sequence[tuple[torch.Tensor, Edges]]) -> torch.Tensor:
    """Vectors [P, d] of the concepts, drawn to the words for them in every language.

        concept(p) ∝ concept(p) + 0.2 Σ_languages c(p) (m(p) - mean of m, weighted by c)

    with m(p) = unit(Σ_w weight(w, p)² vector(w)), and c = a / (a + 1) for a(p) = Σ_w weight(w, p), the evidence. What
    all words of a language have in common says nothing of a concept, hence the mean is taken away.
    """
    drawn = concepts.clone()
    for vectors, (word, concept, weight, _) in languages:
        evidence = torch.from_numpy(np.bincount(concept, weights=weight, minlength=len(concepts))).float()[:, None]
        c = evidence / (evidence + 1)
        met = unit(Sparse.of(concept, word, weight**2, len(concepts)) @ vectors)
        drawn += _PULL * c * (met - (c * met).sum(0) / c.sum().clamp(min=torch.finfo(c.dtype).tiny))
    return unit(drawn)


def read_colexification(path: str | os.PathLike, words: Sequence[str]) -> Triples:
    """Edges between rows of ``words`` that name two concepts which languages express by one word, both ways.

    The file has lines of concept, tab, concept, tab, number of language families (CLICS), after a heading. A concept
    such as HAND OR ARM names each of its parts; the weight is the logarithm of 1 + the number of families.

    Raises:
        ValueError: a line without two concepts and a number, with file and line.
    """
    rows: dict[str, int] = {}
    for row, word in enumerate(words):
        rows.setdefault(word.casefold(), row)
    source, target, weight = [], [], []
    for number, line in enumerate(read_lines(path, "colexification"), 1):
        fields = line.split("\t")
        if number == 1 or not line:
            continue
        if len(fields) < 3 or not fields[2].isdigit():
            raise ValueError(f"{path}, line {number}: expected concept, concept and a count, got {line[:60]!r}")
        ends = [[rows[part] for part in field.casefold().split(" or ") if part in rows] for field in fields[:2]]
        for a in ends[0]:
            for b in ends[1]:
                source += [a, b]
                target += [b, a]
                weight += [np.log1p(int(fields[2]))] * 2
    return np.array(source, dtype=np.int64), np.array(target, dtype=np.int64), np.array(weight)


def walk(concepts: torch.Tensor, edges: Triples) -> torch.Tensor:
    """A step along edges between concepts: concept(p) ∝ concept(p) + ½ unit(Σ_q weight(p, q) concept(q))."""
    source, target, weight = edges
    return unit(concepts + 0.5 * unit(Sparse.of(source, target, weight, len(concepts)) @ concepts))


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)


class Sparse:
    """A sparse matrix by rows, multiplied by a dense one as a weighted sum of its rows."""

    def __init__(self, starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> None:
        self.starts, self.columns, self.values = starts, columns, values

    @classmethod
    def of(cls, row: np.ndarray, column: np.ndarray, value: np.ndarray, rows: int) -> Sparse:
        order = np.argsort(row, kind="stable")
        starts = np.zeros(rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=starts[1:])
        return cls(
            torch.from_numpy(starts),
            torch.from_numpy(column[order].astype(np.int64)),
            torch.from_numpy(value[order].astype(np.float32)),
        )

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(
            self.columns, dense, self.starts, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )
