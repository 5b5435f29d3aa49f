"""A budget of memory: what each stage needs, and what is summed at a time so that it fits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# Two chunks of words with their texts, subwords and vectors; the tokenizers' native forms; one chunk of the search.
_CHUNKS = 256 << 20
_PLACE = 160  # bytes: a distinct word's place in a dictionary, its rows
BYTES_OF_A_WORD = 96  # its text and its places in the lists of words and languages
BYTES_OF_A_TOKEN = 320  # its text and its places in the lists and dictionaries of the matching
_LEAST_COLUMNS = 8


def parse_memory(text: str | int) -> int:
    """Bytes of ``8GB``, ``512MiB``, ``8G``, or of a whole number.

    Raises:
        ValueError: the text is none of these, or says less than a byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(text).upper())
    if not found or float(found[1]) == 0:
        raise ValueError(f"memory must be a size such as 8GB or 512MiB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


@dataclass(frozen=True)
class Needs:
    """Bytes that the initialisation takes at most beside what the process holds already, with all columns at once.

    ``per_column`` of ``subwords`` is that of one of the ``columns``.
    """

    fixed: int
    per_column: int
    columns: int
    rest: int

    def peak(self, columns: int | None = None) -> int:
        return max(self.fixed + self.per_column * (columns or self.columns), self.rest)

    @property
    def least(self) -> int:
        return self.peak(min(self.columns, _LEAST_COLUMNS))


def needs(
    target: int,
    source: int,
    rows: int,
    dim: int,
    widths: list[int],
    neighbors: int,
    word_vectors,
    parity: bool,
) -> Needs:
    """For vocabularies of ``target`` and ``source`` tokens, ``rows`` new rows and a table of width ``dim``."""
    results = sum(4 * (rows + source) * width for width in widths) + 2 * rows * (9 + 12 * neighbors) * len(widths)
    # The factors in float32 at the largest rank, and the products that they are made with.
    factors = 4 * source * max(widths) + 16 * dim * dim
    rest = results + factors
    if word_vectors is None:
        return Needs(0, 0, 1, rest)
    words, width = word_vectors.vectors.shape
    held = _PLACE * words + _CHUNKS
    value = 8 if parity else 4
    search = (2 * value * (target + source)) * width + _CHUNKS // 2 + 24 * neighbors * target
    if parity:
        # The subwords of all words, about 10 each in three spellings: as they come, in a row, and their counts.
        return Needs(held + 16 * 16 * words + 8 * (target + source) * width, 0, width, max(rest, search))
    fixed = held + 4 * (target + source) * width
    return Needs(fixed, 8 * max(target, source), width, max(rest, search))


def columns_within(budget: int | None, need: Needs) -> int:
    """How many columns may be summed at a time.

    Raises:
        ValueError: ``budget`` is too small for any; the message says what would do.
    """
    if budget is None:
        return need.columns
    room = budget - resident()
    if room < need.least:
        least = resident() + need.least
        raise ValueError(f"memory is {_say(budget)}, but at least {_say(least)} is needed for these inputs")
    if not need.per_column:
        return need.columns
    columns = (room - need.fixed) // need.per_column
    # As many passes as that takes, all of about the same width.
    passes = -(-need.columns // min(columns, need.columns))
    return -(-need.columns // passes)


def _say(size: int) -> str:
    return f"{np.ceil(size / 1e6):,.0f} MB"
