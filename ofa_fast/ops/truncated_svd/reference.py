"""The definition of the truncated SVD, in plain torch."""

from __future__ import annotations

import torch


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading ``rank`` triples; each sign makes the entry of largest magnitude in its row of Vh positive."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    largest = vh.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(vh.gather(1, largest) < 0, -1.0, 1.0).to(vh.dtype)
    return u * sign.T, s, vh * sign
