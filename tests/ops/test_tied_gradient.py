"""Both gradients of a tied table in one buffer (ofa_fast.nn.tied_gradient), from the kernels of every backend."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from checks import in_every_dtype, on_every_backend_of, use

from ofa_fast.nn import FactorizedEmbedding, FactorizedHead, tied_gradient


@on_every_backend_of("factorized_embedding", "factorized_cross_entropy")
@in_every_dtype
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_tied_gradient_is_the_sum_of_both(name, dtype, padding_idx):
    embedding = FactorizedEmbedding(37, 12, 20, padding_idx, dtype=dtype)
    head, ids = FactorizedHead(embedding), torch.randint(37, (50,))
    labels = torch.where(torch.arange(50) % 3 == 0, ids, -100)

    def gradients(scope):
        with scope:
            loss = head(embedding(ids).sin(), labels)
        return torch.autograd.grad(loss, list(head.parameters()))

    with use(name):
        expected, got = gradients(nullcontext()), gradients(tied_gradient(embedding, head))
    assert got[0].layout is torch.strided and got[0].count_nonzero() > 30 * 12
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
