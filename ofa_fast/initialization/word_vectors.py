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

from ofa_fast._files import atomic_file
from ofa_fast.initialization import formats
from ofa_fast.initialization._pickle import read_keyed_vectors
from ofa_fast.initialization.fasttext import fasttext_rows
from ofa_fast.initialization.keys import first_of_equals, form_key, mostly_prefixed, parse_key
from ofa_fast.initialization.storage import ByteRows, Tensor, blocks, row_scales, to_bytes, write_safetensors
from ofa_fast.initialization.vector_text import read_text

_FORMAT = "ofa-fast word vectors 1"
_DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8}
SUFFIXES = (".vec", ".txt", ".bin", ".wv", ".kv", ".npz", ".safetensors")


class WordVectors:
    """Words, their vectors, and their languages where the file or the caller tells them.

    Attributes:
        words: W words in file order, without language prefix and word-boundary markers.
        vectors: [W, d], float32 or float16, perhaps memory-mapped and then read-only; or ``ByteRows``, in one byte a
            value, whose rows ``vectors[rows]`` are float32.
        languages: one code of three characters (ISO 639-3) a word, or None where nothing tells them.

    Args:
        words: W words.
        vectors: [W, d] of any floating dtype; float16, float32 and ``ByteRows`` are kept without a copy, others become
            float32.
        languages: W codes, one code for all, or None.

    Raises:
        ValueError: the lengths differ, there is no word, a code has not three characters, or a value is not finite.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors: np.ndarray | ByteRows,
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
        return f"WordVectors({len(self)} words{of}, {self.vectors.shape[1]} dimensions, {_stored(self.vectors)})"

    @property
    def keys(self) -> list[str]:
        """The published form of each word, ``deu:$wasser$``; the key as it stood where it was read from a file of keys;
        the bare word where no languages are known."""
        if self.languages is None:
            return list(self.words)
        if self._markup is None:
            return [f"{language}:${word}$" for language, word in zip(self.languages, self.words, strict=True)]
        return list(map(form_key, self.languages, self.words, self._markup.tolist()))

    @classmethod
    def from_keys(cls, keys: Sequence[str], vectors: np.ndarray, *, name: str = "word vectors") -> WordVectors:
        """From keys with language prefixes, as published: ``deu:$wasser$``; a key without a prefix counts as English.

        A key has a prefix if it is longer than 4 characters and its fourth is a colon. ``keys`` returns them unchanged.
        """
        words, languages, markup = [], [], np.empty(len(keys), dtype=np.uint8)
        codes: dict[str, str] = {}  # one string a language, not one a key
        for row, key in enumerate(keys):
            language, word, markup[row] = parse_key(key)
            words.append(word)
            languages.append(codes.setdefault(language, language))
        vectors_of_keys = cls(words, vectors, languages, name=name)
        vectors_of_keys._markup = markup
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
        max_rank: int | None = None,
        folder: str | os.PathLike | None = None,
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
            max_rank: keep the first so many of each language.
            folder: where the rows of text and binary go to an unnamed temporary file, which is then mapped, instead of
                to memory.

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
        _check_limits(max_words=max_words, max_rank=max_rank)
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
            limit = max_words if languages is None and max_rank is None else None
            loaded = cls._of_file(path, *read(path, limit, progress, folder), distinct=True)

        if language is not None:
            if loaded.languages is not None:
                raise ValueError(f"{path}: its words have languages already; choose among them with languages=")
            loaded.languages = [language] * len(loaded)
        try:
            return loaded.select(languages, max_words, max_rank)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _of_file(
        cls,
        path: Path,
        keys: list[str],
        vectors: np.ndarray,
        languages: list[str] | None = None,
        distinct: bool = False,
    ) -> WordVectors:
        if not keys:
            raise ValueError(f"{path}: no words")
        _float_table(vectors, len(keys), str(path))
        identities = keys if languages is None else zip(languages, keys, strict=False)
        rows = range(len(keys)) if distinct else first_of_equals(identities)
        if len(rows) < len(keys):
            keys, vectors = [keys[row] for row in rows], vectors[rows]
            languages = None if languages is None else [languages[row] for row in rows]
        if languages is None and mostly_prefixed(keys):
            return cls.from_keys(keys, vectors, name=str(path))
        return cls(keys, vectors, languages, name=str(path))

    @classmethod
    def from_fasttext(cls, path: str | os.PathLike, words: Sequence[str], language: str | None = None) -> WordVectors:
        """The vectors that a fastText model (``.bin``) has for ``words``, seen in training or not.

        An unseen word has the mean of its character n-grams' rows; the model stays on disk.

        Raises:
            ValueError: not a whole fastText model, or a word that has no vector in it.
        """
        return cls(words, fasttext_rows(Path(path), words), language, name=str(path))

    def select(
        self, languages: Sequence[str] | None = None, max_words: int | None = None, max_rank: int | None = None
    ) -> WordVectors:
        """Those of the given languages, the first ``max_rank`` of each, and of them the first ``max_words``, in order.

        Raises:
            ValueError: no languages are known, one has no word here, or a number is less than 1.
        """
        if isinstance(languages, str):
            raise TypeError(f"languages must be a list of codes, got the string {languages!r}")
        _check_limits(max_words=max_words, max_rank=max_rank)
        rows: Sequence[int] = range(len(self))
        if languages is not None:
            if self.languages is None:
                raise ValueError("the words have no languages to choose from; name theirs with language=")
            known = set(self.languages)
            absent = sorted(set(languages) - known)
            if absent:
                raise ValueError(f"no word in {', '.join(absent)}; there are {', '.join(sorted(known)[:40])}")
            wanted = frozenset(languages)
            rows = [row for row, code in enumerate(self.languages) if code in wanted]
        if max_rank is not None:
            rank = dict.fromkeys(self.languages or (), 0)
            rows = [row for row in rows if _count(rank, self.languages[row]) <= max_rank] if rank else rows[:max_rank]
        rows = rows[:max_words]
        if len(rows) == len(self):
            return self
        chosen = slice(len(rows)) if isinstance(rows, range) else rows
        packed = isinstance(self.vectors, ByteRows)
        kept = WordVectors(
            [self.words[row] for row in rows],
            self.vectors.select(chosen) if packed else self.vectors[chosen],
            None if self.languages is None else [self.languages[row] for row in rows],
        )
        kept._markup = None if self._markup is None else self._markup[chosen]
        return kept

    def astype(self, dtype: np.dtype | type) -> WordVectors:
        """The same words with vectors in float32, float16 or int8 (see ``ByteRows``).

        Raises:
            ValueError: a value is too large for float16.
        """
        with np.errstate(over="ignore"):  # found by the check of the result
            packed = np.dtype(dtype) == np.int8
            table = ByteRows.of(self.vectors) if packed else np.asarray(self.vectors[:], dtype=dtype)
        cast = WordVectors(self.words, table, self.languages)
        cast._markup = self._markup
        return cast

    def save(self, path: str | os.PathLike, dtype: np.dtype | type | None = None) -> None:
        """Write a safetensors file that ``load`` maps into memory; the file is absent or complete.

        Tensors: ``vectors`` [W, d] in ``dtype``: float32, float16 or int8, by default as they are; with int8 also
        ``scales`` float32 [W], where row w is ``scales[w] * vectors[w]`` (see ``ByteRows``); ``words`` uint8, the
        words' UTF-8 bytes joined; ``offsets`` int64 [W + 1], where each begins; ``languages`` int16 [W], indices into
        the list of codes in the metadata; where keys were read, ``markup`` uint8 [W], which of the prefix (1) and of
        the opening (2) and closing (4) ``$`` each key has.

        Peak extra memory: 20 MB, and the words' bytes. A memory-mapped table stays on disk.

        Raises:
            ValueError: another ending than .safetensors, another dtype, or a value too large for float16.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: word vectors are written as .safetensors")
        dtype = _stored(self.vectors) if dtype is None else np.dtype(dtype)
        if dtype not in _DTYPES.values():
            raise ValueError(f"dtype must be float32, float16 or int8, got {dtype}")
        encoded = [word.encode("utf-8", "surrogatepass") for word in self.words]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(word) for word in encoded], out=offsets[1:])
        tensors = {"offsets": Tensor.of(offsets)}
        values = (block for _, block in blocks(self.vectors))
        if dtype == np.int8:
            whole = isinstance(self.vectors, ByteRows)
            scales = self.vectors.scales if whole else row_scales(self.vectors)
            tensors["scales"] = Tensor.of(np.asarray(scales))
            values = (to_bytes(block, scales[at : at + len(block)]) for at, block in blocks(self.vectors))
        elif dtype == np.float16:
            values = (_half(block, self.words, at) for at, block in blocks(self.vectors))
        tensors["vectors"] = Tensor(str(dtype), self.vectors.shape, values)
        metadata = {"format": _FORMAT}
        if self.languages is not None:
            codes = sorted(set(self.languages))
            index = {code: number for number, code in enumerate(codes)}
            tensors["languages"] = Tensor.of(np.array([index[code] for code in self.languages], dtype=np.int16))
            metadata["languages"] = json.dumps(codes)
        tensors["words"] = Tensor.of(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        if self._markup is not None:
            tensors["markup"] = Tensor.of(self._markup)
        with atomic_file(path) as work:
            write_safetensors(work, tensors, metadata)


def _count(counts: dict[str, int], key: str) -> int:
    counts[key] += 1
    return counts[key]


def _check_limits(**limits: int | None) -> None:
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _stored(vectors: np.ndarray | ByteRows) -> np.dtype:
    return vectors.values.dtype if isinstance(vectors, ByteRows) else vectors.dtype


def _half(block: np.ndarray, words: list[str], first: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = block.astype(np.float16)
    if not np.isfinite(half).all():
        row = first + int(np.isfinite(half).all(axis=1).argmin())
        raise ValueError(f"the vector of word {row + 1}, {words[row]!r}, is too large for float16")
    return half


def _float_table(vectors: np.ndarray | ByteRows, words: int, name: str) -> np.ndarray | ByteRows:
    if isinstance(vectors, ByteRows) and len(vectors) == words and vectors.shape[1]:
        return vectors
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
    packed = "vectors" in tensors and tensors["vectors"].dtype == np.int8
    missing |= {"scales"} - set(tensors) if packed else set()
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
    vectors = tensors["vectors"]
    if packed:
        scales = tensors["scales"]
        if scales.dtype != np.float32 or scales.shape != vectors.shape[:1] or vectors.ndim != 2 or (scales < 0).any():
            raise ValueError(f"{path}: {scales.dtype} {scales.shape} are no scales for {vectors.shape} bytes")
        vectors = ByteRows(vectors, scales)
    loaded = WordVectors(words, vectors, languages, name=str(path))
    if "markup" in tensors:
        if len(tensors["markup"]) != len(words) or languages is None:
            raise ValueError(f"{path}: the markup does not fit the {len(words)} words")
        loaded._markup = tensors["markup"]
    return loaded
