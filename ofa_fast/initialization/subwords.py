"""Subword vectors: the mean of the vectors of the words in whose tokenisation a subword occurs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from ofa_fast.initialization import tokenization
from ofa_fast.initialization.sharing import Processes

WORDS_PER_CHUNK = 16_384
ALONE = Processes()


@dataclass
class _Chunk:
    """Occurrences of subwords in a chunk of W distinct words, sorted by subword, then word."""

    rows: np.ndarray  # rows of the word vectors, those of one distinct word next to each other
    row_starts: np.ndarray  # [W] where each distinct word's rows begin
    subwords: np.ndarray  # [S] the distinct subwords, ascending
    starts: np.ndarray  # [S] where each subword's occurrences begin
    words: np.ndarray  # [P] the distinct word, 0 <= word < W, of an occurrence
    counts: np.ndarray  # [P] in how many of the word's spellings

    def of(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``subwords``, ``words`` and ``starts`` of the subwords in [begin, end)."""
        first, last = np.searchsorted(self.subwords, (begin, end))
        bounds = np.append(self.starts, len(self.words))[first : last + 1]
        return self.subwords[first:last], self.words[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]


def spellings(word: str) -> tuple[str, ...]:
    """How a word may stand in text: inside another, after a space, and capitalised after a space.

    Title case, not upper case: Georgian has upper-case letters that no sentence begins with.
    """
    return word, f" {word}", f" {word[:1].title()}{word[1:]}"


def _spellings_for(tokenizer) -> Callable[[str], tuple[str, ...]]:
    """``spellings`` without those that the tokenizer cannot tell from the one after a space."""
    kept = [1]
    for i in (0, 2):
        if tokenization.tells_apart(tokenizer, lambda word: spellings(word)[1], lambda word, i=i: spellings(word)[i]):
            kept.append(i)
    return lambda word: tuple(spellings(word)[i] for i in kept)


def published_spellings(word: str) -> tuple[str, ...]:
    """The three texts that the published implementation encodes; a ``$`` of the markup becomes a space."""
    text = word.replace("$", " ")
    capitalised = text[1:2].upper() + text[2:] if word.startswith("$") else f" {text[:1].upper()}{text[1:]}"
    return text, f" {text}", capitalised


def _published_words(keys: list[str]) -> tuple[list[str], list[str]]:
    """Language and word of each key: English where the key has no ``xyz:`` in front."""
    languages, words = [], []
    for key in keys:
        prefixed = len(key) > 4 and key[3] == ":"
        if prefixed and key.count(":") != 1:
            raise ValueError(f"word_vectors: the key {key!r} has a second colon, which parity=True cannot take")
        languages.append(key[:3] if prefixed else "eng")
        words.append(key[4:] if prefixed else key)
    return languages, words


def _checked(word_vectors) -> np.ndarray:
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
    return vectors


