"""Triton kernels of the exact top-k similarity search.

Queries and keys are scaled to norms of at most 1 and rounded to float16; the norm of what that loses is measured.
Tensor cores then bound every score: |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|. Of a first part of the keys only
each tile's largest score is kept; the k-th largest of those, less the bound, is a number that k keys are known to
reach. A pass over all keys lists those that may reach it, in order. They alone are scored in float64, in the summation
order of the reference, and sorted. Nothing is dropped that is not proven to be preceded by k others, so the result is
the reference's, bit for bit. Queries whose lists overflow are scored against all keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ofa_fast.ops._triton import dot, power_of_2, rounded
from ofa_fast.ops.topk_similarity import gradients, reference

MOST_NEIGHBORS, FEWEST_QUERIES = 128, 8  # for which the screen pays
BLOCK_Q, BLOCK_K, BLOCK_D, BLOCK_PAIRS = 128, 64, 64, 64
BLOCK_ROWS = 16  # that the backward pass adds at once
SEEDS = 8  # one key in so many is looked at for the first threshold
SPLITS = 4  # of the keys, side by side
CAPACITY = 256  # keys that a split lists for a query, and four times as many where k > 32
SLAB = 1 << 23  # list entries at a time
PAIRS = 1 << 21  # that are scored in float64 at a time


@triton.jit
def _screen(
    queries, keys, limits, lists, counts, query_count, key_count, split_tiles, listed,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
    FOR_MAXIMA: tl.constexpr,
):  # fmt: skip
    """Codes [., D] of queries and keys, padded to whole tiles: each tile's largest score, or the keys at the limit."""
    query = (tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)).to(tl.int64)
    split = tl.program_id(1)
    present = query < query_count
    column = tl.arange(0, DEPTH)
    if not FOR_MAXIMA:
        limit = tl.load(limits + query, mask=present, other=float("inf"))
    count = tl.zeros((QUERIES,), tl.int32)
    end = tl.minimum((split + 1) * split_tiles, tl.cdiv(key_count, KEYS))
    for tile in range(split * split_tiles, end):
        key = (tile * KEYS + tl.arange(0, KEYS)).to(tl.int64)
        s = tl.zeros((QUERIES, KEYS), tl.float32)
        for first in range(0, D, DEPTH):
            q = tl.load(queries + query[:, None] * D + first + column[None, :])
            x = tl.load(keys + key[:, None] * D + first + column[None, :])
            s = dot(q, tl.trans(x), s)
        s = tl.where((key < key_count)[None, :], s, float("-inf"))
        if FOR_MAXIMA:
            tl.store(lists + query * listed + tile, tl.max(s, 1), mask=present)
        else:
            hit = (s >= limit[:, None]).to(tl.int32)
            if tl.max(hit) > 0:  # in one step: in two, Triton 3.6 does not compile it for sm_100
                place = count[:, None] + tl.cumsum(hit, 1) - 1
                at = ((query * tl.num_programs(1) + split) * listed).to(tl.int32)[:, None] + place  # below SLAB
                tl.store(lists + at, tl.broadcast_to(key[None, :], (QUERIES, KEYS)), mask=(hit > 0) & (place < listed))
                count += tl.sum(hit, 1)
    if not FOR_MAXIMA:
        tl.store(counts + query * tl.num_programs(1) + split, count, mask=present)


