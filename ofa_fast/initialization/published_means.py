"""Subword vectors as the published implementation makes them, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MEMBERS_AT_ONCE = 16_384


def _occurrences_of(chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each subword and word in whose spellings it occurs, sorted by subword, then word; and in how many of them."""
    texts, words = len(chunk.id_starts) - 1, len(chunk.row_starts) - 1
    in_text = np.unique(np.stack([chunk.ids, np.repeat(np.arange(texts), np.diff(chunk.id_starts))]), axis=1)
    word_of = np.repeat(np.arange(words), np.diff(chunk.text_starts))
    (subword, word), counts = np.unique(np.stack([in_text[0], word_of[in_text[1]]]), axis=1, return_counts=True)
    return subword, word, counts


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[i], starts[i] + 1, ..., ``lengths[i]`` of them, for one i after the other."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def published_means(chunks: Iterator, vectors: np.ndarray, size: int) -> np.ndarray:
    """Σ (1/n) v over the n members of each subword, in the order of the words: equal to the published vectors.

    Equal, because a last bit decides which of two equally near subwords is a neighbour.
    """
    occurrences = [np.empty(0, dtype=np.int64)]
    for chunk in chunks:
        subwords, words, counts = _occurrences_of(chunk)
        sizes = np.diff(chunk.row_starts)[words]
        rows = chunk.rows[_ranges(chunk.row_starts[words], sizes)]
        pairs = np.repeat(subwords, sizes) * len(vectors) + rows
        occurrences.append(np.repeat(pairs, np.repeat(counts, sizes)))
    subwords, rows = np.divmod(np.sort(np.concatenate(occurrences)), len(vectors))
    subwords, starts = np.unique(subwords, return_index=True)
    means = np.zeros((size, vectors.shape[1]))
    for subword, members in zip(subwords, np.split(rows, starts[1:]), strict=True):
        weight = 1.0 / len(members)
        for begin in range(0, len(members), MEMBERS_AT_ONCE):
            terms = vectors[members[begin : begin + MEMBERS_AT_ONCE]].astype(np.float64) * weight
            terms[0] += means[subword]
            means[subword] = terms.sum(axis=0)
    return means
