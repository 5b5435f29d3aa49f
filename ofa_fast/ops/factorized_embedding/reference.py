"""The definition of the factorised embedding lookup, in plain torch."""

from __future__ import annotations

import torch


def factorized_embedding(input_ids: torch.Tensor, coordinates: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    return coordinates[input_ids] @ basis


def backward(
    grad_out: torch.Tensor, input_ids: torch.Tensor, coordinates: torch.Tensor, basis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of coordinates and basis for the gradient of the output, all [N, ...]."""
    grad_coordinates = torch.zeros_like(coordinates).index_add_(0, input_ids, grad_out @ basis.T)
    return grad_coordinates, coordinates[input_ids].T @ grad_out


def check_ids(ids: torch.Tensor, coordinates: torch.Tensor) -> None:
    out_of_range = (ids < 0) | (ids >= len(coordinates))
    if out_of_range.any():
        at = int(out_of_range.nonzero()[0])
        raise IndexError(f"input_ids must lie in [0, {len(coordinates)}), got {int(ids[at])} at position {at}")
