"""What the published tools have in common: words of subwords, mixtures of rows, downloads."""

from __future__ import annotations

import gzip
import os
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from ofa_fast._files import atomic_file
from ofa_fast.initialization.tokenization import batch_encoder, warn_if_slow

WORDS_PER_CHUNK = 16_384
_FASTTEXT = "https://dl.fbaipublicfiles.com/fasttext/vectors-crawl"


def subwords_of_words(
    tokenizer, words: Sequence[str], spellings: Callable[[str], tuple[str, ...]], progress: bool = False
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The subwords that occur, and for each the numbers of its words, ascending, once for every spelling with it."""
    warn_if_slow(tokenizer, 2 * len(words))
    encode = batch_encoder(tokenizer)
    pairs = [np.empty(0, dtype=np.int64)]
    for begin in tqdm(range(0, len(words), WORDS_PER_CHUNK), desc="Tokenising words", disable=not progress):
        texts = [spellings(word) for word in words[begin : begin + WORDS_PER_CHUNK]]
        ids, starts = encode(list(chain.from_iterable(texts)))
        text_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        word_of = np.repeat(np.arange(len(texts)), list(map(len, texts)))
        distinct, text_of = np.divmod(np.unique(ids * len(starts) + text_of), len(starts))
        pairs.append(distinct * len(words) + begin + word_of[text_of])
    subwords, members = np.divmod(np.sort(np.concatenate(pairs)), max(1, len(words)))
    subwords, starts = np.unique(subwords, return_index=True)
    return subwords, np.split(members, starts[1:]) if len(subwords) else []


def weighted_means(
    size: int, subwords: np.ndarray, members: list[np.ndarray], vectors: Callable, weights: np.ndarray | None = None
) -> np.ndarray:
    """[size, d] float64: Σ (w / Σw) v over each subword's words, as numpy sums them; zero without a word."""
    width = vectors(np.zeros(1, dtype=np.int64)).shape[1]
    means = np.zeros((size, width))
    for subword, rows in zip(subwords, members, strict=True):
        of_words = np.ones(len(rows)) if weights is None else weights[rows]
        of_words = of_words / of_words.sum()
        for begin in range(0, len(rows), WORDS_PER_CHUNK):
            some = slice(begin, begin + WORDS_PER_CHUNK)
            terms = vectors(rows[some]) * of_words[some, None]
            terms[0] += means[subword]
            means[subword] = terms.sum(axis=0)
    return means


def mixed_rows(table: np.ndarray, neighbors: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    """Σ_j w_j table[neighbor_j], [n, D], without the product [n, k, D]."""
    rows = torch.from_numpy(np.ascontiguousarray(table))
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    mixed = functional.embedding_bag(neighbors, rows, per_sample_weights=weights.to(rows.dtype), mode="sum")
    return mixed.numpy().astype(table.dtype, copy=False)


def fasttext_file(identifier: str, cache: Path) -> Path:
    """The model file ``identifier``; without such a file, that of the language, fetched from fasttext.cc once."""
    if os.path.exists(identifier):
        return Path(identifier)
    path = cache / f"cc.{identifier}.300.bin"
    if not path.exists():
        fetch(f"{_FASTTEXT}/{path.name}.gz", path)
    return path


def fetch(url: str, path: Path) -> None:
    """Write what ``url`` holds, unzipped, to ``path``, which is absent or complete.

    Raises:
        OSError: it cannot be reached.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url) as answer, atomic_file(path) as work, open(work, "wb") as file:
        shutil.copyfileobj(gzip.GzipFile(fileobj=answer) if url.endswith(".gz") else answer, file)


def cache_folder(tool: str) -> Path:
    return Path(os.getenv("XDG_CACHE_HOME", "~/.cache")).expanduser().resolve() / tool
