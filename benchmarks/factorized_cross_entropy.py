"""Head and loss, forward and backward, with 15 % of the tokens labelled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.factorized_embedding import relative_error
from benchmarks.harness import OURS, Contest
from ofa_fast.ops import factorized_cross_entropy

GATHERED, COMPILE = "torch, labelled gathered first", "torch.compile, labelled gathered first"
FUSED, FUSED_32 = "torch linear_cross_entropy, its chunks", "torch linear_cross_entropy, chunks of 32"
LIGER, CUT = "Liger fused linear cross entropy", "cut-cross-entropy, exact, without bias"
DENSE_HEAD = "dense head, labelled gathered first"
V100_R100, V100_R400, V401_R100, V401_R400 = (
    f"1,024 tokens, V {v}, R {r}, D 768" for v in ("100k", "401k") for r in (100, 400)
)
SMALL = "small: 64 tokens, V 2k, R 16, D 64"
SIZES = {
    V100_R100: {"vocabulary": 100_000, "rank": 100},
    V100_R400: {"vocabulary": 100_000, "rank": 400},
    V401_R100: {"vocabulary": 401_145, "rank": 100},
    V401_R400: {"vocabulary": 401_145, "rank": 400},
    SMALL: {"vocabulary": 2_000, "rank": 16, "tokens": 64, "width": 64},
}


def contest(
    vocabulary: int,
    rank: int,
    tokens: int = 1_024,
    width: int = 768,
    labelled: float = 0.15,
    dtype: str = "float32",
    device: str = "cpu",
    folders: Sequence[Path] = (),
) -> Contest:
    torch.manual_seed(0)

    def leaf(*shape, scale=1.0):
        return torch.randn(*shape, device=device).mul_(scale).to(getattr(torch, dtype)).requires_grad_()

    hidden, coordinates, basis = (
        leaf(tokens, width),
        leaf(vocabulary, rank, scale=rank**-0.5),
        leaf(rank, width, scale=0.05),
    )
    bias = leaf(vocabulary, scale=0.0)
    labels = torch.where(torch.rand(tokens) < labelled, torch.randint(vocabulary, (tokens,)), -100).to(device)
    kept = labels != -100

    def both(loss, leaves=(hidden, coordinates, basis, bias)):
        def step():
            value = loss(*leaves)
            return value.detach(), *torch.autograd.grad(value, leaves)

        return step

    def logits_and_loss(hidden, coordinates, basis, bias, labels):
        return F.cross_entropy(F.linear(hidden @ basis.T, coordinates, bias), labels)

    compiled = torch.compile(logits_and_loss, dynamic=False)

    def fused(hidden, coordinates, basis, bias, **options):
        options = torch.nn.LinearCrossEntropyOptions(**options)
        return F.linear_cross_entropy(
            hidden[kept] @ basis.T, coordinates, labels[kept], linear_bias=bias, options=options
        )

    entries = {
        OURS: both(lambda h, c, p, b: factorized_cross_entropy(h, c, p, labels, b)),
        GATHERED: both(lambda h, c, p, b: logits_and_loss(h[kept], c, p, b, labels[kept])),
        COMPILE: both(lambda h, c, p, b: compiled(h[kept], c, p, b, labels[kept])),
    }
    if hasattr(F, "linear_cross_entropy"):
        entries |= {FUSED: both(fused), FUSED_32: both(functools.partial(fused, batch_chunk_size=32))}

    if device == "cuda":
        entries |= _libraries(both, kept, labels)

    def dense(hidden, table, bias):
        return F.cross_entropy(F.linear(hidden[kept], table, bias), labels[kept])

    @functools.cache
    def table():
        return (coordinates.detach() @ basis.detach()).requires_grad_()

    entries[DENSE_HEAD] = lambda: both(dense, (hidden, table(), bias))()

    @functools.cache
    def exact():
        """Loss, and gradients of hidden and basis, in float64."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in (hidden[kept], basis)]
        rows, table, loss, of_rows = leaves[0] @ leaves[1].T, coordinates.detach().double(), 0.0, []
        for some, y in zip(rows.detach().split(128), labels[kept].split(128), strict=True):
            logits = some @ table.T
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            slopes = logits.softmax(1).scatter_add_(1, y[:, None], logits.new_full((len(y), 1), -1.0))
            of_rows.append(slopes @ table)
        return loss / len(rows), *torch.autograd.grad(rows, leaves, torch.cat(of_rows) / len(rows))

    def errors(result):
        """Of the loss relative to itself, of the gradients of hidden and basis relative to their largest entries."""
        loss, of_hidden, of_basis = exact()
        worst = relative_error(result[1][kept], of_hidden)
        if len(result) == 5:
            worst = max(worst, relative_error(result[3], of_basis))
        return {"loss": abs(result[0].item() - loss) / loss, "gradient": worst}

    return Contest(
        entries=entries,
        errors=errors,
        operations=8.0 * int(kept.sum()) * vocabulary * rank,
        traffic=float(coordinates.element_size() * vocabulary * (2 * rank + 2)),
        prepared=(COMPILE, DENSE_HEAD),
    )


def _libraries(both, kept, labels) -> dict:
    """Kernels for GPUs that never hold all logits; they multiply one table, so the projection is torch's."""
    entries = {}
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except Exception:  # or one that does not go with this torch
        pass
    else:
        liger = LigerFusedLinearCrossEntropyLoss()
        entries[LIGER] = both(lambda h, c, p, b: liger(c, h[kept] @ p.T, labels[kept], b))
    try:
        from cut_cross_entropy import linear_cross_entropy
    except Exception:
        pass
    else:
        entries[CUT] = both(
            lambda h, c, p, b: linear_cross_entropy(h[kept] @ p.T, c, labels[kept], filter_eps=None) + 0 * b[0]
        )
    return entries
