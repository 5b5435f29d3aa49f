"""Gradients of the scores for fixed indices, in plain torch, and what every backend of them begins with.

The score s of a pair has the gradient k in q, and (k / |k| - s q / |q|) / |q| if it is a cosine; likewise in k. So the
gradient of a row is a weighted sum of the rows that it is paired with, less a multiple of itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

_BLOCK = 1 << 22  # elements of the float64 copies


class Side(NamedTuple):
    """The pairs of each row of queries or of keys, one row after the other and always in one order."""

    rows: torch.Tensor  # [P] int64, of the other table
    starts: torch.Tensor  # [rows + 1] int64, where each row's pairs begin and end
    weights: torch.Tensor  # [P] float64, of the other table's rows
    own: torch.Tensor | None  # [P] float64; their sum is what the row itself is subtracted by; None: by nothing


def sides(grad, queries, keys, scores, indices, metric, needs) -> list[Side | None]:
    """Of the queries and of the keys; None for one that no gradient is asked of."""
    q, k = indices.shape
    weights, own = grad.double(), (None, None)
    if metric == "cosine":
        by_query, by_key = (
            torch.where(norm > 0, 1 / norm, 0.0)
            for norm in (torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) for x in (queries, keys))
        )
        along, by_query, by_key = weights * scores.double(), by_query[:, None], by_key[indices]
        weights = weights * by_query * by_key
        own = along * by_query.square(), along * by_key.square()
    found: list[Side | None] = [None, None]
    if needs[0]:
        starts = torch.arange(0, (q + 1) * k, k, device=keys.device)
        found[0] = Side(
            indices.reshape(-1), starts, weights.reshape(-1), None if own[0] is None else own[0].reshape(-1)
        )
    if needs[1]:
        pairs = indices.reshape(-1).sort(stable=True)
        starts = torch.searchsorted(pairs.values, torch.arange(len(keys) + 1, device=keys.device))
        by_row = (each if each is None else each.reshape(-1)[pairs.indices] for each in (weights, own[1]))
        found[1] = Side(pairs.indices // k, starts, *by_row)
    return found


def backward(grad, queries, keys, scores, indices, metric, needs):
    """Summed in float64 over the pairs in order, a few columns at a time. Itself differentiable."""
    nothing = queries.new_empty(0)
    of_queries, of_keys = sides(grad, queries, keys, scores, indices, metric, needs)
    return (
        _sums(keys, of_queries, queries) if of_queries else nothing,
        _sums(queries, of_keys, keys) if of_keys else nothing,
    )


def _sums(table, side, itself):
    out = torch.empty_like(itself, memory_format=torch.contiguous_format)
    own = None
    if side.own is not None:
        ones = side.own.new_ones(len(table), 1)
        own = _bags(ones, side, side.own)
    width = max(1, _BLOCK // (len(table) + len(itself) + 1))
    for first in range(0, table.shape[1], width):
        columns = slice(first, first + width)
        total = _bags(table[:, columns].double(), side, side.weights)
        out[:, columns] = total if own is None else total - own * itself[:, columns].double()
    return out


def _bags(table, side, weights):
    """Row i of the result is the sum of weights[p] * table[rows[p]] over the pairs p of row i."""
    starts = side.starts[:-1]
    return F.embedding_bag(side.rows, table, starts, mode="sum", per_sample_weights=weights)
