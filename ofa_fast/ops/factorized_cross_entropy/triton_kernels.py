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

import math

import triton
import triton.language as tl

from ofa_fast.ops._triton import dot, rounded, rows_of

STEP = tl.constexpr(32)  # columns
LOG2_E, LN_2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))


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
    count = tl.load(counted)
    blocks = tl.cdiv(count, BLOCK_N)
    tiles = tl.cdiv(vocabulary, BLOCK_V)
    split_tiles = tl.cdiv(tiles, tl.maximum(tl.minimum(PROGRAMS // tl.maximum(blocks, 1), most), 1))
    return count, blocks, tl.cdiv(tiles, split_tiles), split_tiles


@triton.jit
def _forward(
    hidden, table, bias, labels, counted, largest, sums, partial, positions, vocabulary, most,
    R: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    PROGRAMS: tl.constexpr, MAGNIFIED: tl.constexpr, HAS_BIAS: tl.constexpr, WITH_OTHERS: tl.constexpr,
):  # fmt: skip
    """Of a split: maximum, sum of exponentials, and their weighted sum of F, over all entries but the label."""
    count, blocks, splits, split_tiles = _share(counted, vocabulary, most, PROGRAMS, BLOCK_N, BLOCK_V)
    split = tl.program_id(0) // tl.maximum(blocks, 1)
    position = tl.program_id(0) % tl.maximum(blocks, 1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = position < tl.where(split < splits, count, 0)
    dtype = hidden.dtype.element_ty
    label = tl.load(labels + position, mask=valid, other=-1).to(tl.int32)
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
def _log_sums(
    hidden, table, bias, labels, counted, largest, sums, log_sums, at_labels, positions, vocabulary, most,
    R: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    PROGRAMS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """In float64, of one position: the log-sum-exp of all entries but the label, and the label's score."""
    position = tl.program_id(0).to(tl.int64)
    count, _, splits, _ = _share(counted, vocabulary, most, PROGRAMS, BLOCK_N, BLOCK_V)
    label, column = tl.load(labels + position), tl.arange(0, WIDTH)
    h = tl.load(hidden + position * R + column, mask=column < R, other=0.0).to(tl.float32).to(tl.float64)
    f = tl.load(table + label * R + column, mask=column < R, other=0.0).to(tl.float32).to(tl.float64)
    at_label = tl.sum(h * f, 0)
    if HAS_BIAS:
        at_label += tl.load(bias + label).to(tl.float32).to(tl.float64)
    split = tl.arange(0, SPLITS)
    there = split < tl.where(position < count, splits, 0)
    at = split.to(tl.int64) * positions + position
    m = tl.load(largest + at, mask=there, other=float("-inf")).to(tl.float64)
    if hidden.dtype.element_ty != tl.float32:
        m *= LN_2
    part = tl.load(sums + at, mask=there, other=0.0).to(tl.float64)
    most_of_all = tl.max(m, 0)
    safe = tl.where(most_of_all == float("-inf"), 0.0, most_of_all)
    tl.store(log_sums + position, safe + tl.log(tl.sum(tl.exp(m - safe) * part, 0)))
    tl.store(at_labels + position, at_label)


@triton.jit
def _combine(
    partial, largest, log_sums, rows, others, counted, positions, vocabulary, most,
    R: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    PROGRAMS: tl.constexpr, MAGNIFIED: tl.constexpr, IN_BITS: tl.constexpr,
):  # fmt: skip
    """others[rows[i]]: the sum over the splits, in order, of exp(largest[s, i] - log_sums[i]) partial[s, i]."""
    position = tl.program_id(0).to(tl.int64)
    count, _, splits, _ = _share(counted, vocabulary, most, PROGRAMS, BLOCK_N, BLOCK_V)
    there = position < count
    column = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    log_sum = tl.load(log_sums + position)
    at, row = position, position
    for _ in range(tl.where(there, splits, 0)):
        m = tl.load(largest + at).to(tl.float64)
        if IN_BITS:
            m *= LN_2
        weight = tl.exp((m - log_sum).to(tl.float32)) / MAGNIFIED
        total += weight * tl.load(partial + row * R + column, mask=column < R, other=0.0)
        at += positions
        row += count
    row = tl.load(rows + position)
    tl.store(others + row * R + column, total, mask=column < tl.where(there, R, 0))


@triton.jit
def _backward(
    hidden, table, bias, labels, counted, log_sums, rests, slopes, label_slopes, unit, grad_table, grad_bias,
    vocabulary,
    R: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, FOR_TABLE: tl.constexpr, FOR_BIAS: tl.constexpr,
):  # fmt: skip
    """Rows of dF and of the bias's gradient: sums of P_tv h_t and of P_tv over all positions t, times ``unit``."""
    entry = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = entry < vocabulary
    count = tl.load(counted)
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
    for first in range(0, count, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        valid = position < count
        ha, hb, hc = _parts(hidden, position, valid, dtype, R, A, B, C)
        if dtype == tl.float32:
            s = _scores_in_steps(table, entry, inside, hidden, position, valid, BLOCK_V, BLOCK_N, R)
        else:
            s = _scores(fa, fb, fc, ha, hb, hc, BLOCK_V, BLOCK_N, B, C)
        s = _in_unit(s, shift[:, None], dtype, BLOCK_V, BLOCK_N)
        s -= tl.load(log_sums + position, mask=valid, other=float("inf"))[None, :]
        if dtype == tl.float32:
            s -= tl.load(rests + position, mask=valid, other=0.0)[None, :]
        slope = tl.load(slopes + position, mask=valid, other=0.0)
        at_label = tl.load(label_slopes + position, mask=valid, other=0.0)
        label = tl.load(labels + position, mask=valid, other=-1).to(tl.int32)
        p = _power(s, dtype) * slope[None, :]
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
    scale = tl.load(unit)
    if FOR_BIAS:
        tl.store(grad_bias + entry, rounded(total * scale, grad_bias.dtype.element_ty), mask=inside)
    if FOR_TABLE:
        _store(grad_table, entry, inside, da * scale, 0, A, R)
        if B > 0:
            _store(grad_table, entry, inside, db * scale, A, B, R)
        if C > 0:
            _store(grad_table, entry, inside, dc * scale, A + B, C, R)
