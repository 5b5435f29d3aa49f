"""The leading eigenpairs of a large positive semidefinite matrix, cheaper than all of them.

Subspace iteration with a Chebyshev filter (Zhou, Saad, Tiago and Chelikowsky 2006) on a block of R + R / 4 vectors:
the polynomial of degree m is below 1 on [0, b], b being the least Ritz value of the block, and
cosh(m acosh(2 λ / b - 1)) beyond. It runs in float32; Ritz values and residuals are taken in float64, so that float32
costs iterations but no accuracy.
"""

from __future__ import annotations

import torch

FROM = 4096  # rows from which the block is cheaper than LAPACK's eigh
DEGREE = 10
SWEEPS = 8  # about what eigh would take
RANGE = 12  # natural logarithm of the most by which the filter may magnify one vector over another


def leading_eigenpairs(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Descending eigenvalues [R] and eigenvectors [d, R] in float64 of a float64 ``matrix`` [d, d].

    By block where d >= 4,096 and R <= d / 8, as long as the spectrum lets the block converge; else all of them by
    eigh. The sum of the eigenvalues is then within 1e-7 (trace - sum) of its maximum. Peak extra memory: a float32 copy
    of ``matrix`` and 5 d R floats in float64.
    """
    d = len(matrix)
    found = _by_block(matrix, rank) if d >= FROM and 8 * rank <= d else None
    if found is None:
        values, vectors = torch.linalg.eigh(matrix)
        found = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    return found


def _by_block(matrix, rank):
    d, width = len(matrix), rank + max(rank // 4, 16)
    trace = matrix.diagonal().sum()
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(d, width, generator=generator).to(matrix.device)
    block = matrix.float() @ torch.linalg.qr(matrix.float() @ block).Q
    for _ in range(SWEEPS):
        block = torch.linalg.qr(block.double()).Q
        image = matrix @ block
        values, rotation = torch.linalg.eigh(block.T @ image)
        values, rotation = values.flip(0), rotation.flip(1)
        block, image = block @ rotation, image @ rotation
        kept, bound = values[:rank], values[-1]
        if not 0 < bound < kept[-1]:
            return None
        # What the kept vectors still miss lies outside the block, where eigenvalues are at most about `bound`.
        missing = (image[:, :rank] - block[:, :rank] * kept).square().sum(0) / (kept - bound)
        allowed = 1e-7 * (trace - kept.sum())
        if missing.sum() <= allowed:
            return kept, block[:, :rank]
        # Vectors that are done are deflated, or what the filter magnifies most would drown the others in float32.
        done = int((missing <= allowed / rank / 10).long().cumprod(0).sum())
        steps = min(DEGREE, int(RANGE / (2 * values[done] / bound - 1).acosh()))
        if steps * (2 * kept[-1] / bound - 1).acosh() < 1.2:  # a sweep would gain less than a factor of 2
            return None
        fixed = block[:, :done]
        deflated = (matrix - (fixed * values[:done]) @ fixed.T).float()
        rest = _filter(deflated, block[:, done:].float(), steps, bound.item(), values[done].item())
        block = torch.cat([fixed, rest], dim=1)
    return None


def _filter(matrix, block, steps, bound, largest):
    """The Chebyshev polynomial of [0, bound], scaled to 1 at ``largest``, applied to a block of vectors."""
    half = bound / 2
    sigma = first = half / (largest - half)
    before, now = block, (matrix @ block - half * block) * (sigma / half)
    for _ in range(steps - 1):
        following = 1 / (2 / first - sigma)
        before, now = now, (matrix @ now - half * now).mul_(2 * following / half).sub_(before, alpha=sigma * following)
        sigma = following
    return now
