"""Lookup of the ids of real text: forward and backward, and inference."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import data
from benchmarks.harness import OURS, Contest
from ofa_fast.nn import FactorizedEmbedding
from ofa_fast.ops import factorized_embedding

EAGER, COMPILE, DENSE_TABLE = "torch eager", "torch.compile", "nn.Embedding, dense table"
EAGER_DENSE, MATERIALIZED = "torch eager, dense gradient", "ofa-fast, materialised table"
DENSE, SPARSE, INFERENCE = (
    f"16,384 ids of text, V 401,145, R 200, D 768, {kind}"
    for kind in ("dense gradient", "sparse gradient", "inference")
)
SMALL = "small: 512 ids, V 5k, R 32, D 64"
SIZES = {
    DENSE: {"gradient": "dense"},
    SPARSE: {"gradient": "sparse"},
    INFERENCE: {"gradient": None},
    SMALL: {"gradient": "dense", "text": False, "tokens": 512, "vocabulary": 5_000, "rank": 32, "width": 64},
}
HAS_SPARSE = "sparse" in inspect.signature(factorized_embedding).parameters


def contest(
    gradient: str | None,
    text: bool = True,
    tokens: int = 16_384,
    vocabulary: int = 401_145,
    rank: int = 200,
    width: int = 768,
    dtype: str = "float32",
    device: str = "cpu",
    folders: Sequence[Path] = (),
) -> Contest:
    torch.manual_seed(0)
    ids = (data.text_ids if text else data.zipf_ids)(tokens, vocabulary).to(device)
    kind = getattr(torch, dtype)
    coordinates = torch.randn(vocabulary, rank, device=device).div_(rank**0.5).to(kind).requires_grad_()
    basis = torch.randn(rank, width, device=device).mul_(0.02).to(kind).requires_grad_()
    grad = torch.randn(tokens, width, device=device).to(kind)
    tables = coordinates, basis

    def eager(ids, coordinates, basis):
        return coordinates[ids] @ basis

    def eager_sparse(ids, coordinates, basis):
        return F.embedding(ids, coordinates, sparse=True) @ basis

    # without dynamic=False a second size would be compiled for any size, which is slower
    compiled = torch.compile(eager, dynamic=False)
    if gradient is None:
        return _inference(ids, coordinates.detach(), basis.detach(), eager, compiled)

    def both(forward, leaves=tables):
        return lambda: torch.autograd.grad(forward(ids, *leaves), leaves, grad)

    entries = {OURS: both(factorized_embedding)}
    if gradient == "sparse":
        if HAS_SPARSE:
            entries[OURS] = both(functools.partial(factorized_embedding, sparse=True))
        entries |= {EAGER: both(eager_sparse), EAGER_DENSE: both(eager), COMPILE: both(compiled)}
    else:
        entries |= {EAGER: both(eager), COMPILE: both(compiled)}

        @functools.cache
        def table():
            return (coordinates.detach() @ basis.detach()).requires_grad_()

        entries[DENSE_TABLE] = lambda: both(F.embedding, (table(),))()

    @functools.cache
    def exact():
        distinct, where = ids.unique(return_inverse=True)
        sums = torch.zeros(len(distinct), width, dtype=torch.float64, device=device).index_add_(0, where, grad.double())
        rows = coordinates.detach()[distinct].double()
        return distinct, sums @ basis.detach().double().T, rows.T @ sums

    def errors(grads):
        """The largest error of a gradient over its largest entry."""
        if len(grads) == 1:
            return {}
        distinct, *wanted = exact()
        rows = grads[0].coalesce() if grads[0].is_sparse else grads[0]
        got = rows.values() if rows.is_sparse else rows[distinct], grads[1]
        return {"gradient": max(relative_error(g, w) for g, w in zip(got, wanted, strict=True))}

    return Contest(
        entries=entries,
        errors=errors,
        operations=6.0 * tokens * rank * width,
        traffic=_traffic(ids, basis, passes=2) + (coordinates.nbytes if gradient == "dense" else 0),
        prepared=(COMPILE, DENSE_TABLE) if gradient == "dense" else (COMPILE,),
    )


def _inference(ids, coordinates, basis, eager, compiled) -> Contest:
    @functools.cache
    def materialized():
        embedding = FactorizedEmbedding(*coordinates.shape, basis.shape[1], device="meta")
        embedding.coordinates, embedding.basis = torch.nn.Parameter(coordinates), torch.nn.Parameter(basis)
        return embedding.materialize()

    @functools.cache
    def dense():
        return torch.nn.Embedding.from_pretrained(coordinates @ basis)

    some = slice(0, 1_024)
    exact = coordinates[ids[some]].double() @ basis.double()
    return Contest(
        entries={
            OURS: lambda: factorized_embedding(ids, coordinates, basis),
            MATERIALIZED: torch.no_grad()(lambda: materialized()(ids)),
            DENSE_TABLE: torch.no_grad()(lambda: dense()(ids)),
            EAGER: lambda: eager(ids, coordinates, basis),
            COMPILE: lambda: compiled(ids, coordinates, basis),
        },
        errors=lambda out: {"output": relative_error(out[some], exact)},
        operations=2.0 * len(ids) * basis.numel(),
        traffic=_traffic(ids, basis, passes=1),
        prepared=(COMPILE, MATERIALIZED, DENSE_TABLE),
    )


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def _traffic(ids: torch.Tensor, basis: torch.Tensor, passes: int) -> float:
    rank, width = basis.shape
    return float(passes * basis.element_size() * (len(ids.unique()) * rank + rank * width + len(ids) * width))
