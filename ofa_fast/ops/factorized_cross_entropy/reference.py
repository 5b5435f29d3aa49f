"""The definition of the cross entropy of a factorised head, in plain torch, and the op's two directions likewise."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F


def factorized_cross_entropy(hidden, coordinates, basis, labels, bias=None, ignore_index=-100, reduction="mean"):
    logits = hidden @ basis.T @ coordinates.T
    if bias is not None:
        logits = logits + bias
    flat = logits.reshape(-1, len(coordinates)), labels.reshape(-1).long()
    loss = F.cross_entropy(*flat, ignore_index=ignore_index, reduction=reduction)
    return loss.view(labels.shape) if reduction == "none" else loss


def wide_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32: what everything is summed in."""
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None), torch.float32)


def _logits(hidden, coordinates, basis, labels, bias, ignore_index):
    rows = (labels != ignore_index).nonzero().squeeze(1)
    wide = wide_dtype(hidden, coordinates, basis, bias)
    h, f, p = hidden[rows].to(wide), coordinates.to(wide), basis.to(wide)
    scores = h @ p.T @ f.T
    return rows, labels[rows, None], h, f, p, scores if bias is None else scores + bias.to(wide)


def forward(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    rows, y, h, f, _, scores = _logits(hidden, coordinates, basis, labels, bias, ignore_index)
    loss, lse = h.new_zeros(labels.shape), h.new_zeros(2, *labels.shape)
    others = h.new_zeros(*labels.shape, f.shape[1]) if with_others else h.new_empty(0)
    lse[0, rows] = scores.logsumexp(1)
    loss[rows] = F.cross_entropy(scores, y.squeeze(1), reduction="none")
    if with_others:
        others[rows] = scores.softmax(1).scatter(1, y, 0.0) @ f
    return loss, lse, others


def backward(grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, loss, lse, others, ignore_index, needs):
    rows, y, h, f, p, scores = _logits(hidden, coordinates, basis, labels, bias, ignore_index)
    g, z, nll = grad_loss[rows, None], grad_lse[rows, None], loss[rows, None]
    at_label = g * torch.expm1(-nll) + z * torch.exp(-nll)
    grad_scores = (scores.softmax(1) * (g + z)).scatter(1, y, at_label)
    if needs[0] or needs[2]:
        grad_projected = (g + z) * others[rows] + at_label * f[y.squeeze(1)]
    formulas = (
        lambda: torch.zeros_like(hidden).index_copy_(0, rows, (grad_projected @ p).to(hidden.dtype)),
        lambda: (grad_scores.T @ (h @ p.T)).to(coordinates.dtype),
        lambda: (grad_projected.T @ h).to(basis.dtype),
        lambda: grad_scores.sum(0).to(bias.dtype),
    )
    return tuple(formula() if need else h.new_empty(0) for formula, need in zip(formulas, needs, strict=True))
