"""Inputs whose elements differ by orders of magnitude: errors against float64 are those of torch, on every backend."""

from __future__ import annotations

import pytest
import torch
from checks import backends_of, use
from test_factorized_cross_entropy import make, put

from ofa_fast.ops import factorized_cross_entropy, factorized_embedding
from ofa_fast.ops.factorized_cross_entropy import reference

EPSILON = 3e-6  # relative to the largest element; a peaked softmax costs torch itself 2e-6

UNEVEN = {
    "a large hidden dimension": lambda h, f, p: (h * torch.where(torch.arange(24) == 3, 100, 1), f, p),
    "a peaked softmax": lambda h, f, p: (h * 30, f, p),
    "rows of very different norms": lambda h, f, p: (h, f * torch.logspace(-3, 1, 400)[:, None], p),
    "a rank that dwarfs the others": lambda h, f, p: (h, put(f, (..., 0), 1e-4), put(p, 0, p[0] * 1e4)),
    "the same in one position": lambda h, f, p: (put(h, 5, p[0] * 1e3), put(f, (..., 0), 1e-4), p),
}


OPS = {
    "factorized_cross_entropy": (factorized_cross_entropy, reference.factorized_cross_entropy),
    "factorized_embedding": (
        lambda h, f, p, labels, bias: factorized_embedding(labels.clamp_min(0), f, p),
        lambda h, f, p, labels, bias: f[labels.clamp_min(0)] @ p,
    ),
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in backends_of(op)])
@pytest.mark.parametrize("case", UNEVEN)
@pytest.mark.parametrize("rank", [40, 400])
def test_errors_are_those_of_torch(name, op, case, rank):
    hidden, coordinates, basis, labels, bias = (t.detach() for t in make((60,), 400, rank, 24, torch.float32))
    uneven = *UNEVEN[case](hidden, coordinates, basis), bias
    function, plain = OPS[op]

    def results(function, dtype):
        h, f, p, b = leaves = [t.to(dtype).requires_grad_() for t in uneven]
        out = function(h, f, p, labels, b)
        grad = uneven[0].to(dtype) if out.dim() else None
        return out.detach(), *torch.autograd.grad(out, leaves, grad, materialize_grads=True, allow_unused=True)

    with use(name):
        ours = results(function, torch.float32)
    torchs, truth = results(plain, torch.float32), results(plain, torch.float64)
    for mine, theirs, exact in zip(ours, torchs, truth, strict=True):
        largest = exact.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        error, allowed = ((x.double() - exact).abs().max() / largest for x in (mine, theirs))
        assert error <= allowed + EPSILON
