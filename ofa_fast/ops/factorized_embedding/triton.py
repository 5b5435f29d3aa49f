"""Triton kernels of the factorised embedding lookup.

Forward: one program has a block of tokens and of columns, gathers the tokens' coordinates into shared memory, and
multiplies; gathered rows are never written. Backward, with the tokens sorted by id: `_project` gives every sorted token
grad_out basisᵀ and adds up equal ids within its block of tokens, `_add_segments` adds what is left of each id, one
partial row a block; every row has one writer and one order, so there are no atomics. `_basis` sums coordinates[ids]ᵀ
grad_out over slices of the tokens, which are then added in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ofa_fast.ops._triton import dot, power_of_2, report_wrong, rounded
from ofa_fast.ops.factorized_embedding import REPORTS, _sparse

SLICES = 16  # of the tokens, at most, that `_basis` sums apart: enough programs for small tables
SEGMENT_BLOCKS = 32  # partial rows that `_add_segments` adds at once


@triton.jit
def _lookup(
    ids, table, basis, out, report, tokens, vocabulary,
    R: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    REPORTS: tl.constexpr,
):  # fmt: skip
    if REPORTS:
        report_wrong(ids, tokens, vocabulary, 0, report, IGNORES=False)
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(ids + token, mask=token < tokens, other=-1)
    valid = (row >= 0) & (row < vocabulary)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, R, BLOCK_R):
        depth = first + tl.arange(0, BLOCK_R)
        inside = depth < R
        f = tl.load(table + row[:, None] * R + depth[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        p = tl.load(
            basis + depth[:, None] * D + column[None, :], mask=inside[:, None] & (column < D)[None, :], other=0.0
        )
        total = dot(f, p, total)
    at = out + token.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(at, rounded(total, out.dtype.element_ty), mask=(token < tokens)[:, None] & (column < D)[None, :])


@triton.jit
def _project(
    ids, order, grad, basis, partial, tokens,
    R: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partial[i]: the sum of grad basisᵀ over the sorted tokens of this block that have the id of i, its first one."""
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.load(order + place, mask=place < tokens, other=0)
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for first in range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        inside = column < D
        g = tl.load(
            grad + token[:, None] * D + column[None, :], mask=(place < tokens)[:, None] & inside[None, :], other=0.0
        )
        p = tl.load(
            basis + depth[None, :] * D + column[:, None], mask=(depth < R)[None, :] & inside[:, None], other=0.0
        )
        total = dot(g, p, total)
    own = tl.load(ids + place, mask=place < tokens, other=-1)
    before = tl.load(ids + place - 1, mask=(place > 0) & (place < tokens), other=-1)
    head = (own != before) | (place % BLOCK_N == 0)
    # Equal ids are added by a product with zeros and ones, in which nothing but a finite number times 0 is 0.
    same = own[:, None] == own[None, :]
    finite = tl.abs(total) < float("inf")
    nothing = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    lost = dot(same.to(tl.float16), tl.where(finite, 0.0, 1.0).to(tl.float16), nothing)
    total = dot(same.to(tl.float32), tl.where(finite, total, 0.0), nothing)
    total = tl.where(lost > 0, float("nan"), total)
    at = partial + place.to(tl.int64)[:, None] * R + depth[None, :]
    tl.store(at, total, mask=(head & (place < tokens))[:, None] & (depth < R)[None, :])


