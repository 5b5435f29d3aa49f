"""The Gram matrix of the truncated SVD as a Triton kernel; the eigenproblem and the product are torch's.

A program has one tile of the lower half and one slice of the rows. Tensor cores multiply 32 rows at a time to float32
accuracy, which is what they sum without losing more than that, and these products are added in float64. Where that is
not accurate enough, which the orthogonality of U shows, `gram.truncated_svd` goes on in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ofa_fast.ops._triton import dot
from ofa_fast.ops.truncated_svd import gram

BLOCK, ROWS = 64, 32
PROGRAMS = 264  # at least, where the columns give fewer tiles: the rows are then divided
PANEL = 1 << 15  # rows that are in float64 at a time


@triton.jit
def _gram(matrix, partial, rows, slice_rows, D: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr):
    """partial[s]: the lower tiles of AᵀA over the rows of slice s."""
    part = tl.program_id(2)
    if tl.program_id(0) >= tl.program_id(1):
        left = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
        right = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        end = tl.minimum((part + 1) * slice_rows, rows)
        total = tl.zeros((WIDTH, WIDTH), tl.float64)
        for first in range(part * slice_rows, end, DEPTH):
            row = first + tl.arange(0, DEPTH)
            start = matrix + row.to(tl.int64)[:, None] * D
            present = (row < end)[:, None]
            a = tl.load(start + left[None, :], mask=present & (left < D)[None, :], other=0.0)
            b = tl.load(start + right[None, :], mask=present & (right < D)[None, :], other=0.0)
            total += dot(tl.trans(a), b, tl.zeros((WIDTH, WIDTH), tl.float32)).to(tl.float64)
        at = partial + (part.to(tl.int64) * D + left[:, None]) * D + right[None, :]
        tl.store(at, total, mask=(left < D)[:, None] & (right < D)[None, :])


def _gram_matrix(matrix):
    n, d = matrix.shape
    tiles = triton.cdiv(d, BLOCK)
    slices = max(1, min(PROGRAMS // (tiles * (tiles + 1) // 2), triton.cdiv(n, 8 * ROWS)))
    partial = matrix.new_empty(slices, d, d, dtype=torch.float64)
    _gram[(tiles, tiles, slices)](
        matrix, partial, n, triton.cdiv(n, slices), D=d, WIDTH=BLOCK, DEPTH=ROWS, num_warps=4, num_stages=3
    )
    lower = partial.sum(0).tril()
    return lower + lower.tril(-1).T


def _product(matrix, right, vectors):
    product = matrix.new_empty(len(matrix), right.shape[1], dtype=torch.float32)
    images = torch.zeros_like(vectors, dtype=torch.float64)
    for rows, panel in zip(product.split(PANEL), matrix.split(PANEL), strict=True):
        torch.mm(panel.float(), right.float(), out=rows)
        exact = rows.double()
        images += exact.T @ (exact @ vectors.double())
    return product, images


def forward(matrix, rank):
    return tuple(part.contiguous() for part in gram.truncated_svd(matrix, rank, _gram_matrix, _product))
