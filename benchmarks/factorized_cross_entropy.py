"""Head and loss, forward and backward, with 15 % of the tokens labelled."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.harness import Contest
from ofa_fast.ops import factorized_cross_entropy

SIZES = {
    "1,024 tokens, V 100k, R 100, D 768": (1_024, 100_000, 100, 768),
    "1,024 tokens, V 401k, R 400, D 768": (1_024, 401_145, 400, 768),
    "small: 64 tokens, V 2k, R 16, D 64": (64, 2_000, 16, 64),
}


def contest(tokens: int, vocabulary: int, rank: int, width: int) -> Contest:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width).requires_grad_()
    coordinates = torch.randn(vocabulary, rank).div_(rank**0.5).requires_grad_()
    basis = torch.randn(rank, width).mul_(0.05).requires_grad_()
    bias = torch.zeros(vocabulary).requires_grad_()
    labels = torch.where(torch.rand(tokens) < 0.15, torch.randint(vocabulary, (tokens,)), -100)
    leaves = hidden, coordinates, basis, bias

    def both(loss):
        def step():
            value = loss(hidden, coordinates, basis, labels, bias)
            return value, *torch.autograd.grad(value, leaves)

        return step

    def gathered(hidden, coordinates, basis, labels, bias):
        kept = labels != -100
        return F.cross_entropy(F.linear(hidden[kept] @ basis.T, coordinates, bias), labels[kept])

    def torchs_fused(hidden, coordinates, basis, labels, bias):
        options = torch.nn.LinearCrossEntropyOptions() if hasattr(torch.nn, "LinearCrossEntropyOptions") else None
        return F.linear_cross_entropy(hidden @ basis.T, coordinates, labels, linear_bias=bias, options=options)

    entries = {"ofa-fast": both(factorized_cross_entropy), "torch, labelled gathered first": both(gathered)}
    if hasattr(F, "linear_cross_entropy"):
        entries["torch linear_cross_entropy"] = both(torchs_fused)

    kept = labels != -100
    h = hidden.detach()[kept].double() @ basis.detach().double().T
    logits = torch.cat([h @ part.double().T for part in coordinates.detach().split(20_000)], dim=1)
    exact = F.cross_entropy(logits, labels[kept]).item()
    del logits
    return Contest(
        entries=entries,
        error=lambda result: abs(result[0].item() - exact) / exact,
        operations=8.0 * int(kept.sum()) * vocabulary * rank,
    )
