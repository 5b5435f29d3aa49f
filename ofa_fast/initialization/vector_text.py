"""Reader of word vectors as text: lines of a word and its numbers, parsed natively in blocks."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from ofa_fast import _native
from ofa_fast.initialization.formats import Table, decode, opened
from ofa_fast.initialization.storage import BLOCK_VALUES

BLOCK_BYTES = 1 << 24
LONGEST_WORD = 1 << 16
LONGEST_NUMBER = 64


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(text: bytes, dim: int) -> np.ndarray:
    with warnings.catch_warnings():
        # numpy announces text that it cannot read as a deprecation, and will raise ValueError later.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            row = np.fromstring(text, dtype=np.float32, sep=" ")
        except (DeprecationWarning, ValueError):
            row = np.empty(0)
    if row.size != dim:
        raise ValueError(f"expected {dim} numbers, got {text[:60]!r}")
    if not np.isfinite(row).all():
        raise ValueError("the vector holds NaN or infinity")
    return row


def _parse_line(line: bytes, dim: int) -> tuple[bytes, np.ndarray]:
    """A word, which may hold spaces as some of GloVe's do, and its vector; a ValueError says what is wrong."""
    line = line.rstrip(b" \t\r\n")
    if not line:
        raise ValueError("empty line")
    word, _, values = line.partition(b" ")
    if word and values.count(b" ") == dim - 1:
        return word, _numbers(values, dim)
    fields = re.split(rb"[ \t]+", line)
    word = b" ".join(fields[:-dim])
    surplus = len(fields) - 1 - dim
    if surplus < 0 or not word or (surplus > 0 and _is_number(fields[-dim - 1])):
        raise ValueError(f"expected a word and {dim} numbers, got {len(fields) - 1} fields after {fields[0][:40]!r}")
    return word, _numbers(b" ".join(fields[-dim:]), dim)


def _find_lines(text: torch.Tensor) -> torch.Tensor:
    """Where lines begin, and where the last whole one ends."""
    if _native.cpu is None:
        return torch.cat([torch.zeros(1, dtype=torch.int64), (text == ord("\n")).nonzero().flatten() + 1])
    starts = torch.empty(len(text) + 1, dtype=torch.int64)
    return starts[: _native.cpu.vector_text_find_lines(text, starts) + 1]


