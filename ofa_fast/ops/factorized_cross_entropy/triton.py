"""Triton kernels of the factorised cross entropy.

With h = hidden basisᵀ and s = h coordinatesᵀ + bias, the forward pass is attention with h as queries and the
coordinates F as both keys and values: one pass over them gives every position's log-sum-exp and `others`, the sum of
p_v F_v, from one load of a tile of F. A few splits of the vocabulary run side by side and are put together in order.
The backward pass turns it around: a program owns a tile of F, passes over all positions, recomputes s, knows the
log-sum-exp, and writes its rows of dF and of the bias's gradient once. So nothing is added by two programs, and nothing
of size [N, V] exists. The label's own term is left out of all sums and added apart: it would cancel digits.

The rank is divided into up to three powers of 2, as Triton's tiles are: 200 is 128 + 64 + 16 and not 256.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ofa_fast.ops._triton import dot, roomy, rounded, rows_of
from ofa_fast.ops.factorized_cross_entropy import _gradients, _outputs, reference

WIDTHS = (512, 256, 128, 64, 32, 16)
PROGRAMS = 264  # that the forward pass is divided into: two for each of an H100's or H200's 132 processors
MAX_SPLITS, SPLIT_TILES = 64, 4  # splits at most, and tiles of one at least
STEP = tl.constexpr(32)  # columns


@triton.jit
def _parts(pointer, rows, valid, dtype: tl.constexpr, R: tl.constexpr,
           A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Rows of a matrix [., R] as A, B and C columns; those of width 0 are not looked at."""
    a = rows_of(pointer, rows, valid, 0, A, R).to(dtype)
    b, c = a, a
    if B > 0:
        b = rows_of(pointer, rows, valid, A, B, R).to(dtype)
    if C > 0:
        c = rows_of(pointer, rows, valid, A + B, C, R).to(dtype)
    return a, b, c


@triton.jit
def _scores(a, b, c, x, y, z, ROWS: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    if C > 0:
        s = dot(c, tl.trans(z), s)
    if B > 0:
        s = dot(b, tl.trans(y), s)
    return dot(a, tl.trans(x), s)


@triton.jit
def _scores_in_steps(x, x_rows, x_valid, y, y_rows, y_valid, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                     R: tl.constexpr):  # fmt: skip
    """The same a few columns at a time: the two TF32 parts of whole float32 rows would not fit into registers."""
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, R, STEP):
        a = rows_of(x, x_rows, x_valid, first, STEP, R).to(tl.float32)
        b = rows_of(y, y_rows, y_valid, first, STEP, R).to(tl.float32)
        s = dot(a, tl.trans(b), s)
    return s


