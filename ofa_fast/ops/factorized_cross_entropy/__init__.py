"""Cross entropy of a factorised head: logits = hidden basisᵀ coordinatesᵀ + bias, which are never formed.

N positions, V vocabulary rows, R rank, D width.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ofa_fast import _native
from ofa_fast.ops._op import Op, no_image, on_first_use, workspace
from ofa_fast.ops._reports import Reports
from ofa_fast.ops.factorized_cross_entropy import reference

TRITON_RANK = 512  # of which the sums of a tile of positions still fit into registers
REPORTS = Reports("labels must lie in [0, {rows}) or be ignore_index")  # of wrong labels, on GPUs
REFERENCE_LOGITS = 1 << 25  # at a time: it takes over where no kernel fits, and there too memory has a bound


def _outputs(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    wide = reference.wide_dtype(hidden, coordinates, basis, bias)
    (n,), r = labels.shape, basis.shape[0]
    return tuple(hidden.new_zeros(shape, dtype=wide) for shape in ((n,), (2, n), (n, r) if with_others else (0,)))


def _gradients(hidden, coordinates, basis, bias, needs):
    # Only labelled rows of the hidden states' gradient are written; every row of the others' is.
    fills = torch.zeros_like, torch.empty_like, torch.empty_like, torch.empty_like
    return tuple(
        fill(tensor, memory_format=torch.contiguous_format) if need else hidden.new_empty(0)
        for fill, tensor, need in zip(fills, (hidden, coordinates, basis, bias), needs, strict=True)
    )


def _native_inputs(hidden, coordinates, basis, labels, bias, ignore_index):
    bias = hidden.new_empty(0) if bias is None else bias
    rows = (labels != ignore_index).nonzero().squeeze(1)
    return (*(t.contiguous() for t in (hidden, coordinates, basis, bias, labels)), rows)


def _forward_native(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    threads = torch.get_num_threads()
    inputs = _native_inputs(hidden, coordinates, basis, labels, bias, ignore_index)
    outputs = _outputs(hidden, coordinates, basis, labels, bias, ignore_index, with_others)
    sizes = inputs[1], len(inputs[-1]), basis.shape[1], threads
    scratch = workspace(_native.cpu.factorized_cross_entropy_forward_workspace(*sizes), hidden)
    _native.cpu.factorized_cross_entropy_forward(*inputs, *outputs, scratch, threads)
    return outputs


def _backward_native(
    grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, loss, lse, others, ignore_index, needs
):
    threads = torch.get_num_threads()
    inputs = _native_inputs(hidden, coordinates, basis, labels, bias, ignore_index)
    saved = (t.contiguous() for t in (loss, lse, others))
    grads = _gradients(hidden, coordinates, basis, bias, needs)
    sizes = inputs[1], len(inputs[-1]), basis.shape[1], threads
    scratch = workspace(_native.cpu.factorized_cross_entropy_backward_workspace(*sizes), hidden)
    _native.cpu.factorized_cross_entropy_backward(
        grad_loss.contiguous(), grad_lse.contiguous(), *inputs, *saved, *grads, scratch, threads
    )
    return grads


def _blocks(n, v):
    """Slices of the positions for which the reference forms the logits."""
    size = max(1, REFERENCE_LOGITS // max(v, 1))
    return [slice(first, first + size) for first in range(0, max(n, 1), size)]


def _forward_reference(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    reference.check_labels(labels, coordinates, ignore_index)
    parts = [
        reference.forward(hidden[own], coordinates, basis, labels[own], bias, ignore_index, with_others)
        for own in _blocks(len(labels), len(coordinates))
    ]
    loss, lse, others = zip(*parts, strict=True)
    return torch.cat(loss), torch.cat(lse, dim=1), torch.cat(others)


def _backward_reference(
    grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, loss, lse, others, ignore_index, needs
):
    wide = reference.wide_dtype(hidden, coordinates, basis, bias)
    tables = [None if t is None else t.to(wide) for t in (coordinates, basis, bias)]  # so are sums of their gradients
    grads = None
    for own in _blocks(len(labels), len(coordinates)):
        saved = loss[own], lse[:, own], others[own]
        inputs = hidden[own], *tables[:2], labels[own], tables[2], *saved, ignore_index, needs
        of_hidden, *of_tables = reference.backward(grad_loss[own], grad_lse[own], *inputs)
        if grads is None:
            grads = [of_hidden], of_tables
        else:
            grads[0].append(of_hidden)
            grads = grads[0], [total.add_(part) for total, part in zip(grads[1], of_tables, strict=True)]
    inputs = hidden, coordinates, basis, bias
    grads = torch.cat(grads[0]), *grads[1]
    return tuple(grad.to(t.dtype) if need else grad for grad, t, need in zip(grads, inputs, needs, strict=True))


def native_step(coordinates) -> int:
    """How many rows at a time the passes in CUDA C++ take, which `triton.py` launches; 0 if not these coordinates."""
    if _native.cuda is None or no_image():
        return 0
    return _native.cuda.factorized_cross_entropy_step(coordinates)


def native_passes() -> bool:
    """Whether there are any on this machine."""
    if _native.cuda is None or no_image():
        return False
    return native_step(torch.empty(0, 8, dtype=torch.bfloat16, device="cuda")) > 0


def _triton_limit(coordinates):
    if len(coordinates) >= 1 << 31:
        return f"it takes fewer than 2**31 rows of coordinates, got {len(coordinates)}"
    if not 1 <= coordinates.shape[1] <= TRITON_RANK:
        return f"it takes ranks up to {TRITON_RANK}, got {coordinates.shape[1]}"


# loss [N]; lse [2, N]: the log-sum-exp of the logits, and what rounding it left over; others [N, R] or [0]: the sum of
# p_v coordinates_v over all v but the label, their part of the gradient. Zero where ignored.
_forward = Op(
    "factorized_cross_entropy(Tensor hidden, Tensor coordinates, Tensor basis, Tensor labels, Tensor? bias, "
    "int ignore_index, bool with_others) -> (Tensor loss, Tensor lse, Tensor others)",
    fake=_outputs,
    backends={
        "cpu": _forward_native,
        "triton": on_first_use(f"{__name__}.triton", "forward"),
        "reference": _forward_reference,
    },
    limits={"triton": lambda hidden, coordinates, *_: _triton_limit(coordinates)},
)
# Gradients of hidden, coordinates, basis and bias; those that `needs` does not ask for are empty.
_backward = Op(
    "factorized_cross_entropy_backward(Tensor grad_loss, Tensor grad_lse, Tensor hidden, Tensor coordinates, "
    "Tensor basis, Tensor labels, Tensor? bias, Tensor loss, Tensor lse, Tensor others, int ignore_index, "
    "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=lambda grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, *_: _gradients(
        hidden, coordinates, basis, bias, _[-1]
    ),
    backends={
        "cpu": _backward_native,
        "triton": on_first_use(f"{__name__}.triton", "backward"),
        "reference": _backward_reference,
    },
    limits={"triton": lambda grad_loss, grad_lse, hidden, coordinates, *_: _triton_limit(coordinates)},
)


class _FactorizedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, coordinates, basis, bias, labels, ignore_index, needs):
        inputs = hidden, coordinates, basis, labels, bias
        loss, lse, others = _forward(*inputs, ignore_index, needs[0] or needs[2])
        ctx.save_for_backward(*inputs, loss, lse, others)
        ctx.ignore_index, ctx.needs = ignore_index, needs
        return loss, lse[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, grad_lse):
        grads = _backward(grad_loss, grad_lse, *ctx.saved_tensors, ctx.ignore_index, ctx.needs)
        return *(g if need else None for g, need in zip(grads, ctx.needs, strict=True)), None, None, None


def factorized_cross_entropy(
    hidden: torch.Tensor,
    coordinates: torch.Tensor,
    basis: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Cross entropy of ``logits = hidden @ basis.T @ coordinates.T + bias`` with ``labels``, without the logits.

    Equal to ``F.cross_entropy(logits, labels, ...)``, plus ``z_loss * logits.logsumexp(-1) ** 2`` a position, at the
    positions whose label is not ``ignore_index``; nothing is computed for the others. Neither the logits [N, V] nor the
    table ``coordinates @ basis`` [V, D] is formed in either direction.

    Args:
        hidden: [..., D].
        coordinates: [V, R]. basis: [R, D]. bias: [V] or None.
            Each float32, bfloat16, float16 or float64, not necessarily the same: gradients have their input's dtype.
        labels: [...] ids in [0, V), or ``ignore_index``; int64 or int32.
        ignore_index: the label of positions that do not count, in [0, V) or outside.
        reduction: "mean" over the labelled positions (NaN if there are none, as in torch), "sum", or "none".
        label_smoothing: in [0, 1], the weight of the uniform distribution over the vocabulary in the target.
        z_loss: the weight of the squared log-sum-exp.

    Returns:
        float32, or float64 if an input is: a scalar, or for "none" [...] with 0 where ignored. Differentiable once in
        ``hidden``, ``coordinates``, ``basis`` and ``bias`` (dense gradients); frozen inputs cost nothing.

    Raises:
        IndexError: a label lies outside [0, V). TypeError: a dtype. ValueError: a shape, reduction or weight.
            A GPU is not waited for: there it is one of the next calls, or the backward pass, that tells of a wrong
            label, whose loss is 0 until then (CUDA_LAUNCH_BLOCKING=1 makes the call itself tell).

    Under autocast on a GPU it is computed as ``F.linear`` would be, in autocast's dtype, but for the sums, which are
    float32; on a CPU, whose float32 products are as fast, autocast changes nothing.

    Results are deterministic and do not depend on the number of threads. Infinite and NaN logits give what they give in
    torch. Peak extra memory on the CPU, whatever V, with n labelled positions: N R floats kept for the backward pass,
    partial sums of 4 MiB (16 * 224 R floats if more), about 6 n R + 2 R D floats, and per thread at most
    128 * 12 R + 224 D + 2**17 floats; label smoothing adds one gradient of ``coordinates`` in the backward pass.

    Source: the tied head of Liu et al. 2024 (arXiv 2311.08849), section 3.1. Online log-sum-exp: Milakov and
    Gimelshein 2018 (arXiv 1805.02867).
    """
    _check(hidden, coordinates, basis, labels, bias, reduction, label_smoothing)
    if hidden.is_cuda and torch.is_autocast_enabled("cuda"):
        hidden, coordinates, basis = map(_autocast, (hidden, coordinates, basis))
    flat, y = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).long()
    grad = torch.is_grad_enabled()
    needs = [grad and t is not None and t.requires_grad for t in (hidden, coordinates, basis, bias)]
    loss, lse = _FactorizedCrossEntropy.apply(flat, coordinates, basis, bias, y, ignore_index, needs)
    labelled = y != ignore_index
    if label_smoothing:
        with torch.autocast(loss.device.type, enabled=False):
            mean = coordinates.to(loss.dtype).mean(0) @ basis.to(loss.dtype)
            mean_logit = flat.to(loss.dtype) @ mean
        if bias is not None:
            mean_logit = mean_logit + bias.to(loss.dtype).mean()
        loss = torch.lerp(loss, torch.where(labelled, lse - mean_logit, 0.0), label_smoothing)
    if z_loss:
        loss = loss + z_loss * lse.square()
    if reduction == "none":
        return loss.view(labels.shape)
    return loss.sum() if reduction == "sum" else loss.sum() / labelled.sum()


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype("cuda"))


