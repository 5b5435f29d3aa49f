"""Tables of word vectors larger than memory: in one byte a value, on disk while they are read, written in blocks."""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK_VALUES = 1 << 20
_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int16": "I16", "int64": "I64"}


class ByteRows:
    """A table [W, d] in one byte a value, read as float32 rows: ``self[i] = scales[i] * values[i]``.

    ``ByteRows.of`` rounds v to the nearest with ``scales[i] = max |v[i]| / 127``, so that no value is off by more than
    ``max |v[i]| / 254``, but for the rounding of float32 (less than one part in 10,000 of that).

    Args:
        values: [W, d] int8, perhaps memory-mapped.
        scales: [W] float32.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, values: np.ndarray, scales: np.ndarray) -> None:
        self.values, self.scales = values, scales
        self.shape = values.shape
        self.nbytes = values.nbytes + scales.nbytes

    @classmethod
    def of(cls, vectors: np.ndarray) -> ByteRows:
        """Peak extra memory: the result, and 20 MB."""
        scales = row_scales(vectors)
        values = np.empty(vectors.shape, dtype=np.int8)
        for start, block in blocks(vectors):
            values[start : start + len(block)] = to_bytes(block, scales[start : start + len(block)])
        return cls(values, scales)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows) -> np.ndarray:
        return self.values[rows].astype(np.float32) * np.asarray(self.scales[rows])[..., None]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def select(self, rows) -> ByteRows:
        return ByteRows(self.values[rows], self.scales[rows])


def row_scales(vectors: np.ndarray) -> np.ndarray:
    """[W] float32, the largest absolute value of each row, over 127."""
    scales = np.empty(len(vectors), dtype=np.float32)
    for start, block in blocks(vectors):
        scales[start : start + len(block)] = np.abs(block).max(axis=1).astype(np.float32) / np.float32(127)
    return scales


def to_bytes(rows: np.ndarray, scales: np.ndarray) -> np.ndarray:
    steps = rows.astype(np.float64) / np.maximum(scales, np.finfo(np.float32).smallest_subnormal)[:, None]
    return np.clip(np.rint(steps), -127, 127).astype(np.int8)


def blocks(vectors) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) over the table, a million values at a time; pages of a memory map are let go behind them."""
    mapped = getattr(vectors, "values", vectors)
    while not isinstance(mapped, (mmap.mmap, type(None))):
        mapped = getattr(mapped, "_mmap", None) or getattr(mapped, "base", None)
    step = max(1, BLOCK_VALUES // vectors.shape[1])
    for start in range(0, len(vectors), step):
        yield start, vectors[start : start + step]
        if mapped is not None and start % (16 * step) == 0:
            mapped.madvise(mmap.MADV_DONTNEED)


class Rows:
    """Rows of float32 appended in memory, or to an unnamed file in ``folder`` which the finished table maps."""

    def __init__(self, dim: int, folder: str | os.PathLike | None = None) -> None:
        self.dim, self.count = dim, 0
        self.table = np.empty((0, dim), dtype=np.float32)
        self.file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __del__(self) -> None:
        # Where reading was broken off by a refusal.
        if self.file is not None:
            self.file.close()

    def append(self, rows: np.ndarray) -> None:
        if self.file is not None:
            self.file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        else:
            if self.count + len(rows) > len(self.table):
                grown = (self.count + len(rows)) * 5 // 4 + BLOCK_VALUES // self.dim + 1
                self.table.resize((grown, self.dim), refcheck=False)
            self.table[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def finish(self) -> np.ndarray:
        if self.file is None or not self.count:
            self.table.resize((self.count, self.dim), refcheck=False)
            return self.table
        with self.file:
            self.file.flush()
            return np.memmap(self.file, np.float32, "r", shape=(self.count, self.dim))


class Tensor(NamedTuple):
    """An array to be written: its blocks come one after the other."""

    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        return cls(str(array.dtype), array.shape, (array,))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The format of safetensors (8 bytes of length, a header in JSON, the data), holding one block in memory."""
    header, offset = {"__metadata__": dict(metadata)}, 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            for block in tensor.blocks:
                file.write(np.ascontiguousarray(block, dtype=tensor.dtype).data)
