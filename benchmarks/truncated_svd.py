"""The leading 400 triples of a vocabulary table."""

from __future__ import annotations

import torch

from benchmarks.harness import Contest
from ofa_fast.ops import truncated_svd

SIZES = {
    "250,002 x 768, R 400, decaying": (250_002, 768, 400, 0.5),
    "250,002 x 768, R 400, flat": (250_002, 768, 400, 0.0),
    "small: 2,000 x 64, R 16": (2_000, 64, 16, 0.5),
}


def contest(n: int, d: int, rank: int, power: float) -> Contest:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, d + 1.0) ** -power
    matrix = torch.randn(n, d, generator=generator) @ (
        torch.linalg.qr(torch.randn(d, d, generator=generator)).Q * spectrum
    )

    def lowrank():
        u, s, v = torch.svd_lowrank(matrix, q=rank + 10, niter=2)
        return u, s, v.T

    entries = {
        "ofa-fast": lambda: truncated_svd(matrix, rank),
        "torch.svd_lowrank": lowrank,
        "torch.linalg.svd": lambda: torch.linalg.svd(matrix, full_matrices=False),
    }
    try:
        from sklearn.decomposition import PCA
        from sklearn.utils.extmath import randomized_svd
    except ImportError:
        pass
    else:
        array = matrix.numpy()

        def randomized():
            return tuple(map(torch.from_numpy, randomized_svd(array, rank, random_state=0)))

        def covariance():
            pca = PCA(rank, svd_solver="covariance_eigh")
            scores = pca.fit_transform(array)
            return scores / pca.singular_values_, pca.singular_values_, pca.components_

        entries["sklearn randomized_svd"] = randomized
        entries["sklearn PCA covariance_eigh"] = covariance

    exact = torch.zeros(d, d, dtype=torch.float64)
    for part in matrix.split(20_000):
        exact += part.double().T @ part.double()
    values = torch.linalg.eigvalsh(exact).flip(0)
    optimum, total = values[rank:].sum().sqrt(), values.sum()

    def error(result):
        """The residual over the optimal one, minus 1, of the subspace that the right vectors span."""
        v = torch.linalg.qr(torch.as_tensor(result[2])[:rank].double().T).Q
        return float((total - ((exact @ v) * v).sum()).clamp_min(0).sqrt() / optimum - 1)

    return Contest(entries, error, operations=float(n) * d * d + 2.0 * n * d * rank)
