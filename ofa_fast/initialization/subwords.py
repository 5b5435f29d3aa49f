"""Subword vectors: the mean of the vectors of the words in whose tokenisation a subword occurs."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, compress
from operator import ne

import numpy as np
import torch
from tqdm.auto import tqdm

from ofa_fast import _native
from ofa_fast.initialization import tokenization
from ofa_fast.initialization.cache import Cache, key_of
from ofa_fast.initialization.published_means import published_means
from ofa_fast.initialization.sharing import Processes
from ofa_fast.initialization.word_list import WordList, distinct_words

WORDS_PER_CHUNK = 32_768
ALONE = Processes()


@dataclass
class _Chunk:
    """The subwords in the spellings of a chunk of W distinct words."""

    rows: np.ndarray  # rows of the word vectors, those of one distinct word next to each other
    row_starts: np.ndarray  # [W + 1] where each distinct word's rows begin
    ids: np.ndarray  # the subwords of each spelling of each word
    id_starts: np.ndarray  # [T + 1] where each spelling's subwords begin
    text_starts: np.ndarray  # [W + 1] where each word's spellings begin

    def within(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``ids`` in [begin, end), counted from ``begin``, and [W + 1] where each word's begin."""
        if begin == 0 and self.ids.max(initial=-1) < end:
            return self.ids, self.id_starts[self.text_starts]
        kept = (self.ids >= begin) & (self.ids < end)
        before = np.zeros(len(kept) + 1, dtype=np.int64)
        np.cumsum(kept, out=before[1:])
        return self.ids[kept] - begin, before[self.id_starts[self.text_starts]]


def spellings(word: str) -> tuple[str, ...]:
    """How a word may stand in text: inside another, after a space, and capitalised after a space.

    Title case, not upper case: Georgian has upper-case letters that no sentence begins with.
    """
    return word, f" {word}", f" {word[:1].title()}{word[1:]}"


def spellings_for(tokenizer) -> tuple[int, ...]:
    """Which of ``spellings`` the tokenizer can tell from the one after a space, and that one first."""
    kept = [1]
    for i in (0, 2):
        if tokenization.tells_apart(tokenizer, lambda word: spellings(word)[1], lambda word, i=i: spellings(word)[i]):
            kept.append(i)
    return tuple(kept)


