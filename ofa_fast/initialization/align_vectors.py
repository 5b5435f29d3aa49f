"""Word vectors of single languages, brought into one space through bilingual dictionaries."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations, product

import numpy as np
import torch
from tqdm import tqdm

from ofa_fast.initialization.translation import read_dictionary, translation_precision
from ofa_fast.initialization.word_vectors import WordVectors
from ofa_fast.ops import topk_similarity

Pairs = Iterable[tuple[str, str]]
_HUB_NEIGHBORS = 10


def align_word_vectors(
    spaces: Mapping[str, WordVectors],
    dictionaries: Mapping[tuple[str, str], str | os.PathLike | Pairs],
    pivot: str | None = None,
    *,
    refinements: int = 5,
    frequent: int = 20_000,
    held_out: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> tuple[WordVectors, dict]:
    """Rotate the word vectors of each language into the space of one of them.

    Vectors get unit length, mean zero and unit length again. The languages are placed one after the other, next always
    the one with most word pairs to those that are in place; its rotation is that of orthogonal Procrustes,

        W = argmin ‖X W - Y‖_F over orthogonal W = U Vᵀ, where Xᵀ Y = U S Vᵀ,

    with X its words of these pairs and Y, in the common space, their translations into all languages in place. Each
    refinement then takes as pairs the words that are each other's nearest by CSLS, 2 cos(x, y) - r(x) - r(y) with r
    the mean cosine to a word's 10 nearest in the other language, and keeps W where this makes the mean cosine of such
    pairs larger. Where no dictionary joins a language to those in place, pairs are made through a third language:
    eng-fra and eng-rus give fra-rus, whether there are English vectors or not.

    Args:
        spaces: word vectors by language, all of one dimension, frequent words first.
        dictionaries: (source, target) pairs, or files of lines of source, tab, target, by (source language, target
            language). Words are compared without regard to case.
        pivot: the language whose space is the common one; by default that with most pairs.
        refinements: rounds at most; 0 for the dictionaries alone.
        frequent: only the first so many words of a language take part in refinements.
        held_out: share of the words, of the first of two languages, that are kept from the alignment to measure it.
        seed: of the choice of those.

    Returns:
        All words with their languages, in one space, and a report: by language ``pairs`` (used), ``refinements``
        (kept), and by "source-target" the ``translation_precision`` on held-out pairs, where there are any.

    Raises:
        ValueError: dimensions differ, a language that no chain of dictionaries joins to the pivot, or an argument out
            of range.

    Peak extra memory: the result once more, and for refinements what ``topk_similarity`` takes.

    Sources: Schönemann 1966 (Procrustes); Conneau et al. 2018 (arXiv 1710.04087: CSLS and refinement); Artetxe, Labaka
    & Agirre 2016 (normalisation).
    """
    _check(spaces, pivot, refinements, frequent, held_out)
    rows = {language: _rows_by_word(vectors) for language, vectors in spaces.items()}
    links: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.empty((0, 2), dtype=np.int64))
    testing: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for (a, b), pairs in _joined(dictionaries, rows).items():
        words = sorted({source for source, _ in pairs})
        kept = set(random.Random(f"{seed} {a}-{b}").sample(words, int(held_out * len(words))))
        testing[a, b] = [pair for pair in pairs if pair[0] in kept]
        found = [(rows[a][source], rows[b][target]) for source, target in pairs if source not in kept]
        links[a, b] = np.array(found, dtype=np.int64).reshape(-1, 2)
        links[b, a] = links[a, b][:, ::-1]
    counts = {language: sum(len(links[language, other]) for other in spaces) for language in spaces}
    pivot = pivot or max(counts, key=counts.get)
    placed = {pivot: _normalized(spaces[pivot])}
    report: dict = {"pivot": pivot, "languages": {}, "precision": {}}
    with tqdm(total=len(spaces) - 1, desc="Aligning languages", disable=not progress) as bar:
        while len(placed) < len(spaces):
            waiting = {
                language: sum(len(links[language, other]) for other in placed)
                for language in spaces
                if language not in placed
            }
            language = max(waiting, key=waiting.get)
            if not waiting[language]:
                raise ValueError(f"dictionaries: no pair of words joins {', '.join(waiting)} to {', '.join(placed)}")
            table = _normalized(spaces[language])
            own = np.concatenate([links[language, other][:, 0] for other in placed])
            theirs = torch.cat([placed[other][links[language, other][:, 1]] for other in placed])
            nearest = max(placed, key=lambda other, language=language: len(links[language, other]))
            rotation, kept = _refined(
                _procrustes(table[own], theirs), table[:frequent], placed[nearest][:frequent], refinements
            )
            placed[language] = table @ rotation
            report["languages"][language] = {"pairs": len(own), "refinements": kept}
            bar.update()

    order = list(spaces)
    aligned = WordVectors(
        [word for language in order for word in spaces[language].words],
        torch.cat([placed[language] for language in order]).numpy(),
        [language for language in order for _ in spaces[language].words],
    )
    for (a, b), pairs in testing.items():
        if pairs:
            report["precision"][f"{a}-{b}"] = translation_precision(aligned, pairs, a, b)
    return aligned, report


def _check(spaces: Mapping[str, WordVectors], pivot: str | None, refinements: int, frequent: int, held_out: float):
    dims = {language: vectors.vectors.shape[1] for language, vectors in spaces.items()}
    if len(spaces) < 2:
        raise ValueError(f"spaces: expected word vectors of at least two languages, got {len(spaces)}")
    if len(set(dims.values())) > 1:
        raise ValueError(f"spaces: expected vectors of one dimension, got {dims}")
    if pivot is not None and pivot not in spaces:
        raise ValueError(f"pivot: expected one of {', '.join(spaces)}, got {pivot!r}")
    if refinements < 0 or frequent < 1:
        raise ValueError(f"refinements must be 0 or more and frequent at least 1, got {refinements} and {frequent}")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out: expected a share from 0 and below 1, got {held_out!r}")


def _rows_by_word(vectors: WordVectors) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, word in enumerate(vectors.words):
        rows.setdefault(word.casefold(), row)
    return rows


def _normalized(vectors: WordVectors) -> torch.Tensor:
    table = torch.from_numpy(np.asarray(vectors.vectors, dtype=np.float32))
    table = torch.nn.functional.normalize(table)
    return torch.nn.functional.normalize(table - table.mean(0))


def _joined(dictionaries: Mapping, rows: Mapping[str, dict[str, int]]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Sorted pairs of words that have vectors, by two languages; through third ones where no dictionary has both."""
    meanings: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (source, target), pairs in dictionaries.items():
        for word, translation in read_dictionary(pairs) if isinstance(pairs, (str, os.PathLike)) else pairs:
            meanings[source, target][word.casefold()].add(translation.casefold())
            meanings[target, source][translation.casefold()].add(word.casefold())
    joined = {}
    for a, b in combinations(rows, 2):
        pairs = {(word, translation) for word, found in meanings.get((a, b), {}).items() for translation in found}
        if not pairs:
            for third, known in list(meanings):
                if known == a:
                    for word, found in meanings[third, a].items():
                        pairs.update(product(found, meanings.get((third, b), {}).get(word, ())))
        joined[a, b] = sorted((x, y) for x, y in pairs if x in rows[a] and y in rows[b])
    return joined