@triton.jit
def _add(total, scale, weights, values, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """scale total + weights values.

    Tensor cores cut off what they cannot add, always towards zero, and a sum here has tens of thousands of terms. So
    float32 adds each tile's product with an addition that rounds; for half precision the loss is below its own.
    """
    total_scale = tl.broadcast_to(scale[:, None], (ROWS, WIDTH))
    if values.dtype == tl.float32:
        return tl.fma(total, total_scale, dot(weights, values, tl.zeros((ROWS, WIDTH), tl.float32)))
    else:
        return dot(weights, values, total * total_scale)


@triton.jit
def _forward(
    hidden, table, bias, labels, largest, sums, partial, positions, vocabulary, split_tiles,
    R: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    MAGNIFIED: tl.constexpr, HAS_BIAS: tl.constexpr, WITH_OTHERS: tl.constexpr,
):  # fmt: skip
    """Of split s: maximum, sum of exponentials, and their weighted sum of F, over all entries but the label."""
    split = tl.program_id(1)
    position = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = position < positions
    dtype = hidden.dtype.element_ty
    label = tl.load(labels + position, mask=valid, other=-1)
    if dtype != tl.float32:
        ha, hb, hc = _parts(hidden, position, valid, dtype, R, A, B, C)
    m = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    oa = tl.zeros((BLOCK_N, A), tl.float32)
    if B > 0:
        ob = tl.zeros((BLOCK_N, B), tl.float32)
    if C > 0:
        oc = tl.zeros((BLOCK_N, C), tl.float32)
    end = tl.minimum((split + 1) * split_tiles * BLOCK_V, vocabulary)
    for first in range(split * split_tiles * BLOCK_V, end, BLOCK_V):
        entry = first + tl.arange(0, BLOCK_V)
        fa, fb, fc = _parts(table, entry, entry < end, dtype, R, A, B, C)
        if dtype == tl.float32:
            s = _scores_in_steps(hidden, position, valid, table, entry, entry < end, BLOCK_N, BLOCK_V, R)
        else:
            s = _scores(ha, hb, hc, fa, fb, fc, BLOCK_N, BLOCK_V, B, C)
        if HAS_BIAS:
            s += tl.load(bias + entry, mask=entry < end, other=0.0).to(tl.float32)[None, :]
        is_label = entry[None, :] == label[:, None]
        s = tl.where(is_label | (entry >= end)[None, :], float("-inf"), s)
        new_m = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(new_m == float("-inf"), 0.0, new_m)  # nothing but -inf so far: -inf - -inf is not a number
        p = tl.exp(s - shift[:, None])
        scale = tl.exp(m - shift)
        total = total * scale + tl.sum(p, 1)
        m = new_m
        if WITH_OTHERS:
            p = rounded(p * MAGNIFIED, dtype)
            oa = _add(oa, scale, p, fa, BLOCK_N, A)
            if B > 0:
                ob = _add(ob, scale, p, fb, BLOCK_N, B)
            if C > 0:
                oc = _add(oc, scale, p, fc, BLOCK_N, C)
    at = split.to(tl.int64) * positions + position
    tl.store(largest + at, m, mask=valid)
    tl.store(sums + at, total, mask=valid)
    if WITH_OTHERS:
        _store(partial, at, valid, oa, 0, A, R)
        if B > 0:
            _store(partial, at, valid, ob, A, B, R)
        if C > 0:
            _store(partial, at, valid, oc, A + B, C, R)


@triton.jit
def _store(pointer, rows, valid, values, FIRST: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr):
    column = FIRST + tl.arange(0, WIDTH)
    at = pointer + rows.to(tl.int64)[:, None] * R + column[None, :]
    tl.store(at, rounded(values, pointer.dtype.element_ty), mask=valid[:, None] & (column < R)[None, :])


@triton.jit
def _combine(partial, weights, rows, others, positions, splits, R: tl.constexpr, WIDTH: tl.constexpr):
    """others[rows[i]]: the sum of weights[s, i] partial[s, i] over the splits, in order."""
    position = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    at = position
    for _ in range(splits):
        part = tl.load(partial + at * R + column, mask=column < R, other=0.0)
        total += tl.load(weights + at) * part
        at += positions
    row = tl.load(rows + position)
    tl.store(others + row * R + column, total, mask=column < R)


@triton.jit
def _backward(
    hidden, table, bias, labels, lse, lse_rest, slopes, label_slopes, unit, grad_table, grad_bias,
    positions, vocabulary,
    R: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, FOR_TABLE: tl.constexpr, FOR_BIAS: tl.constexpr,
):  # fmt: skip
    """Rows of dF and of the bias's gradient: sums of P_tv h_t and of P_tv over all positions t, times ``unit``."""
    entry = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = entry < vocabulary
    dtype = hidden.dtype.element_ty
    if dtype != tl.float32:
        fa, fb, fc = _parts(table, entry, inside, dtype, R, A, B, C)
    shift = tl.where(inside, 0.0, float("-inf"))  # rows beyond the last have no probability that could overflow
    if HAS_BIAS:
        shift = tl.load(bias + entry, mask=inside, other=float("-inf")).to(tl.float32)
    total = tl.zeros((BLOCK_V,), tl.float32)
    one = tl.full((BLOCK_V,), 1.0, tl.float32)
    da = tl.zeros((BLOCK_V, A), tl.float32)
    if B > 0:
        db = tl.zeros((BLOCK_V, B), tl.float32)
    if C > 0:
        dc = tl.zeros((BLOCK_V, C), tl.float32)
    for first in range(0, positions, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        valid = position < positions
        ha, hb, hc = _parts(hidden, position, valid, dtype, R, A, B, C)
        if dtype == tl.float32:
            s = _scores_in_steps(table, entry, inside, hidden, position, valid, BLOCK_V, BLOCK_N, R)
        else:
            s = _scores(fa, fb, fc, ha, hb, hc, BLOCK_V, BLOCK_N, B, C)
        s += shift[:, None]
        log_sum = tl.load(lse + position, mask=valid, other=float("inf"))
        rest = tl.load(lse_rest + position, mask=valid, other=0.0)
        slope = tl.load(slopes + position, mask=valid, other=0.0)
        at_label = tl.load(label_slopes + position, mask=valid, other=0.0)
        label = tl.load(labels + position, mask=valid, other=-1)
        p = tl.exp((s - log_sum[None, :]) - rest[None, :]) * slope[None, :]
        p = tl.where(entry[:, None] == label[None, :], at_label[None, :], p)
        total += tl.sum(p, 1)
        if FOR_TABLE:
            p = rounded(p, dtype)
            da = _add(da, one, p, ha, BLOCK_V, A)
            if B > 0:
                db = _add(db, one, p, hb, BLOCK_V, B)
            if C > 0:
                dc = _add(dc, one, p, hc, BLOCK_V, C)
    scale = tl.load(unit)
    if FOR_BIAS:
        tl.store(grad_bias + entry, rounded(total * scale, grad_bias.dtype.element_ty), mask=inside)
    if FOR_TABLE:
        _store(grad_table, entry, inside, da * scale, 0, A, R)
        if B > 0:
            _store(grad_table, entry, inside, db * scale, A, B, R)
        if C > 0:
            _store(grad_table, entry, inside, dc * scale, A + B, C, R)


def divided(rank: int) -> tuple[int, int, int]:
    """The smallest sum of up to three powers of 2, from 16 on, that is at least ``rank``, largest first."""
    choices = itertools.chain.from_iterable(itertools.combinations_with_replacement(WIDTHS, n) for n in (1, 2, 3))
    best = min((c for c in choices if sum(c) >= rank), key=lambda c: (sum(c), len(c)))
    return *best, *(0,) * (3 - len(best))


def _tiles(dtype, rank, device):
    """Rows that a program owns, rows that it passes over at a time, and how it is compiled."""
    options = {"num_warps": 8, "num_stages": 2, "maxnreg": 255}
    if dtype == torch.float32:
        return (64, 16), options
    if not roomy(device):
        return (64, 32), options | {"num_warps": 4, "num_stages": 1 if rank > 256 else 2}
    return (64, 32) if rank > 256 else (128, 64), options


def _magnified(dtype) -> float:
    """float16 ends at 6e-8, where the probabilities of a large vocabulary are: this much larger they fit."""
    return 2.0**15 if dtype == torch.float16 else 1.0


def _labelled(hidden, coordinates, basis, labels, ignore_index):
    """The labelled positions, their labels, hidden states and projection, and the dtype that tensor cores multiply."""
    rows = (labels != ignore_index).nonzero().squeeze(1)
    dtypes = {hidden.dtype, coordinates.dtype, basis.dtype}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    states = hidden[rows].to(dtype)
    return rows, labels[rows], states, (states @ basis.to(dtype).T).contiguous(), dtype


def forward(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    reference.check_labels(labels, coordinates, ignore_index)
    loss, lse, others = _outputs(hidden, coordinates, basis, labels, bias, ignore_index, with_others)
    rows, label, _, projected, dtype = _labelled(hidden, coordinates, basis, labels, ignore_index)
    n, (v, r) = len(rows), coordinates.shape
    if not n:
        return loss, lse, others
    (block_n, block_v), compiled = _tiles(dtype, r, hidden.device)
    tiles = triton.cdiv(v, block_v)
    splits = max(1, min(PROGRAMS // triton.cdiv(n, block_n), tiles // SPLIT_TILES, MAX_SPLITS))
    split_tiles = triton.cdiv(tiles, splits)
    splits = triton.cdiv(tiles, split_tiles)
    largest, sums = projected.new_empty(2, splits, n, dtype=torch.float32)
    partial = projected.new_empty((splits, n, r) if with_others else 0, dtype=torch.float32)
    a, b, c = divided(r)
    magnified = _magnified(dtype)
    _forward[triton.cdiv(n, block_n), splits](
        projected, coordinates.contiguous(), largest if bias is None else bias.contiguous(), label,
        largest, sums, partial, n, v, split_tiles,
        R=r, A=a, B=b, C=c, BLOCK_N=block_n, BLOCK_V=block_v, MAGNIFIED=magnified,
        HAS_BIAS=bias is not None, WITH_OTHERS=with_others, **compiled,
    )  # fmt: skip
    at_label = (projected.double() * coordinates[label]).sum(1)
    if bias is not None:
        at_label += bias[label]
    largest = largest.double()
    most = largest.amax(0)
    shifted = torch.where(most == -math.inf, 0.0, most)
    log_sum = shifted + ((largest - shifted).exp() * sums).sum(0).log()  # of all entries but the label
    nll = F.softplus(log_sum - at_label, threshold=40)
    nll = torch.where(at_label == math.inf, math.nan, nll)
    log_sum = torch.logaddexp(log_sum, at_label)
    loss[rows], lse[0, rows] = nll.float(), log_sum.float()
    lse[1, rows] = torch.where(log_sum.isfinite(), log_sum - log_sum.float(), 0.0).float()
    if with_others:
        weights = ((largest - log_sum).exp() / magnified).float()
        width = triton.next_power_of_2(r)
        _combine[(n,)](partial, weights, rows, others, n, splits, R=r, WIDTH=width, num_warps=1)
    return loss, lse, others


def backward(grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, loss, lse, others, ignore_index, needs):
    grads = _gradients(hidden, coordinates, basis, bias, needs)
    rows, label, states, projected, dtype = _labelled(hidden, coordinates, basis, labels, ignore_index)
    g, z, nll = grad_loss[rows], grad_lse[rows], loss[rows]
    at_label, slope = g * torch.expm1(-nll) + z * torch.exp(-nll), g + z
    unit = _unit(slope, at_label)
    at_label, slope = at_label / unit, slope / unit
    if needs[0] or needs[2]:
        of_projected = slope[:, None] * others[rows]
        of_projected += at_label[:, None] * coordinates[label]
        of_projected = of_projected.to(dtype)
        if needs[0]:
            grads[0].index_copy_(0, rows, ((of_projected @ basis.to(dtype)).float() * unit).to(hidden.dtype))
        if needs[2]:
            grads[2].copy_((of_projected.T @ states).float() * unit)
    if needs[1] or needs[3]:
        (n, (v, r)), (a, b, c) = (len(rows), coordinates.shape), divided(coordinates.shape[1])
        (block_v, block_n), compiled = _tiles(dtype, r, hidden.device)
        magnified = _magnified(dtype)
        _backward[(triton.cdiv(v, block_v),)](
            projected, coordinates.contiguous(), nll if bias is None else bias.contiguous(), label,
            lse[0, rows], lse[1, rows], slope * magnified, at_label * magnified, unit / magnified,
            grads[1], grads[3], n, v,
            R=r, A=a, B=b, C=c, BLOCK_V=block_v, BLOCK_N=block_n,
            HAS_BIAS=bias is not None, FOR_TABLE=needs[1], FOR_BIAS=needs[3], **compiled,
        )  # fmt: skip
    return grads


def _unit(*slopes):
    """A power of 2 above all magnitudes, in units of which slopes of any loss scale fit float16; exact to divide by."""
    most = torch.stack([F.pad(slope, (0, 1)).abs().amax() for slope in slopes]).amax()
    return torch.where((most > 0) & most.isfinite(), torch.exp2(torch.frexp(most).exponent.float()), 1.0)
