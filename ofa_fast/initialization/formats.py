"""Readers of word vectors as word2vec, fastText, GloVe and numpy write them: keys in file order, one row a key."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from ofa_fast.initialization.fasttext import MAGIC, read_fasttext

_BLOCK_VALUES = 1 << 20


class _Table:
    """Rows that grow in place, keyed by words of which the first of equals stays, as in gensim."""

    def __init__(self, dim: int, limit: int | None) -> None:
        self.index: dict[str, int] = {}
        self.rows = np.empty((0, dim), dtype=np.float32)
        self.limit = limit

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.index) >= self.limit

    def claim(self, key: str) -> int | None:
        """The row of a new key, None for one that is there already."""
        if key in self.index:
            return None
        row = self.index[key] = len(self.index)
        if row >= len(self.rows):
            dim = self.rows.shape[1]
            self.rows.resize((row + row // 4 + 1 + _BLOCK_VALUES // dim, dim), refcheck=False)
        return row

    def finish(self) -> tuple[list[str], np.ndarray]:
        self.rows.resize((len(self.index), self.rows.shape[1]), refcheck=False)
        return list(self.index), self.rows


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped if its name ends in .gz; damage in the compression becomes a ValueError."""
    with open(path, "rb") as file:
        try:
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged or truncated gzip file: {error}") from error


def check_finite(name: str, words: list[str], vectors: np.ndarray) -> None:
    step = max(1, _BLOCK_VALUES // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        finite = np.isfinite(vectors[start : start + step]).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(f"{name}: the vector of word {row + 1}, {words[row]!r}, holds NaN or infinity")


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: the word {raw[:40]!r} is not UTF-8 ({error.reason} at byte {error.start})"
        ) from None


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(values: list[bytes], dim: int) -> np.ndarray | None:
    """The numbers of several lines at once, [n, dim], or None where one of them is not a number."""
    with warnings.catch_warnings():
        # numpy announces text that it cannot read as a deprecation, and will raise ValueError later.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            flat = np.fromstring(b" ".join(values), dtype=np.float32, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    return flat.reshape(len(values), dim) if flat.size == len(values) * dim else None


def _split_line(line: bytes, dim: int, where: str) -> tuple[bytes, bytes]:
    """A word, which may hold spaces as some of GloVe's do, and its values as text."""
    word, _, values = line.partition(b" ")
    if word and values.count(b" ") == dim - 1:
        return word, values
    fields = re.split(rb"[ \t]+", line)
    word = b" ".join(fields[:-dim])
    surplus = len(fields) - 1 - dim
    if surplus < 0 or not word or (surplus > 0 and _is_number(fields[-dim - 1])):
        raise ValueError(
            f"{where}: expected a word and {dim} numbers, got {len(fields) - 1} fields after {fields[0][:40]!r}"
        )
    return word, b" ".join(fields[-dim:])


def read_text(path: Path, limit: int | None = None, progress: bool = False) -> tuple[list[str], np.ndarray]:
    """word2vec and fastText text (first line: count and dimension) or GloVe text (no such line)."""
    table: _Table | None = None
    declared: int | None = None
    dim = number = seen = 0
    rows: list[int] = []
    values: list[bytes] = []
    lines: list[int] = []

    def flush() -> None:
        if not values:
            return
        block = _parse(values, dim)
        if block is None or not np.isfinite(block).all():
            for line, text in zip(lines, values, strict=True):
                parsed = _parse([text], dim)
                if parsed is None:
                    raise ValueError(f"{path}, line {line}: expected {dim} numbers, got {text[:60]!r}")
                if not np.isfinite(parsed).all():
                    raise ValueError(f"{path}, line {line}: the vector holds NaN or infinity")
        table.rows[rows] = block
        rows.clear(), values.clear(), lines.clear()

    size = os.path.getsize(path) if path.suffix != ".gz" else None
    with (
        opened(path) as stream,
        tqdm(total=size, unit="B", unit_scale=True, desc=f"Reading {path.name}", disable=not progress) as bar,
    ):
        for number, raw in enumerate(stream, 1):
            bar.update(len(raw))
            line = raw.rstrip(b" \t\r\n")
            where = f"{path}, line {number}"
            if table is None:
                header = re.fullmatch(rb"(\d{1,12})[ \t](\d{1,6})", line)
                if header:
                    declared, dim = int(header[1]), int(header[2])
                else:
                    dim = len(re.findall(rb"[ \t]+", line))
                if dim == 0:
                    raise ValueError(
                        f"{where}: expected a count and a dimension, or a word and its numbers, got {line[:60]!r}"
                    )
                table = _Table(dim, limit)
                if header:
                    continue
            if not line:
                raise ValueError(f"{where}: empty line")
            seen += 1
            if declared is not None and seen > declared:
                raise ValueError(f"{where}: line 1 announces {declared} words, but there are more")
            word, text = _split_line(line, dim, where)
            row = table.claim(_decode(word, where))
            if row is not None:
                rows.append(row), values.append(text), lines.append(number)
                if len(values) * dim >= _BLOCK_VALUES:
                    flush()
            if table.full:
                break
    if table is None:
        raise ValueError(f"{path}: the file is empty")
    flush()
    if declared is not None and seen < declared and not table.full:
        raise ValueError(f"{path}, line {number}: truncated: line 1 announces {declared} words, but only {seen} follow")
    return table.finish()


def read_binary(path: Path, limit: int | None = None, progress: bool = False) -> tuple[list[str], np.ndarray]:
    """A fastText model, or word2vec binary: a header line, then each word, a space and its float32 values."""
    with opened(path) as stream:
        if path.suffix == ".gz":
            return _parse_binary(stream.read(), path, limit, progress)
        if os.path.getsize(path) == 0:
            raise ValueError(f"{path}: the file is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse_binary(data, path, limit, progress)


def _parse_binary(
    data: bytes | mmap.mmap, path: Path, limit: int | None, progress: bool
) -> tuple[list[str], np.ndarray]:
    if data[:4] == MAGIC:
        return read_fasttext(data, path, limit, progress)
    end = data.find(b"\n", 0, 64)
    header = re.fullmatch(rb"(\d{1,12}) (\d{1,6})\s*", data[: max(end, 0)])
    if not header or int(header[2]) == 0:
        raise ValueError(
            f"{path}: not word2vec binary: it begins with {bytes(data[:40])!r}, not with a count and a dimension"
        )
    count, dim = int(header[1]), int(header[2])
    table = _Table(dim, limit)
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
        row = table.claim(_decode(data[position:space], f"{path}, word {number}"))
        if row is not None:
            # A copy, since a view would keep the memory map open.
            table.rows[row] = np.frombuffer(data[space + 1 : following], dtype="<f4")
        position = following
        if table.full:
            break
    else:
        if data[position : position + 2].strip(b"\n"):
            raise ValueError(f"{path}: {len(data) - position} bytes after the {count} words its first line announces")
    return table.finish()


def read_npz(path: Path) -> tuple[list[str], np.ndarray, list[str] | None]:
    """``words`` [W] and ``vectors`` [W, d], and ``languages`` [W] if there."""
    try:
        with opened(path) as stream:
            source = io.BytesIO(stream.read()) if path.suffix == ".gz" else stream
            with np.load(source, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files if name in ("words", "vectors", "languages")}
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: not a readable .npz file: {error}") from error
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
