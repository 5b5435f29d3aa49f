"""Modules with a factorised vocabulary table: usable by themselves in any training framework."""

from __future__ import annotations

import torch
from torch import nn

from ofa_fast.ops import factorized_cross_entropy, factorized_embedding


class FactorizedEmbedding(nn.Module):
    """Drop-in for ``nn.Embedding`` whose table is ``coordinates @ basis`` ([V, R] @ [R, D]), never formed in training.

    ``weight`` computes the dense table [V, D] on demand.
    """

    def __init__(self, num_embeddings: int, rank: int, embedding_dim: int, padding_idx: int | None = None,
                 device=None, dtype=None) -> None:
        super().__init__()
        self.num_embeddings, self.rank, self.embedding_dim = num_embeddings, rank, embedding_dim
        self.padding_idx = padding_idx
        self.coordinates = nn.Parameter(torch.empty(num_embeddings, rank, device=device, dtype=dtype))
        self.basis = nn.Parameter(torch.empty(rank, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.coordinates, std=self.rank**-0.5)
        nn.init.normal_(self.basis, std=0.02)

    @property
    def weight(self) -> torch.Tensor:
        return self.coordinates @ self.basis

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return factorized_embedding(input_ids, self.coordinates, self.basis)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"


class FactorizedHead(nn.Module):
    """The output head tied to a ``FactorizedEmbedding``: logits = (hidden @ basis.T) @ coordinates.T + bias."""

    def __init__(self, embedding: FactorizedEmbedding, bias: bool = True) -> None:
        super().__init__()
        self.coordinates, self.basis = embedding.coordinates, embedding.basis
        self.bias = nn.Parameter(embedding.coordinates.new_zeros(embedding.num_embeddings)) if bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden @ self.basis.T @ self.coordinates.T
        return logits if self.bias is None else logits + self.bias

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor, **options) -> torch.Tensor:
        """``factorized_cross_entropy`` of the labelled positions: no logits are formed."""
        return factorized_cross_entropy(hidden, self.coordinates, self.basis, labels, self.bias, **options)