def _procrustes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(x.double().T @ y.double())
    return (u @ vh).float()


def _refined(rotation: torch.Tensor, x: torch.Tensor, y: torch.Tensor, rounds: int) -> tuple[torch.Tensor, int]:
    pairs, best = _mutual_nearest(x @ rotation, y)
    for kept in range(rounds):
        if not len(pairs):
            return rotation, kept
        candidate = _procrustes(x[pairs[:, 0]], y[pairs[:, 1]])
        pairs, similarity = _mutual_nearest(x @ candidate, y)
        if similarity <= best:
            return rotation, kept
        rotation, best = candidate, similarity
    return rotation, rounds


def _mutual_nearest(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Rows [n, 2] of x and y that are each other's nearest by CSLS, and their mean cosine."""
    there, back = _csls_nearest(x, y), _csls_nearest(y, x)
    own = torch.arange(len(x))
    own = own[back[there] == own]
    pairs = torch.stack([own, there[own]], dim=1)
    return pairs, float((x[pairs[:, 0]] * y[pairs[:, 1]]).sum(1).mean()) if len(pairs) else -1.0


def _csls_nearest(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """argmax_y 2 x·y - r(y): a product of vectors with one more entry, (2 x, -1) and (y, r(y))."""
    hubness = topk_similarity(y, x, min(_HUB_NEIGHBORS, len(x)))[0].mean(1, keepdim=True)
    queries = torch.cat([2 * x, torch.full((len(x), 1), -1.0)], dim=1)
    return topk_similarity(queries, torch.cat([y, hubness], dim=1), 1, "dot")[1].flatten()
