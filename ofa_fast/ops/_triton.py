"""What the Triton kernels share. Only their own files import this one, so that nothing else imports Triton.

Under ``TRITON_INTERPRET=1`` the kernels run on CPU tensors through numpy, whose bfloat16 arithmetic is wrong: there
operands are widened to float32 before a product, and rounded by hand.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime.driver import driver

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
UNKNOWN = tl.constexpr(-(1 << 63))  # as `_reports.py` has it
CHECKED = tl.constexpr(2048)  # entries that `report_wrong` looks at at once


def power_of_2(count: int, least: int = 16) -> int:
    """The smallest power of 2 that is at least ``count`` and ``least``: 16 is the smallest side of a product."""
    return max(triton.next_power_of_2(max(count, 1)), least)


def capability() -> int:
    """Of the GPU that kernels are compiled for, as 90; in the interpreter that of a Hopper."""
    return 90 if INTERPRETED.value else int(driver.active.get_current_target().arch)


def roomy() -> bool:
    """Whether a program may have 160 KiB of shared memory or more, as on GPUs for servers; elsewhere it has 99 KiB."""
    return capability() in (80, 90, 100, 103)


def processors(device: torch.device) -> int:
    """Of a GPU; where kernels are only compiled those of an H100 or H200, and few in the interpreter, which is one."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 3 if INTERPRETED.value else 132


@triton.jit
def dot(a, b, acc):
    """acc + a b, summed in float32.

    float32 operands are the sum of two TF32 parts of 11 bits, and three of the four partial products are taken: a
    product is then right to 2**-21, and tensor cores do it, while multiply-adds in float32 ("ieee") would spill.
    """
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 to ``dtype``, to the nearest; the interpreter would cut bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def rows_of(pointer, rows, valid, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """[rows, WIDTH] of a row-major matrix of COLUMNS columns, from column ``first`` on; 0 outside and if not valid.

    COLUMNS is a constant so that the compiler sees how rows are aligned and loads as many bytes at once as it can.
    """
    columns = first + tl.arange(0, WIDTH)
    at = pointer + rows.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    return tl.load(at, mask=valid[:, None] & (columns < COLUMNS)[None, :], other=0.0)


@triton.jit
def report_wrong(entries, count, rows, ignored, report, IGNORES: tl.constexpr):
    """By the first program of a grid: into ``report``, of `_reports.py`, the first entry that is none of [0, rows).

    With IGNORES an entry that is ``ignored`` is right as well.
    """
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        first = tl.zeros((), tl.int32) + count
        for start in range(0, count, CHECKED):
            place = start + tl.arange(0, CHECKED)
            entry = tl.load(entries + place, mask=place < count, other=0)
            wrong = ((entry < 0) | (entry >= rows)) & (place < count)
            if IGNORES:
                wrong = wrong & (entry != ignored)
            first = tl.minimum(first, tl.min(tl.where(wrong, place, count), 0))
        found = (first < count) & (tl.load(report, mask=first < count, other=0) < 0)
        entry = tl.load(entries + first, mask=found, other=0).to(tl.int64)
        tl.store(report + 1, tl.maximum(entry, UNKNOWN + 1), mask=found)
        tl.store(report + 2, tl.zeros((), tl.int64) + rows, mask=found)
        tl.store(report, first.to(tl.int64), mask=found)
