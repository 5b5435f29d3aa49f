"""Fused basis-projection embedding lookup: out[t] = coordinates[ids[t]] @ basis."""

from __future__ import annotations

import math
import mmap

import torch
from torch.autograd.function import once_differentiable

from ofa_fast import _native
from ofa_fast.ops._op import Op, on_first_use, workspace
from ofa_fast.ops._reports import Reports
from ofa_fast.ops.factorized_embedding import reference

_HUGE_PAGE = 1 << 21
REPORTS = Reports("input_ids must lie in [0, {rows})")
_NOTHING = torch.empty(0, dtype=torch.int64, device="cpu")  # an argument that is not looked at
_LARGE = 1 << 25  # bytes from which malloc, too, asks the kernel for new pages every time


def _zeros(shape, like):
    """torch.zeros, except that pages of a large tensor which nobody touches cost nothing.

    The kernel's new pages are zero as they are: writing zeros into them would take longer than all the rest.
    """
    size = math.prod(shape) * like.element_size()
    if size < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return like.new_zeros(shape)
    pages = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=like.dtype, count=math.prod(shape)).view(shape)


def _sparse(distinct, rows, like):
    return torch.sparse_coo_tensor(distinct[None], rows, like.shape, check_invariants=False, is_coalesced=True)


def _forward_native(ids, coordinates, basis):
    (n,), (r, d) = ids.shape, basis.shape
    threads = torch.get_num_threads()
    out = coordinates.new_empty(n, d)
    scratch = workspace(_native.cpu.factorized_embedding_forward_workspace(n, r, d, threads), out)
    _native.cpu.factorized_embedding_forward(
        ids.contiguous(), coordinates.contiguous(), basis.contiguous(), out, scratch, threads
    )
    return out


def _group(ids, coordinates, padding_idx):
    """Tokens sorted by id, where each id's begin, the distinct ids, and how many there are."""
    n = len(ids)
    groups = ids.new_empty(n), ids.new_empty(n + 1), ids.new_empty(n), ids.new_empty(1)
    scratch = workspace(_native.cpu.factorized_embedding_group_workspace(n), ids)
    _native.cpu.factorized_embedding_group(ids.contiguous(), len(coordinates), padding_idx, *groups, scratch)
    return groups


def _backward_native(grad, ids, coordinates, basis, padding_idx, sparse, needs):
    (n,), (r, d) = ids.shape, basis.shape
    threads = torch.get_num_threads()
    order, first, distinct, count = _group(ids, coordinates, padding_idx)
    u = int(count)
    grad_coordinates = grad_basis = grad.new_empty(0)
    if needs[0]:
        grad_coordinates = grad.new_empty(u, r) if sparse else _zeros(coordinates.shape, coordinates)
    if needs[1]:
        grad_basis = torch.empty_like(basis, memory_format=torch.contiguous_format)
    scratch = workspace(_native.cpu.factorized_embedding_backward_workspace(n, u, r, d, threads), grad)
    tables = coordinates.contiguous(), basis.contiguous()
    _native.cpu.factorized_embedding_backward(
        grad.contiguous(), order, first, distinct, count, *tables, grad_coordinates, grad_basis, scratch, threads
    )
    if sparse and needs[0]:
        grad_coordinates = _sparse(distinct[:u].clone(), grad_coordinates, coordinates)
    return grad_coordinates, grad_basis


def _forward_cuda(ids, coordinates, basis):
    report = REPORTS.record(ids)
    out = coordinates.new_empty(len(ids), basis.shape[1])
    _native.cuda.factorized_embedding_forward(
        ids.contiguous(), coordinates.contiguous(), basis.contiguous(), out, report
    )
    REPORTS.settle(ids)
    return out


