"""Triton kernels of the factorised cross entropy.

With h = hidden basisᵀ and s = h coordinatesᵀ + bias, the forward pass is attention with h as queries and the
coordinates F as both keys and values: one pass over them gives every position's log-sum-exp and `others`, the sum of
p_v F_v, from one load of a tile of F. A few splits of the vocabulary run side by side and are put together in order.
The backward pass turns it around: a program owns a tile of F, passes over all positions, recomputes s, knows the
log-sum-exp, and writes its rows of dF and of the bias's gradient once. So nothing is added by two programs, and nothing
of size [N, V] exists. The label's own term is left out of all sums and added apart: it would cancel digits.

The rank is divided into up to three powers of 2, as Triton's tiles are: 200 is 128 + 64 + 16 and not 256.

Labelled positions come in the order of their labels. So a tile of entries has labels of a range of positions that is
known beforehand, and the backward pass compares nothing elsewhere, unless ``EVERYWHERE``: a branch costs registers,
which older GPUs lack. The forward pass is faster without one.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ofa_fast.ops._triton import dot, rounded, rows_of

STEP = tl.constexpr(32)  # columns
LOG2_E, LN_2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))


@triton.jit
def _part(pointer, rows, dtype: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows that all exist; masks are left out where they would be true, as each costs an instruction a load."""
    columns = FIRST + tl.arange(0, WIDTH)
    at = pointer + rows.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    if FIRST + WIDTH <= COLUMNS:
        return tl.load(at).to(dtype)
    else:
        return tl.load(at, mask=(columns < COLUMNS)[None, :], other=0.0).to(dtype)