def _occurrences(
    tokenizer,
    word_vectors,
    languages: set[str] | None,
    parity: bool,
    progress: bool,
    name: str,
    processes: Processes,
) -> Iterator[_Chunk]:
    words, of = word_vectors.words, word_vectors.languages
    if parity:
        of, words = _published_words(list(word_vectors.keys))
    wanted = range(len(words))
    if languages is not None:
        if of is None:
            raise ValueError("word_vectors has no languages, so none can be selected")
        wanted = [i for i in wanted if of[i] in languages]
        if not wanted:
            raise ValueError(f"no word of word_vectors is of the languages {', '.join(sorted(languages))}")
    # The same word in several languages is encoded once and enters with the sum of its vectors.
    index: dict[str, int] = {}
    distinct = np.fromiter((index.setdefault(words[i], len(index)) for i in wanted), np.int64, count=len(wanted))
    order = np.argsort(distinct, kind="stable")
    rows = np.asarray(wanted, dtype=np.int64)[order]
    row_starts = np.searchsorted(distinct[order], np.arange(len(index) + 1))
    texts_of = published_spellings if parity else _spellings_for(tokenizer)
    index = list(index)
    tokenization.warn_if_slow(tokenizer, 3 * len(index))
    with tokenization.whole_texts(tokenizer), tqdm(total=len(index), desc=name, disable=not progress) as bar:
        for first in range(0, len(index), WORDS_PER_CHUNK * processes.size):
            begin = first + WORDS_PER_CHUNK * processes.rank
            words = index[begin : begin + WORDS_PER_CHUNK]
            starts = row_starts[begin : begin + len(words) + 1]
            yield from filter(None, processes.exchange(words and _chunk(tokenizer, words, texts_of, rows, starts)))
            bar.update(min(WORDS_PER_CHUNK * processes.size, len(index) - first))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[i], starts[i] + 1, ..., ``lengths[i]`` of them, for one i after the other."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def _chunk(tokenizer, words, texts_of, rows, row_starts) -> _Chunk:
    texts: dict[str, int] = {}
    text_of = np.array([texts.setdefault(text, len(texts)) for word in words for text in texts_of(word)])
    word_of = np.repeat(np.arange(len(words)), len(text_of) // len(words))
    ids, offsets = tokenization.encode(tokenizer, list(texts))
    # Every (text, subword) once, then spread over the words that have the text.
    base = int(ids.max(initial=0)) + 1
    pairs = np.unique(np.repeat(np.arange(len(texts)), np.diff(offsets)) * base + ids)
    ids, starts = pairs % base, np.searchsorted(pairs, np.arange(len(texts) + 1) * base)
    lengths = np.diff(starts)[text_of]
    ids = ids[_ranges(starts[text_of], lengths)]
    pairs, counts = np.unique(ids * len(words) + np.repeat(word_of, lengths), return_counts=True)
    subwords, starts = np.unique(pairs // len(words), return_index=True)
    return _Chunk(
        rows[row_starts[0] : row_starts[-1]],
        row_starts[:-1] - row_starts[0],
        subwords,
        starts,
        pairs % len(words),
        counts,
    )


def covered_subwords(
    tokenizer, word_vectors, *, languages=None, parity=False, progress=False, processes=ALONE
) -> np.ndarray:
    """Which subwords occur in a word of ``word_vectors``: [V] bool, from tokenisation alone."""
    _checked(word_vectors)
    covered = np.zeros(len(tokenization.tokens_by_id(tokenizer)), dtype=bool)
    for chunk in _occurrences(tokenizer, word_vectors, languages, parity, progress, "Tokenising words", processes):
        covered[chunk.subwords] = True
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
) -> np.ndarray:
    """The vector of every subword s: the mean of the vectors of the words that contain it.

    ``vector[s] = sum(n[s, w] * word_vectors.vectors[w] for w) / sum(n[s, w] for w)``, where n[s, w] is 1 if s occurs in
    the tokenisation of a spelling of w (as it stands, after a space, capitalised after a space), else 0. A subword of
    no word, and every special token, has the zero vector.

    Args:
        tokenizer: a Hugging Face tokenizer; a Rust one is about six times as fast as a Python one.
        word_vectors: ``WordVectors`` of W words, d dimensions.
        languages: count only words of these ISO 639-3 codes.
        parity: as published, bit for bit: n[s, w] counts the spellings (0 to 3), the ``$`` of the markup is encoded
            as a space, and the unknown token takes part.
        progress: show a progress bar.
        processes: who share the tokenisation; each gets the vectors of the subwords in its ``part``.

    Returns:
        [V, d], V the largest id + 1: float32, float64 with ``parity``; summed in float64 either way, deterministic.

    Raises:
        ValueError: an empty vocabulary; vectors or languages that do not fit the words; no word of ``languages``.

    Peak extra memory: 8 V d bytes for the sums, and 16,384 words with their encodings (about 150 MB); with ``parity``
    also 16 bytes for each subword of each word.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.2.
    """
    vectors = _checked(word_vectors)
    size, dim = len(tokenization.tokens_by_id(tokenizer)), vectors.shape[1]
    chunks = _occurrences(tokenizer, word_vectors, languages, parity, progress, name, processes)
    if parity:
        return _published_means(chunks, vectors, size)
    begin, end, _ = part.indices(size)
    sums, totals = np.zeros((end - begin, dim)), np.zeros(end - begin)
    for chunk in chunks:
        values = np.asarray(vectors[chunk.rows], dtype=np.float64)
        sizes = np.diff(chunk.row_starts, append=len(chunk.rows))
        if len(chunk.row_starts) < len(chunk.rows):
            values = np.add.reduceat(values, chunk.row_starts)
        subwords, words, starts = chunk.of(begin, end)
        if not len(subwords):
            continue
        sums[subwords - begin] += functional.embedding_bag(
            torch.from_numpy(words), torch.from_numpy(values), torch.from_numpy(starts), mode="sum"
        ).numpy()
        totals[subwords - begin] += np.add.reduceat(sizes[words], starts)
    special = [i - begin for i in tokenization.special_ids(tokenizer) if begin <= i < end]
    sums[special] = 0.0
    sums /= np.maximum(totals, 1)[:, None]
    return sums.astype(np.float32)


def _published_means(chunks: Iterator[_Chunk], vectors: np.ndarray, size: int) -> np.ndarray:
    """Σ (1/n) v over the n members of each subword, in the order of the words: equal to the published vectors.

    Equal, because a last bit decides which of two equally near subwords is a neighbour.
    """
    occurrences = [np.empty(0, dtype=np.int64)]
    for chunk in chunks:
        sizes = np.diff(chunk.row_starts, append=len(chunk.rows))[chunk.words]
        subwords = np.repeat(chunk.subwords, np.diff(chunk.starts, append=len(chunk.words)))
        rows = chunk.rows[_ranges(chunk.row_starts[chunk.words], sizes)]
        pairs = np.repeat(subwords, sizes) * len(vectors) + rows
        occurrences.append(np.repeat(pairs, np.repeat(chunk.counts, sizes)))
    subwords, rows = np.divmod(np.sort(np.concatenate(occurrences)), len(vectors))
    subwords, starts = np.unique(subwords, return_index=True)
    means = np.zeros((size, vectors.shape[1]))
    for subword, members in zip(subwords, np.split(rows, starts[1:]), strict=True):
        weight = 1.0 / len(members)
        for begin in range(0, len(members), WORDS_PER_CHUNK):
            terms = vectors[members[begin : begin + WORDS_PER_CHUNK]].astype(np.float64) * weight
            terms[0] += means[subword]
            means[subword] = terms.sum(axis=0)
    return means
