"""The definition of the top-k similarity search, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dot(a: torch.Tensor, b: torch.Tensor, lanes: int = 8) -> torch.Tensor:
    """Products along the last axis, in the one order of summation that every backend keeps.

    Lane j of eight adds elements j, j + 8, ... in turn; then lane j + 4 is added to lane j, j + 2 to j, and 1 to 0.
    """
    if lanes > 1:
        return dot(a[..., 0::2], b[..., 0::2], lanes // 2) + dot(a[..., 1::2], b[..., 1::2], lanes // 2)
    total = torch.zeros(torch.broadcast_shapes(a.shape[:-1], b.shape[:-1]), dtype=a.dtype, device=a.device)
    for i in range(a.shape[-1]):
        total = total + a[..., i] * b[..., i]
    return total


def near_one(rows: torch.Tensor) -> torch.Tensor:
    """Each row times a power of two, which leaves cosines as they are and keeps float64 squares in range."""
    exponents = torch.frexp(F.pad(rows.detach(), (0, 1)).abs().amax(1, keepdim=True)).exponent
    return rows * torch.exp2(-exponents.double())


def root(x: torch.Tensor) -> torch.Tensor:
    """The number nearest to the square root; MKL's, which torch takes on a CPU, may be its neighbour."""
    near = x.sqrt()
    high = near * 134217729.0  # 2**27 + 1: Dekker's cut into two halves of 26 bits, whose products are exact
    high = high - (high - near)
    low = near - high
    rest = x - high * high - 2 * high * low - low * low  # x - near * near
    return near + torch.where(near > 0, rest / (2 * near), 0.0).detach()


def topk_similarity(
    queries: torch.Tensor, keys: torch.Tensor, k: int, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort by (score descending, index ascending), in float64; a zero vector has cosine 0 with everything."""
    q, x = queries.double(), keys.double()
    if metric == "cosine":
        q, x = near_one(q), near_one(x)
    scores = dot(q[:, None], x[None])
    if metric == "cosine":
        q_squared, x_squared = dot(q, q)[:, None], dot(x, x)[None]
        nonzero = (q_squared > 0) & (x_squared > 0)
        norms = root(torch.where(q_squared > 0, q_squared, 1.0)) * root(torch.where(x_squared > 0, x_squared, 1.0))
        scores = torch.where(nonzero, scores / norms, 0.0)
    indices = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, indices).to(torch.promote_types(queries.dtype, torch.float32)), indices
