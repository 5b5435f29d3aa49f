"""Launches the kernels of the factorised cross entropy on GPUs; see `triton_kernels.py` for how they work.

On Hopper the two that take nearly all of the time, the passes over all logits, are CUDA C++ where they take the
coordinates (csrc/factorized_cross_entropy/cuda_pass.h says how). All others are Triton's.

Nothing here waits for the device. So shapes depend on N, and how many positions are labelled stays on the device.
"""

from __future__ import annotations

import itertools
import math

import torch
import triton

from ofa_fast import _native
from ofa_fast.ops._triton import capability, processors, roomy
from ofa_fast.ops.factorized_cross_entropy import REPORTS, _gradients, _outputs, native_step, reference
from ofa_fast.ops.factorized_cross_entropy.triton_kernels import _backward, _forward
from ofa_fast.ops.factorized_cross_entropy.triton_positions import _finish, _gather, _keys, _prepare

WIDTHS = (512, 256, 128, 64, 32, 16)
PROGRAMS_EACH = 2  # for each of a GPU's processors, that the forward pass is divided into; of the native one 1
NATIVE_BLOCK = 128  # rows that a block of a native pass owns
MAX_SPLITS, SPLIT_TILES = 64, 4  # splits at most, and tiles of one at least


def divided(rank: int) -> tuple[int, int, int]:
    """The smallest sum of up to three powers of 2, from 16 on, that is at least ``rank``, largest first."""
    choices = itertools.chain.from_iterable(itertools.combinations_with_replacement(WIDTHS, n) for n in (1, 2, 3))
    best = min((c for c in choices if sum(c) >= rank), key=lambda c: (sum(c), len(c)))
    return *best, *(0,) * (3 - len(best))


def _tiles(dtype, rank):
    """Rows that a program owns, rows that it passes over at a time, and how it is compiled.

    On Hopper a warp group multiplies 64 rows at least. With two of them on 64 rows Triton 3.6 makes wrong sums of
    float32, and multiplies some of half precision's twice; so they have one, and two programs a processor.
    """
    options = {"num_warps": 8, "num_stages": 2, "maxnreg": 255}
    hopper, single = capability() >= 90, {"num_warps": 4}
    if dtype == torch.float32:
        return (64, 32 if hopper and rank <= 256 else 16), options | (single if hopper else {})
    if rank > 256 and roomy():
        return (64, 32), options | (single if hopper and rank <= 448 else {})
    if roomy() and hopper:
        return (64, 64), options | single | {"num_stages": 3 if rank <= 208 else 2}
    return (64, 32), options | single | {"num_stages": 1 if rank > 256 else 3}


def _magnified(dtype) -> float:
    """float16 ends at 6e-8, where the probabilities of a large vocabulary are: this much larger they fit."""
    return 2.0**15 if dtype == torch.float16 else 1.0


class _Sorted:
    """What both directions begin with, without asking the device how many positions are labelled.

    ``order`` has the labelled positions first, by label; ``keys`` are their labels, and V for the others. A label that
    is no id counts as unlabelled: nothing is read there.
    """

    def __init__(self, hidden, coordinates, basis, labels, ignore_index, report=None):
        labels = labels.contiguous()
        dtypes = {hidden.dtype, coordinates.dtype, basis.dtype}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        (n,), (self.v, self.r) = labels.shape, coordinates.shape
        self.parts = divided(self.r)
        step = native_step(coordinates) if coordinates.dtype == self.dtype else 0
        self.native = step > 0
        if self.native:
            self.block, self.step, most = NATIVE_BLOCK, step, step
        else:  # rows that a program owns, and passes over
            (self.block, self.step), self.compiled = _tiles(self.dtype, self.r)
            most = max(self.block, self.step)  # positions in a tile: whole tiles need no masks
        self.rows = triton.cdiv(n, most) * most
        keys, self.ignored = labels.new_empty(n, dtype=torch.int32), labels.new_empty(n, dtype=torch.bool)
        _keys[(triton.cdiv(n, 256),)](
            labels, keys, self.ignored.view(torch.int8), labels if report is None else report, n, self.v, ignore_index,
            BLOCK=256, REPORTS=report is not None and report.numel() > 0,
        )  # fmt: skip
        self.keys, self.order = keys.sort(stable=True)
        self.projected = hidden.to(self.dtype) @ basis.to(self.dtype).T

    def empty(self, *shape, dtype=torch.float32):
        return self.projected.new_empty(shape, dtype=dtype)


def forward(hidden, coordinates, basis, labels, bias, ignore_index, with_others):
    loss, lse, others = _outputs(hidden, coordinates, basis, labels, bias, ignore_index, with_others)
    if len(labels) and len(coordinates):
        _run_forward(hidden, coordinates.contiguous(), basis, labels, bias, ignore_index, loss, lse, others)
    else:
        reference.check_labels(labels, coordinates, ignore_index)
    return loss, lse, others