def _blocks(stream: BinaryIO, begun: bytes, longest: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Text of whole lines with their starts, [lines + 1]: first of ``begun``, then of the stream, some 16 MB each.

    A line longer than ``longest`` bytes is the last of a block, cut off.
    """
    buffer = torch.empty(max(BLOCK_BYTES, 2 * longest), dtype=torch.uint8)
    view = memoryview(buffer.numpy())
    filled = len(begun)
    view[:filled] = begun
    while True:
        count = stream.readinto(view[filled:-1])
        filled += count
        starts = _find_lines(buffer[:filled])
        end = int(starts[-1])
        cut = filled - end > longest
        if cut or (not count and filled > end):  # the last line of a file may lack its newline
            starts, end = torch.cat([starts, torch.tensor([filled])]), filled
        if len(starts) > 1:
            yield buffer[:end], starts
        if cut or not count:
            return
        view[: filled - end] = bytes(view[end:filled])
        filled -= end


def _parse(text: torch.Tensor, starts: torch.Tensor, dim: int) -> tuple[np.ndarray, list[int]]:
    """Vectors [lines, dim] of plain lines and where their words end, -1 for a line that wants a closer look."""
    rows = torch.empty(len(starts) - 1, dim)
    word_ends = torch.full((len(rows),), -1)
    if _native.cpu is not None:
        _native.cpu.vector_text_parse(text, starts, rows, word_ends, torch.get_num_threads())
    return rows.numpy(), word_ends.tolist()


def _header(line: bytes, where: str) -> tuple[int | None, int]:
    """The announced count of words, None where the file begins with a word, and the dimension."""
    line = line.rstrip(b" \t\r\n")
    header = re.fullmatch(rb"(\d{1,12})[ \t](\d{1,6})", line)
    declared, dim = (int(header[1]), int(header[2])) if header else (None, len(re.findall(rb"[ \t]+", line)))
    if dim == 0:
        raise ValueError(f"{where}: expected a count and a dimension, or a word and its numbers, got {line[:60]!r}")
    return declared, dim


class _Problems:
    """Bad lines: the first ends the reading, or all are counted."""

    def __init__(self, path: Path, skip: bool) -> None:
        self.path, self.skip = path, skip
        self.count, self.first = 0, ""

    def add(self, line: int, reason: str) -> None:
        what = f"{self.path}, line {line}: {reason}"
        if not self.skip:
            raise ValueError(what)
        self.count += 1
        self.first = self.first or what

    def warn(self) -> None:
        if self.count:
            warnings.warn(f"{self.path}: {self.count:,} bad lines skipped; the first: {self.first}", stacklevel=4)


def _plain_words(raw: bytes, starts: list[int], ends: list[int]) -> list[str] | None:
    """The words of lines that are all plain, else None."""
    if min(ends) < 0:
        return None
    try:
        return [raw[begin:end].decode("utf-8") for begin, end in zip(starts, ends, strict=False)]
    except UnicodeDecodeError:
        return None


def _add_lines(
    table: Table, raw: bytes, starts: list[int], rows: np.ndarray, ends: list[int], number: int, problems: _Problems
) -> None:
    """Lines ``raw[starts[i]:starts[i + 1]]`` with line numbers from ``number``; the first of equal words stays."""
    words = _plain_words(raw, starts, ends)
    if words is not None and table.claim_all(words):
        table.rows.append(rows)
        return
    kept = []
    for i, end in enumerate(ends):
        if table.full:
            break
        try:
            if end < 0:
                word, rows[i] = _parse_line(raw[starts[i] : starts[i + 1]], rows.shape[1])
            else:
                word = raw[starts[i] : end]
            if table.claim(decode(word)):
                kept.append(i)
        except ValueError as error:
            problems.add(number + i, str(error))
    table.rows.append(rows[kept] if len(kept) < len(rows) else rows)


def read_text(
    path: Path,
    limit: int | None = None,
    progress: bool = False,
    folder: str | os.PathLike | None = None,
    *,
    skip_bad_lines: bool = False,
) -> tuple[list[str], np.ndarray]:
    """word2vec and fastText text (first line: count and dimension) or GloVe text (no such line)."""
    size = os.path.getsize(path) if path.suffix != ".gz" else None
    problems = _Problems(path, skip_bad_lines)
    with (
        opened(path) as stream,
        tqdm(total=size, unit="B", unit_scale=True, desc=f"Reading {path.name}", disable=not progress) as bar,
    ):
        first = stream.readline(BLOCK_BYTES // 2)
        if not first:
            raise ValueError(f"{path}: the file is empty")
        declared, dim = _header(first, f"{path}, line 1")
        table = Table(dim, limit, folder)
        number = 1 if declared is None else 2
        announced = None if declared is None else number + declared
        longest = LONGEST_WORD + LONGEST_NUMBER * dim
        for text, starts in _blocks(stream, first if declared is None else b"", longest):
            raw = text.numpy().tobytes()
            for some in _overlapping(starts, max(1, BLOCK_VALUES // dim)):
                _add_lines(table, raw, some.tolist(), *_parse(text, some, dim), number, problems)
                number += len(some) - 1
            bar.update(len(raw))
            if table.full or (announced is not None and number > announced):
                break
    if not table.full and announced is not None:
        if number > announced:
            problems.add(announced, f"line 1 announces {declared} words, but there are more")
        elif number < announced:
            only = number - 2
            problems.add(number - 1, f"truncated: line 1 announces {declared} words, but only {only} follow")
    problems.warn()
    return table.finish()


def _overlapping(starts: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
    """Pieces of ``step`` lines, each with the place where its last line ends."""
    for begin in range(0, len(starts) - 1, step):
        yield starts[begin : begin + step + 1]
