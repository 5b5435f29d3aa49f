"""The leading triples of a vocabulary table."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import data
from benchmarks.harness import OURS, Contest
from ofa_fast.ops import truncated_svd

LOWRANK, TORCH, NUMPY, SCIPY = "torch.svd_lowrank", "torch.linalg.svd", "numpy.linalg.svd", "scipy.linalg.svd"
AUTOGRAD = "torch's gradient of linalg.svd"
SVDS, RANDOMIZED, COVARIANCE = "scipy.sparse svds", "sklearn randomized_svd", "sklearn PCA covariance_eigh"
DECAYING, FLAT, STEEP = (f"250,002 x 768, R 400, {kind}" for kind in ("decaying", "flat", "steep"))
E5, MINILM = "table of multilingual-e5-small, R 200", "table of all-MiniLM-L6-v2, R 200"
SMALL = "small: 2,000 x 64, R 16"
SIZES = {
    DECAYING: {"kind": "decaying", "without": (SVDS,)},
    FLAT: {"kind": "flat", "without": (TORCH, SCIPY, SVDS)},
    STEEP: {"kind": "steep", "without": (TORCH, NUMPY, SCIPY, SVDS, RANDOMIZED)},
    E5: {"kind": "e5", "rank": 200, "without": (TORCH, SCIPY, SVDS)},
    MINILM: {"kind": "minilm", "rank": 200},
    SMALL: {"kind": "decaying", "n": 2_000, "d": 64, "rank": 16},
}
SPECTRA = {
    "decaying": lambda i, rank: i**-0.5,
    "flat": lambda i, rank: i**0.0,
    "steep": lambda i, rank: 10 ** (-4 * (i - 1) / (rank - 1)),  # the first is 10,000 times the last that is kept
}


def table(kind: str, n: int, d: int, rank: int, folders: Sequence[Path], device: str = "cpu") -> torch.Tensor:
    if kind not in SPECTRA:
        return data.vocabulary_table(kind, folders).to(device)
    generator = torch.Generator(device).manual_seed(0)
    spectrum = SPECTRA[kind](torch.arange(1, d + 1.0, device=device), rank)
    directions = torch.linalg.qr(torch.randn(d, d, generator=generator, device=device)).Q
    return torch.randn(n, d, generator=generator, device=device) @ (directions * spectrum).T


def contest(
    kind: str,
    n: int = 250_002,
    d: int = 768,
    rank: int = 400,
    without: tuple[str, ...] = (),
    device: str = "cpu",
    folders: Sequence[Path] = (),
    backward: bool = False,
) -> Contest:
    """``without``: peers that are left out for their time: from six seconds to more than a minute a call.

    ``backward``: of the gradient of the matrix from those of the triples, instead of the triples.
    """
    matrix = table(kind, n, d, rank, folders, device)
    n, d = matrix.shape
    if backward:
        return _backward_contest(matrix, rank)

    def lowrank():
        u, s, v = torch.svd_lowrank(matrix, q=min(rank + 10, d), niter=2)
        return u, s, v.T

    entries = {
        OURS: lambda: truncated_svd(matrix, rank),
        LOWRANK: lowrank,
        TORCH: lambda: torch.linalg.svd(matrix, full_matrices=False),
    }
    if device == "cpu":
        entries |= _libraries(matrix.numpy(), rank)

    @functools.cache
    def exact():
        gram = torch.zeros(d, d, dtype=torch.float64, device=device)
        for part in matrix.split(20_000):
            gram += part.double().T @ part.double()
        values = torch.linalg.eigvalsh(gram).flip(0)
        return gram, values.sum(), values[rank:].sum().sqrt()

    def errors(result):
        """The residual over the smallest possible one, minus 1, of the subspace that the right vectors span."""
        gram, total, optimum = exact()
        v = torch.linalg.qr(torch.as_tensor(result[2])[:rank].double().T).Q
        return {"residual": float((total - ((gram @ v) * v).sum()).clamp_min(0).sqrt() / optimum - 1)}

    return Contest(
        entries={name: entry for name, entry in entries.items() if name not in without},
        errors=errors,
        operations=float(n) * d * d + 2.0 * n * d * rank,  # half a Gram matrix, and the projection
        traffic=4.0 * (2 * n * d + n * rank + rank * d),
    )


def _backward_contest(matrix: torch.Tensor, rank: int) -> Contest:
    """Beside torch's gradient of its whole decomposition, of which the leading triples are taken."""
    (n, d) = matrix.shape
    generator = torch.Generator(matrix.device).manual_seed(1)
    left, right = (torch.rand(*shape, generator=generator, device=matrix.device) for shape in ((n, 1), (1, d)))

    def gradient_of(decompose, dtype=matrix.dtype):
        leaf = matrix.detach().to(dtype).requires_grad_()
        u, s, vh = decompose(leaf)
        triples = u[:, :rank], s[:rank], vh[:rank]
        # slopes that turn with the signs of the triples, so that these do not matter
        slopes = triples[0].detach() * left, torch.ones_like(triples[1]), triples[2].detach() * right
        return lambda: torch.autograd.grad(triples, leaf, slopes, retain_graph=True)[0]

    @functools.cache
    def exact():
        return gradient_of(lambda leaf: torch.linalg.svd(leaf, full_matrices=False), torch.float64)()

    def errors(result):
        return {"error": float((result - exact()).abs().max() / exact().abs().max())}

    return Contest(
        entries={
            OURS: gradient_of(lambda leaf: truncated_svd(leaf, rank)),
            AUTOGRAD: gradient_of(lambda leaf: torch.linalg.svd(leaf, full_matrices=False)),
        },
        errors=errors,
        operations=4.0 * n * d * d + 4.0 * n * d * rank,
        traffic=4.0 * (2 * n * d + n * rank + rank * d),
    )


def _libraries(array, rank: int) -> dict:
    import numpy as np

    def on_numpy(decompose):
        return lambda: tuple(map(torch.from_numpy, decompose()))

    entries = {NUMPY: on_numpy(lambda: np.linalg.svd(array, full_matrices=False))}
    try:
        import scipy.linalg
        import scipy.sparse.linalg
    except ImportError:
        pass
    else:

        def arpack():
            u, s, vh = scipy.sparse.linalg.svds(array, rank)
            return u[:, ::-1].copy(), s[::-1].copy(), vh[::-1].copy()

        entries[SCIPY] = on_numpy(lambda: scipy.linalg.svd(array, full_matrices=False, check_finite=False))
        entries[SVDS] = on_numpy(arpack)
    try:
        from sklearn.decomposition import PCA
        from sklearn.utils.extmath import randomized_svd
    except ImportError:
        pass
    else:

        def covariance():  # of centred columns, so its residual from the table itself is larger
            pca = PCA(rank, svd_solver="covariance_eigh")
            scores = pca.fit_transform(array)
            return scores / pca.singular_values_, pca.singular_values_, pca.components_

        entries[RANDOMIZED] = on_numpy(lambda: randomized_svd(array, rank, random_state=0))
        entries[COVARIANCE] = on_numpy(covariance)
    return entries
