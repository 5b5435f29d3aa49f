"""Triton kernels for what the cross entropy does once a position: before, between and after `triton_kernels.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from ofa_fast.ops._triton import report_wrong, rounded
from ofa_fast.ops.factorized_cross_entropy.triton_kernels import LN_2, _share


@triton.jit
def _log1p(x):
    """In float64, of x >= 0, with all digits; the interpreter has no such function."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit
def _expm1(x):
    """In float64, of finite x <= 0, with all digits."""
    y = tl.exp(x)
    near = (y == 1.0) | (y < 0.5)
    return tl.where(y == 1.0, x, tl.where(near, y - 1.0, (y - 1.0) * (x / tl.log(tl.where(near, 0.5, y)))))


@triton.jit
def _keys(labels, keys, ignored, report, positions, vocabulary, ignore_index,
          BLOCK: tl.constexpr, REPORTS: tl.constexpr):  # fmt: skip
    """What positions are sorted by: the label, or ``vocabulary`` where there is none."""
    if REPORTS:
        report_wrong(labels, positions, vocabulary, ignore_index, report, IGNORES=True)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < positions
    label = tl.load(labels + position, mask=inside, other=0)
    none = (label == ignore_index) | (label < 0) | (label >= vocabulary)
    tl.store(keys + position, tl.where(none, vocabulary, label).to(tl.int32), mask=inside)
    tl.store(ignored + position, none.to(tl.int8), mask=inside)


@triton.jit
def _gather(projected, order, counted, hidden, R: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """hidden [., WIDTH]: rows of h [N, R] in the order of the labels, and zeros."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, triton.next_power_of_2(WIDTH))
    there = position < tl.load(counted)
    row = tl.load(order + position, mask=there, other=0)
    mask = there[:, None] & (column < R)[None, :]
    h = tl.load(projected + row[:, None] * R + column[None, :], mask=mask, other=0.0)
    at = hidden + position.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(at, h, mask=(column < WIDTH)[None, :])


@triton.jit
def _finish(
    hidden, table, bias, keys, counted, largest, sums, partial, order, loss, lse, others, positions, vocabulary, most,
    R: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    PROGRAMS: tl.constexpr, MAGNIFIED: tl.constexpr, HAS_BIAS: tl.constexpr, WITH_OTHERS: tl.constexpr,
):  # fmt: skip
    """Of one labelled position, in float64: its loss, the log-sum-exp of all entries, and `others`.

    The splits are put together in order: exp(largest[s, i] - lse[i]) partial[s, i].
    """
    position = tl.program_id(0).to(tl.int64)
    count, _, splits, _ = _share(counted, vocabulary, most, PROGRAMS, BLOCK_N, BLOCK_V)
    if position < count:
        unit = 1.0 if hidden.dtype.element_ty == tl.float32 else LN_2
        label, column = tl.load(keys + position).to(tl.int64), tl.arange(0, triton.next_power_of_2(WIDTH))
        h = tl.load(hidden + position * WIDTH + column, mask=column < R, other=0.0).to(tl.float32).to(tl.float64)
        f = tl.load(table + label * R + column, mask=column < R, other=0.0).to(tl.float32).to(tl.float64)
        at_label = tl.sum(h * f, 0)
        if HAS_BIAS:
            at_label += tl.load(bias + label).to(tl.float32).to(tl.float64)
        split = tl.arange(0, SPLITS)
        there = split < splits
        at = split.to(tl.int64) * positions + position
        m = tl.load(largest + at, mask=there, other=float("-inf")).to(tl.float64) * unit
        part = tl.load(sums + at, mask=there, other=0.0).to(tl.float64)
        most_of_all = tl.max(m, 0)
        safe = tl.where(most_of_all == float("-inf"), 0.0, most_of_all)
        rest = safe + tl.log(tl.sum(tl.exp(m - safe) * part, 0))  # of all entries but the label
        both = _log1p(tl.exp(-tl.abs(rest - at_label)))
        nll = tl.where(rest > at_label, rest - at_label, 0.0) + both
        nll = tl.where(at_label == float("inf"), float("nan"), nll)
        log_sum = tl.where(rest > at_label, rest, at_label) + both
        whole = log_sum.to(tl.float32)
        finite = tl.abs(log_sum) < float("inf")
        row = tl.load(order + position)
        tl.store(loss + row, nll.to(tl.float32))
        tl.store(lse + row, whole)
        tl.store(lse + positions + row, tl.where(finite, log_sum - whole.to(tl.float64), 0.0).to(tl.float32))
        if WITH_OTHERS:
            total = tl.zeros((triton.next_power_of_2(WIDTH),), tl.float32)
            of_split, sum_of_split = position, position
            for _ in range(splits):
                m_of_split = tl.load(largest + of_split).to(tl.float64) * unit
                weight = tl.exp((m_of_split - log_sum).to(tl.float32)) / MAGNIFIED
                total += weight * tl.load(partial + sum_of_split * R + column, mask=column < R, other=0.0)
                of_split += positions
                sum_of_split += count
            tl.store(others + row * R + column, total, mask=column < R)


@triton.jit
def _prepare(
    projected, table, keys, order, counted, grad_loss, grad_lse, loss, lse, others, unit,
    hidden, log_sums, rests, slopes, label_slopes, of_projected, positions,
    R: tl.constexpr, WIDTH: tl.constexpr, MAGNIFIED: tl.constexpr, IN_BITS: tl.constexpr,
    OF_PROJECTED: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of one position: h, the log-sum-exp, and slopes; and the gradient of h."""
    position = tl.program_id(0).to(tl.int64)
    there = position < tl.load(counted)
    column = tl.arange(0, triton.next_power_of_2(WIDTH))
    inside = column < tl.where(there, R, 0)
    row = tl.load(order + position, mask=position < positions, other=0)
    label = tl.load(keys + position, mask=there, other=0).to(tl.int64)
    h = tl.load(projected + row * R + column, mask=inside, other=0.0)
    whole = tl.load(lse + row, mask=there, other=float("inf"))
    left = tl.load(lse + positions + row, mask=there, other=0.0)
    nll = tl.load(loss + row, mask=there, other=0.0).to(tl.float64)
    scale = tl.load(unit).to(tl.float64)
    of_loss = tl.load(grad_loss + row, mask=there, other=0.0).to(tl.float64) / scale
    of_lse = tl.load(grad_lse + row, mask=there, other=0.0).to(tl.float64) / scale
    slope = of_loss + of_lse
    at_label = of_loss * _expm1(-nll) + of_lse * tl.exp(-nll)
    tl.store(hidden + position * WIDTH + column, h, mask=column < WIDTH)
    if IN_BITS:
        whole = ((whole.to(tl.float64) + left) / LN_2).to(tl.float32)
    tl.store(log_sums + position, whole)
    tl.store(rests + position, left)
    tl.store(slopes + position, (slope * MAGNIFIED).to(tl.float32))
    tl.store(label_slopes + position, (at_label * MAGNIFIED).to(tl.float32))
    if OF_PROJECTED:  # of positions without a label, too, where it is 0
        f = tl.load(table + label * R + column, mask=inside, other=0.0).to(tl.float32)
        o = tl.load(others + row * R + column, mask=inside, other=0.0)
        grad = tl.where(inside, slope.to(tl.float32) * o + at_label.to(tl.float32) * f, 0.0)
        columns = tl.where(position < positions, R, 0)
        tl.store(of_projected + row * R + column, rounded(grad, of_projected.dtype.element_ty), mask=column < columns)
