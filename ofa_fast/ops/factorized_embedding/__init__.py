"""Fused basis-projection embedding lookup: out[t] = coordinates[ids[t]] @ basis."""

from __future__ import annotations

import torch

from ofa_fast import _native
from ofa_fast.ops._op import Op, workspace
from ofa_fast.ops.factorized_embedding import reference


def _forward_native(ids, coordinates, basis):
    (n,), (r, d) = ids.shape, basis.shape
    threads = torch.get_num_threads()
    out = coordinates.new_empty(n, d)
    scratch = workspace(_native.cpu.factorized_embedding_forward_workspace(n, r, d, threads), out)
    _native.cpu.factorized_embedding_forward(
        ids.contiguous(), coordinates.contiguous(), basis.contiguous(), out, scratch, threads
    )
    return out


def _backward_native(grad, ids, coordinates, basis):
    (n,), (r, d) = ids.shape, basis.shape
    threads = torch.get_num_threads()
    coordinates = coordinates.contiguous()
    grads = torch.zeros_like(coordinates), torch.empty_like(basis, memory_format=torch.contiguous_format)
    scratch = workspace(_native.cpu.factorized_embedding_backward_workspace(n, r, d, threads), grad)
    _native.cpu.factorized_embedding_backward(
        grad.contiguous(), ids.contiguous(), coordinates, basis.contiguous(), *grads, scratch, threads
    )
    return grads


def _checked(function):
    def run(*args):
        ids, coordinates = args[-3], args[-2]
        out_of_range = (ids < 0) | (ids >= coordinates.shape[0])
        if out_of_range.any():
            at = int(out_of_range.nonzero()[0])
            raise IndexError(f"input_ids must lie in [0, {coordinates.shape[0]}), got {int(ids[at])} at position {at}")
        return function(*args)

    return run


_forward = Op(
    "factorized_embedding(Tensor input_ids, Tensor coordinates, Tensor basis) -> Tensor",
    fake=lambda ids, coordinates, basis: coordinates.new_empty(ids.shape[0], basis.shape[1]),
    backends={"cpu": _forward_native, "reference": _checked(reference.factorized_embedding)},
)
_backward = Op(
    "factorized_embedding_backward(Tensor grad, Tensor input_ids, Tensor coordinates, Tensor basis) "
    "-> (Tensor, Tensor)",
    fake=lambda grad, ids, coordinates, basis: (
        torch.empty_like(coordinates, memory_format=torch.contiguous_format),
        torch.empty_like(basis, memory_format=torch.contiguous_format),
    ),
    backends={"cpu": _backward_native, "reference": _checked(reference.backward)},
)


class _FactorizedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, coordinates, basis):
        ctx.save_for_backward(ids, coordinates, basis)
        return _forward(ids, coordinates, basis)

    @staticmethod
    def backward(ctx, grad):
        return None, *_backward(grad, *ctx.saved_tensors)


def factorized_embedding(input_ids: torch.Tensor, coordinates: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Look up rows of the factorised table: ``coordinates[input_ids] @ basis``.

    The table ``coordinates @ basis`` [V, D] is never formed.

    Args:
        input_ids: ids in [0, V), any shape, int64 or int32.
        coordinates: [V, R], float32, bfloat16, float16 or float64.
        basis: [R, D], of the same dtype.

    Returns:
        [..., D], of the tables' dtype, differentiable in ``coordinates`` (a dense gradient) and ``basis``.

    Raises:
        IndexError: an id lies outside [0, V). TypeError: a dtype. ValueError: a shape.

    Products of float32, bfloat16 and float16 are summed in float32. The gradient is deterministic: gradients of equal
    ids are summed in token order. Peak extra memory on the CPU: the packed basis, R * D floats, and 224 * (R + D)
    floats per thread; for the backward pass 16 * R * D floats, 16 N bytes and 448 * (R + D) floats per thread.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.1: E = F P, with F the coordinates and P the basis.
    """
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be int64 or int32, got {str(input_ids.dtype).removeprefix('torch.')}")
    if coordinates.dim() != 2 or basis.dim() != 2 or coordinates.shape[1] != basis.shape[0]:
        raise ValueError(
            "coordinates must be [V, R] and basis [R, D] with the same R, got "
            f"{list(coordinates.shape)} and {list(basis.shape)}"
        )
    if not coordinates.is_floating_point() or coordinates.dtype != basis.dtype:
        raise TypeError(
            f"coordinates and basis must share one floating-point dtype, got {coordinates.dtype} and {basis.dtype}"
        )
    out = _FactorizedEmbedding.apply(input_ids.reshape(-1).long(), coordinates, basis)
    return out.view(*input_ids.shape, basis.shape[1])
