"""Modules with a factorised vocabulary table: usable by themselves in any training framework.

Notation: V vocabulary rows, R rank, D model width. The table is E = F P with coordinates F [V, R] and basis P [R, D]
(Liu et al. 2024, arXiv 2311.08849, section 3.1).
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from ofa_fast.ops import factorized_cross_entropy, factorized_embedding, truncated_svd
from ofa_fast.ops._op import capturing


class FactorizedEmbedding(nn.Module):
    """Drop-in for ``nn.Embedding`` whose table is ``coordinates @ basis``, never formed in training.

    Args:
        num_embeddings, rank, embedding_dim: V, R and D.
        padding_idx: as in ``nn.Embedding``: lookups of this id give its row but no gradient, and it starts at zero.
        sparse: as in ``nn.Embedding``: the gradient of ``coordinates`` is sparse, that of ``basis`` is not. With a tied
            ``FactorizedHead``, whose gradient is dense, the sum of both is dense.

    Ids of any shape [...], int64 or int32, give [..., D]. Errors and memory are those of
    ``ofa_fast.ops.factorized_embedding``. ``weight`` computes the dense table [V, D] whenever it is read.
    """

    _tied: _Tied | None = None

    def __init__(
        self,
        num_embeddings: int,
        rank: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("num_embeddings", num_embeddings), ("rank", rank), ("embedding_dim", embedding_dim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must lie in the table of {num_embeddings} rows, got {padding_idx}")
        self.num_embeddings, self.rank, self.embedding_dim = num_embeddings, rank, embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.sparse = sparse
        self.coordinates = nn.Parameter(torch.empty(num_embeddings, rank, device=device, dtype=dtype))
        self.basis = nn.Parameter(torch.empty(rank, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows of the table get a standard deviation of 0.02, as tables of language models have."""
        nn.init.normal_(self.coordinates, std=self.rank**-0.5)
        nn.init.normal_(self.basis, std=0.02)
        if self.padding_idx is not None:
            nn.init.zeros_(self.coordinates[self.padding_idx].detach())

    @classmethod
    def from_dense(
        cls, table: torch.Tensor, rank: int, padding_idx: int | None = None, sparse: bool = False
    ) -> FactorizedEmbedding:
        """The best embedding of this rank for a dense ``table`` [V, D]: U and diag(S) Vh of its truncated SVD.

        Its table is within the smallest possible Frobenius distance of ``table``, and equals it at rank = D.
        Errors and memory are those of ``ofa_fast.ops.truncated_svd``.
        """
        u, s, vh = truncated_svd(table.detach(), rank)
        embedding = cls(*u.shape, table.shape[1], padding_idx, sparse, device="meta")
        embedding.coordinates, embedding.basis = nn.Parameter(u), nn.Parameter(s[:, None] * vh)
        return embedding

    @property
    def weight(self) -> torch.Tensor:
        return self.coordinates @ self.basis

    def materialize(self) -> nn.Embedding:
        """The dense ``nn.Embedding`` with the same table, for inference without this package: V * D new elements."""
        return nn.Embedding.from_pretrained(
            self.weight.detach(), freeze=False, padding_idx=self.padding_idx, sparse=self.sparse
        )

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        coordinates, sparse = self.coordinates, self.sparse
        if not sparse and self._tied is not None and self._tied.takes(coordinates):
            coordinates, sparse = self._tied.for_lookup(), True
        return factorized_embedding(input_ids, coordinates, self.basis, self.padding_idx, sparse)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        sparse = ", sparse=True" if self.sparse else ""
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}{padding}{sparse}"


