"""The definition of the top-k similarity search, in plain torch."""

from __future__ import annotations

import torch


def topk_similarity(
    queries: torch.Tensor, keys: torch.Tensor, k: int, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort by (score descending, index ascending), in float64; a zero vector has cosine 0 with everything."""
    q, x = queries.double(), keys.double()
    scores = q @ x.T
    if metric == "cosine":
        norms = q.norm(dim=1)[:, None] * x.norm(dim=1)[None, :]
        scores = torch.where(norms > 0, scores / norms, 0.0)
    indices = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, indices).to(queries.dtype), indices