def texts_of(words: list[str], kept: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
    """The distinct ones of these ``spellings`` of each word, in a row, and how many each word has."""
    title = {letter: letter.title() for letter in {word[:1] for word in words}}
    spaced = [f" {word}" for word in words]
    titled = [f" {title[word[:1]]}{word[1:]}" for word in words] if 2 in kept else []
    texts = list(chain.from_iterable(zip(*((words, spaced, titled)[i] for i in kept), strict=True)))
    there = np.ones((len(words), len(kept)), dtype=bool)
    if titled:  # the one that may be like another, and the last
        there[:, -1] = list(map(ne, spaced, titled))
    return list(compress(texts, there.ravel().tolist())), there.sum(1)


def published_spellings(word: str) -> tuple[str, ...]:
    """The three texts that the published implementation encodes; a ``$`` of the markup becomes a space."""
    text = word.replace("$", " ")
    capitalised = text[1:2].upper() + text[2:] if word.startswith("$") else f" {text[:1].upper()}{text[1:]}"
    return text, f" {text}", capitalised


class _Encoder:
    """The subwords of words: chunks of them, as far as they are in the cache, from there."""

    def __init__(self, tokenizer, words: WordList, parity: bool, cache: Cache | None) -> None:
        self.tokenizer, self.words, self.cache = tokenizer, words, cache
        self.kept = None if parity else spellings_for(tokenizer)
        self.encode: Callable | None = None
        self.key = None if cache is None else [tokenization.sha256(tokenizer), self.kept]

    def __call__(self, begin: int) -> _Chunk | None:
        """The words from ``begin``, a chunk of them; None behind the last."""
        words = self.words.words[begin : begin + WORDS_PER_CHUNK]
        if not words:
            return None
        bounds = self.words.row_starts[begin : begin + len(words) + 1]
        rows = self.words.rows[bounds[0] : bounds[-1]]
        if self.cache is None:
            return _Chunk(rows, bounds - bounds[0], *self._tokenise(words))
        joined = "\n".join(words).encode("utf-8", "surrogatepass")
        key = key_of("tokens", self.key, len(words), hashlib.sha256(joined).hexdigest())
        found = self.cache.read("tokens", key)
        if found is None:
            ids, id_starts, text_starts = self._tokenise(words)
            counts = {"ids": ids, "per_text": np.diff(id_starts), "per_word": np.diff(text_starts)}
            self.cache.write("tokens", key, {k: torch.from_numpy(v.astype(np.int32)) for k, v in counts.items()})
            return _Chunk(rows, bounds - bounds[0], ids, id_starts, text_starts)
        return _Chunk(
            rows, bounds - bounds[0], found["ids"].numpy().astype(np.int64),
            _starts(found["per_text"].numpy()), _starts(found["per_word"].numpy()),
        )  # fmt: skip

    def _tokenise(self, words: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.encode is None:
            each = 3 if self.kept is None else len(self.kept)
            self.encode = tokenization.batch_encoder(self.tokenizer, each * len(self.words.words))
        if self.kept is None:
            texts, counts = list(chain.from_iterable(map(published_spellings, words))), np.full(len(words), 3)
        else:
            texts, counts = texts_of(words, self.kept)
        return *self.encode(texts), _starts(counts)


def _starts(lengths) -> np.ndarray:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _occurrences(encoder: _Encoder, progress: bool, name: str, processes: Processes) -> Iterator[_Chunk]:
    """All chunks in order. The next one is tokenised while one is used."""
    total, step = len(encoder.words.words), WORDS_PER_CHUNK * processes.size
    begins = range(0, total, step)
    with tqdm(total=total, desc=name, disable=not progress) as bar, ThreadPoolExecutor(1) as worker:
        coming = worker.submit(encoder, WORDS_PER_CHUNK * processes.rank)
        for first in begins:
            mine = coming.result()
            if first + step < total:
                coming = worker.submit(encoder, first + step + WORDS_PER_CHUNK * processes.rank)
            yield from filter(None, processes.exchange(mine))
            bar.update(min(step, total - first))


def _words_of(tokenizer, word_vectors, languages, parity: bool, words: WordList | None = None) -> WordList:
    words = distinct_words(word_vectors, languages, parity) if words is None else words
    tokenization.warn_if_slow(tokenizer, 3 * len(words.words))
    return words


def covered_subwords(
    tokenizer, word_vectors, *, languages=None, parity=False, progress=False, processes=ALONE, cache=None
) -> np.ndarray:
    """Which subwords occur in a word of ``word_vectors``: [V] bool, from tokenisation alone."""
    covered = np.zeros(len(tokenization.tokens_by_id(tokenizer)), dtype=bool)
    encoder = _Encoder(tokenizer, _words_of(tokenizer, word_vectors, languages, parity), parity, cache)
    for chunk in _occurrences(encoder, progress, "Tokenising words", processes):
        covered[chunk.ids] = True
    if not parity:
        covered[list(tokenization.special_ids(tokenizer))] = False
    return covered


def subword_vectors(
    tokenizer,
    word_vectors,
    *,
    languages=None,
    parity=False,
    progress=False,
    name="Subword vectors",
    processes=ALONE,
    part=slice(None),
    cache=None,
    columns=None,
    word_weights=None,
    size=None,
    words=None,
) -> np.ndarray:
    """The vector of every subword s: the mean of the vectors of the words that contain it.

    ``vector[s] = sum(f[w] * n[s, w] * word_vectors.vectors[w] for w) / sum(f[w] * n[s, w] for w)``, where n[s, w] is 1
    if s occurs in the tokenisation of a spelling of w (as it stands, after a space, capitalised after a space), else 0.
    A subword of no word, and every special token, has the zero vector.

    Args:
        tokenizer: a Hugging Face tokenizer; a Rust one is about six times as fast as a Python one, and a unigram such
            as XLM-R's six times as fast again.
        word_vectors: ``WordVectors`` of W words, d dimensions.
        languages: count only words of these ISO 639-3 codes.
        parity: as published, bit for bit: n[s, w] counts the spellings (0 to 3), the ``$`` of the markup is encoded
            as a space, and the unknown token takes part.
        progress: show a progress bar.
        processes: who share the tokenisation; each gets the vectors of the subwords in its ``part``.
        cache: a ``Cache`` for the tokenised words, of which a run that was interrupted makes the rest.
        columns: of the d, how many are summed at a time, by default all; each time the words are tokenised anew, or
            come from the cache.
        word_weights: [W] float32, f; by default 1 each. Not with ``parity``.
        size: V, where it is known.
        words: the ``distinct_words`` of ``languages``, where they are known.

    Returns:
        [V, d], V the largest id + 1: float32, float64 with ``parity``; summed in float64 either way, deterministic.

    Raises:
        ValueError: an empty vocabulary; vectors or languages that do not fit the words; no word of ``languages``.

    Peak extra memory: 4 V d + 8 V min(d, columns) bytes, about 150 bytes a word, and two chunks of 32,768 words with
    their encodings (about 150 MB); with ``parity`` 8 V d, and 24 bytes for each subword of each spelling.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.2.
    """
    vectors = word_vectors.vectors
    words = _words_of(tokenizer, word_vectors, languages, parity, words)
    encoder = _Encoder(tokenizer, words, parity, cache)
    size, dim = size or len(tokenization.tokens_by_id(tokenizer)), vectors.shape[1]
    if parity:
        return published_means(_occurrences(encoder, progress, name, processes), words, vectors, size)
    begin, end, _ = part.indices(size)
    special = [i - begin for i in tokenization.special_ids(tokenizer) if begin <= i < end]
    out = np.empty((end - begin, dim), dtype=np.float32)
    columns = min(columns or dim, dim)
    weighted = int(word_weights is not None)  # then the sums of the weights take a column of their own
    sums = torch.empty(end - begin, columns + weighted, dtype=torch.float64)
    for first in range(0, dim, columns):
        some = slice(first, min(first + columns, dim))
        sums = sums[:, : some.stop - first + weighted].contiguous().zero_()
        totals = torch.zeros(end - begin, dtype=torch.float64)
        for chunk in _occurrences(encoder, progress, name, processes):
            values = np.require(vectors[_as_slice(chunk.rows)][:, some], np.float32, ("C", "W"))
            if weighted:
                weights = word_weights[chunk.rows][:, None]
                values = np.concatenate([values * weights, weights], axis=1)
            ids, id_starts = map(torch.from_numpy, chunk.within(begin, end))
            _add(torch.from_numpy(values), torch.from_numpy(chunk.row_starts), ids, id_starts, sums, totals)
            release(vectors)
        totals = torch.where(totals > 0, sums[:, -1] if weighted else totals, 1.0)
        sums[special] = 0.0
        sums /= totals[:, None]
        torch.from_numpy(out)[:, some] = sums[:, : some.stop - first]
    return out


def _as_slice(rows: np.ndarray) -> np.ndarray | slice:
    """Rows that follow each other are not copied."""
    return slice(rows[0], rows[-1] + 1) if len(rows) and (np.diff(rows) == 1).all() else rows


def is_mapped(array: np.ndarray) -> bool:
    return isinstance(getattr(array, "_mmap", None), mmap.mmap) and not array.flags.writeable


def release(array: np.ndarray) -> None:
    """Give back the memory of a mapped file that has been read; what is needed again is read again."""
    if is_mapped(array) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def _add(vectors, row_starts, ids, id_starts, sums, totals) -> None:
    """Add the vectors of each word to the sums of the subwords in its spellings, each subword once."""
    if _native.cpu is not None:
        _native.cpu.subword_sums_add(ids, id_starts, vectors, row_starts, sums, totals, torch.get_num_threads())
        return
    pairs = torch.stack([torch.arange(len(id_starts) - 1).repeat_interleave(id_starts.diff()), ids])
    word, subword = pairs.unique(dim=1)
    words = torch.from_numpy(np.add.reduceat(vectors.double().numpy(), row_starts[:-1].numpy()))
    sums.index_add_(0, subword, words[word])
    totals.index_add_(0, subword, row_starts.diff()[word].double())