def _backward_cuda(grad, ids, coordinates, basis, padding_idx, sparse, needs):
    """Wrong ids get no gradient. Only a sparse gradient waits for the device, to learn how many rows it has."""
    REPORTS.raise_earlier(ids)
    (n,), (v, r), d = ids.shape, coordinates.shape, basis.shape[1]
    sparse = sparse and needs[0]
    grad_coordinates = coordinates.new_empty(min(n, v) if sparse else v, r) if needs[0] else grad.new_empty(0)
    grad_basis = basis.new_empty(r, d) if needs[1] else grad.new_empty(0)
    distinct = ids.new_empty(n + 1) if sparse else _NOTHING
    scratch = workspace(_native.cuda.factorized_embedding_backward_workspace(n, r, d), grad)
    _native.cuda.factorized_embedding_backward(
        grad.contiguous(), ids.contiguous(), padding_idx, coordinates.contiguous(), basis.contiguous(),
        grad_coordinates, grad_basis, distinct, scratch,
    )  # fmt: skip
    if sparse:
        u = int(distinct[-1])
        grad_coordinates = _sparse(distinct[:u], grad_coordinates[:u], coordinates)
    return grad_coordinates, grad_basis


def _limit(ids, coordinates, basis):
    return None if basis.numel() else f"it takes a basis with entries, got one of shape {tuple(basis.shape)}"


def _gpu_limit(ids, coordinates, basis):
    """Kernels count tokens, and CUDA C++ also rows, in 32 bits."""
    rows = max(len(ids), len(coordinates))
    return f"it takes fewer than 2^31 rows, got {rows}" if rows >= 1 << 31 else _limit(ids, coordinates, basis)


_LIMITS = {"cpu": _limit, "cuda": _gpu_limit, "triton": _gpu_limit}


def _forward_reference(ids, coordinates, basis):
    reference.check_ids(ids, coordinates)
    return reference.factorized_embedding(ids, coordinates, basis)


def _backward_reference(grad, ids, coordinates, basis, padding_idx, sparse, needs):
    reference.check_ids(ids, coordinates)
    kept = ids != padding_idx
    grad, ids = grad[kept], ids[kept]
    grad_coordinates, grad_basis = reference.backward(grad, ids, coordinates, basis)
    if sparse:
        distinct = ids.unique()
        grad_coordinates = _sparse(distinct, grad_coordinates[distinct], coordinates)
    return grad_coordinates if needs[0] else grad.new_empty(0), grad_basis if needs[1] else grad.new_empty(0)


def _backward_fake(grad, ids, coordinates, basis, padding_idx, sparse, needs):
    grads = [grad.new_empty(t.shape if need else 0) for t, need in zip((coordinates, basis), needs, strict=True)]
    if sparse and needs[0]:
        n = ids.shape[0]  # at most, but torch finds no symbolic sizes within sparse tensors
        grads[0] = _sparse(ids.new_empty(n), grad.new_empty(n, coordinates.shape[1]), coordinates)
    return tuple(grads)


_forward = Op(
    "factorized_embedding(Tensor input_ids, Tensor coordinates, Tensor basis) -> Tensor",
    fake=lambda ids, coordinates, basis: coordinates.new_empty(ids.shape[0], basis.shape[1]),
    backends={
        "cpu": _forward_native,
        "cuda": _forward_cuda,
        "triton": on_first_use(f"{__name__}.triton", "forward"),
        "reference": _forward_reference,
    },
    limits=_LIMITS,
)
# Gradients of coordinates, if sparse a coalesced sparse_coo tensor, and of basis, without what padding_idx (-1: none)
# adds to them; those that `needs` does not ask for are empty.
_backward = Op(
    "factorized_embedding_backward(Tensor grad, Tensor input_ids, Tensor coordinates, Tensor basis, int padding_idx, "
    "bool sparse, bool[] needs) -> (Tensor grad_coordinates, Tensor grad_basis)",
    fake=_backward_fake,
    backends={
        "cpu": _backward_native,
        "cuda": _backward_cuda,
        "triton": on_first_use(f"{__name__}.triton", "backward"),
        "reference": _backward_reference,
    },
    limits={name: lambda _, *tables, limit=limit: limit(*tables[:3]) for name, limit in _LIMITS.items()},
)


