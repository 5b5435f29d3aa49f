"""The rows of the new table: copied, weighted means of neighbours, and random ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from ofa_fast import _native
from ofa_fast.initialization.result import COPIED, RANDOM, SIMILAR

ROWS_PER_STREAM = 1024
ROWS_AT_ONCE = 16_384


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
    for some in blended.split(ROWS_AT_ONCE):
        if len(some):
            rest_of_one = 1 - weights[some].sum(1, keepdim=True)
            out[some] = rest_of_one * out[some] + _mixed(table, neighbors[some], weights[some])
    if len(random):
        DRAWS[rest](out, random, table, seed, first_row)
    return out


def _mixed(table: torch.Tensor, neighbors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return functional.embedding_bag(
        neighbors.clamp_min(0).to(table.device), table, per_sample_weights=weights.to(table.device), mode="sum"
    ).cpu()


def _mean(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    out[random] = _mean_of(table).float().cpu()


def _gaussian(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    """N(mean, covariance): z L with L = diag(√λ) Qᵀ, where Q diag(λ) Qᵀ is the population covariance."""
    mean = _mean_of(table)
    covariance = sum(part.T @ part for part in _centred(table, mean)) / len(table)
    values, vectors = torch.linalg.eigh(covariance)
    root = (values.clamp_min(0).sqrt()[:, None] * vectors.T).float().cpu().numpy()
    mean = mean.float().cpu().numpy()
    for stream in _streams(random, first_row):
        rows, within, normal = _drawn(*stream, table.shape[1], seed, first_row)
        out.numpy()[rows] = (normal @ root + mean)[within]


def _normal(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    """N(mean, population std), column by column."""
    mean, std = (moment.float().cpu().numpy() for moment in _moments(table))

    def draw(stream: tuple[int, np.ndarray]) -> None:
        rows, within, normal = _drawn(*stream, table.shape[1], seed, first_row)
        normal = normal[within]
        normal *= std
        normal += mean
        out.numpy()[rows] = normal

    # Each holds two blocks, which ``needs`` does not count.
    with ThreadPoolExecutor(min(8, torch.get_num_threads())) as workers:
        list(workers.map(draw, _streams(random, first_row)))


def _moments(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population std of the columns, float64, without the whole table in float64."""
    mean = _mean_of(table)
    return mean, (sum(part.square().sum(0) for part in _centred(table, mean)) / len(table)).sqrt()


def _mean_of(table: torch.Tensor) -> torch.Tensor:
    return sum(part.double().sum(0) for part in table.split(ROWS_AT_ONCE)) / len(table)


def _centred(table: torch.Tensor, mean: torch.Tensor) -> Iterator[torch.Tensor]:
    return (part.double() - mean for part in table.split(ROWS_AT_ONCE))


def _streams(random: torch.Tensor, first_row: int) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of each block of 1,024: it has a stream of normal numbers of its own, so that none waits for another."""
    random = random.numpy()
    blocks, starts = np.unique((first_row + random) // ROWS_PER_STREAM, return_index=True)
    return zip(blocks.tolist(), np.split(random, starts[1:]), strict=True)


def _drawn(
    block: int, rows: np.ndarray, width: int, seed: int, first_row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows, their places in the block, and its normal numbers."""
    normal = np.random.default_rng([seed, block]).standard_normal((ROWS_PER_STREAM, width), dtype=np.float32)
    return rows, (first_row + rows) % ROWS_PER_STREAM, normal


def _published(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    values = table.numpy()
    mean, std = _published_moments(values)
    draw = _published_natively if _native.cpu is not None and _draws_as_numpy() else _published_by_numpy
    draw(out, random, mean, std, seed)


def _published_moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``values.mean(0), values.std(0)`` in the same float32 sums, as rows are to be equal and not only close; but
    numpy's ``std`` takes the memory of the whole once more."""
    if values.shape[1] == 1:  # numpy then sums along memory, in another order
        return values.mean(0), values.std(0)
    mean, squares = values.mean(0), np.zeros((1, values.shape[1]), values.dtype)
    for first in range(0, len(values), ROWS_AT_ONCE):
        part = values[first : first + ROWS_AT_ONCE] - mean
        squares = np.concatenate([squares, np.multiply(part, part, out=part)]).sum(0, keepdims=True)
    return mean, np.sqrt(squares[0] / values.dtype.type(len(values)))


def _published_by_numpy(out: torch.Tensor, random: torch.Tensor, mean, std, seed: int) -> None:
    """out[random] = RandomState(seed).normal(mean, std, out.shape)[random], a block of rows at a time."""
    stream = np.random.RandomState(seed)
    bounds = np.searchsorted(random.numpy(), np.arange(0, len(out) + ROWS_PER_STREAM, ROWS_PER_STREAM))
    for block, (begin, end) in enumerate(pairwise(bounds.tolist())):
        rows = random[begin:end]
        draws = stream.normal(mean, std, (min(ROWS_PER_STREAM, len(out) - block * ROWS_PER_STREAM), len(mean)))
        out[rows] = torch.from_numpy(draws[rows.numpy() - block * ROWS_PER_STREAM]).float()


def _published_natively(out: torch.Tensor, random: torch.Tensor, mean, std, seed: int) -> None:
    key = np.random.RandomState(seed).get_state(legacy=False)["state"]["key"].view(np.int32)
    kept = torch.zeros(len(out), dtype=torch.uint8)
    kept[random] = 1
    columns = (torch.from_numpy(values.astype(np.float64)) for values in (mean, std))
    _native.cpu.legacy_normal_rows(torch.from_numpy(key), kept, *columns, out, torch.get_num_threads())


@cache
def _draws_as_numpy() -> bool:
    """Whether the last bits are numpy's, which a compiler that contracts products and sums would change."""
    rows, columns = torch.arange(512), np.linspace(-1.5, 2.5, 32, dtype=np.float32)
    found = torch.empty(2, len(rows), len(columns))
    for out, draw in zip(found, (_published_natively, _published_by_numpy), strict=True):
        draw(out, rows, columns, np.abs(columns), 114514)
    return torch.equal(*found)


DRAWS = {"normal": _normal, "gaussian": _gaussian, "mean": _mean, "published": _published}
