"""The rows of the new table: copied, weighted means of neighbours, and random ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from ofa_fast.initialization.result import COPIED, RANDOM, SIMILAR

ROWS_PER_STREAM = 1024


def target_rows(
    table: torch.Tensor,
    origin: torch.Tensor,
    sources: torch.Tensor,
    neighbors: torch.Tensor,
    weights: torch.Tensor,
    rest: str,
    seed: int = 0,
    first_row: int = 0,
) -> torch.Tensor:
    """[Vt, R] from ``table`` [Vs, R]; random rows as ``DRAWS[rest]`` makes them.

    A similar row is ``(weights[:, :, None] * table[neighbors]).sum(1)``, without the [n, k, R] product; a copied row is
    this and, for what the weights lack of 1, its source's. Where these are a part of a larger table, ``first_row`` is
    where it begins there.
    """
    out = torch.empty(len(origin), table.shape[1])
    copied, similar, random = ((origin == kind).nonzero().flatten() for kind in (COPIED, SIMILAR, RANDOM))
    out[copied] = table[sources[copied].to(table.device)].cpu()
    blended = copied[weights[copied].any(1)]
    if len(similar):
        out[similar] = _mixed(table, neighbors[similar], weights[similar])
    if len(blended):
        rest_of_one = 1 - weights[blended].sum(1, keepdim=True)
        out[blended] = rest_of_one * out[blended] + _mixed(table, neighbors[blended], weights[blended])
    if len(random):
        DRAWS[rest](out, random, table, seed, first_row)
    return out


def _mixed(table: torch.Tensor, neighbors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return functional.embedding_bag(
        neighbors.clamp_min(0).to(table.device), table, per_sample_weights=weights.to(table.device), mode="sum"
    ).cpu()


def _mean(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    out[random] = table.double().mean(0).float().cpu()


def _gaussian(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    """N(mean, covariance): z L with L = diag(√λ) Qᵀ, where Q diag(λ) Qᵀ is the population covariance."""
    values = table.double()
    values, vectors = torch.linalg.eigh(torch.cov(values.T, correction=0).reshape(values.shape[1], -1))
    root = (values.clamp_min(0).sqrt()[:, None] * vectors.T).float().cpu().numpy()
    mean = table.double().mean(0).float().cpu().numpy()
    for rows, within, normal in _streams(random, table.shape[1], seed, first_row):
        out.numpy()[rows] = (normal @ root + mean)[within]


def _normal(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    """N(mean, population std), column by column."""
    mean, std = (t.float().cpu().numpy() for t in (table.double().mean(0), table.double().std(0, correction=0)))
    for rows, within, normal in _streams(random, table.shape[1], seed, first_row):
        out.numpy()[rows] = (normal * std + mean)[within]


def _streams(
    random: torch.Tensor, width: int, seed: int, first_row: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A stream of normal numbers for each block of 1,024 rows, so that none waits for another."""
    random = random.numpy()
    blocks, starts = np.unique((first_row + random) // ROWS_PER_STREAM, return_index=True)
    normal = np.empty((ROWS_PER_STREAM, width), dtype=np.float32)
    for block, rows in zip(blocks.tolist(), np.split(random, starts[1:]), strict=True):
        np.random.default_rng([seed, block]).standard_normal(dtype=np.float32, out=normal)
        yield rows, (first_row + rows) % ROWS_PER_STREAM, normal


def _published(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    values = table.numpy()
    # float32 sums of float32 columns, as published: rows are to be equal, not only close.
    draws = np.random.RandomState(seed).normal(values.mean(0), values.std(0), tuple(out.shape))
    out[random] = torch.from_numpy(draws[random.numpy()]).float()


DRAWS = {"normal": _normal, "gaussian": _gaussian, "mean": _mean, "published": _published}
