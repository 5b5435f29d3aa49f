"""Lookup, forward and backward, of ids as natural text has them."""

from __future__ import annotations

import torch

from benchmarks.harness import Contest
from ofa_fast.ops import factorized_embedding

SIZES = {
    "16k tokens, V 401k, R 200, D 768": (16_384, 401_145, 200, 768),
    "small: 512 tokens, V 5k, R 32, D 64": (512, 5_000, 32, 64),
}


def zipf_ids(tokens: int, vocabulary: int) -> torch.Tensor:
    """Ids whose frequencies fall off as 1 / (rank + 2.7), as those of words do."""
    weights = 1 / (torch.arange(vocabulary, dtype=torch.float64) + 2.7)
    return torch.multinomial(weights, tokens, replacement=True)


def contest(tokens: int, vocabulary: int, rank: int, width: int) -> Contest:
    torch.manual_seed(0)
    ids = zipf_ids(tokens, vocabulary)
    coordinates = torch.randn(vocabulary, rank).div_(rank**0.5).requires_grad_()
    basis = torch.randn(rank, width).mul_(0.02).requires_grad_()
    grad = torch.randn(tokens, width)
    tables = coordinates, basis

    def both(forward):
        def step():
            return torch.autograd.grad(forward(ids, *tables), tables, grad)

        return step

    def eager(ids, coordinates, basis):
        return coordinates[ids] @ basis

    def sparse(ids, coordinates, basis):
        return torch.nn.functional.embedding(ids, coordinates, sparse=True) @ basis

    exact = torch.zeros(rank, width, dtype=torch.float64)
    for some, g in zip(ids.split(4096), grad.split(4096), strict=True):
        exact += coordinates.detach()[some].double().T @ g.double()
    return Contest(
        entries={
            "ofa-fast": both(factorized_embedding),
            "torch eager": both(eager),
            "torch.compile": both(torch.compile(eager)),
            "torch eager, sparse gradient": both(sparse),
        },
        error=lambda grads: float((grads[1].double() - exact).abs().max() / exact.abs().max()),
        operations=6.0 * tokens * rank * width,
    )
