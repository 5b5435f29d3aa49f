"""The factorised embedding lookup: the five checks, the inputs that break kernels, and the errors."""

from __future__ import annotations

import pytest
import torch
from checks import (
    backends_of,
    concurrently,
    fullgraph,
    gradcheck,
    in_every_dtype,
    in_forked_child,
    on_every_backend_of,
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
    "no tokens, many ids": ((0,), 1 << 20, 1, 2),
    "scalar ids": ((), 9, 4, 33),
    "wide": ((250,), 40, 130, 300),
    "even": ((300,), 40, 136, 392),
    "even and deep": ((5,), 7, 680, 16),
    "blocks": ((2100,), 40, 3, 5),
    "crowd": ((33_000,), 40, 3, 5),
    "three digits": ((90,), 5_000_000, 1, 2),
}
on_every_backend = on_every_backend_of("factorized_embedding")
on_every_isa = pytest.mark.parametrize("name", backends_of("factorized_embedding")[1:])


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


@pytest.mark.parametrize(("tokens", "rank", "width"), [(9, 8, 0), (9, 0, 5), (0, 8, 0)])
def test_a_basis_without_entries(tokens, rank, width, device):
    """Which no kernel takes, so that none has to divide by its sizes."""
    ids, *tables = (t.detach().to(device) for t in make((tokens,), 11, rank, width, torch.bfloat16))
    for table in tables:
        table.requires_grad_()
    out = factorized_embedding(ids, *tables)
    grads = torch.autograd.grad(out.sum(), tables)
    assert out.shape == (tokens, width) and not out.any()
    assert all(grad.shape == table.shape and not grad.any() for grad, table in zip(grads, tables, strict=True))


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


def many(hot=3):
    """More distinct ids than are held at a time, and one that a third of all tokens have."""
    ids, coordinates, basis = make((9000,), 5000, 24, 200, torch.float32)
    ids[::3] = hot
    return ids, coordinates, basis


@on_every_backend
def test_values_of_many_ids(name):
    with use(name):
        values(factorized_embedding, reference.factorized_embedding, many(), torch.float32)


@on_every_isa
@in_every_dtype
def test_a_row_does_not_depend_on_the_ids_around_it(name, dtype):
    _, coordinates, basis = make((), 500, 33, 100)
    coordinates, basis = coordinates.detach().to(dtype), basis.detach().to(dtype)
    once = torch.randperm(500)
    with use(name):
        table = factorized_embedding(torch.arange(500), coordinates, basis)
        for ids in (once, once.repeat(3), once[:1], once[:77], once[:130].repeat_interleave(2)):
            assert torch.equal(factorized_embedding(ids, coordinates, basis), table[ids])


@on_every_backend
@in_every_dtype
@pytest.mark.parametrize("padding_idx", [3, -2])
def test_padding_gets_no_gradient(name, dtype, padding_idx):
    def expected(ids, coordinates, basis):
        rows = reference.factorized_embedding(ids, coordinates, basis)
        return torch.where((ids == padding_idx % 29)[..., None], rows.detach(), rows)

    ids, coordinates, basis = make((4, 31), 29, 8, 24)
    for some in (ids, torch.full_like(ids, padding_idx % 29)):
        with use(name):
            values(lambda *i: factorized_embedding(*i, padding_idx), expected, (some, coordinates, basis), dtype)


@on_every_backend
@in_every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_idx", [None, 0])
def test_sparse_gradient_is_the_dense_one(name, dtype, shape, padding_idx):
    ids, coordinates, basis = make(*SHAPES[shape])
    tables = [t.detach().to(dtype).requires_grad_() for t in (coordinates, basis)]
    upstream = torch.randn(*ids.shape, basis.shape[1]).to(dtype)
    with use(name):
        dense, sparse = (
            torch.autograd.grad(factorized_embedding(ids, *tables, padding_idx, sparse), tables, upstream)
            for sparse in (False, True)
        )
    assert sparse[0].layout is torch.sparse_coo and sparse[0].is_coalesced()
    assert torch.equal(sparse[0].indices()[0], ids[ids != padding_idx].unique())
    assert torch.equal(sparse[0].to_dense(), dense[0]) and torch.equal(sparse[1], dense[1])