@triton.jit
def _dots(left, right, left_rows, right_rows, out, pairs, D: tl.constexpr, PAIRS: tl.constexpr):
    """Products of pairs of rows in float64: lane j of eight adds elements j, j + 8, ...; see `reference.dot`."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    valid = pair < pairs
    a = left + tl.load(left_rows + pair, mask=valid, other=0)[:, None] * D
    b = right + tl.load(right_rows + pair, mask=valid, other=0)[:, None] * D
    lanes = tl.zeros((PAIRS, 8), tl.float64)
    for first in range(0, D, 8):
        column = first + tl.arange(0, 8)[None, :]
        inside = valid[:, None] & (column < D)
        x = tl.load(a + column, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        y = tl.load(b + column, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        lanes += x * y  # exact products, so that it does not matter whether they are fused with the addition
    lanes = tl.sum(tl.reshape(lanes, (PAIRS, 2, 4)), 1)
    lanes = tl.sum(tl.reshape(lanes, (PAIRS, 2, 2)), 1)
    tl.store(out + pair, tl.sum(lanes, 1), mask=valid)


@triton.jit
def _sums(
    table, rows, starts, weights, own, itself, out,
    D: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr, SUBTRACTS: tl.constexpr,
):  # fmt: skip
    """out[i]: the sum of weights[p] table[rows[p]] over the pairs of row i, less that of own[p] times itself[i]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < D
    total = tl.zeros((COLUMNS,), tl.float64)
    share = tl.zeros((), tl.float64)
    end = tl.load(starts + row + 1)
    for first in range(tl.load(starts + row), end, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        valid = pair < end
        at = table + tl.load(rows + pair, mask=valid, other=0)[:, None] * D + column[None, :]
        x = tl.load(at, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32).to(tl.float64)
        total += tl.sum(x * tl.load(weights + pair, mask=valid, other=0.0)[:, None], 0)
        if SUBTRACTS:
            share += tl.sum(tl.load(own + pair, mask=valid, other=0.0), 0)
    if SUBTRACTS:
        x = tl.load(itself + row * D + column, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        total -= share * x
    tl.store(out + row * D + column, rounded(total.to(tl.float32), out.dtype.element_ty), mask=inside)


def _products(left, right, left_rows, right_rows):
    out = left.new_empty(len(left_rows), dtype=torch.float64)
    for start in range(0, len(out), PAIRS):
        some = slice(start, start + PAIRS)
        _dots[(triton.cdiv(len(out[some]), BLOCK_PAIRS),)](
            left, right, left_rows[some], right_rows[some], out[some], len(out[some]),
            D=left.shape[1], PAIRS=BLOCK_PAIRS, num_warps=4,
        )  # fmt: skip
    return out


def _norms(rows):
    row = torch.arange(len(rows), device=rows.device)
    return reference.root(_products(rows, rows, row, row))


class _Exact:
    """Scores in float64 as the reference has them."""

    def __init__(self, queries, keys, metric):
        self.queries, self.keys, self.cosine = queries, keys, metric == "cosine"
        self.key_norms, self.query_norms = self._norms(keys, "keys"), self._norms(queries, "queries")

    @staticmethod
    def _norms(rows, name):
        norms = _norms(rows)
        bad = ~norms.isfinite()  # squares of finite float32 numbers are finite in float64
        if bad.any():
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {int(bad.nonzero()[0])}")
        return norms

    def scores(self, query, key):
        scores = _products(self.queries, self.keys, query, key)
        if self.cosine:
            norms = self.query_norms[query] * self.key_norms[key]
            scores = torch.where(norms > 0, scores / norms, 0.0)
        return scores


def _codes(rows, scale, multiple):
    """``rows`` over ``scale`` as float16, padded to whole tiles, and the norm of what rounding lost of every row."""
    n, d = rows.shape
    codes = rows.new_zeros(triton.cdiv(n, multiple) * multiple, triton.cdiv(d, BLOCK_D) * BLOCK_D, dtype=torch.float16)
    lost = rows.new_empty(n, dtype=torch.float64)
    for start in range(0, n, 1 << 16):
        some = slice(start, min(start + (1 << 16), n))
        exact = rows[some].double() / torch.where(scale > 0, scale, 1.0).expand(n)[some, None]
        codes[some, :d] = exact.half()
        lost[some] = torch.linalg.vector_norm(exact - codes[some, :d], dim=1)
    return codes, lost


def forward(queries, keys, k, metric):
    queries, keys = queries.contiguous(), keys.contiguous()
    n, key_count = len(queries), len(keys)
    scores = queries.new_empty(n, k, dtype=torch.float32)
    indices, report = queries.new_empty(n, k, dtype=torch.int64), queries.new_zeros(2, dtype=torch.int64)
    exact = _Exact(queries, keys, metric)
    if n < FEWEST_QUERIES or k > MOST_NEIGHBORS or key_count < 2 * k * BLOCK_K:
        report[1] += _all_pairs(exact, torch.arange(n, device=queries.device), k, scores, indices)
        return scores, indices, report
    key_codes, lost = _codes(keys, exact.key_norms if exact.cosine else exact.key_norms.amax()[None], BLOCK_K)
    capacity = CAPACITY if k <= 32 else 4 * CAPACITY
    slab = SLAB // (SPLITS * capacity)
    for start in range(0, n, slab):
        rows = torch.arange(start, min(start + slab, n), device=queries.device)
        lists, counts = _candidates(exact, rows, key_codes, lost.amax(), capacity, k)
        zero, overflow = exact.query_norms[rows] == 0, (counts > capacity).any(1)
        scores[rows[zero]], indices[rows[zero]] = 0.0, torch.arange(k, device=rows.device)
        overflow &= ~zero
        counts[zero | overflow] = 0
        report[1] += _rescore(exact, rows, lists, counts, k, scores, indices)
        report[0] += overflow.sum()
        report[1] += _all_pairs(exact, rows[overflow], k, scores, indices)
    return scores, indices, report


def _candidates(exact, rows, key_codes, key_lost, capacity, k):
    """For every query of ``rows`` and split the keys, ascending, that may be among the k best, and how many."""
    codes, lost = _codes(exact.queries[rows], exact.query_norms[rows], BLOCK_Q)
    (n, key_count), d = (len(rows), len(exact.keys)), codes.shape[1]
    # float32 sums of exact products; tensor cores may cut off instead of rounding, also where they align their terms
    rounding = 2 * (d + 32) * 2.0**-23
    bound = lost + (1 + lost) * key_lost + rounding * (1 + lost) * (1 + key_lost)
    tiles = triton.cdiv(key_count, BLOCK_K)
    seeds = min(tiles, max(tiles // SEEDS, 4 * k))
    maxima = codes.new_empty(n, seeds, dtype=torch.float32)
    blocks, shape = triton.cdiv(n, BLOCK_Q), {"D": d, "QUERIES": BLOCK_Q, "KEYS": BLOCK_K, "DEPTH": BLOCK_D}
    _screen[(blocks, SPLITS)](
        codes, key_codes, maxima, maxima, maxima, n, min(key_count, seeds * BLOCK_K), triton.cdiv(seeds, SPLITS), seeds,
        **shape, FOR_MAXIMA=True, num_warps=8, num_stages=3,
    )  # fmt: skip
    reached = maxima.topk(k, dim=1).values[:, -1].double() - bound
    limits = (reached - bound - 1e-6).float()  # the last covers this rounding to float32
    lists = codes.new_empty(n, SPLITS, capacity, dtype=torch.int32)
    counts = codes.new_zeros(n, SPLITS, dtype=torch.int32)
    _screen[(blocks, SPLITS)](
        codes, key_codes, limits, lists, counts, n, key_count, triton.cdiv(tiles, SPLITS), capacity,
        **shape, FOR_MAXIMA=False, num_warps=8, num_stages=3,
    )  # fmt: skip
    return lists, counts


def _rescore(exact, rows, lists, counts, k, scores, indices):
    listed = torch.arange(lists.shape[2], device=rows.device) < counts[:, :, None]
    found = counts.sum(1)
    query = listed.nonzero()[:, 0]
    key = lists[listed].long()
    place = torch.arange(len(query), device=rows.device) - (found.cumsum(0) - found)[query]
    kept = found > 0
    if not kept.any():
        return 0
    table = scores.new_full((len(rows), int(found.amax())), -torch.inf, dtype=torch.float64)
    keys = indices.new_zeros(table.shape)
    table[query, place], keys[query, place] = exact.scores(rows[query], key), key
    best = table[kept].sort(dim=1, descending=True, stable=True)  # keys are ascending: equals stay in their order
    scores[rows[kept]] = best.values[:, :k].float()
    indices[rows[kept]] = keys[kept].gather(1, best.indices[:, :k])
    return len(key)


def _all_pairs(exact, rows, k, scores, indices):
    key_count = len(exact.keys)
    key = torch.arange(key_count, device=rows.device)
    for some in rows.split(max(1, PAIRS // key_count)):
        table = exact.scores(some.repeat_interleave(key_count), key.repeat(len(some))).view(len(some), key_count)
        best = table.sort(dim=1, descending=True, stable=True)
        scores[some], indices[some] = best.values[:, :k].float(), best.indices[:, :k]
    return len(rows) * key_count


def backward(grad, queries, keys, scores, indices, metric, needs):
    """Sums in float64 without a copy of either table; a program adds up 128 columns of a row, in order."""
    nothing = queries.new_empty(0)
    queries, keys = queries.contiguous(), keys.contiguous()
    of_queries, of_keys = gradients.sides(grad, queries, keys, scores, indices, metric, needs, _norms)
    return (
        _gradient(keys, of_queries, queries) if of_queries else nothing,
        _gradient(queries, of_keys, keys) if of_keys else nothing,
    )


def _gradient(table, side, itself):
    out = torch.empty_like(itself, memory_format=torch.contiguous_format)
    columns = min(128, power_of_2(itself.shape[1]))
    rows, starts, weights = (part.contiguous() for part in side[:3])
    if out.numel():
        _sums[len(out), triton.cdiv(out.shape[1], columns)](
            table, rows, starts, weights, weights if side.own is None else side.own, itself, out,
            D=out.shape[1], PAIRS=BLOCK_ROWS, COLUMNS=columns, SUBTRACTS=side.own is not None, num_warps=4,
        )  # fmt: skip
    return out
