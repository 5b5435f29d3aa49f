"""The nearest source subwords of target subwords."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm.auto import tqdm

from ofa_fast.ops import topk_similarity

QUERIES_PER_CHUNK = 32_768
SCREEN_EXTRA = 22
ROWS_PER_RESCORING = 512
FULL_ROWS_PER_CHUNK = 64
KEYS_FOR_NUMPY = 65_536
FULL_CELLS = FULL_ROWS_PER_CHUNK * KEYS_FOR_NUMPY


def nearest(queries: torch.Tensor, keys: torch.Tensor, k: int, published: bool = False, progress: bool = False):
    """The ``k`` keys of largest cosine for each query: scores [Q, k] float64 and indices [Q, k] int64.

    Sorted by (score descending, index ascending), a zero vector having cosine 0 with everything. Where there are fewer
    than ``k`` keys, the rest is padded with score -inf and index -1. ``published`` ranks float64 inputs on the CPU in
    float64, and decides ties at the last place as the published script does: as numpy on this machine; only among more
    than ``KEYS_FOR_NUMPY`` keys, where that takes up to 0.4 s a tie, by the lowest index.
    """
    have = min(k, len(keys))
    scores = torch.full((len(queries), k), -torch.inf, dtype=torch.float64)
    indices = torch.full((len(queries), k), -1, dtype=torch.int64)
    if have == 0:
        return scores, indices
    search = _search64 if published else topk_similarity
    with tqdm(total=len(queries), desc="Neighbour search", disable=not progress) as bar:
        for begin in range(0, len(queries), QUERIES_PER_CHUNK):
            chunk = slice(begin, begin + QUERIES_PER_CHUNK)
            found = search(queries[chunk], keys, have)
            scores[chunk, :have], indices[chunk, :have] = found[0].double().cpu(), found[1].cpu()
            bar.update(len(found[0]))
    return scores, indices


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return vectors / np.where(lengths > 0, lengths, 1.0)[:, None]


def _search64(queries: torch.Tensor, keys: torch.Tensor, k: int):
    """Top k in float64. A float32 screen keeps a few more; rows that it leaves open, and ties, are done in full.

    Zero vectors, which have cosine 0, are not screened: they count only where the k-th of the others is not above 0.
    """
    some = np.flatnonzero(keys.numpy().any(axis=1))
    some = some if len(some) > k else np.arange(len(keys))
    queries, units = _unit(queries.numpy()), _unit(keys.numpy()[some])
    wide = min(k + SCREEN_EXTRA, len(some))
    screened, candidates = topk_similarity(
        torch.from_numpy(queries).float(), torch.from_numpy(units.astype(np.float32)), wide
    )
    candidates = candidates.sort(dim=1).values

    def rescore(begin: int) -> np.ndarray:
        part = slice(begin, begin + ROWS_PER_RESCORING)
        return np.einsum("qd,qcd->qc", queries[part], units[candidates[part].numpy()])

    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        rescored = list(workers.map(rescore, range(0, len(queries), ROWS_PER_RESCORING)))
    scores, order = torch.from_numpy(np.concatenate(rescored)).sort(dim=1, descending=True, stable=True)
    indices = torch.from_numpy(some)[candidates.gather(1, order)]
    if k < len(keys):
        unsure = scores[:, k - 1] - scores[:, min(k, wide - 1)] < 1e-12
        if len(some) < len(keys):
            unsure |= scores[:, k - 1] < 1e-5
        if wide < len(some):
            unsure |= scores[:, k - 1] - screened[:, -1] < 1e-5
        if not unsure.any():
            return scores[:, :k], indices[:, :k]
        in_full = _as_numpy(keys.numpy(), k) if len(keys) <= KEYS_FOR_NUMPY else _lowest(units, some, len(keys), k)
        for rows in unsure.nonzero().flatten().split(max(1, min(FULL_ROWS_PER_CHUNK, FULL_CELLS // len(keys)))):
            full, chosen = in_full(queries[rows.numpy()])
            chosen = torch.from_numpy(np.sort(chosen, axis=1))
            values, order = torch.from_numpy(full).gather(1, chosen).sort(dim=1, descending=True, stable=True)
            scores[rows, :k], indices[rows, :k] = values, chosen.gather(1, order)
    return scores[:, :k], indices[:, :k]


def _as_numpy(keys: np.ndarray, k: int) -> Callable:
    """All cosines of queries, and the k largest as numpy takes them.

    Among equals it takes some, and the published script with it: the same call finds the same ones.
    """
    keys = _unit(keys)

    def in_full(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        full = queries @ keys.T
        return full, np.argpartition(full, -k, axis=1)[:, -k:]

    return in_full


def _lowest(units: np.ndarray, some: np.ndarray, count: int, k: int) -> Callable:
    """All cosines of queries with ``units``, which are the keys ``some`` of ``count``, and with the others, 0; and the
    k largest, of equals (but for the last bits) the lowest."""

    def in_full(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        full = np.zeros((len(queries), count))
        full[:, some] = queries @ units.T
        chosen = np.empty((len(full), k), dtype=np.int64)
        for row, values in enumerate(full):
            least = np.partition(values[some], -k)[-k]
            least = least if least > 0 else np.partition(values, -k)[-k]
            above = values > least + 1e-12
            equal = np.flatnonzero(~above & (values >= least - 1e-12))
            above = np.flatnonzero(above)
            chosen[row] = np.concatenate([above, equal[: k - len(above)]])
        return full, chosen

    return in_full
