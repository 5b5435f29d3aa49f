"""Launches the Triton kernels of the factorised cross entropy; see `triton_kernels.py` for how they work.

Nothing here waits for the device, but for the check of the labels, which comes last and not while a CUDA graph is
captured. So shapes depend on N, and how many positions are labelled stays on the device.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
import triton

from ofa_fast.ops._op import capturing
from ofa_fast.ops._triton import capability, processors, roomy
from ofa_fast.ops.factorized_cross_entropy import _gradients, _outputs, reference
from ofa_fast.ops.factorized_cross_entropy.triton_kernels import _backward, _combine, _forward, _log_sums

WIDTHS = (512, 256, 128, 64, 32, 16)
PROGRAMS_EACH = 2  # for each of a GPU's processors, that the forward pass is divided into
MAX_SPLITS, SPLIT_TILES = 64, 4  # splits at most, and tiles of one at least


def divided(rank: int) -> tuple[int, int, int]:
    """The smallest sum of up to three powers of 2, from 16 on, that is at least ``rank``, largest first."""
    choices = itertools.chain.from_iterable(itertools.combinations_with_replacement(WIDTHS, n) for n in (1, 2, 3))
    best = min((c for c in choices if sum(c) >= rank), key=lambda c: (sum(c), len(c)))
    return *best, *(0,) * (3 - len(best))


def _tiles(dtype, rank):
    """Rows that a program owns, rows that it passes over at a time, and how it is compiled."""
    options = {"num_warps": 8, "num_stages": 2, "maxnreg": 255}
    if dtype == torch.float32:
        return (64, 16), options
    if rank > 256 and roomy():
        return (64, 32), options
    if roomy() and capability() >= 90:
        return (128, 64), options
    return (64, 32), options | {"num_warps": 4, "num_stages": 1 if rank > 256 else 3}


def _magnified(dtype) -> float:
    """float16 ends at 6e-8, where the probabilities of a large vocabulary are: this much larger they fit."""
    return 2.0**15 if dtype == torch.float16 else 1.0


class _Labelled:
    """What both directions begin with, without asking the device how many positions are labelled.

    ``order`` has the labelled positions first, and ``count`` says on the device how many there are; ``label`` and
    ``projected``, h = hidden basisᵀ, follow it. A label that is no id counts as unlabelled: nothing is read there.
    """

    def __init__(self, hidden, coordinates, basis, labels, ignore_index):
        dtypes = {hidden.dtype, coordinates.dtype, basis.dtype}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        self.mask = (labels != ignore_index) & (labels >= 0) & (labels < len(coordinates))
        self.labels = torch.where(self.mask, labels, 0)
        self.order = (~self.mask).byte().argsort(stable=True)
        self.count = self.mask.sum(dtype=torch.int32)
        self.label = self.labels[self.order]
        self.projected = (hidden.to(self.dtype) @ basis.to(self.dtype).T)[self.order]


def forward(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    loss, lse, others = _outputs(hidden, coordinates, basis, labels, bias, ignore_index, with_others)
    if len(labels) and len(coordinates):
        _run_forward(hidden, coordinates.contiguous(), basis, labels, bias, ignore_index, loss, lse, others)
    if not capturing(labels):  # asked last, when everything is under way
        reference.check_labels(labels, coordinates, ignore_index)
    return loss, lse, others


def _run_forward(hidden, coordinates, basis, labels, bias, ignore_index, loss, lse, others):
    some = _Labelled(hidden, coordinates, basis, labels, ignore_index)
    (n, (v, r)), dtype = (len(labels), coordinates.shape), some.dtype
    (block_n, block_v), compiled = _tiles(dtype, r)
    programs = PROGRAMS_EACH * processors(hidden.device)
    most = max(1, min(triton.cdiv(v, block_v) // SPLIT_TILES, MAX_SPLITS))
    largest, sums = some.projected.new_empty(2, most, n, dtype=torch.float32)
    rows = min(most * n, max(programs * block_n, n)) if len(others) else 0
    partial = some.projected.new_empty(rows, r, dtype=torch.float32)
    log_sums, at_labels = some.projected.new_empty(2, n, dtype=torch.float64)
    bias = None if bias is None else bias.contiguous()
    inputs = some.projected, coordinates, largest if bias is None else bias, some.label, some.count
    shared = {"R": r, "BLOCK_N": block_n, "BLOCK_V": block_v, "PROGRAMS": programs}
    a, b, c = divided(r)
    _forward[(max(programs, triton.cdiv(n, block_n)),)](
        *inputs, largest, sums, partial, n, v, most, **shared, A=a, B=b, C=c, MAGNIFIED=_magnified(dtype),
        HAS_BIAS=bias is not None, WITH_OTHERS=len(others) > 0, **compiled,
    )  # fmt: skip
    width = triton.next_power_of_2(r)
    _log_sums[(n,)](
        *inputs, largest, sums, log_sums, at_labels, n, v, most, **shared, WIDTH=width,
        SPLITS=triton.next_power_of_2(most), HAS_BIAS=bias is not None, num_warps=1,
    )  # fmt: skip
    there = torch.arange(n, device=hidden.device) < some.count
    nll = F.softplus(log_sums - at_labels, threshold=40)
    nll = torch.where(at_labels == math.inf, math.nan, nll)
    log_sums = torch.logaddexp(log_sums, at_labels)
    whole, rest = log_sums.float(), torch.where(log_sums.isfinite(), log_sums - log_sums.float(), 0.0).float()
    for out, values in ((loss, nll.float()), (lse[0], whole), (lse[1], rest)):
        out.index_copy_(0, some.order, torch.where(there, values, 0.0))
    if len(others):
        _combine[(n,)](
            partial, largest, log_sums, some.order, others, some.count, n, v, most, **shared, WIDTH=width,
            MAGNIFIED=_magnified(dtype), IN_BITS=dtype != torch.float32, num_warps=1,
        )  # fmt: skip


def backward(grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, loss, lse, others, ignore_index, needs):
    grads = [None] * 4
    some = _Labelled(hidden, coordinates, basis, labels, ignore_index)
    dtype = some.dtype
    at_label = grad_loss * torch.expm1(-loss) + grad_lse * torch.exp(-loss)
    slope = torch.where(some.mask, grad_loss + grad_lse, 0.0)
    at_label = torch.where(some.mask, at_label, 0.0)
    unit = _unit(slope, at_label) if dtype == torch.float16 else slope.new_ones(())
    slope, at_label = slope / unit, at_label / unit
    ignored = ~some.mask[:, None]

    def scaled(product):
        return product.mul_(unit) if dtype == torch.float16 else product

    if needs[0] or needs[2]:
        of_projected = slope[:, None] * others
        of_projected += at_label[:, None] * coordinates[some.labels]
        of_projected = of_projected.masked_fill_(ignored, 0.0).to(dtype)  # where F has infinities there are NaN
        if needs[0]:
            grads[0] = scaled(of_projected @ basis.to(dtype)).masked_fill_(ignored, 0.0).to(hidden.dtype)
        if needs[2]:
            states = hidden.to(dtype).masked_fill(ignored, 0.0)
            grads[2] = scaled(of_projected.T @ states).to(basis.dtype)
    if needs[1] or needs[3]:
        grads[1::2] = _gradients(hidden, coordinates, basis, bias, [False, needs[1], False, needs[3]])[1::2]
        (v, r), (a, b, c) = coordinates.shape, divided(coordinates.shape[1])
        (block_v, block_n), compiled = _tiles(dtype, r)
        magnified = _magnified(dtype)
        log_sums, rest = lse[:, some.order]
        if dtype != torch.float32:
            log_sums = ((log_sums.double() + rest) / math.log(2)).float()
        _backward[(triton.cdiv(v, block_v),)](
            some.projected, coordinates.contiguous(), loss if bias is None else bias.contiguous(), some.label,
            some.count, log_sums, rest, slope[some.order] * magnified, at_label[some.order] * magnified,
            unit / magnified, grads[1], grads[3], v,
            R=r, A=a, B=b, C=c, BLOCK_V=block_v, BLOCK_N=block_n,
            HAS_BIAS=bias is not None, FOR_TABLE=needs[1], FOR_BIAS=needs[3], **compiled,
        )  # fmt: skip
    return tuple(hidden.new_empty(0) if grad is None else grad for grad in grads)


def _unit(*slopes):
    """A power of 2 above all magnitudes, in units of which slopes of any loss scale fit float16; exact to divide by."""
    most = torch.stack([F.pad(slope, (0, 1)).abs().amax() for slope in slopes]).amax()
    return torch.where((most > 0) & most.isfinite(), torch.exp2(torch.frexp(most).exponent.float()), 1.0)