def _look_up(forward, input_ids, coordinates, basis):
    """Flat ids, and the result, which is no view: autograd would give one a node, and let nobody change it in place."""
    ids = input_ids if input_ids.dim() == 1 else input_ids.reshape(-1)
    ids = ids if ids.dtype == torch.int64 else ids.long()
    out = forward(ids, coordinates, basis)
    if input_ids.dim() != 1:
        out = torch.ops.aten._unsafe_view.default(out, (*input_ids.shape, basis.shape[1]))
    return ids, out


class _FactorizedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input_ids, coordinates, basis, padding_idx, sparse, needs):
        ids, out = _look_up(_forward.inside, input_ids, coordinates, basis)
        ctx.save_for_backward(ids, coordinates, basis)
        ctx.options = padding_idx, sparse, needs
        return out

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # somebody asks for a graph of this
            return once_differentiable(_gradients)(ctx, grad)
        return _gradients(ctx, grad)


def _gradients(ctx, grad):
    ids, coordinates, basis = ctx.saved_tensors
    if grad.dim() != 2:
        grad = grad.reshape(ids.shape[0], basis.shape[1])
    grad_coordinates, grad_basis = _backward.inside(grad, ids, coordinates, basis, *ctx.options)
    needs = ctx.options[-1]
    return None, grad_coordinates if needs[0] else None, grad_basis if needs[1] else None, None, None, None


def factorized_embedding(
    input_ids: torch.Tensor,
    coordinates: torch.Tensor,
    basis: torch.Tensor,
    padding_idx: int | None = None,
    sparse: bool = False,
) -> torch.Tensor:
    """Look up rows of the factorised table: ``coordinates[input_ids] @ basis``.

    The table ``coordinates @ basis`` [V, D] is never formed.

    Args:
        input_ids: ids in [0, V), any shape, int64 or int32.
        coordinates: [V, R], float32, bfloat16, float16 or float64.
        basis: [R, D], of the same dtype.
        padding_idx: as in ``F.embedding``: lookups of this id, in [-V, V), give its row but no gradient at all.
        sparse: the gradient of ``coordinates`` is a coalesced ``torch.sparse_coo`` tensor of the ids that occur, for
            ``torch.optim.SparseAdam``, ``SGD`` and ``Adagrad``: it takes no time or memory for the other
            rows; on CUDA its memory is that of min(N, V) rows.

    Returns:
        [..., D], of the tables' dtype, differentiable once in ``coordinates`` and ``basis``; frozen ones cost nothing.

    Raises:
        IndexError: an id lies outside [0, V). On a GPU, which is not waited for, a later call or the backward pass
            raises it; until then such an id has a row of zeros and no gradient. With CUDA_LAUNCH_BLOCKING=1 in the
            environment the call itself does. TypeError: a dtype. ValueError: a shape or ``padding_idx``.

    Products of float32, bfloat16 and float16 are summed in float32. Results are deterministic and do not depend on the
    number of threads; a row does not depend on the ids around it. Gradients of equal ids are summed in token order.

    Each distinct id is multiplied once. Peak extra memory on the CPU, for N ids, besides what is returned: 32 N bytes,
    R D floats, and 256 (R + D) floats per thread; in the backward pass 24 N bytes, at most 9 R D floats and N / 64 rows
    of D floats for all, and 512 (R + D) floats per thread. A dense gradient of ``coordinates`` of 32 MiB or more
    takes, until it is written to, memory only around the rows of ids that occur; its storage cannot be resized.

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
    v = coordinates.shape[0]
    if padding_idx is not None and not -v <= padding_idx < v:
        raise ValueError(f"padding_idx must lie in the table of {v} rows, got {padding_idx}")
    padding_idx = -1 if padding_idx is None else padding_idx % v
    needs = [torch.is_grad_enabled() and t.requires_grad for t in (coordinates, basis)]
    if any(needs):
        return _FactorizedEmbedding.apply(input_ids, coordinates, basis, padding_idx, sparse, needs)
    return _look_up(_forward, input_ids, coordinates, basis)[1]
