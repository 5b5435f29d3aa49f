"""Static word vectors: the external knowledge that places the subwords of two vocabularies in one space."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from textwrap import shorten

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save_file

from ofa_fast._files import atomic_file
from ofa_fast.initialization import formats
from ofa_fast.initialization._pickle import read_keyed_vectors
from ofa_fast.initialization.vector_text import read_text

_PREFIX, _OPENING, _CLOSING = 1, 2, 4
_PUBLISHED = _PREFIX | _OPENING | _CLOSING
_FORMAT = "ofa-fast word vectors 1"
_DTYPES = {"F32": np.float32, "F16": np.float16}
SUFFIXES = (".vec", ".txt", ".bin", ".wv", ".kv", ".npz", ".safetensors")


def _parse_key(key: str) -> tuple[str, str, int]:
    """Language, word and markup of a key such as ``deu:$wasser$``; a key without a prefix is English."""
    language, word, markup = "eng", key, 0
    if len(key) > 4 and key[3] == ":":
        language, word, markup = key[:3], key[4:], _PREFIX
    if len(word) > 1 and word[0] == "$":
        word, markup = word[1:], markup | _OPENING
    if len(word) > 1 and word[-1] == "$":
        word, markup = word[:-1], markup | _CLOSING
    return language, word, markup


def _form_key(language: str, word: str, markup: int) -> str:
    prefix = f"{language}:" if markup & _PREFIX else ""
    return f"{prefix}{'$' * bool(markup & _OPENING)}{word}{'$' * bool(markup & _CLOSING)}"


def _has_prefix(key: str) -> bool:
    return len(key) > 4 and key[3] == ":" and key[:3].isascii() and key[:3].isalpha() and key[:3].islower()


class WordVectors:
    """Words, their vectors, and their languages where the file or the caller tells them.

    Attributes:
        words: W words in file order, without language prefix and word-boundary markers.
        vectors: [W, d], float32 or float16, perhaps memory-mapped and then read-only.
        languages: one code of three characters (ISO 639-3) a word, or None where nothing tells them.

    Args:
        words: W words.
        vectors: [W, d] of any floating dtype; float16 and float32 are kept without a copy, others become float32.
        languages: W codes, one code for all, or None.

    Raises:
        ValueError: the lengths differ, there is no word, a code has not three characters, or a value is not finite.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors: np.ndarray,
        languages: Sequence[str] | str | None = None,
        *,
        name: str = "vectors",
    ) -> None:
        self.words = list(words)
        self.vectors = _float_table(vectors, len(self.words), name)
        if isinstance(languages, str):
            languages = [languages] * len(self.words)
        self.languages = None if languages is None else list(languages)
        self._markup: np.ndarray | None = None
        if not self.words:
            raise ValueError(f"{name}: no words")
        if self.languages is not None:
            if len(self.languages) != len(self.words):
                raise ValueError(f"{name}: {len(self.words)} words, but {len(self.languages)} languages")
            for code in set(self.languages):
                if len(code) != 3:
                    raise ValueError(
                        f"{name}: a language must be a code of three characters such as 'deu', got {code!r}"
                    )
        formats.check_finite(Path(name), self.words, self.vectors)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        of = f" in {len(set(self.languages))} languages" if self.languages else ""
        return f"WordVectors({len(self)} words{of}, {self.vectors.shape[1]} dimensions, {self.vectors.dtype})"

    @property
    def keys(self) -> list[str]:
        """The published form of each word, ``deu:$wasser$``; the key as it stood where it was read from a file of keys;
        the bare word where no languages are known."""
        if self.languages is None:
            return list(self.words)
        if self._markup is None:
            return [f"{language}:${word}$" for language, word in zip(self.languages, self.words, strict=True)]
        return list(map(_form_key, self.languages, self.words, self._markup.tolist()))

    @classmethod
    def from_keys(cls, keys: Sequence[str], vectors: np.ndarray, *, name: str = "word vectors") -> WordVectors:
        """From keys with language prefixes, as published: ``deu:$wasser$``; a key without a prefix counts as English.

        A key has a prefix if it is longer than 4 characters and its fourth is a colon. ``keys`` returns them unchanged.
        """
        languages, words, markup = map(list, zip(*map(_parse_key, keys), strict=True)) if len(keys) else ([], [], [])
        vectors_of_keys = cls(words, vectors, languages, name=name)
        vectors_of_keys._markup = np.array(markup, dtype=np.uint8)
        return vectors_of_keys

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        language: str | None = None,
        languages: Sequence[str] | None = None,
        max_words: int | None = None,
        progress: bool = False,
        skip_bad_lines: bool = False,
    ) -> WordVectors:
        """Read word vectors; the format follows from the name, to which ``.gz`` may be added.

        - ``.vec``, ``.txt``: word2vec or fastText text, with or without the line of count and dimension; GloVe text.
        - ``.bin``: word2vec binary, or a fastText model (not a quantised one).
        - ``.wv``, ``.kv``: ``KeyedVectors`` saved by gensim 3 or 4, without running what the pickle names.
        - ``.npz``: arrays ``words`` [W] and ``vectors`` [W, d], and ``languages`` [W] if known.
        - ``.safetensors``: what ``save`` writes; memory-mapped unless zipped.

        If at least half of the keys begin like ``deu:``, all are taken as published keys (see ``from_keys``). The order
        is the file's; of equal keys the first stays, as in gensim.

        Args:
            language: the code of a file that tells no languages.
            languages: keep the words of these languages only.
            max_words: keep the first so many of what is left.
            progress: show a bar while reading text or binary.
            skip_bad_lines: leave out lines of text that would be refused, and warn how many there were.

        Text is parsed natively on all threads. Peak memory is the result's and some 60 MB; a zipped ``.bin``, ``.npz``
        or ``.safetensors`` is unzipped in memory first.

        Raises:
            ValueError: a name of no known format; a malformed line, count, dimension or encoding, a truncated or empty
                file, NaN or infinity, with the file, the line or word, and the reason; a ``.wv`` or ``.kv`` that holds
                foreign objects; languages that the file does not tell or hold; ``language`` where it tells its own.
            FileNotFoundError: no such file.
        """
        path = Path(path)
        suffix = Path(path.name.removesuffix(".gz")).suffix
        if suffix not in SUFFIXES:
            raise ValueError(f"{path}: expected a name ending in {', '.join(SUFFIXES)} (or one of these and .gz)")
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}")
        if language is not None and len(language) != 3:
            raise ValueError(f"language must be a code of three characters such as 'deu', got {language!r}")
        if path.is_dir():
            raise ValueError(f"{path}: is a folder, expected a file")

        if suffix == ".safetensors":
            loaded = _read_safetensors(path)
        elif suffix == ".npz":
            loaded = cls._of_file(path, *formats.read_npz(path))
        elif suffix in (".wv", ".kv"):
            loaded = cls._of_file(path, *read_keyed_vectors(path))
        else:
            read = formats.read_binary if suffix == ".bin" else partial(read_text, skip_bad_lines=skip_bad_lines)
            loaded = cls._of_file(path, *read(path, max_words if languages is None else None, progress))

        if language is not None:
            if loaded.languages is not None:
                raise ValueError(f"{path}: its words have languages already; choose among them with languages=")
            loaded.languages = [language] * len(loaded)
        try:
            return loaded.select(languages, max_words)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _of_file(
        cls, path: Path, keys: list[str], vectors: np.ndarray, languages: list[str] | None = None
    ) -> WordVectors:
        if not keys:
            raise ValueError(f"{path}: no words")
        _float_table(vectors, len(keys), str(path))
        first: dict = {}
        for row, identity in enumerate(keys if languages is None else zip(languages, keys, strict=False)):
            first.setdefault(identity, row)
        if len(first) < len(keys):
            rows = list(first.values())
            keys, vectors = [keys[row] for row in rows], vectors[rows]
            languages = None if languages is None else [languages[row] for row in rows]
        if languages is None and 2 * sum(map(_has_prefix, keys)) >= len(keys):
            return cls.from_keys(keys, vectors, name=str(path))
        return cls(keys, vectors, languages, name=str(path))

    def select(self, languages: Sequence[str] | None = None, max_words: int | None = None) -> WordVectors:
        """Those of the given languages, and of them the first ``max_words``, in the same order.

        Raises:
            ValueError: no languages are known, one has no word here, or ``max_words`` is less than 1.
        """
        if isinstance(languages, str):
            raise TypeError(f"languages must be a list of codes, got the string {languages!r}")
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}")
        if languages is None:
            rows = range(len(self))[:max_words]
        elif self.languages is None:
            raise ValueError("the words have no languages to choose from; name theirs with language=")
        else:
            known = set(self.languages)
            absent = sorted(set(languages) - known)
            if absent:
                raise ValueError(f"no word in {', '.join(absent)}; there are {', '.join(sorted(known)[:40])}")
            wanted = frozenset(languages)
            rows = [row for row, code in enumerate(self.languages) if code in wanted][:max_words]
        if len(rows) == len(self):
            return self
        chosen = slice(len(rows)) if isinstance(rows, range) else rows
        kept = WordVectors(
            [self.words[row] for row in rows],
            self.vectors[chosen],
            None if self.languages is None else [self.languages[row] for row in rows],
        )
        kept._markup = None if self._markup is None else self._markup[chosen]
        return kept

    def astype(self, dtype: np.dtype | type) -> WordVectors:
        """The same words with vectors in float16 or float32.

        Raises:
            ValueError: a value is too large for float16.
        """
        with np.errstate(over="ignore"):  # found by the check of the result
            cast = WordVectors(self.words, np.asarray(self.vectors, dtype=dtype), self.languages)
        cast._markup = self._markup
        return cast

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file that ``load`` maps into memory; the file is absent or complete.

        Tensors: ``vectors`` [W, d]; ``words`` uint8, the words' UTF-8 bytes joined; ``offsets`` int64 [W + 1], where
        each begins; ``languages`` int16 [W], indices into the list of codes in the metadata; where keys were read,
        ``markup`` uint8 [W], which of the prefix (1) and of the opening (2) and closing (4) ``$`` each key has.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: word vectors are written as .safetensors")
        encoded = [word.encode("utf-8", "surrogatepass") for word in self.words]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(word) for word in encoded], out=offsets[1:])
        tensors = {
            "vectors": np.ascontiguousarray(self.vectors),
            "words": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "offsets": offsets,
        }
        metadata = {"format": _FORMAT}
        if self.languages is not None:
            codes = sorted(set(self.languages))
            index = {code: number for number, code in enumerate(codes)}
            tensors["languages"] = np.array([index[code] for code in self.languages], dtype=np.int16)
            metadata["languages"] = json.dumps(codes)
        if self._markup is not None:
            tensors["markup"] = self._markup
        with atomic_file(path) as work:
            save_file(tensors, work, metadata)


