"""The initialisations behind ``initialize``: what each copies, from what it mixes the other rows, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Method:
    """How rows come about that have a match in the source, a vector, or neither.

    Attributes:
        copies: what is copied from its match: "all" tokens, or "special" ones alone.
        keys: among what a token's neighbours are searched: "source" subwords, target tokens that are "copied", or None.
        weighting: of the neighbours, a name in ``WEIGHTINGS``.
        rest: the rows that are neither copied nor mixed, a name in ``rows.DRAWS``.
    """

    copies: str = "all"
    keys: str | None = None
    weighting: str = "softmax"
    rest: str = "normal"
    neighbors: int = 10
    temperature: float = 0.1


METHODS = {
    # Liu et al. 2024 (arXiv 2311.08849), section 3.
    "ofa": Method(keys="source"),
    # Minixhofer, Paischer & Rekabsaz 2022 (arXiv 2112.06598), section 3.
    "wechsel": Method(copies="special", keys="source"),
    # Dobler & de Melo 2023 (arXiv 2305.14481), section 3; more than 256 shared tokens hardly ever get a weight.
    "focus": Method(keys="copied", weighting="sparsemax", neighbors=256, temperature=1.0),
    "mean": Method(rest="mean"),
    # Hewitt 2021, "Initializing new word embeddings for pretrained language models".
    "gaussian": Method(rest="gaussian"),
    "random": Method(),
}


def softmax(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, dim=1).nan_to_num_(0.0)


def sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """The nearest point of the simplex, max(z - τ, 0), for scores in descending order (Martins & Astudillo 2016)."""
    count = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    total = scores.cumsum(1)
    support = (1 + count * scores > total).sum(1, keepdim=True).clamp_min(1)
    return (scores - (total.gather(1, support - 1) - 1) / support).clamp_min(0.0).nan_to_num_(0.0)


WEIGHTINGS = {"softmax": softmax, "sparsemax": sparsemax}


def weigh(scores: torch.Tensor, temperature: float, weighting: str) -> torch.Tensor:
    """Weights of the neighbours, float32 [n, k], from cosines in descending order; padding, -inf, has weight 0."""
    return WEIGHTINGS[weighting](scores / temperature).float()
