"""Reading gensim's saved KeyedVectors without letting the pickle inside run anything."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import pickle
import pickletools
import re
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO

import numpy as np
import torch

from ofa_fast import _native
from ofa_fast.initialization.formats import read_npy, refused_if_damaged

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


def _argument(opcode: pickletools.OpcodeInfo) -> int:
    """What follows the opcode, in the form that ``csrc/pickle_scan.h`` defines."""
    size = 0 if opcode.arg is None else opcode.arg.n
    if size >= 0:
        return size
    if size == pickletools.UP_TO_NEWLINE:
        return 32 + (2 if opcode.name in ("GLOBAL", "INST") else 1)
    return 16 + {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(size, 4)


_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
# Sets, of which one byte makes 216, and registered extensions, which would pass by ``find_class``.
_REFUSED = {"EMPTY_SET", "EXT1", "EXT2", "EXT4"}
_NO_OPCODE = 15 << 4
_ARGUMENTS = [
    _argument(_OPCODES[code]) if code in _OPCODES and _OPCODES[code].name not in _REFUSED else _NO_OPCODE
    for code in range(256)
]


def _check_opcode(stream: BinaryIO, size: int, before: int) -> bool:
    """Step over the opcode at which the stream stands, the ``before``-th of them; whether it is STOP.

    Raises:
        ValueError: the unpickler would take memory for what is not there.
    """
    at = stream.tell()

    def refuse(reason: str) -> None:
        raise ValueError(f"byte {at:,}: {reason}")

    code = stream.read(1)
    if not code:
        refuse("truncated: the pickle has no end")
    if _ARGUMENTS[code[0]] == _NO_OPCODE:
        refuse(f"{_OPCODES[code[0]].name if code[0] in _OPCODES else repr(code)} has no place in such a file")
    opcode = _OPCODES[code[0]]
    kind, n = divmod(_ARGUMENTS[code[0]], 16)
    if kind == 2:
        argument = b"".join(stream.readline() for _ in range(n))
        if argument.count(b"\n") < n:
            refuse(f"truncated: the line of {opcode.name} has no end")
        value = int(argument) if re.fullmatch(rb"\d{1,18}\n", argument) else sys.maxsize
    else:
        argument = stream.read(n)
        if len(argument) < n:
            refuse(f"truncated within {opcode.name}")
        value = int.from_bytes(argument, "little")
    left = size - stream.tell()
    if (kind == 1 or opcode.name == "FRAME") and value > left:
        refuse(f"{opcode.name} announces {value:,} bytes, but {left:,} follow")
    if opcode.name in ("PUT", "LONG_BINPUT") and value > before:
        refuse(f"{opcode.name} gives an object the number {value:,}, where there are {before:,} at most")
    if kind == 1:
        stream.seek(value, os.SEEK_CUR)
    return opcode.name == "STOP"


def _check_opcodes(stream: BinaryIO) -> None:
    """Refuse a pickle of which the unpickler would take more memory than its bytes account for.

    The unpickler's memo is an array up to twice the largest index that a pickle names, whether anything is there or
    not: 9 bytes can take 68 GB.

    Raises:
        ValueError: with the place of the opcode, in bytes from the beginning.
    """
    size, at, before = stream.seek(0, os.SEEK_END), 0, 0
    if _native.cpu is not None and size:
        # Writable, as torch wants it of memory that it shares; it is not written to.
        in_memory = isinstance(stream, io.BytesIO)
        with stream.getbuffer() if in_memory else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as data:
            at, before = _scan(data)
    stream.seek(at)
    while not _check_opcode(stream, size, before):
        before += 1
    stream.seek(0)


def _scan(data: memoryview | mmap.mmap) -> tuple[int, int]:
    # In a function of its own, so that no array still holds the data when its owner lets it go.
    text = torch.from_numpy(np.frombuffer(data, dtype=np.uint8))
    return _native.cpu.pickle_scan(text, torch.tensor(_ARGUMENTS, dtype=torch.uint8))


def _side_array(path: Path, attribute: str) -> np.ndarray:
    if path.suffix == ".gz":
        side = Path(f"{path}.{attribute}.npz")
        with zipfile.ZipFile(side) as archive:
            return read_npy(archive, "val.npy")
    return np.load(f"{path}.{attribute}.npy", mmap_mode="r", allow_pickle=False)


def read_keyed_vectors(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Words [W] and vectors [W, d] of a ``KeyedVectors`` saved by gensim 3 or 4 with ``.save()``.

    The pickle may build plain Python values, numpy arrays and scalars of numbers or text, and gensim's
    ``KeyedVectors`` and ``Vocab`` as inert records. Any other name in it is refused before it is looked up.
    Vectors that gensim put into ``{path}.vectors.npy`` are memory-mapped. What a pickle announces is compared with what
    is there before it is built: peak memory is at most 100 bytes for each byte of the (unzipped) file, which only
    a file of nothing but empty containers comes near.

    Raises:
        ValueError: the file names another object, is damaged, or is not a ``KeyedVectors``.
        FileNotFoundError: the file, or an array that gensim saved beside it, is not there.
    """
    path = Path(path)
    with open(path, "rb") as file:
        stream: BinaryIO = file
        if path.suffix == ".gz":
            stream = io.BytesIO()
            try:
                shutil.copyfileobj(gzip.GzipFile(fileobj=file), stream, 1 << 20)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: damaged gzip file: {error}") from error
        try:
            _check_opcodes(stream)
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
    beside = attributes.get("__numpys")
    for name in ("vectors", "syn0"):
        if isinstance(beside, list) and name in beside:
            with refused_if_damaged(f"{path}: the array {name!r} saved beside it is damaged"):
                attributes[name] = _side_array(path, name)
    vectors = attributes.get("vectors")
    if vectors is None:
        vectors = attributes.get("syn0")
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
        raise ValueError(f"{path}: gensim KeyedVectors without vectors")
    words = next(
        (attributes[name] for name in ("index_to_key", "index2word", "index2entity") if name in attributes), None
    )
    if not isinstance(words, list):
        raise ValueError(f"{path}: gensim KeyedVectors without a list index_to_key or index2word")
    words = list(words)
    # gensim 4 leaves a None and a row at the end for every duplicate that it met in a text file.
    while words and words[-1] is None:
        words.pop()
        vectors = vectors[:-1]
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path}: not every key is text")
    return words, vectors
