"""The definition of the cross entropy of a factorised tied head, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def factorized_cross_entropy(
    hidden: torch.Tensor,
    coordinates: torch.Tensor,
    basis: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    logits = hidden @ basis.T @ coordinates.T
    if bias is not None:
        logits = logits + bias
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction=reduction)
