"""The truncated SVD of a tall matrix through its Gram matrix, and through QR where that is not accurate enough.

A [n, d] with n >= d: AᵀA = V S² Vᵀ costs n d² / 2 multiplications once, and U = A V / S another n d R. The relative
error of a singular value is about u (S_1 / S_j)² / 2, with u that of the Gram matrix, and U loses orthogonality with
S_1 / S_R. So UᵀU is measured, and where it is not the identity the next more accurate way is taken: the same in
float64, then QR in float64. Of E = UᵀU - I the norms of its rows, no entry being larger, are estimated from E X, for X
of 16 columns of random signs, as ‖E_i X‖ / 4. An estimate below a fifth of the norm has a chance of about 2e-9. A norm
can be sqrt(R) times its largest entry, so where the estimate is too large the entries themselves are measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ofa_fast.ops.truncated_svd.eigenpairs import leading_eigenpairs
from ofa_fast.ops.truncated_svd.reference import require_finite, signs

ORTHOGONALITY = 2e-6  # estimated norm of a row of UᵀU - I: a fifth of the promised 1e-5
ENTRY = 4e-6  # largest entry of UᵀU - I: with float32's rounding this keeps the promised 1e-5
PROBES = 16
PANEL = 8192  # rows that are in float64 at a time


def truncated_svd(
    matrix: torch.Tensor, rank: int, gram: Callable, product: Callable
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [n, R], S [R], Vh [R, d] in float32 of a [n, d] matrix.

    ``gram(A)`` is AᵀA [d, d] in float64, ``product(A, W, X)`` is U = A W [n, R] in float32 and UᵀU X in float64.
    """
    if matrix.shape[0] < matrix.shape[1]:
        v, s, uh = truncated_svd(matrix.T.contiguous(), rank, gram, product)
        sign = signs(v.T)
        return (uh * sign).T.contiguous(), s, v.T * sign
    matrix = matrix.contiguous()

    return (
        _by_gram(matrix, rank, gram, product, 1e-2)
        or _by_gram(matrix, rank, _precise_gram, _precise_product, 1e-6)
        or _by_qr(matrix, rank)
    )


def _in_float64(matrix, right):
    product = matrix.new_empty(len(matrix), right.shape[1], dtype=torch.float32)
    for rows, panel in zip(product.split(PANEL), matrix.split(PANEL), strict=True):
        rows.copy_(panel.double() @ right)
    return product


def _precise_product(matrix, right, vectors):
    u = _in_float64(matrix, right)
    return u, sum(part.T @ (part @ vectors.double()) for part in map(torch.Tensor.double, u.split(PANEL)))


def _precise_gram(matrix):
    gram = matrix.new_zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for panel in matrix.split(PANEL):
        panel = panel.double()
        gram.addmm_(panel.T, panel)
    return gram


def _by_gram(matrix, rank, gram, product, least):
    """The triples, or None where S_R is below ``least`` S_1 or U is not orthonormal."""
    covariance = gram(matrix)
    squares = covariance.diagonal().amax()
    if not squares.isfinite():
        require_finite(matrix)
        return None
    if not squares / len(matrix) > 1e-24:  # products would be lost below the range of float32; also the zero matrix
        return None
    eigenvalues, v = leading_eigenpairs(covariance, rank)
    s = eigenvalues.clamp_min(0).sqrt()
    if s[-1] <= least * s[0]:
        return None
    v = v * signs(v.T.float()).double().T
    vectors = torch.randint(2, (rank, PROBES), generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).float()
    vectors = vectors.to(matrix.device)
    u, images = product(matrix, v / s, vectors)
    error = images.sub_(vectors).square_().mean(dim=1).sqrt_().amax()
    if not error <= ORTHOGONALITY:
        identity = gram(u)
        identity.diagonal().sub_(1)
        if not identity.abs().amax() <= ENTRY:
            return None
    return u, s.float(), v.T.float()


def _by_qr(matrix, rank):
    r = matrix.new_zeros(0, matrix.shape[1], dtype=torch.float64)
    for panel in matrix.split(max(PANEL, 4 * matrix.shape[1])):
        r = torch.linalg.qr(torch.cat([r, panel.double()]), mode="r").R
    _, s, vh = torch.linalg.svd(r, full_matrices=False)
    s, v = s[:rank], vh[:rank].T
    # Below this a direction of A is rounding noise: any orthonormal completion is as good a singular vector.
    kept = int((s > 1e-10 * s[0]).sum()) if s.numel() else 0
    u = _in_float64(matrix, v[:, :kept] / s[:kept])
    u = u if kept == rank else _complete(u, rank)
    sign = signs(v.T.float())
    return u.mul_(sign.T), s.float(), v.T.float() * sign


def _complete(u, rank):
    """Further orthonormal columns, the same for the same input: QR keeps the given ones up to sign."""
    n, kept = u.shape
    generator = torch.Generator().manual_seed(0)
    filler = torch.randn(n, rank - kept, generator=generator, dtype=torch.float64).to(u.device)
    basis = u.double()
    for _ in range(2):
        filler = filler - basis @ (basis.T @ filler)
    return torch.cat([u, torch.linalg.qr(filler).Q.float()], dim=1)
