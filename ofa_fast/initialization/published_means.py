"""Subword vectors as the published implementation makes them, bit for bit."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch

from ofa_fast import _native
from ofa_fast.initialization.word_list import WordList

ROWS_AT_ONCE = 65_536


def _once_a_text(chunk, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The subwords of each word in a row, one that is in several of its spellings once for each; and how many."""
    of_text = np.repeat(np.arange(len(chunk.id_starts) - 1), np.diff(chunk.id_starts))
    pairs = np.sort(of_text * size + chunk.ids)
    of_text, subwords = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], size)
    return subwords, np.diff(np.searchsorted(of_text, chunk.text_starts))


def published_means(chunks: Iterator, words: WordList, vectors: np.ndarray, size: int) -> np.ndarray:
    """Σ (1/n) v over the n members of each of ``size`` subwords, in the order of the words: equal to the published
    vectors [size, d] float64.

    Equal, because a last bit decides which of two equally near subwords is a neighbour.
    """
    made = [_once_a_text(chunk, size) for chunk in chunks]
    subwords, lengths = map(np.concatenate, zip(*made, strict=True))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    times = np.repeat(np.diff(words.row_starts), lengths)  # a word of several languages is a member for each
    counts = np.bincount(subwords, times, minlength=size)
    weights = 1.0 / np.maximum(counts, 1.0)
    order = np.argsort(words.rows, kind="stable")
    rows, of_row = words.rows[order], np.repeat(np.arange(len(lengths)), np.diff(words.row_starts))[order]
    means = _zeros(size, vectors.shape[1])
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(begin, begin + ROWS_AT_ONCE)
        _add(means, subwords, starts, of_row[some], np.asarray(vectors[rows[some]], dtype=np.float32), weights)
    return means


def _zeros(*shape: int) -> np.ndarray:
    """float64 zeros, of which those that stay zero take no memory: few subwords of a large vocabulary get a vector, and
    with huge pages a few would make all of it resident."""
    memory = mmap.mmap(-1, max(8, 8 * math.prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel that has no huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.float64)[: math.prod(shape)].reshape(shape)


def _add(means, subwords, starts, words, vectors, weights) -> None:
    """means[s] += weights[s] * vectors[i] for each i in order and each s in subwords[starts[w]:starts[w + 1]], w being
    ``words[i]``."""
    if _native.cpu is not None:
        arrays = map(torch.from_numpy, (subwords, starts, words, vectors, weights, means))
        _native.cpu.subword_sums_add_weighted(*arrays, torch.get_num_threads())
        return
    for word, vector in zip(words, vectors.astype(np.float64), strict=True):
        members = subwords[starts[word] : starts[word + 1]]
        np.add.at(means, members, weights[members, None] * vector)
