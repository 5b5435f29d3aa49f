"""The SVD's products, by int8 digits on AMX: errors relative to norms, at any magnitude and depth."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, use

from ofa_fast import _native
from ofa_fast.ops._op import workspace

pytestmark = pytest.mark.skipif(_native.cpu is None, reason="these are kernels of the native module")
ISAS = [name for name in BACKENDS if name.startswith("cpu-")]
# Of the product of two norms. Digits are summed exactly; float32 sums of 768 equal numbers are not.
EPSILON = {name: 3e-7 if name == "cpu-amx" else 1e-5 for name in ISAS}


def gram(matrix):
    d = matrix.shape[1]
    out = torch.empty(d, d, dtype=torch.float64)
    _native.cpu.truncated_svd_gram(matrix, out, workspace(_native.cpu.truncated_svd_gram_workspace(d, 2), out), 2)
    return out


def product(matrix, right):
    (d, rank), vectors = right.shape, torch.ones(right.shape[1], 16)
    out, images = torch.empty(len(matrix), rank), torch.empty(rank, 16, dtype=torch.float64)
    scratch = workspace(_native.cpu.truncated_svd_product_workspace(d, rank, 2), out)
    _native.cpu.truncated_svd_product(matrix, right, vectors, out, images, scratch, 2)
    return out


SCALES = {
    "one": lambda m: m,
    "huge": lambda m: m * 1e15,
    "tiny": lambda m: m * 1e-15,
    "near the smallest normal numbers": lambda m: m * 1e-36,
    "columns from 1e-15 to 1e15": lambda m: m * torch.logspace(-15, 15, m.shape[1]),
    "rows from 1e-6 to 1e6": lambda m: m * torch.logspace(-6, 6, len(m))[:, None],
    "one element above all": lambda m: m.index_put((torch.tensor(3), torch.tensor(2)), torch.tensor(1e6)),
    "zero rows and columns": lambda m: m * (torch.arange(len(m)) % 3 > 0)[:, None] * (torch.arange(m.shape[1]) % 5 > 0),
    "constant": lambda m: torch.full_like(m, 0.1),
}


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("rows", "columns"), [(40, 7), (769, 130), (2000, 65)])
def test_gram_matrix(name, scale, rows, columns):
    matrix = SCALES[scale](torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)))
    with use(name):
        found = gram(matrix)
    exact = matrix.double()
    norms = exact.norm(dim=0)
    assert torch.equal(found, found.T)
    assert ((found - exact.T @ exact).abs() <= EPSILON[name] * norms[:, None] * norms + 1e-37).all()


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("scale", [scale for scale in SCALES if "smallest" not in scale])
@pytest.mark.parametrize(("rows", "depth", "rank"), [(40, 7, 3), (300, 130, 65), (9, 90_001, 5)])
def test_product(name, scale, rows, depth, rank):
    generator = torch.Generator().manual_seed(0)
    matrix = SCALES[scale](torch.randn(rows, depth, generator=generator))
    right = torch.randn(depth, rank, generator=generator)
    with use(name):
        found = product(matrix, right)
    exact = matrix.double() @ right.double()
    bound = matrix.double().norm(dim=1)[:, None] * right.double().norm(dim=0)
    assert ((found.double() - exact).abs() <= EPSILON[name] * bound).all()
