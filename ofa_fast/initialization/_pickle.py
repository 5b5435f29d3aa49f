"""Reading gensim's saved KeyedVectors without letting the pickle inside run anything."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO

import numpy as np

# What a damaged stream makes the C unpickler raise; it documents no closed list.
_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class ForeignObjectError(ValueError):
    """A pickle names an object that the restricted reader does not admit."""


class _Record:
    """Stands for any admitted gensim object: a bag of attributes, with no behaviour."""


class _Dtype:
    """A dtype as the pickle describes it: numpy's own ``__setstate__`` trusts flags that turn bytes into pointers."""

    def __init__(self, name: Any, *_: Any) -> None:
        name = name.decode("ascii") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not re.fullmatch(r"[fiub][1248]|U\d{1,6}", name):
            raise ForeignObjectError(f"a numpy array of dtype {name!r}")
        self.value = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in (">", b">"):
            self.value = self.value.newbyteorder(">")


class _Array:
    """An array as the pickle describes it, made only of the bytes that are really there."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
        if not isinstance(dtype, _Dtype):
            raise TypeError("an array without a dtype")
        if isinstance(data, str):
            data = data.encode("latin1")
        self.value = np.frombuffer(data, dtype=dtype.value).reshape(shape, order=order)
        return self


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ForeignObjectError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What each admitted name stands for; made anew for each file: a pickle can set attributes of what it gets."""

    class Record(_Record):
        pass

    table: dict[tuple[str, str], Any] = {
        ("numpy", "dtype"): lambda *args: _Dtype(*args),
        ("numpy", "ndarray"): "numpy.ndarray",
        ("_codecs", "encode"): lambda *args: _encode(*args),
        ("gensim.models.word2vec", "Vocab"): Record,
    }
    for kind in ("", "Word2Vec", "Euclidean", "WordEmbeddings", "Base"):
        table["gensim.models.keyedvectors", f"{kind}KeyedVectors"] = Record
    table["gensim.models.keyedvectors", "Vocab"] = Record
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
        table[f"{core}.multiarray", "scalar"] = lambda dtype, data: _Array().fill(data, dtype, (), "C").value.item()
        table[f"{core}.numeric", "_frombuffer"] = lambda *args: _Array().fill(*args)
    return table


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO) -> None:
        # latin1 is what numpy asks for to read arrays pickled by Python 2.
        super().__init__(stream, encoding="latin1")
        self._table = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._table[module, name]
        except KeyError:
            raise ForeignObjectError(f"the object {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise ForeignObjectError(f"a persistent object {pid!r}")


def _side_array(path: Path, attribute: str) -> np.ndarray:
    if path.suffix == ".gz":
        side = Path(f"{path}.{attribute}.npz")
        with np.load(side, allow_pickle=False) as archive:
            return archive["val"]
    return np.load(f"{path}.{attribute}.npy", mmap_mode="r", allow_pickle=False)


def read_keyed_vectors(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Words [W] and vectors [W, d] of a ``KeyedVectors`` saved by gensim 3 or 4 with ``.save()``.

    The pickle may build plain Python values, numpy arrays and scalars of numbers or text, and gensim's
    ``KeyedVectors`` and ``Vocab`` as inert records. Any other name in it is refused before it is looked up.
    Vectors that gensim put into ``{path}.vectors.npy`` are memory-mapped.

    Raises:
        ValueError: the file names another object, is damaged, or is not a ``KeyedVectors``.
        FileNotFoundError: the file, or an array that gensim saved beside it, is not there.
    """
    path = Path(path)
    with open(path, "rb") as file:
        stream: BinaryIO = file
        if path.suffix == ".gz":
            try:
                stream = io.BytesIO(gzip.decompress(file.read()))
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: damaged gzip file: {error}") from error
        try:
            record = _RestrictedUnpickler(stream).load()
        except ForeignObjectError as error:
            raise ValueError(
                f"{path}: refused, since it holds {shorten(str(error), 200)}: only gensim KeyedVectors and numpy "
                "arrays are read. From a file you trust, load it with gensim and save it with save_word2vec_format()"
            ) from None
        except _DAMAGED as error:
            raise ValueError(f"{path}: not a complete gensim KeyedVectors file: {shorten(str(error), 200)}") from error
    if not isinstance(record, _Record):
        raise ValueError(f"{path}: holds a {type(record).__name__}, not gensim KeyedVectors")

    attributes = {name: value.value if isinstance(value, _Array) else value for name, value in vars(record).items()}
    for name in attributes.get("__numpys", ()):
        if name in ("vectors", "syn0"):
            try:
                attributes[name] = _side_array(path, name)
            except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path}: the array {name!r} saved beside it is damaged: {error}") from error
    vectors = attributes.get("vectors")
    if vectors is None:
        vectors = attributes.get("syn0")
    if not isinstance(vectors, np.ndarray):
        raise ValueError(f"{path}: gensim KeyedVectors without vectors")
    words = next(
        (attributes[name] for name in ("index_to_key", "index2word", "index2entity") if name in attributes), None
    )
    if words is None:
        raise ValueError(f"{path}: gensim KeyedVectors without index_to_key or index2word")
    words = list(words)
    # gensim 4 leaves a None and a row at the end for every duplicate that it met in a text file.
    while words and words[-1] is None:
        words.pop()
        vectors = vectors[:-1]
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path}: not every key is text")
    return words, vectors
