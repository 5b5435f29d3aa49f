"""Readers of word vectors as word2vec, fastText, GloVe and numpy write them: keys in file order, one row a key."""

from __future__ import annotations

import errno
import gzip
import io
import math
import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from ofa_fast.initialization.fasttext import MAGIC, read_fasttext
from ofa_fast.initialization.storage import ByteRows, Rows, blocks


class Table:
    """Rows keyed by words of which the first of equals stays, as in gensim."""

    def __init__(self, dim: int, limit: int | None, folder: str | os.PathLike | None = None) -> None:
        self.index: dict[str, int] = {}
        self.rows = Rows(dim, folder)
        self.limit = limit

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.index) >= self.limit

    def claim(self, key: str) -> bool:
        """Whether the key is new; then the next row appended is its own."""
        before = len(self.index)
        return self.index.setdefault(key, before) == before

    def claim_all(self, keys: list[str]) -> bool:
        """Whether all keys are new and fit; then the next rows appended are theirs. Else none is claimed."""
        before = len(self.index)
        if self.limit is not None and before + len(keys) > self.limit:
            return False
        if len(set(keys)) < len(keys) or not self.index.keys().isdisjoint(keys):
            return False
        self.index.update(zip(keys, range(before, before + len(keys)), strict=True))
        return True

    def finish(self) -> tuple[list[str], np.ndarray]:
        return list(self.index), self.rows.finish()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped if its name ends in .gz; damage in the compression becomes a ValueError."""
    with open(path, "rb") as file:
        try:
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged or truncated gzip file: {error}") from error


@contextmanager
def refused_if_damaged(what: str) -> Iterator[None]:
    """Whatever zipfile and numpy raise on damage becomes a ValueError; that a file is absent stays what it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{what}: {shorten(str(error), 200)}") from error


def check_finite(name: str, words: list[str], vectors: np.ndarray | ByteRows) -> None:
    # In float64, where no product of a scale and a byte overflows.
    largest = vectors.scales[:, None] * np.float64(128) if isinstance(vectors, ByteRows) else None
    parts = blocks(vectors) if largest is None else [(0, np.where(largest > np.finfo(np.float32).max, np.inf, largest))]
    for start, part in parts:
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(f"{name}: the vector of word {row + 1}, {words[row]!r}, holds NaN or infinity")


def decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the word {raw[:40]!r} is not UTF-8 ({error.reason} at byte {error.start})") from None


def read_binary(
    path: Path, limit: int | None = None, progress: bool = False, folder: str | os.PathLike | None = None
) -> tuple[list[str], np.ndarray]:
    """A fastText model, or word2vec binary: a header line, then each word, a space and its float32 values."""
    with opened(path) as stream:
        if path.suffix == ".gz":
            return _parse_binary(stream.read(), path, limit, progress, folder)
        if os.path.getsize(path) == 0:
            raise ValueError(f"{path}: the file is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse_binary(data, path, limit, progress, folder)


def _parse_binary(
    data: bytes | mmap.mmap,
    path: Path,
    limit: int | None,
    progress: bool,
    folder: str | os.PathLike | None,
) -> tuple[list[str], np.ndarray]:
    if data[:4] == MAGIC:
        return read_fasttext(data, path, limit, progress, folder)
    end = data.find(b"\n", 0, 64)
    header = re.fullmatch(rb"(\d{1,12}) (\d{1,6})\s*", data[: max(end, 0)])
    if not header or int(header[2]) == 0:
        raise ValueError(
            f"{path}: not word2vec binary: it begins with {bytes(data[:40])!r}, not with a count and a dimension"
        )
    count, dim = int(header[1]), int(header[2])
    table = Table(dim, limit, folder)
    position = end + 1
    for number in tqdm(range(1, count + 1), desc=f"Reading {path.name}", unit=" words", disable=not progress):
        while data[position : position + 1] == b"\n":
            position += 1
        space = data.find(b" ", position, position + 65536)
        following = space + 1 + 4 * dim
        if space < 0 or following > len(data):
            raise ValueError(
                f"{path}, word {number}: truncated or not word2vec binary: {count} words of {dim} values are announced"
            )
        try:
            new = table.claim(decode(data[position:space]))
        except ValueError as error:
            raise ValueError(f"{path}, word {number}: {error}") from None
        if new:
            # A copy, since a view would keep the memory map open.
            table.rows.append(np.frombuffer(data[space + 1 : following], dtype="<f4")[None])
        position = following
        if table.full:
            break
    else:
        if data[position : position + 2].strip(b"\n"):
            raise ValueError(f"{path}: {len(data) - position} bytes after the {count} words its first line announces")
    return table.finish()


def read_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of the archive; one that announces more than is there is refused before memory is taken for it."""
    info = archive.getinfo(name)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        announced = math.prod(shape) * dtype.itemsize
        if announced > info.file_size or info.file_size > 1100 * info.compress_size + 1100:
            raise ValueError(f"{name} announces {announced:,} bytes in a member of {info.compress_size:,}")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def read_npz(path: Path) -> tuple[list[str], np.ndarray, list[str] | None]:
    """``words`` [W] and ``vectors`` [W, d], and ``languages`` [W] if there."""
    with refused_if_damaged(f"{path}: not a readable .npz file"), opened(path) as stream:
        source = io.BytesIO(stream.read()) if path.suffix == ".gz" else stream
        with zipfile.ZipFile(source) as archive:
            names = set(archive.namelist())
            arrays = {
                name: read_npy(archive, f"{name}.npy")
                for name in ("words", "vectors", "languages")
                if f"{name}.npy" in names
            }
    for name in ("words", "vectors"):
        if name not in arrays:
            raise ValueError(f"{path}: expected the arrays 'words' and 'vectors', found no {name!r}")
    for name in set(arrays) - {"vectors"}:
        if arrays[name].dtype.kind != "U" or arrays[name].ndim != 1:
            raise ValueError(
                f"{path}: {name!r} must be one-dimensional text, got {arrays[name].dtype} {arrays[name].shape}"
            )
    languages = arrays["languages"].tolist() if "languages" in arrays else None
    return arrays["words"].tolist(), arrays["vectors"], languages
