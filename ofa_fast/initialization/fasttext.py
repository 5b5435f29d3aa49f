"""Reader of fastText's own binary models: a word's vector is the mean of its row and those of its character n-grams."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ofa_fast.initialization.storage import Rows

MAGIC = struct.pack("<i", 793712314)
_END_OF_SENTENCE = b"</s>"
_WORDS_AT_ONCE = 1024
_LONGEST_NGRAM = 1000  # fastText's default is 6


class _Ngrams(NamedTuple):
    """Lengths of the n-grams that have rows, how many rows these are, and the number of the first."""

    shortest: int
    longest: int
    rows: int
    first: int


class _Model(NamedTuple):
    """The words of a model and how often each occurred, its table of rows, and which of them are those of n-grams."""

    words: list[bytes]
    counts: np.ndarray
    table: np.ndarray
    ngrams: _Ngrams


class FastText:
    """A model as ``fasttext`` saved it, mapped into memory: a vector for any text, an unseen one included.

    Attributes:
        words: its words in the order of the file, most frequent first.
        counts: [W] int64, how often each occurred in the text that the model was trained on.
        dim: d.

    Raises:
        ValueError: not a fastText model, another version, a quantised model, or a truncated file.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        path = Path(path)
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        if data[:4] != MAGIC:
            raise ValueError(f"{path}: not a fastText model: it begins with {bytes(data[:40])!r}")
        self._model = _read_model(data, path)
        self._known = {word: row for row, word in enumerate(self._model.words)}
        self.words = [word.decode("utf-8", "ignore") for word in self._model.words]
        self.counts, self.dim = self._model.counts, self._model.table.shape[1]

    def index(self, words: Sequence[str]) -> np.ndarray:
        """[n] int64: the number of each word, -1 where the model has seen none such."""
        return np.array([self._known.get(word.encode("utf-8", "surrogatepass"), -1) for word in words], dtype=np.int64)

    def vectors(self, words: Sequence[str]) -> np.ndarray:
        """[n, d] float32: the mean of a word's own row, if it has one, and its n-grams'; zeros where it has neither."""
        out = np.zeros((len(words), self.dim), dtype=np.float32)
        for start in range(0, len(words), _WORDS_AT_ONCE):
            some = slice(start, start + _WORDS_AT_ONCE)
            out[some] = np.nan_to_num(self.means(words[some]), copy=False, nan=0.0)
        return out

    def means(self, words: Sequence[str]) -> np.ndarray:
        """As ``vectors``, but NaN where a word has neither."""
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        return _means(self._model, encoded, self.index(words))


def read_fasttext(
    data: bytes | mmap.mmap,
    path: Path,
    limit: int | None = None,
    progress: bool = False,
    folder: str | os.PathLike | None = None,
) -> tuple[list[str], np.ndarray]:
    """Words and vectors [W, d] of a model that ``fasttext`` saved (``Dictionary::save``, ``DenseMatrix::save``).

    Raises:
        ValueError: another version, a quantised model, or a truncated file.
    """
    model = _read_model(data, path)
    words, vectors = model.words[:limit], Rows(model.table.shape[1], folder)
    for start in tqdm(range(0, len(words), _WORDS_AT_ONCE), desc=f"Reading {path.name}", disable=not progress):
        some = words[start : start + _WORDS_AT_ONCE]
        vectors.append(_means(model, some, np.arange(start, start + len(some))))
    # fastText cuts overlong words at a byte, perhaps inside a character.
    return [word.decode("utf-8", "replace") for word in words], vectors.finish()


def fasttext_rows(path: Path, words: Sequence[str]) -> np.ndarray:
    """Vectors [n, d] of any words, as fastText gives them: of an unseen one, the mean of the rows of its n-grams."""
    model = FastText(path)
    vectors = Rows(model.dim)
    for start in range(0, len(words), _WORDS_AT_ONCE):
        some = words[start : start + _WORDS_AT_ONCE]
        means = model.means(some)
        if np.isnan(means).any():
            word = some[int(np.isnan(means).any(axis=1).argmax())]
            raise ValueError(f"{path}: no vector for {word!r}: not a word of the model, and no part of it has a row")
        vectors.append(means)
    return vectors.finish()


def _means(model: _Model, words: list[bytes], rows: np.ndarray) -> np.ndarray:
    """The mean of each word's own row, where it is not -1, and its n-grams' rows; NaN where a word has none at all."""
    owner, row = _rows(words, rows, model.ngrams)
    begin = np.flatnonzero(np.diff(owner, prepend=-1))
    means = np.full((len(words), model.table.shape[1]), np.nan, dtype=np.float32)
    if len(row):
        sizes = np.diff(begin, append=len(row))[:, None]
        means[owner[begin]] = np.add.reduceat(model.table[row], begin, axis=0) / sizes
    return means


