"""The truncated SVD: the five checks, the promises on residual and orthogonality, and steep or deficient spectra."""

from __future__ import annotations

import pytest
import torch
from checks import assert_no_worse, fullgraph, gradcheck, on_every_backend_of, opcheck, run, threads, use

from ofa_fast.ops import truncated_svd
from ofa_fast.ops.truncated_svd import _native_gram, _native_product, eigenpairs, reference

on_every_backend = on_every_backend_of("truncated_svd")
SPECTRA = {
    "flat": lambda d: torch.ones(d, dtype=torch.float64),
    "decaying": lambda d: torch.arange(1, d + 1, dtype=torch.float64) ** -0.7,
    "steep": lambda d: torch.logspace(0, -4.3, d, dtype=torch.float64),
    "huge": lambda d: 1e20 * torch.arange(1, d + 1, dtype=torch.float64) ** -1.0,
    "tiny": lambda d: 1e-25 * torch.arange(1, d + 1, dtype=torch.float64) ** -1.0,
    "deficient": lambda d: (torch.arange(d) < d // 3).double(),
    "zero": lambda d: torch.zeros(d, dtype=torch.float64),
}
SHAPES = {
    "tall": (900, 48, 20),
    "odd": (271, 33, 33),
    "wide": (30, 110, 17),
    "one row": (1, 9, 1),
    "square": (40, 40, 7),
}


def make(n, d, spectrum="decaying", dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    m = min(n, d)
    u = torch.linalg.qr(torch.randn(n, m, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(d, m, generator=generator, dtype=torch.float64)).Q
    return ((u * SPECTRA[spectrum](m)) @ v.T).to(dtype)


def assert_promises(matrix, rank, u, s, vh):
    exact = matrix.double()
    singular = torch.linalg.svdvals(exact)
    optimum = singular[rank:].square().sum().sqrt()
    scale = singular[0].clamp_min(torch.finfo(torch.float64).tiny)
    residual = (exact - (u.double() * s.double()) @ vh.double()).norm()
    rounding = 6e-7 * rank**0.5 * scale  # float32's, LAPACK's included: all that is left where the optimum is 0
    assert residual <= optimum * (1 + 1e-6) + rounding
    eye = torch.eye(rank, dtype=torch.float64)
    assert (u.double().T @ u.double() - eye).abs().max() <= 1e-5
    assert (vh.double() @ vh.double().T - eye).abs().max() <= 1e-5
    assert ((s.double() - singular[:rank]).abs() <= 1e-6 * scale).all()
    assert (s[:-1] >= s[1:]).all()
    largest = vh.abs().argmax(dim=1, keepdim=True)
    assert (vh.gather(1, largest) > 0).all()


@on_every_backend
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_promises(name, shape, spectrum):
    n, d, rank = SHAPES[shape]
    matrix = make(n, d, spectrum)
    with use(name):
        assert_promises(matrix, rank, *truncated_svd(matrix, rank))


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_decomposed_in_float32(name, dtype):
    matrix = make(300, 20).to(dtype)
    with use(name):
        assert_promises(matrix, 9, *truncated_svd(matrix, 9))


@on_every_backend
def test_non_contiguous_duplicate_and_zero_rows(name):
    matrix = make(200, 24)
    matrix[50:100] = matrix[:50]
    matrix[150:160] = 0
    with use(name):
        for layout in (matrix, matrix.T.contiguous().T, torch.stack([matrix, matrix], dim=2)[..., 0], matrix[::3]):
            assert_promises(layout, 11, *truncated_svd(layout, 11))


def invariant(matrix):
    """What does not depend on how close singular values are: a projector onto the leading part, and the values."""
    u, s, vh = truncated_svd(matrix, 5)
    return u @ torch.diag(s) @ vh, s


def invariant_reference(matrix):
    u, s, vh = reference.truncated_svd(matrix, 5)
    return u @ torch.diag(s) @ vh, s


@on_every_backend
@pytest.mark.parametrize("shape", [(60, 12), (9, 31)])
def test_gradients(name, shape):
    matrix = make(*shape).requires_grad_()
    exact = matrix.detach().double().requires_grad_()
    for ours, expected in ((truncated_svd, reference.truncated_svd), (invariant, invariant_reference)):
        arguments = (5,) if ours is truncated_svd else ()
        with use(name):
            _, (grad,) = run(lambda m, f=ours, a=arguments: f(m, *a), (matrix,))
        _, (torchs,) = run(lambda m, f=expected, a=arguments: f(m, *a), (matrix,))
        _, (truth,) = run(lambda m, f=expected, a=arguments: f(m, *a), (exact,))
        assert_no_worse(grad, torchs, truth, slack=64)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_gradcheck(shape):
    gradcheck(lambda m: truncated_svd(m, 3), (make(*shape, dtype=torch.float64).requires_grad_(),))


@on_every_backend
def test_opcheck(name):
    matrix = make(12, 7)
    with use(name):
        parts = torch.ops.ofa_fast.truncated_svd(matrix, 3)
        opcheck(torch.ops.ofa_fast.truncated_svd.default, (matrix, 3))
        opcheck(torch.ops.ofa_fast.truncated_svd_backward.default, (*map(torch.ones_like, parts), matrix, *parts))


@on_every_backend
def test_fullgraph(name):
    with use(name):
        fullgraph(lambda m: truncated_svd(m, 4), (make(40, 9).requires_grad_(),))


def test_float64_truth_on_200_random_shapes():
    generator = torch.Generator().manual_seed(11)
    for _ in range(200):
        n, d = (int(torch.randint(1, high, (), generator=generator)) for high in (600, 90))
        rank = int(torch.randint(1, min(n, d) + 1, (), generator=generator))
        matrix = torch.randn(n, d, generator=generator)
        assert_promises(matrix, rank, *truncated_svd(matrix, rank))


@on_every_backend
def test_dominated_by_one_direction(name):
    """sigma_1 / sigma_R is 1e4, where a Gram matrix of float32 rounding knows nothing of sigma_R."""
    matrix = make(2000, 90).double()
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    spectrum = torch.cat([torch.tensor([1e4]), torch.linspace(2, 1, 89)]).double()
    matrix = ((u * spectrum) @ vh).float()
    with use(name):
        assert_promises(matrix, 30, *truncated_svd(matrix, 30))


def test_memory_mapped(tmp_path):
    expected = make(5000, 40)
    expected.numpy().tofile(tmp_path / "table.bin")
    matrix = torch.from_file(str(tmp_path / "table.bin"), size=5000 * 40).view(5000, 40)
    for ours, other in zip(truncated_svd(matrix, 10), truncated_svd(expected, 10), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("spectrum", ["flat", "decaying", "steep"])
def test_leading_eigenpairs_by_block(monkeypatch, spectrum):
    monkeypatch.setattr(eigenpairs, "FROM", 200)
    exact = make(400, 200, spectrum, torch.float64)
    if spectrum == "flat":
        exact = exact + 0.03 * torch.randn(400, 200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gram = exact.T @ exact
    truth = torch.linalg.eigvalsh(gram).flip(0)
    values, vectors = eigenpairs._by_block(gram, 20)
    assert truth[:20].sum() - values.sum() <= 1e-7 * truth[20:].sum()
    assert (vectors.T @ vectors - torch.eye(20)).abs().max() < 1e-12
    assert (vectors.T @ gram @ vectors - values.diag()).abs().max() < 1e-10 * truth[0]
    assert torch.equal(eigenpairs.leading_eigenpairs(gram, 20)[0], values)


def test_leading_eigenpairs_without_a_block(monkeypatch):
    monkeypatch.setattr(eigenpairs, "FROM", 64)
    deficient = make(100, 64, "deficient", torch.float64)
    for gram in (torch.zeros(64, 64).double(), torch.eye(64).double(), deficient.T @ deficient):
        values, vectors = eigenpairs.leading_eigenpairs(gram, 8)
        assert (values - torch.linalg.eigvalsh(gram).flip(0)[:8]).abs().max() < 1e-12
        assert (vectors.T @ vectors - torch.eye(8)).abs().max() < 1e-12


def test_threads_do_not_change_the_result():
    matrix = make(30_000, 150)
    arguments = matrix, matrix[:150, :70].contiguous(), torch.randn(70, 16)
    with threads(1):
        expected = _native_product(*arguments)
    exact = expected[0].double()
    truth = exact.T @ (exact @ arguments[2].double())
    assert (expected[1] - truth).abs().max() <= 1e-6 * truth.abs().max()
    for count in (2, 5):
        with threads(count):
            assert all(map(torch.equal, _native_product(*arguments), expected))


def test_threads_do_not_change_the_gram_matrix():
    matrix = make(3000, 150)
    with threads(1):
        expected = _native_gram(matrix)
    exact = matrix.double()
    assert (expected - exact.T @ exact).abs().max() <= 1e-6 * expected.abs().max()
    for count in (2, 5):
        with threads(count):
            assert torch.equal(_native_gram(matrix), expected)


@pytest.mark.parametrize(
    ("matrix", "rank", "error", "message"),
    [
        (torch.zeros(4), 1, ValueError, r"matrix must be \[n, d\]"),
        (torch.zeros(4, 3), 0, ValueError, r"rank must lie in \[1, 3\]"),
        (torch.zeros(4, 3), 4, ValueError, r"rank must lie in \[1, 3\]"),
        (torch.zeros(0, 3), 1, ValueError, r"rank must lie in \[1, 0\]"),
        (torch.zeros(4, 3).int(), 1, TypeError, "floating-point"),
        (torch.tensor([[1.0, 2.0], [3.0, float("nan")]]), 1, ValueError, r"matrix must be finite, got nan at \[1, 1\]"),
        (torch.tensor([[1.0, float("inf")], [3.0, 1.0]]), 1, ValueError, r"matrix must be finite, got inf at \[0, 1\]"),
    ],
)
def test_bad_input(matrix, rank, error, message):
    with pytest.raises(error, match=message):
        truncated_svd(matrix, rank)
