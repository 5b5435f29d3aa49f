"""The definition of the truncated SVD, in plain torch."""

from __future__ import annotations

import torch


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading ``rank`` triples, computed in float64: in float32 S itself may be off by more than 1e-6.

    They are returned in float32, of a float64 matrix in float64.
    """
    require_finite(matrix)
    dtype = matrix.dtype if matrix.dtype == torch.float64 else torch.float32
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    sign = signs(vh[:rank])
    return (u[:, :rank] * sign.T).to(dtype), s[:rank].to(dtype), (vh[:rank] * sign).to(dtype)


def signs(vh: torch.Tensor) -> torch.Tensor:
    """[R, 1] of +-1 that make the entry of largest magnitude (the first of equals) of every row of Vh positive."""
    largest = vh.detach().abs().argmax(dim=1, keepdim=True)
    return torch.where(vh.detach().gather(1, largest) < 0, -1.0, 1.0).to(vh.dtype)


def require_finite(matrix: torch.Tensor) -> None:
    if not torch.stack(torch.aminmax(matrix)).isfinite().all():  # no table of booleans; NaN comes through
        row, column = (~torch.isfinite(matrix)).nonzero()[0].tolist()
        raise ValueError(f"matrix must be finite, got {matrix[row, column].item()} at [{row}, {column}]")