def _read_model(data: bytes | mmap.mmap, path: Path) -> _Model:
    position = 0

    def take(form: str) -> tuple:
        nonlocal position
        values = struct.unpack_from(f"<{form}", data, position)
        position += struct.calcsize(f"<{form}")
        return values

    encoded: list[bytes] = []
    counts: list[int] = []
    try:
        _, version, dim, *_, model, bucket, shortest, longest, _, _ = take("14id")
        size, word_count, _, _, pruned = take("3i2q")
        if version not in (11, 12):
            raise ValueError(f"{path}: a fastText model of version {version}, expected 11 or 12")
        for number in range(size):
            end = data.find(b"\0", position, position + 65536)
            if end < 0:
                raise ValueError(f"{path}, word {number + 1}: truncated fastText model")
            if number < word_count:
                encoded.append(bytes(data[position:end]))
            position = end + 1
            count, _ = take("qb")
            if number < word_count:
                counts.append(count)
        position += 8 * max(0, pruned)
        quantised, rows, columns = take("?2q")
    except (struct.error, OverflowError):
        raise ValueError(f"{path}: truncated fastText model") from None
    if quantised:
        raise ValueError(f"{path}: a quantised fastText model, which is not read: use the .bin or .vec file instead")
    supervised_without_ngrams = version == 11 and model == 3
    if supervised_without_ngrams or pruned == 0:
        longest = 0
    if longest > 0 and (bucket < 1 or longest > _LONGEST_NGRAM):
        raise ValueError(f"{path}: damaged fastText model: {bucket} rows for n-grams of up to {longest} characters")
    if columns != dim or dim < 1 or rows < word_count + (bucket if longest else 0) or word_count != len(encoded):
        raise ValueError(f"{path}: damaged fastText model: {rows} rows of {columns} for {word_count} words of {dim}")
    if position + 4 * rows * columns > len(data):
        raise ValueError(f"{path}: truncated fastText model: {rows} rows of {columns} values are announced")

    table = np.frombuffer(data, dtype="<f4", count=rows * columns, offset=position).reshape(rows, columns)
    ngrams = _Ngrams(shortest, longest, bucket, word_count)
    return _Model(encoded, np.array(counts, dtype=np.int64), table, ngrams)


def _rows(words: list[bytes], known: np.ndarray, ngrams: _Ngrams) -> tuple[np.ndarray, np.ndarray]:
    """The rows of each word, as (word, row) in the order of the words; ``known`` has each one's own row, or -1.

    An n-gram of ``<word>`` has the row that the 32-bit FNV-1a hash of its UTF-8 bytes, each taken as a signed number,
    gives; single characters have none if they are the brackets, and the end of a sentence has no n-grams.
    """
    own = np.arange(len(words))
    owners, rows = [own[known >= 0]], [known[known >= 0]]
    text = np.frombuffer(b"".join(b"<%b>" % word for word in words), dtype=np.uint8)
    lengths = np.array([len(word) + 2 for word in words])
    begins = (text & 0xC0) != 0x80
    begins[np.cumsum(lengths) - lengths] = True
    at = np.append(np.flatnonzero(begins), len(text))
    word = np.repeat(own, lengths)[at[:-1]]
    last = np.cumsum(np.bincount(word, minlength=len(words)))[word]
    named = np.array([spelling != _END_OF_SENTENCE for spelling in words])[word]
    signed = text.view(np.int8).astype(np.int32).view(np.uint32)

    character = np.flatnonzero(named)
    value = np.full(len(at) - 1, 2166136261, dtype=np.uint32)
    for length in range(1, ngrams.longest + 1):
        character = character[character + length <= last[character]]
        for byte in range(int(np.diff(at).max(initial=0))):
            place = at[character + length - 1] + byte
            inside = place < at[character + length]
            grown = character[inside]
            value[grown] = (value[grown] ^ signed[place[inside]]) * np.uint32(16777619)
        chosen = character
        if length == 1:
            chosen = character[(character + 1 < last[character]) & (np.diff(word, prepend=-1)[character] == 0)]
        if length >= ngrams.shortest:
            owners.append(word[chosen])
            rows.append(ngrams.first + (value[chosen] % np.uint32(ngrams.rows)).astype(np.int64))
    owner, row = np.concatenate(owners), np.concatenate(rows)
    order = np.argsort(owner, kind="stable")
    return owner[order], row[order]