class FactorizedHead(nn.Module):
    """The output head tied to a ``FactorizedEmbedding``: logits = (hidden @ basis.T) @ coordinates.T + bias.

    It shares the embedding's two parameters; give it an embedding of its own for an untied head. [..., D] gives
    [..., V]; with labels [...] it gives the loss, and forms no logits.
    """

    _tied: _Tied | None = None

    def __init__(self, embedding: FactorizedEmbedding, bias: bool = True) -> None:
        super().__init__()
        self.coordinates, self.basis = embedding.coordinates, embedding.basis
        self.bias = nn.Parameter(embedding.coordinates.new_zeros(embedding.num_embeddings)) if bias else None

    def reset_parameters(self) -> None:
        nn.init.normal_(self.coordinates, std=self.coordinates.shape[1] ** -0.5)
        nn.init.normal_(self.basis, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Logits [..., V] of hidden [..., D], or with ``labels`` [...] their loss, for which no logits are formed.

        The loss is that of ``ofa_fast.ops.factorized_cross_entropy``, which says what it takes in memory and raises.
        """
        if labels is None:
            return F.linear(F.linear(hidden, self.basis), self.coordinates, self.bias)
        return self._loss(hidden, labels, self.bias, ignore_index=ignore_index, reduction=reduction)

    def _loss(self, hidden: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None, **options) -> torch.Tensor:
        tied = self._tied is not None and self._tied.source is self.coordinates
        coordinates = self._tied.losses if tied else self.coordinates
        return factorized_cross_entropy(hidden, coordinates, self.basis, labels, bias, **options)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor, **options) -> torch.Tensor:
        """``self(hidden, labels, **options)``: a call of the module, so that hooks that bring its parameters in run."""
        return self(hidden, labels, **options)

    def extra_repr(self) -> str:
        (rows, rank), width = self.coordinates.shape, self.basis.shape[1]
        return f"{width}, {rows}, rank={rank}, bias={self.bias is not None}"


@contextmanager
def tied_gradient(embedding: FactorizedEmbedding, head: FactorizedHead):
    """Inside, which holds one forward pass, a lookup's gradient goes into the gradient that the head's loss writes.

    Otherwise autograd makes two gradients [V, R] of the coordinates that both share, one of them nearly all zero, and
    adds them. So it makes one, and adds to it the rows of ids that occur: the same bits with V * R elements less of
    memory. Language models of ``ofa_fast.models`` do this by themselves.

    It changes nothing where the two share no coordinates, where these are frozen or not plain tensors, in a sparse
    embedding, and in what ``torch.compile`` or a CUDA graph records.
    """
    before = embedding._tied, head._tied
    embedding._tied = head._tied = tied = _Tied(head)
    try:
        yield
    finally:
        embedding._tied, head._tied = before
        # Should another thread's exit have put it back, it is of no more use, and holds no graph.
        tied.head = tied.source = tied.losses = None


class _Tied:
    """The coordinates in one forward pass: every lookup takes them from a node of its own, and losses from the last.

    So gradients meet in these nodes: a loss's goes from node to node, and each adds to it the rows of its lookup.
    """

    source = losses = None

    def __init__(self, head: FactorizedHead) -> None:
        self.head = head

    def takes(self, coordinates: torch.Tensor) -> bool:
        if self.source is not None:
            return self.source is coordinates and torch.is_grad_enabled()
        return (
            torch.is_grad_enabled()
            and coordinates.requires_grad
            and self.head is not None
            and self.head.coordinates is coordinates
            and type(coordinates) in (nn.Parameter, torch.Tensor)
            and not torch.compiler.is_compiling()
            and not capturing(coordinates)
        )

    def for_lookup(self) -> torch.Tensor:
        self.source = self.head.coordinates
        before = self.source if self.losses is None else self.losses
        lookup, self.losses = _TiedCoordinates.apply(before)
        return lookup


class _TiedCoordinates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, coordinates):
        ctx.set_materialize_grads(False)
        return coordinates.view_as(coordinates), coordinates.view_as(coordinates)

    @staticmethod
    def backward(ctx, rows, whole):
        if rows is None:
            return whole
        if whole is None:
            return rows.to_dense()
        if torch.is_grad_enabled():  # somebody asked for a graph of this, in which nothing changes in place
            return whole + rows
        rows = rows.coalesce()
        # The loss made it for these nodes alone: nobody else holds it.
        return whole.index_add_(0, rows.indices()[0], rows.values())