def _run_forward(hidden, coordinates, basis, labels, bias, ignore_index, loss, lse, others):
    some = _Sorted(hidden, coordinates, basis, labels, ignore_index, REPORTS.record(labels))
    n, v, r, width, (a, b, c) = len(labels), some.v, some.r, sum(some.parts), some.parts
    count = torch.searchsorted(some.keys, v, out_int32=True)
    states = some.empty(some.rows, width, dtype=some.dtype)
    _gather[(some.rows // 16,)](some.projected, some.order, count, states, R=r, WIDTH=width, BLOCK=16)
    programs = processors(hidden.device) * (1 if some.native else PROGRAMS_EACH)
    most = max(1, min(triton.cdiv(v, some.step) // SPLIT_TILES, MAX_SPLITS))
    largest, sums = some.empty(2, most, n)
    partial = some.empty(min(most * n, max(programs * some.block, n)) if len(others) else 0, r)
    inputs = states, coordinates, some.empty(0) if bias is None else bias.contiguous(), some.keys, count
    sums = largest, sums, partial
    shared = {"R": r, "BLOCK_N": some.block, "BLOCK_V": some.step, "PROGRAMS": programs} | {
        "MAGNIFIED": _magnified(some.dtype), "HAS_BIAS": bias is not None, "WITH_OTHERS": len(others) > 0
    }  # fmt: skip
    if some.native:
        shifts = _in_bits(bias, some) if bias is not None else some.empty(0)
        _native.cuda.factorized_cross_entropy_forward_pass(
            states, coordinates, shifts, some.keys, count, programs, *sums
        )
    else:
        _forward[(max(programs, triton.cdiv(n, some.block)),)](
            *inputs, *sums, n, v, most, **shared, A=a, B=b, C=c, **some.compiled
        )
    _finish[(n,)](
        *inputs, *sums, some.order, loss, lse, others, n, v, most, **shared, WIDTH=width,
        SPLITS=triton.next_power_of_2(most), num_warps=1,
    )  # fmt: skip
    REPORTS.settle(labels)


def _in_bits(bias, some):
    """As the native pass copies it: with whole tiles, beyond the last entry without a probability."""
    bits = some.empty(triton.cdiv(some.v, some.step) * some.step)
    bits[: some.v].copy_(bias).mul_(1 / math.log(2))
    bits[some.v :].fill_(-math.inf)
    return bits


def backward(grad_loss, grad_lse, hidden, coordinates, basis, labels, bias, loss, lse, others, ignore_index, needs):
    REPORTS.raise_earlier(labels)
    if not (len(labels) and len(coordinates)):
        inputs = zip((hidden, coordinates, basis, bias), needs, strict=True)
        return tuple(torch.zeros_like(t) if need else loss.new_empty(0) for t, need in inputs)
    coordinates = coordinates.contiguous()
    some = _Sorted(hidden, coordinates, basis, labels, ignore_index)
    n, v, r, width, (a, b, c), dtype = len(labels), some.v, some.r, sum(some.parts), some.parts, some.dtype
    tiles = triton.cdiv(v, some.block)
    bounds = torch.arange(0, tiles * some.block + 1, some.block, device=labels.device, dtype=torch.int32)
    bounds = torch.searchsorted(some.keys, bounds.clamp_(max=v), out_int32=True)
    half = dtype == torch.float16
    unit = _unit(grad_loss, grad_lse, loss, some.ignored) if half else loss.new_ones(())
    states = some.empty(some.rows, width, dtype=dtype)
    log_sums, rests, slopes, label_slopes = some.empty(4, some.rows)
    of_projected = some.empty(n if needs[0] or needs[2] else 0, r, dtype=dtype)
    _prepare[(some.rows,)](
        some.projected, coordinates, some.keys, some.order, bounds[-1], grad_loss.contiguous(), grad_lse.contiguous(),
        loss, lse, others, unit, states, log_sums, rests, slopes, label_slopes, of_projected, n,
        R=r, WIDTH=width, MAGNIFIED=_magnified(dtype), IN_BITS=dtype != torch.float32,
        OF_PROJECTED=len(of_projected) > 0, num_warps=1,
    )  # fmt: skip
    grads = list(_gradients(hidden, coordinates, basis, bias, [False, needs[1], False, needs[3]]))
    ignored = some.ignored[:, None]

    def scaled(product):
        return product.mul_(unit) if half else product

    if needs[0]:  # where the basis has infinities nothing times them is not a number
        grads[0] = scaled(of_projected @ basis.to(dtype)).masked_fill_(ignored, 0.0).to(hidden.dtype)
    if needs[2]:
        grads[2] = scaled(of_projected.T @ hidden.to(dtype).masked_fill(ignored, 0.0)).to(basis.dtype)
    inputs = states, coordinates, some.empty(0) if bias is None else bias.contiguous(), some.keys, bounds, log_sums
    if some.native and (needs[1] or needs[3]):
        _native.cuda.factorized_cross_entropy_backward_pass(*inputs, slopes, label_slopes, unit, grads[1], grads[3])
    elif needs[1] or needs[3]:
        _backward[(tiles,)](
            *inputs, rests, slopes, label_slopes, unit, grads[1], grads[3], v,
            R=r, A=a, B=b, C=c, BLOCK_V=some.block, BLOCK_N=some.step, MAGNIFIED=_magnified(dtype),
            HAS_BIAS=bias is not None, FOR_TABLE=needs[1], FOR_BIAS=needs[3],
            EVERYWHERE=dtype == torch.float32 or capability() < 90, **some.compiled,
        )  # fmt: skip
    return tuple(grads)


def _unit(grad_loss, grad_lse, loss, ignored):
    """A power of 2 above all slopes, in units of which those of any loss scale fit float16; exact to divide by."""
    slopes = grad_loss + grad_lse, grad_loss * torch.expm1(-loss) + grad_lse * torch.exp(-loss)
    most = torch.stack([slope.masked_fill(ignored, 0.0).abs().amax() for slope in slopes]).amax()
    return torch.where((most > 0) & most.isfinite(), torch.exp2(torch.frexp(most).exponent.float()), 1.0)
