"""The rows of the new table: copied, weighted means of neighbours, and random ones."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from ofa_fast.initialization.result import COPIED, RANDOM, SIMILAR

ROWS_PER_STREAM = 1024


def softmax_weights(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(scores / temperature) over the neighbours, float32; padding has weight 0, as does a row of padding."""
    return torch.softmax(scores / temperature, dim=1).nan_to_num_(0.0).float()


def target_rows(
    table: torch.Tensor,
    origin: torch.Tensor,
    sources: torch.Tensor,
    neighbors: torch.Tensor,
    weights: torch.Tensor,
    seed: int | None,
    parity: bool = False,
    first_row: int = 0,
) -> torch.Tensor:
    """[Vt, R] from ``table`` [Vs, R]: random rows drawn with ``seed``, or all the mean row where that is None.

    A similar row is ``(weights[:, :, None] * table[neighbors]).sum(1)``, without the [n, k, R] product. Where these are
    a part of a larger table, ``first_row`` is where it begins there.
    """
    out = torch.empty(len(origin), table.shape[1])
    copied, similar, random = ((origin == kind).nonzero().flatten() for kind in (COPIED, SIMILAR, RANDOM))
    out[copied] = table[sources[copied].to(table.device)].cpu()
    if len(similar):
        out[similar] = functional.embedding_bag(
            neighbors[similar].clamp_min(0).to(table.device),
            table,
            per_sample_weights=weights[similar].to(table.device),
            mode="sum",
        ).cpu()
    if len(random):
        if seed is None:
            out[random] = table.double().mean(0).float().cpu()
        else:
            _draw_published(out, random, table, seed) if parity else _draw(out, random, table, seed, first_row)
    return out


def _draw(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int, first_row: int) -> None:
    """Rows ``random`` of N(mean, population std); a stream for each block of 1,024 rows, so none waits for another."""
    mean, std = (t.float().cpu().numpy() for t in (table.double().mean(0), table.double().std(0, correction=0)))
    random, target = random.numpy(), out.numpy()
    blocks, starts = np.unique((first_row + random) // ROWS_PER_STREAM, return_index=True)
    normal = np.empty((ROWS_PER_STREAM, table.shape[1]), dtype=np.float32)
    for block, rows in zip(blocks.tolist(), np.split(random, starts[1:]), strict=True):
        np.random.default_rng([seed, block]).standard_normal(dtype=np.float32, out=normal)
        target[rows] = (normal * std + mean)[(first_row + rows) % ROWS_PER_STREAM]


def _draw_published(out: torch.Tensor, random: torch.Tensor, table: torch.Tensor, seed: int) -> None:
    values = table.numpy()
    # float32 sums of float32 columns, as published: rows are to be equal, not only close.
    draws = np.random.RandomState(seed).normal(values.mean(0), values.std(0), tuple(out.shape))
    out[random] = torch.from_numpy(draws[random.numpy()]).float()
