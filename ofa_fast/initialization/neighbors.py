"""The nearest source subwords of target subwords."""

from __future__ import annotations

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
    queries, keys = _unit(queries.numpy()), _unit(keys.numpy())
    some = np.flatnonzero(keys.any(axis=1))
    some = some if len(some) > k else np.arange(len(keys))
    wide = min(k + SCREEN_EXTRA, len(some))
    screened, candidates = topk_similarity(
        torch.from_numpy(queries).float(), torch.from_numpy(keys[some].astype(np.float32)), wide
    )
    candidates = torch.from_numpy(some)[candidates].sort(dim=1).values

    def rescore(begin: int) -> np.ndarray:
        some = slice(begin, begin + ROWS_PER_RESCORING)
        return np.einsum("qd,qcd->qc", queries[some], keys[candidates[some].numpy()])

    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        rescored = list(workers.map(rescore, range(0, len(queries), ROWS_PER_RESCORING)))
    scores, order = torch.from_numpy(np.concatenate(rescored)).sort(dim=1, descending=True, stable=True)
    indices = candidates.gather(1, order)
    if k < len(keys):
        unsure = scores[:, k - 1] - scores[:, min(k, wide - 1)] < 1e-12
        if wide < len(some):
            unsure |= scores[:, k - 1] - screened[:, -1] < 1e-5
        zeros = (scores[:, k - 1] < 1e-5) & (len(some) < len(keys))
        as_numpy = len(keys) <= KEYS_FOR_NUMPY
        all_keys = unsure | zeros if as_numpy else zeros
        for which, among in ((all_keys, np.arange(len(keys))), (unsure & ~all_keys, some)):
            for rows in which.nonzero().flatten().split(FULL_ROWS_PER_CHUNK):
                full = queries[rows.numpy()] @ keys[among].T
                # Among equals numpy takes some, and the published script with it: the same call finds the same ones.
                found = np.argpartition(full, -k, axis=1)[:, -k:] if as_numpy else _lowest(full, k)
                chosen = torch.from_numpy(np.sort(found, axis=1))
                values, order = torch.from_numpy(full).gather(1, chosen).sort(dim=1, descending=True, stable=True)
                scores[rows, :k], indices[rows, :k] = values, torch.from_numpy(among)[chosen.gather(1, order)]
    return scores[:, :k], indices[:, :k]


def _lowest(full: np.ndarray, k: int) -> np.ndarray:
    """The places of the ``k`` largest of each row, of equals (but for the last bits) the lowest."""
    found = np.empty((len(full), k), dtype=np.int64)
    for row, values in enumerate(full):
        least = np.partition(values, -k)[-k]
        above = np.flatnonzero(values > least + 1e-12)
        found[row, : len(above)] = above
        found[row, len(above) :] = np.flatnonzero(np.abs(values - least) <= 1e-12)[: k - len(above)]
    return found
