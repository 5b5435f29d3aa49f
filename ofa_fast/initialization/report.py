"""What an initialisation reports about itself: counts, coverage per script, sizes, hashes, versions."""

from __future__ import annotations

import hashlib
import platform
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from threading import Event

import numpy as np
import torch

from ofa_fast.initialization.result import ORIGINS, RANDOM

# Unicode names begin with the script, save for these.
_SCRIPTS = {
    "CANADIAN": "Canadian Aboriginal",
    "CARON": "Common",
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "MEETEI": "Meetei Mayek",
    "MODIFIER": "Common",
    "NEW": "New Tai Lue",
    "NKO": "N'Ko",
    "OL": "Ol Chiki",
    "PHAGS": "Phags-pa",
    "SYLOTI": "Syloti Nagri",
    "TAI": "Tai",
}


@cache
def _letter_script(character: str) -> str | None:
    if not unicodedata.category(character).startswith("L"):
        return None
    plain = unicodedata.normalize("NFKC", character).strip() or character
    name = unicodedata.name(plain[0], "UNKNOWN").split()[0].split("-")[0]
    return _SCRIPTS.get(name, name.title())


def script(text: str | bytes | None) -> str:
    """The script of the first letter; "Common" without a letter, "Bytes" for part of a character."""
    if text is None or isinstance(text, bytes):
        return "Bytes" if text else "Unused"
    for character in text:
        found = _letter_script(character)
        if found:
            return found
    return "Common"


def coverage(texts: list, origin: np.ndarray) -> dict:
    """Per script, most tokens first: tokens of each origin, and the share that is not random."""
    # Where a token begins tells its script, save for a few.
    heads = [text[:2] if isinstance(text, str) else text for text in texts]
    of_head = {head: script(head) for head in set(heads)}
    scripts = [
        script(text) if of_head[head] == "Common" else of_head[head] for text, head in zip(texts, heads, strict=True)
    ]
    names = sorted(set(scripts))
    place = {name: i for i, name in enumerate(names)}
    of = np.fromiter(map(place.__getitem__, scripts), np.int64, count=len(scripts))
    counts = np.bincount(of * len(ORIGINS) + origin[: len(texts)], minlength=len(names) * len(ORIGINS))
    counts = counts.reshape(len(names), len(ORIGINS))
    return {
        names[i]: {
            "tokens": int(counts[i].sum()),
            **dict(zip(ORIGINS, counts[i].tolist(), strict=True)),
            "coverage": round(1 - float(counts[i, RANDOM] / counts[i].sum()), 4),
        }
        for i in np.argsort(-counts.sum(1), kind="stable")
    }


def parameters(rows: int, rank: int, dim: int, factorized: bool) -> dict:
    """Sizes of the table, factorised and dense, in parameters."""
    stored = rows * rank + rank * dim if factorized else rows * dim
    return {"factorized": stored, "dense": rows * dim, "ratio": round(stored / (rows * dim), 6)}


def array_sha256(array: np.ndarray | torch.Tensor, over: Event | None = None) -> str:
    """Of the bytes, in row order, read a piece at a time: a memory map stays on disk, a GPU's table there.

    Raises:
        CancelledError: ``over`` was set.
    """
    digest = hashlib.sha256()
    step = max(1, (1 << 24) // max(1, array[:1].nbytes))
    for begin in range(0, len(array), step):
        if over is not None and over.is_set():
            raise CancelledError
        piece = array[begin : begin + step]
        if isinstance(piece, torch.Tensor):
            piece = piece.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(piece).data)
    return digest.hexdigest()


def word_vectors_sha256(word_vectors, over: Event | None = None) -> str:
    digest = hashlib.sha256("\n".join(word_vectors.keys).encode("utf-8", "surrogatepass"))
    digest.update(array_sha256(word_vectors.vectors, over).encode())
    return digest.hexdigest()


def versions() -> dict:
    names = ("ofa-fast", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


@contextmanager
def timed(seconds: dict, stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - begin, 4)