def _check(hidden, coordinates, basis, labels, bias, reduction, label_smoothing) -> None:
    if labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"labels must be int64 or int32, got {str(labels.dtype).removeprefix('torch.')}")
    tensors = {"hidden": hidden, "coordinates": coordinates, "basis": basis} | ({} if bias is None else {"bias": bias})
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise TypeError(
                f"{name} must be float32, bfloat16, float16 or float64, got {str(tensor.dtype).removeprefix('torch.')}"
            )
    if coordinates.dim() != 2 or basis.dim() != 2 or coordinates.shape[1] != basis.shape[0]:
        raise ValueError(
            "coordinates must be [V, R] and basis [R, D] with the same R, got "
            f"{list(coordinates.shape)} and {list(basis.shape)}"
        )
    if hidden.dim() == 0 or hidden.shape[-1] != basis.shape[1]:
        raise ValueError(f"hidden must be [..., {basis.shape[1]}], as basis is [R, D], got {list(hidden.shape)}")
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels must be {list(hidden.shape[:-1])}, as hidden is [..., D], got {list(labels.shape)}")
    if bias is not None and bias.shape != coordinates.shape[:1]:
        raise ValueError(f"bias must be [{len(coordinates)}], as coordinates is [V, R], got {list(bias.shape)}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
