"""The factorised embedding lookup: the five checks, the inputs that break kernels, and the errors."""

from __future__ import annotations

import pytest
import torch
from checks import (
    concurrently,
    fullgraph,
    gradcheck,
    in_every_dtype,
    in_forked_child,
    on_every_backend,
    opcheck,
    threads,
    use,
    values,
)

from ofa_fast.ops import factorized_embedding
from ofa_fast.ops.factorized_embedding import reference

SHAPES = {  # ids' shape, V, R, D
    "small": ((7,), 11, 3, 5),
    "odd": ((3, 19), 53, 17, 37),
    "panels": ((449,), 1000, 64, 96),
    "one token": ((1,), 1, 1, 1),
    "no tokens": ((0, 4), 5, 2, 3),
    "scalar ids": ((), 9, 4, 33),
    "wide": ((250,), 40, 130, 300),
}


def make(shape, v, r, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(v, shape, generator=generator)
    coordinates = torch.randn(v, r, generator=generator, dtype=dtype).requires_grad_()
    basis = torch.randn(r, d, generator=generator, dtype=dtype).requires_grad_()
    return ids, coordinates, basis


@on_every_backend
@in_every_dtype
@pytest.mark.parametrize("shape", SHAPES)
def test_values(name, dtype, shape):
    with use(name):
        values(factorized_embedding, reference.factorized_embedding, make(*SHAPES[shape]), dtype)


@on_every_backend
@in_every_dtype
def test_values_on_difficult_inputs(name, dtype):
    ids, coordinates, basis = make((4, 31), 29, 8, 24)
    cases = {
        "one id throughout": (torch.full_like(ids, 3), coordinates, basis),
        "int32 ids": (ids.int(), coordinates, basis),
        "transposed ids": (ids.T, coordinates, basis),
        "expanded ids": (ids[:, :1].expand(4, 50), coordinates, basis),
        "zero rows": (ids, coordinates.detach().mul(torch.arange(29)[:, None] % 2).requires_grad_(), basis),
        "frozen basis": (ids, coordinates, basis.detach()),
        "frozen coordinates": (ids, coordinates.detach(), basis),
    }
    with use(name):
        for inputs in cases.values():
            values(factorized_embedding, reference.factorized_embedding, inputs, dtype)
            values(factorized_embedding, reference.factorized_embedding, inputs, dtype, stretched=True)


@on_every_backend
def test_non_contiguous_tables(name):
    ids, coordinates, basis = make((40,), 21, 12, 20, torch.float32)
    wide = torch.randn(21, 24)[:, ::2]
    with use(name):
        for f, p in ((coordinates.detach().T.contiguous().T, basis), (wide, basis.detach().T.contiguous().T)):
            torch.testing.assert_close(factorized_embedding(ids, f, p), f[ids] @ p)


def test_gradcheck():
    ids, coordinates, basis = make((9,), 5, 3, 4)
    gradcheck(lambda f, p: factorized_embedding(ids, f, p), (coordinates, basis))


@on_every_backend
def test_opcheck(name):
    ids, coordinates, basis = make((9,), 5, 3, 4, torch.float32)
    tables = coordinates.detach(), basis.detach()
    with use(name):
        opcheck(torch.ops.ofa_fast.factorized_embedding.default, (ids, *tables))
        for sparse in (False, True):
            arguments = torch.randn(9, 4), ids, *tables, 2, sparse, [True, True]
            opcheck(torch.ops.ofa_fast.factorized_embedding_backward.default, arguments)


@on_every_backend
def test_fullgraph(name):
    with use(name):
        fullgraph(factorized_embedding, make((2, 9), 5, 3, 4, torch.float32))


def test_float64_truth_on_200_random_shapes():
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        n, v, r, d = (int(torch.randint(1, high, (), generator=generator)) for high in (300, 400, 70, 130))
        inputs = make((n,), v, r, d)
        values(factorized_embedding, reference.factorized_embedding, inputs, torch.float32)


def test_threads_do_not_change_the_result():
    ids, coordinates, basis = make((3000,), 700, 40, 72, torch.float32)

    def outcome():
        out = factorized_embedding(ids, coordinates, basis)
        return out, *torch.autograd.grad(out.sin().sum(), (coordinates, basis))

    with threads(1):
        expected = outcome()
    for count in (2, 5):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(outcome(), expected, strict=True))


def test_concurrent_calls():
    ids, coordinates, basis = make((2000,), 300, 24, 40, torch.float32)
    expected = coordinates[ids] @ basis
    concurrently(
        lambda: torch.allclose(factorized_embedding(ids, coordinates, basis), expected, atol=1e-4),
        calls=20,
    )


def test_forked_child():
    ids, coordinates, basis = make((500,), 300, 24, 40, torch.float32)
    expected = factorized_embedding(ids, coordinates, basis)  # the parent's threads exist before the fork
    in_forked_child(lambda: torch.equal(factorized_embedding(ids, coordinates, basis), expected))


@on_every_backend
@pytest.mark.parametrize("bad", [-1, 7])
def test_ids_out_of_range(name, bad):
    ids = torch.tensor([0, 6, bad])
    with use(name), pytest.raises(IndexError, match=rf"input_ids must lie in \[0, 7\), got {bad} at position 2"):
        factorized_embedding(ids, torch.randn(7, 2), torch.randn(2, 3))


@pytest.mark.parametrize(
    ("ids", "coordinates", "basis", "error", "message"),
    [
        (torch.zeros(2), torch.zeros(3, 2), torch.zeros(2, 4), TypeError, "input_ids must be int64 or int32"),
        (torch.zeros(2).long(), torch.zeros(3, 2), torch.zeros(3, 4), ValueError, "the same R"),
        (torch.zeros(2).long(), torch.zeros(3), torch.zeros(3, 4), ValueError, r"coordinates must be \[V, R\]"),
        (torch.zeros(2).long(), torch.zeros(3, 2), torch.zeros(2, 4).half(), TypeError, "one floating-point dtype"),
        (torch.zeros(2).long(), torch.zeros(3, 2).int(), torch.zeros(2, 4).int(), TypeError, "floating-point"),
    ],
)
def test_bad_input(ids, coordinates, basis, error, message):
    with pytest.raises(error, match=message):
        factorized_embedding(ids, coordinates, basis)