def _float_table(vectors: np.ndarray, words: int, name: str) -> np.ndarray:
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind != "f":
        got = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise ValueError(f"{name}: vectors must be a floating-point array [W, d], got {got}")
    if len(vectors) != words:
        raise ValueError(f"{name}: {words} words, but {len(vectors)} vectors")
    if vectors.dtype in (np.float16, np.float32):
        return vectors
    return vectors.astype(np.float32)


def _read_safetensors(path: Path) -> WordVectors:
    try:
        if path.suffix == ".gz":
            with formats.opened(path) as stream:
                data = stream.read()
            tensors = load_tensors(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        else:
            with safe_open(path, framework="np") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys() if name != "vectors"}  # noqa: SIM118
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            if "vectors" in header and header["vectors"]["dtype"] in _DTYPES and 0 not in header["vectors"]["shape"]:
                entry = header["vectors"]
                tensors["vectors"] = np.memmap(
                    path, _DTYPES[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
                )
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or truncated safetensors file: {shorten(str(error), 200)}") from error
    missing = {"vectors", "words", "offsets"} - set(tensors)
    if missing:
        raise ValueError(f"{path}: not ofa-fast word vectors: no usable tensor {', '.join(sorted(missing))}")

    offsets, raw = tensors["offsets"], tensors["words"].tobytes()
    divides = offsets.ndim == 1 and offsets.size and offsets[0] == 0 and offsets[-1] == len(raw)
    if not divides or (np.diff(offsets) < 0).any():
        raise ValueError(f"{path}: the offsets do not divide the {len(raw)} bytes of words")
    bounds = offsets.tolist()
    try:
        words = [raw[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(bounds)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a word is not UTF-8: {error}") from error
    languages = None
    if "languages" in tensors:
        codes = json.loads(header.get("__metadata__", {}).get("languages", "[]"))
        indices = tensors["languages"]
        if len(indices) and (indices.min() < 0 or indices.max() >= len(codes)):
            raise ValueError(f"{path}: a word's language is not among the {len(codes)} listed")
        languages = [codes[index] for index in indices.tolist()]
    loaded = WordVectors(words, tensors["vectors"], languages, name=str(path))
    if "markup" in tensors:
        if len(tensors["markup"]) != len(words) or languages is None:
            raise ValueError(f"{path}: the markup does not fit the {len(words)} words")
        loaded._markup = tensors["markup"]
    return loaded