@triton.jit
def _parts(pointer, rows, dtype: tl.constexpr, COLUMNS: tl.constexpr,
           A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Rows of a matrix as A, B and C columns; those of width 0 are not looked at."""
    a = _part(pointer, rows, dtype, 0, A, COLUMNS)
    b, c = a, a
    if B > 0:
        b = _part(pointer, rows, dtype, A, B, COLUMNS)
    if C > 0:
        c = _part(pointer, rows, dtype, A + B, C, COLUMNS)
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
def _scores_in_steps(x, x_rows, y, y_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr,
                     X_WIDTH: tl.constexpr, Y_WIDTH: tl.constexpr):  # fmt: skip
    """The same a few columns at a time: the two TF32 parts of whole float32 rows would not fit into registers."""
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, R, STEP):
        a = rows_of(x, x_rows, x_rows >= 0, first, STEP, X_WIDTH).to(tl.float32)
        b = rows_of(y, y_rows, y_rows >= 0, first, STEP, Y_WIDTH).to(tl.float32)
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
def _in_unit(s, shift, dtype: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Scores plus ``shift``, half precision's in bits, which makes one instruction of a multiplication and an addition.

    log2(e) as a float32 is off by 1.3e-8 of itself: a fifth of what rounding a score to float32 loses.
    """
    if dtype == tl.float32:
        return s + shift
    else:
        return tl.fma(s, tl.full((ROWS, COLUMNS), LOG2_E, tl.float32), tl.broadcast_to(shift * LOG2_E, (ROWS, COLUMNS)))


@triton.jit
def _power(x, dtype: tl.constexpr):
    if dtype == tl.float32:
        return tl.exp(x)
    else:
        return tl.exp2(x)


@triton.jit
def _share(counted, vocabulary, most, PROGRAMS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr):
    """Labelled positions, blocks of them, and into how many splits of how many tiles the vocabulary is divided.

    The host does not know how many positions are labelled, so the programs divide the work among themselves.
    """
    count = tl.load(counted).to(tl.int32)
    blocks = tl.cdiv(count, BLOCK_N)
    tiles = tl.cdiv(vocabulary, BLOCK_V)
    split_tiles = tl.cdiv(tiles, tl.maximum(tl.minimum(PROGRAMS // tl.maximum(blocks, 1), most), 1))
    return count, blocks, tl.cdiv(tiles, split_tiles), split_tiles


@triton.jit
def _forward(
    hidden, table, bias, keys, counted, largest, sums, partial, positions, vocabulary, most,
    R: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    PROGRAMS: tl.constexpr, MAGNIFIED: tl.constexpr, HAS_BIAS: tl.constexpr, WITH_OTHERS: tl.constexpr,
):  # fmt: skip
    """Of a split: maximum, sum of exponentials, and their weighted sum of F, over all entries but the label."""
    count, blocks, splits, split_tiles = _share(counted, vocabulary, most, PROGRAMS, BLOCK_N, BLOCK_V)
    split = tl.minimum(tl.program_id(0) // tl.maximum(blocks, 1), splits)  # more have no work
    position = tl.program_id(0) % tl.maximum(blocks, 1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = position < tl.where(split < splits, count, 0)
    dtype = hidden.dtype.element_ty
    WIDTH: tl.constexpr = A + B + C
    label = tl.load(keys + position, mask=valid, other=-1)
    if dtype != tl.float32:
        ha, hb, hc = _parts(hidden, position, dtype, WIDTH, A, B, C)
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
        row = tl.minimum(entry, vocabulary - 1)  # the last tile has its last row again, without a probability
        fa, fb, fc = _parts(table, row, dtype, R, A, B, C)
        if dtype == tl.float32:
            s = _scores_in_steps(hidden, position, table, row, BLOCK_N, BLOCK_V, R, WIDTH, R)
        else:
            s = _scores(ha, hb, hc, fa, fb, fc, BLOCK_N, BLOCK_V, B, C)
        shift = tl.where(entry < end, 0.0, float("-inf"))  # one addition a score for the bias and the last tile's end
        if HAS_BIAS:
            shift = tl.load(bias + entry, mask=entry < end, other=float("-inf")).to(tl.float32)
        s = _in_unit(s, shift[None, :], dtype, BLOCK_N, BLOCK_V)
        s = tl.where(entry[None, :] == label[:, None], float("-inf"), s)
        new_m = tl.maximum(m, tl.max(s, 1))
        safe = tl.where(new_m == float("-inf"), 0.0, new_m)  # nothing but -inf so far: -inf - -inf is not a number
        p = _power(s - safe[:, None], dtype)
        scale = _power(m - safe, dtype)
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
        at = split.to(tl.int64) * count + position
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
def _backward(
    hidden, table, bias, keys, bounds, log_sums, rests, slopes, label_slopes, unit, grad_table, grad_bias, vocabulary,
    R: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    MAGNIFIED: tl.constexpr, HAS_BIAS: tl.constexpr, FOR_TABLE: tl.constexpr,
    FOR_BIAS: tl.constexpr, EVERYWHERE: tl.constexpr,
):  # fmt: skip
    """Rows of dF and of the bias's gradient: sums of P_tv h_t and of P_tv over all positions t, times ``unit``."""
    tile = tl.program_id(0)
    entry = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = entry < vocabulary
    row = tl.minimum(entry, vocabulary - 1)
    low, high = tl.load(bounds + tile), tl.load(bounds + tile + 1)  # the positions whose labels this tile has
    count = tl.load(bounds + tl.cdiv(vocabulary, BLOCK_V))
    dtype = hidden.dtype.element_ty
    WIDTH: tl.constexpr = A + B + C
    if dtype != tl.float32:
        fa, fb, fc = _parts(table, row, dtype, R, A, B, C)
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
    for first in range(0, count.to(tl.int32), BLOCK_N):  # beyond count: no states, no slope
        position = first + tl.arange(0, BLOCK_N)
        ha, hb, hc = _parts(hidden, position, dtype, WIDTH, A, B, C)
        if dtype == tl.float32:
            s = _scores_in_steps(table, row, hidden, position, BLOCK_V, BLOCK_N, R, R, WIDTH)
        else:
            s = _scores(fa, fb, fc, ha, hb, hc, BLOCK_V, BLOCK_N, B, C)
        s = _in_unit(s, shift[:, None], dtype, BLOCK_V, BLOCK_N)
        s -= tl.load(log_sums + position)[None, :]
        if dtype == tl.float32:
            s -= tl.load(rests + position)[None, :]
        p = _power(s, dtype) * tl.load(slopes + position)[None, :]
        if EVERYWHERE or (first < high) & (first + BLOCK_N > low):
            label, at_label = (
                tl.load(keys + position, mask=position < count, other=-1),
                tl.load(label_slopes + position),
            )
            p = tl.where(entry[:, None] == label[None, :], at_label[None, :], p)
        if FOR_BIAS:
            total += tl.sum(p, 1)
        if FOR_TABLE:
            p = rounded(p, dtype)
            da = _add(da, one, p, ha, BLOCK_V, A)
            if B > 0:
                db = _add(db, one, p, hb, BLOCK_V, B)
            if C > 0:
                dc = _add(dc, one, p, hc, BLOCK_V, C)
    scale = tl.load(unit) / MAGNIFIED
    if FOR_BIAS:
        tl.store(grad_bias + entry, rounded(total * scale, grad_bias.dtype.element_ty), mask=inside)
    if FOR_TABLE:
        _store(grad_table, entry, inside, da * scale, 0, A, R)
        if B > 0:
            _store(grad_table, entry, inside, db * scale, A, B, R)
        if C > 0:
            _store(grad_table, entry, inside, dc * scale, A + B, C, R)
