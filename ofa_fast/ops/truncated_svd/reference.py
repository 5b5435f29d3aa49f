"""The definition of the truncated SVD, in plain torch."""

from __future__ import annotations

import torch


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading ``rank`` triples; float16 and bfloat16 are computed and returned in float32."""
    require_finite(matrix)
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    sign = signs(vh[:rank])
    return u[:, :rank] * sign.T, s[:rank], vh[:rank] * sign


def signs(vh: torch.Tensor) -> torch.Tensor:
    """[R, 1] of +-1 that make the entry of largest magnitude (the first of equals) of every row of Vh positive."""
    largest = vh.detach().abs().argmax(dim=1, keepdim=True)
    return torch.where(vh.detach().gather(1, largest) < 0, -1.0, 1.0).to(vh.dtype)


def require_finite(matrix: torch.Tensor) -> None:
    if not torch.stack(torch.aminmax(matrix)).isfinite().all():  # no table of booleans; NaN comes through
        row, column = (~torch.isfinite(matrix)).nonzero()[0].tolist()
        raise ValueError(f"matrix must be finite, got {matrix[row, column].item()} at [{row}, {column}]")
