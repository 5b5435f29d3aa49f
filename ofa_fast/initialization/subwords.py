"""Subword vectors: the mean of the vectors of the words in whose tokenisation a subword occurs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from tqdm.auto import tqdm

from ofa_fast import _native
from ofa_fast.initialization import tokenization
from ofa_fast.initialization.sharing import Processes

WORDS_PER_CHUNK = 16_384
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
        kept = (self.ids >= begin) & (self.ids < end)
        before = np.zeros(len(kept) + 1, dtype=np.int64)
        np.cumsum(kept, out=before[1:])
        return self.ids[kept] - begin, before[self.id_starts[self.text_starts]]


def spellings(word: str) -> tuple[str, ...]:
    """How a word may stand in text: inside another, after a space, and capitalised after a space.

    Title case, not upper case: Georgian has upper-case letters that no sentence begins with.
    """
    return word, f" {word}", f" {word[:1].title()}{word[1:]}"


def spellings_for(tokenizer) -> Callable[[str], tuple[str, ...]]:
    """``spellings`` without those that the tokenizer cannot tell from the one after a space."""
    kept = [1]
    for i in (0, 2):
        if tokenization.tells_apart(tokenizer, lambda word: spellings(word)[1], lambda word, i=i: spellings(word)[i]):
            kept.append(i)

    def texts(word: str) -> tuple[str, ...]:
        every = spellings(word)
        return tuple(dict.fromkeys(every[i] for i in kept))

    return texts


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
    texts_of = published_spellings if parity else spellings_for(tokenizer)
    index = list(index)
    tokenization.warn_if_slow(tokenizer, 3 * len(index))
    encode = tokenization.batch_encoder(tokenizer)
    with tqdm(total=len(index), desc=name, disable=not progress) as bar:
        for first in range(0, len(index), WORDS_PER_CHUNK * processes.size):
            begin = first + WORDS_PER_CHUNK * processes.rank
            texts = list(map(texts_of, index[begin : begin + WORDS_PER_CHUNK]))
            bounds = row_starts[begin : begin + len(texts) + 1]
            yield from filter(None, processes.exchange(texts and _chunk(encode, texts, rows, bounds)))
            bar.update(min(WORDS_PER_CHUNK * processes.size, len(index) - first))


def _chunk(encode, texts: list[tuple[str, ...]], rows: np.ndarray, bounds: np.ndarray) -> _Chunk:
    text_starts = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(list(map(len, texts)), out=text_starts[1:])
    ids, id_starts = encode(list(chain.from_iterable(texts)))
    return _Chunk(rows[bounds[0] : bounds[-1]], bounds - bounds[0], ids, id_starts, text_starts)


def covered_subwords(
    tokenizer, word_vectors, *, languages=None, parity=False, progress=False, processes=ALONE
) -> np.ndarray:
    """Which subwords occur in a word of ``word_vectors``: [V] bool, from tokenisation alone."""
    _checked(word_vectors)
    covered = np.zeros(len(tokenization.tokens_by_id(tokenizer)), dtype=bool)
    for chunk in _occurrences(tokenizer, word_vectors, languages, parity, progress, "Tokenising words", processes):
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
    sums, totals = torch.zeros(end - begin, dim, dtype=torch.float64), torch.zeros(end - begin, dtype=torch.float64)
    for chunk in chunks:
        values = torch.from_numpy(np.asarray(vectors[chunk.rows], dtype=np.float32))
        _add(values, torch.from_numpy(chunk.row_starts), *map(torch.from_numpy, chunk.within(begin, end)), sums, totals)
    sums, totals = sums.numpy(), totals.numpy()
    special = [i - begin for i in tokenization.special_ids(tokenizer) if begin <= i < end]
    sums[special] = 0.0
    sums /= np.maximum(totals, 1)[:, None]
    return sums.astype(np.float32)


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


def _occurrences_of(chunk: _Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _published_means(chunks: Iterator[_Chunk], vectors: np.ndarray, size: int) -> np.ndarray:
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
        for begin in range(0, len(members), WORDS_PER_CHUNK):
            terms = vectors[members[begin : begin + WORDS_PER_CHUNK]].astype(np.float64) * weight
            terms[0] += means[subword]
            means[subword] = terms.sum(axis=0)
    return means