@triton.jit
def _add_segments(
    partial, ids, ends, rows, out, vocabulary, padding,
    R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCKS: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """The row of ``out`` of the id that begins at this place: the partial rows from here on, one a block."""
    place = tl.program_id(0)
    row = tl.load(ids + place)
    before = tl.load(ids + place - 1, mask=place > 0, other=-1)
    # Nobody has waited for the check of the ids: those that are none get no gradient.
    if (row != before) & (row != padding) & (row >= 0) & (row < vocabulary):
        if SPARSE:
            row = tl.load(rows + place)
        depth = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = depth < R
        end = tl.load(ends + place)
        total = tl.load(partial + place.to(tl.int64) * R + depth, mask=inside, other=0.0)
        for block in range(place // BLOCK_N + 1, tl.cdiv(end, BLOCK_N), BLOCKS):
            head = (block + tl.arange(0, BLOCKS)).to(tl.int64) * BLOCK_N
            part = tl.load(
                partial + head[:, None] * R + depth[None, :], mask=(head < end)[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(part, 0)
        tl.store(out + row * R + depth, rounded(total, out.dtype.element_ty), mask=inside)


@triton.jit
def _basis(
    ids, table, grad, partial, tokens, vocabulary, padding, slice_tokens,
    R: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """partial[s]: coordinates[ids]ᵀ grad over the tokens of slice s but those whose id is ``padding``."""
    depth = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.program_id(2)
    end = tl.minimum((part + 1) * slice_tokens, tokens)
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for first in range(part * slice_tokens, end, BLOCK_N):
        token = first + tl.arange(0, BLOCK_N)
        row = tl.load(ids + token, mask=token < end, other=-1)
        valid = (token < end) & (row != padding) & (row >= 0) & (row < vocabulary)
        f = tl.load(table + row[None, :] * R + depth[:, None], mask=valid[None, :] & (depth < R)[:, None], other=0.0)
        g = tl.load(
            grad + token.to(tl.int64)[:, None] * D + column[None, :],
            mask=valid[:, None] & (column < D)[None, :],
            other=0.0,
        )
        total = dot(f, g, total)
    at = partial + (part.to(tl.int64) * R + depth[:, None]) * D + column[None, :]
    tl.store(at, total, mask=(depth < R)[:, None] & (column < D)[None, :])


def _blocks(dtype):
    """Tokens or ranks, columns and depth of a block: shared memory holds twice as many half-precision numbers."""
    return (64, 64, 32) if dtype == torch.float32 else (64, 128, 64)


def forward(ids, coordinates, basis):
    (n,), (r, d) = ids.shape, basis.shape
    report = REPORTS.record(ids)
    out = coordinates.new_empty(n, d)
    rows, columns, depth = _blocks(basis.dtype)
    if out.numel():
        grid = triton.cdiv(n, rows), triton.cdiv(d, columns)
        _lookup[grid](
            ids.contiguous(), coordinates.contiguous(), basis.contiguous(), out, report, n, len(coordinates),
            R=r, D=d, BLOCK_N=rows, BLOCK_D=columns, BLOCK_R=min(depth, power_of_2(r)),
            REPORTS=report.numel() > 0, num_warps=4, num_stages=3,
        )  # fmt: skip
    REPORTS.settle(ids)
    return out


def backward(grad, ids, coordinates, basis, padding_idx, sparse, needs):
    REPORTS.raise_earlier(ids)
    grad, ids, coordinates, basis = (t.contiguous() for t in (grad, ids, coordinates, basis))
    nothing = grad.new_empty(0)
    return (
        _grad_coordinates(grad, ids, coordinates, basis, padding_idx, sparse) if needs[0] else nothing,
        _grad_basis(grad, ids, coordinates, basis, padding_idx) if needs[1] else nothing,
    )


def _grad_coordinates(grad, ids, coordinates, basis, padding_idx, sparse):
    (n,), (r, d) = ids.shape, basis.shape
    block, _, depth = _blocks(basis.dtype)
    width = min(64, power_of_2(r))  # with 128 the two products of `_project` would not fit into registers
    sorted_ids, order = ids.sort(stable=True)
    if sparse:
        starts = (sorted_ids != padding_idx) & (sorted_ids >= 0) & (sorted_ids < len(coordinates))
        starts[1:] &= sorted_ids[1:] != sorted_ids[:-1]
        distinct, rows = sorted_ids[starts], starts.cumsum(0) - 1
        out = coordinates.new_empty(len(distinct), r)
    else:
        out, rows = coordinates.new_zeros(coordinates.shape), order
    if n and r:
        partial = grad.new_empty(n, r, dtype=torch.float32)
        ends = torch.searchsorted(sorted_ids, sorted_ids, right=True)
        _project[triton.cdiv(n, block), triton.cdiv(r, width)](
            sorted_ids, order, grad, basis, partial, n,
            R=r, D=d, BLOCK_N=block, BLOCK_R=width, BLOCK_D=min(depth, power_of_2(d)), num_warps=8, num_stages=3,
        )  # fmt: skip
        _add_segments[n, triton.cdiv(r, width)](
            partial, sorted_ids, ends, rows, out, len(coordinates), padding_idx,
            R=r, BLOCK_N=block, BLOCK_R=width, BLOCKS=SEGMENT_BLOCKS, SPARSE=sparse, num_warps=1,
        )  # fmt: skip
    return _sparse(distinct, out, coordinates) if sparse else out


def _grad_basis(grad, ids, coordinates, basis, padding_idx):
    (n,), (r, d) = ids.shape, basis.shape
    rows, columns, tokens = _blocks(basis.dtype)
    slices = max(1, min(SLICES, n // (4 * tokens)))
    per_slice = triton.cdiv(n, slices)
    partial = grad.new_empty(slices, r, d, dtype=torch.float32)
    if partial.numel():
        _basis[triton.cdiv(r, rows), triton.cdiv(d, columns), slices](
            ids, coordinates, grad, partial, n, len(coordinates), padding_idx, per_slice,
            R=r, D=d, BLOCK_R=rows, BLOCK_D=columns, BLOCK_N=tokens, num_warps=4, num_stages=3,
        )  # fmt: skip
    return partial.sum(0).to(basis.dtype)
