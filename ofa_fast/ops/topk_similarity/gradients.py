"""Gradients of the scores for fixed indices, in plain torch, and what every backend of them begins with.

The score s of a pair has the gradient k in q, and (k / |k| - s q / |q|) / |q| if it is a cosine; likewise in k. So the
gradient of a row is a weighted sum of the rows that it is paired with, less a multiple of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

_BLOCK = 1 << 22  # elements of the float64 copies


class Side(NamedTuple):
    """The pairs of each row of queries or of keys, one row after the other and always in one order."""

    rows: torch.Tensor  # [P] int64, of the other table
    starts: torch.Tensor  # [rows + 1] int64, where each row's pairs begin and end
    weights: torch.Tensor  # [P] float64, of the other table's rows
    own: (
        torch.Tensor | None
    )  # [P] float64: the sum of a row's is what it is multiplied by and subtracted; None: nothing


def norms(rows: torch.Tensor) -> torch.Tensor:
    """In float64, some rows at a time, as torch copies what it takes the norm of."""
    parts = rows.split(max(1, _BLOCK // max(1, rows.shape[1])))
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])


def sides(
    grad, queries, keys, scores, indices, metric, needs, norms_of: Callable = norms
) -> tuple[Side | None, Side | None]:
    """Of the queries and of the keys; None for one that no gradient is asked of."""
    (q, k), weights, of_queries, of_keys = indices.shape, grad.double(), None, None
    if metric == "cosine":
        by_query, by_key = (torch.where(norm > 0, 1 / norm, 0.0) for norm in map(norms_of, (queries, keys)))
        along, by_query, by_key = weights * scores.double(), by_query[:, None], by_key[indices]
        weights = weights * by_query * by_key
    if needs[0]:
        starts = torch.arange(0, (q + 1) * k, k, device=keys.device)
        own = (along * by_query.square()).reshape(-1) if metric == "cosine" else None
        of_queries = Side(indices.reshape(-1), starts, weights.reshape(-1), own)
    if needs[1]:
        pairs = indices.reshape(-1).sort(stable=True)
        starts = torch.searchsorted(pairs.values, torch.arange(len(keys) + 1, device=keys.device))
        own = (along * by_key.square()).reshape(-1)[pairs.indices] if metric == "cosine" else None
        of_keys = Side(pairs.indices // k, starts, weights.reshape(-1)[pairs.indices], own)
    return of_queries, of_keys


def backward(grad, queries, keys, scores, indices, metric, needs):
    """Summed in float64 over the pairs in order, a few columns at a time. Has a gradient itself."""
    tables, found = (queries, keys), sides(grad, queries, keys, scores, indices, metric, needs)
    grads = [
        torch.empty_like(table, memory_format=torch.contiguous_format) if side else table.new_empty(0)
        for table, side in zip(tables, found, strict=True)
    ]
    own = [
        _bags(side.own.new_ones(len(other), 1), side, side.own) if side and side.own is not None else None
        for side, other in zip(found, (keys, queries), strict=True)
    ]
    width = max(1, _BLOCK // (len(queries) + len(keys) + 1))
    for first in range(0, queries.shape[1], width):
        columns = slice(first, first + width)
        some = [table[:, columns].double() for table in tables]
        for i, side in enumerate(found):
            if side:
                total = _bags(some[1 - i], side, side.weights)
                if own[i] is not None:
                    total -= own[i] * some[i]
                grads[i][:, columns] = total
    return tuple(grads)


def _bags(table, side, weights):
    """Row i of the result is the sum of weights[p] * table[rows[p]] over the pairs p of row i."""
    return F.embedding_bag(side.rows, table, side.starts[:-1], mode="sum", per_sample_weights=weights)
