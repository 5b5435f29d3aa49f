"""The definition of the cross entropy of a factorised head, in plain torch, and the op's two directions likewise."""

import torch
import torch.nn.functional as F


def factorized_cross_entropy(hidden, coordinates, basis, labels, bias=None, ignore_index=-100, reduction="mean"):
    logits = hidden @ basis.T @ coordinates.T
    logits = (logits if bias is None else logits + bias).reshape(-1, len(coordinates))
    loss = F.cross_entropy(logits, labels.reshape(-1).long(), ignore_index=ignore_index, reduction=reduction)
    return loss.view(labels.shape) if reduction == "none" else loss


def wide_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32: what everything is summed in."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _logits(hidden, coordinates, basis, labels, bias, ignore_index):
    rows = (labels != ignore_index).nonzero().squeeze(1)
    wide = wide_dtype(hidden, coordinates, basis, bias)
    h, f, p = hidden[rows].to(wide), coordinates.to(wide), basis.to(wide)
    scores = h @ p.T @ f.T
    return rows, labels[rows, None], h, f, p, scores if bias is None else scores + bias.to(wide)


def forward(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    rows, y, h, f, _, scores = _logits(hidden, coordinates, basis, labels, bias, ignore_index)
    nll = F.cross_entropy(scores, y.squeeze(1), reduction="none")
    lse = torch.stack([scores.logsumexp(1), torch.zeros_like(nll)], dim=1)
    others = scores.softmax(1).scatter(1, y, 0.0) @ f
    loss, lse, others = (h.new_zeros(len(labels), *x.shape[1:]).index_copy_(0, rows, x) for x in (nll, lse, others))
    return loss, lse.T.contiguous(), others if with_others else h.new_empty(0)


def backward(grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, loss, lse, others, ignore_index, needs):
    rows, y, h, f, p, scores = _logits(hidden, coordinates, basis, labels, bias, ignore_index)
    g, z, nll = grad_loss[rows, None], grad_lse[rows, None], loss[rows, None]
    at_label = g * torch.expm1(-nll) + z * torch.exp(-nll)
    grad_scores = (scores.softmax(1) * (g + z)).scatter(1, y, at_label)
    grad_projected = (g + z) * (others[rows] if len(others) else 0.0) + at_label * f[y.squeeze(1)]
    grads = (
        h.new_zeros(hidden.shape).index_copy_(0, rows, grad_projected @ p),
        grad_scores.T @ (h @ p.T),
        grad_projected.T @ h,
        grad_scores.sum(0),
    )
    inputs = zip(grads, (hidden, coordinates, basis, bias), needs, strict=True)
    return tuple(grad.to(tensor.dtype) if need else h.new_empty(0) for grad, tensor, need in inputs)


def check_labels(labels, coordinates, ignore_index):
    out_of_range = (labels != ignore_index) & ((labels < 0) | (labels >= len(coordinates)))
    if out_of_range.any():
        at = int(out_of_range.nonzero()[0])
        raise IndexError(
            f"labels must lie in [0, {len(coordinates)}) or be ignore_index, got {int(labels[at])} at position {at}"
        )