@pytest.mark.parametrize("optimizer", [torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients_accumulate_and_are_optimised(optimizer):
    ids, coordinates, basis = make((9,), 50, 3, 4, torch.float32)
    twin = coordinates.detach().clone().requires_grad_()
    for table, sparse in ((coordinates, True), (twin, False)):
        step = (optimizer if sparse or optimizer is not torch.optim.SparseAdam else torch.optim.Adam)([table], lr=0.1)
        for some in (ids, ids.flip(0), ids[:4]):
            factorized_embedding(some, table, basis.detach(), sparse=sparse).square().sum().backward()
        step.step()
    assert coordinates.grad.is_sparse and not twin.grad.is_sparse
    torch.testing.assert_close(coordinates.grad.to_dense(), twin.grad)
    torch.testing.assert_close(coordinates, twin)


@on_every_backend
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_result_may_be_changed_in_place(name, shape):
    ids, coordinates, basis = make(shape, 5, 3, 4, torch.float32)
    with use(name):
        out = factorized_embedding(ids, coordinates, basis)
        assert not out._is_view()
        out += 1
        out.square().sum().backward()
    expected = 2 * ((coordinates.detach()[ids] @ basis.detach()) + 1) @ basis.detach().T
    torch.testing.assert_close(coordinates.grad, torch.zeros(5, 3).index_add_(0, ids.flatten(), expected.view(-1, 3)))


@on_every_backend
def test_what_does_not_count_may_be_infinite(name):
    """The gradient of a padded position is not used, not even multiplied with zero."""
    ids, coordinates, basis = make((40,), 7, 12, 20, torch.float32)
    upstream = torch.randn(40, 20)
    outcomes = []
    for padded in (0.0, float("inf"), float("nan")):
        upstream[ids == 3] = padded
        with use(name):
            out = factorized_embedding(ids, coordinates, basis, padding_idx=3)
            outcomes.append(torch.autograd.grad(out, (coordinates, basis), upstream))
    for other in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], other))


def test_large_dense_gradient_is_an_ordinary_tensor():
    ids, coordinates, basis = make((300,), 90_000, 100, 8, torch.float32)  # 36 MB
    factorized_embedding(ids, coordinates, basis).sum().backward()
    expected = torch.zeros_like(coordinates).index_add_(0, ids, basis.detach().sum(1).expand(300, -1))
    torch.testing.assert_close(coordinates.grad, expected)
    factorized_embedding(ids, coordinates, basis).sum().backward()
    torch.nn.utils.clip_grad_norm_([coordinates], 1.0)
    torch.testing.assert_close(coordinates.grad, expected / expected.norm())


def test_gradcheck():
    ids, coordinates, basis = make((9,), 5, 3, 4)
    gradcheck(lambda f, p: factorized_embedding(ids, f, p), (coordinates, basis))
    gradcheck(lambda p: factorized_embedding(ids, coordinates, p, 2, sparse=True), (basis,))


def test_second_derivatives_are_refused():
    ids, coordinates, basis = make((9,), 5, 3, 4)
    (grad,) = torch.autograd.grad(
        factorized_embedding(ids, coordinates, basis).square().sum(), basis, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


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
        for sparse in (False, True):
            fullgraph(lambda *i, s=sparse: factorized_embedding(*i, 1, s), make((2, 9), 5, 3, 4, torch.float32))


def test_float64_truth_on_200_random_shapes():
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        n, v, r, d = (int(torch.randint(1, high, (), generator=generator)) for high in (300, 400, 70, 130))
        inputs = make((n,), v, r, d)
        values(factorized_embedding, reference.factorized_embedding, inputs, torch.float32)


@on_every_isa
def test_threads_do_not_change_the_result(name):
    ids, coordinates, basis = many()

    def outcome():
        out = factorized_embedding(ids, coordinates, basis)
        return out, *torch.autograd.grad(out.sin().sum(), (coordinates, basis))

    with use(name):
        with threads(1):
            expected = outcome()
        for count in (2, 5):
            with threads(count):
                assert all(torch.equal(a, b) for a, b in zip(outcome(), expected, strict=True))


def both_directions():
    ids, coordinates, basis = make((500,), 300, 24, 40, torch.float32)  # too few for torch to use threads in a child

    def outcome():
        out = factorized_embedding(ids, coordinates, basis, sparse=True)
        grads = torch.autograd.grad(out, (coordinates, basis), out.detach())
        return out.detach(), grads[0].values(), grads[1]

    expected = outcome()
    return lambda: all(torch.equal(a, b) for a, b in zip(outcome(), expected, strict=True))


def test_concurrent_calls():
    concurrently(both_directions(), calls=20)


def test_forked_child():
    in_forked_child(both_directions())  # the parent's threads exist before the fork


@on_every_backend
@pytest.mark.parametrize("bad", [-1, 7])
@pytest.mark.usefixtures("told_at_once")
def test_ids_out_of_range(name, bad):
    ids = torch.tensor([0, 6, bad])
    with use(name), pytest.raises(IndexError, match=rf"input_ids must lie in \[0, 7\), got {bad} at position 2"):
        factorized_embedding(ids, torch.randn(7, 2), torch.randn(2, 3))


@pytest.mark.parametrize("padding_idx", [7, -8])
def test_padding_idx_out_of_range(padding_idx):
    with pytest.raises(ValueError, match=rf"padding_idx must lie in the table of 7 rows, got {padding_idx}"):
        factorized_embedding(torch.tensor([0]), torch.randn(7, 2), torch.randn(2, 3), padding_idx)


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
