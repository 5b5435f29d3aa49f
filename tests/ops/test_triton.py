"""Triton's kernels without a GPU: the ops' own tests in its interpreter, and ahead-of-time compilation."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from checks import in_every_dtype

from ofa_fast import _cli_info
from ofa_fast.ops import _op
from ofa_fast.ops._op import OPS

triton = pytest.importorskip("triton")
aot = importlib.import_module("aot")

# Bytes a thread by kernel, dtype, capability and rank; none elsewhere. docs/gpu_kernels.md is of the newer Triton.
HALF = torch.bfloat16, torch.float16
SPILLED = {
    **{("forward", dtype, 80, 400): 112 for dtype in HALF},
    **{("backward", dtype, 80, 400): 120 for dtype in HALF},
    **{("backward", dtype, 90, 200): 24 for dtype in HALF},
    **{("forward", dtype, 90, 400): 232 for dtype in HALF},
    **{("backward", dtype, 90, 400): 128 for dtype in HALF},
    **{("forward", dtype, 100, 400): 24 for dtype in HALF},
}
SPILLED |= {
    (kernel, torch.float32, *where): count
    for kernel, counts in {
        "forward": {(80, 200): 496, (90, 200): 184, (80, 400): 1944, (90, 400): 1376, (100, 400): 912},
        "backward": {(80, 200): 464, (90, 200): 256, (100, 200): 40, (80, 400): 1880, (90, 400): 984, (100, 400): 592},
    }.items()
    for where, count in counts.items()
}
OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)

# A product takes the interpreter 10 ms, so it runs the small cases only; with a GPU all of them run on that.
INTERPRETED = {
    "capture": "wrong",
    "tied_gradient": "tied",
    "truncated_svd": "not (random or threads or dominated)",
    "topk_similarity": """
        exact and (screened or odd or hostile and cosine and (clus or dup)) and not float16 or nan
        or small_tiles and many or odd and float16 or pairs or gradients
    """,
    "factorized_embedding": "not (panels or wide or many or blocks or crowd or threads or sparse and float16)",
    "factorized_cross_entropy": """
        small and not losses or odd or one or difficult and bfloat16 or mixed and bfloat16 or smoothing and none
        or nothing or ignored or infinite_gradients or certain or range or contiguous or opcheck or fullgraph or float64
        or extreme and (first or labels or infinity) and not 200-
        or test_values and (blocks or wide or depths) and not float32
    """,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the ops' own tests run these kernels on the GPU")
@pytest.mark.parametrize("op", INTERPRETED)
def test_in_the_interpreter(op):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/ops/test_{op}.py", "-k"]
    said = subprocess.run(
        [*command, f"triton and ({' '.join(INTERPRETED[op].split())})"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout[-4000:]


PRODUCTS = {80: "mma.sync.aligned", 90: "wgmma.mma_async.sync", 100: "tcgen05.mma"}  # instructions of tensor cores
OPERANDS = {torch.float32: "tf32", torch.bfloat16: "bf16", torch.float16: "f16"}
WITHOUT_PRODUCTS = {"add_segments", "dots", "finish", "gather", "keys", "prepare", "sums"}
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a program may have


def test_documented_resources():
    """docs/gpu_kernels.md is of these kernels, as far as it is of this Triton."""
    text = aot.TABLE.read_text(encoding="utf-8")
    if f"Triton {triton.__version__} " in text:
        assert text == aot.table(), "python tests/ops/aot.py writes it anew"
    else:
        assert all(f"`{op}` {name} |" in text for op, (_, names) in aot.LAUNCHES.items() for name in names)


def test_gpus_with_little_shared_memory():
    """Those of workstations have 99 KiB a program."""
    for op in aot.LAUNCHES:
        for name, kernel in aot.compiled(op, torch.bfloat16, 89).items():
            assert kernel.shared <= 99 * 1024 and kernel.spilled <= 16, name


@pytest.mark.parametrize(("dtype", "capability"), aot.TARGETS, ids=str)
@pytest.mark.parametrize(("op", "rank"), [(op, rank) for op, ranks in aot.RANKS.items() for rank in ranks])
def test_compiles_for_gpus(op, rank, dtype, capability):
    for name, kernel in aot.compiled(op, dtype, capability, rank).items():
        allowed = SPILLED.get((name, dtype, capability, rank), 0) + OLDER * (16 if rank == aot.SIZES["R"] else 512)
        assert kernel.registers * kernel.threads <= 65536
        assert kernel.shared <= SHARED[capability]
        assert kernel.spilled <= allowed, name
        assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", kernel.ptx, re.MULTILINE), "sums in an order that may vary"
        if name not in WITHOUT_PRODUCTS:
            assert PRODUCTS[capability] in kernel.ptx, name


@pytest.mark.parametrize("op", [op for op in aot.LAUNCHES if op != "topk_similarity"])
def test_sizes_of_one_compile(op, monkeypatch):
    """Triton makes a constant of an argument that is 1, which can do less than a number; the interpreter does not."""
    for size in aot.SIZES:
        monkeypatch.setitem(aot.SIZES, size, 1)
    aot.compiled.__wrapped__(op, torch.float32, 90)


@contextmanager
def _gpu(monkeypatch, *capability):
    """As if this machine had one."""

    def forget():
        for function in vars(_op).values():
            getattr(function, "cache_clear", lambda: None)()

    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        forget()
        yield
    forget()


def test_a_gpu_that_is_too_old_is_said_to_be(monkeypatch):
    """Then the reference takes over, and `ofa-fast info` tells why."""
    with _gpu(monkeypatch, 7, 5):
        assert _cli_info._backends("cuda", torch.float32)[0]["factorized_cross_entropy"] == "reference"
        assert "triton on cuda: it needs compute capability 8.0 and this GPU has 7.5" in _cli_info.report()


def test_a_dtype_without_kernels_is_said_to_be(monkeypatch):
    with _gpu(monkeypatch, 9, 0):
        assert _cli_info._backends("cuda", torch.float32)[0]["factorized_cross_entropy"] == "triton"
        assert _cli_info._backends("cuda", torch.float64)[0]["factorized_cross_entropy"] == "reference"
        assert "triton on cuda: it takes float32, bfloat16, float16 (float64 tensors of" in _cli_info.report()


def test_a_limit_has_a_reason():
    inputs = torch.zeros(3, 4), torch.zeros(5, 600)
    assert "ranks up to 512, got 600" in OPS["factorized_cross_entropy"].limits["triton"](*inputs)


def _products(ptx):
    return [line.split()[0] for line in ptx.splitlines() if "wgmma.mma_async.sync" in line]


@pytest.mark.parametrize("op", aot.LAUNCHES)
@in_every_dtype
def test_products_have_the_operands_of_the_dtype(op, dtype):
    for name, kernel in aot.compiled(op, dtype, 90).items():
        operands = {product.rsplit(".", 1)[1] for product in _products(kernel.ptx)}
        expected = set() if name in WITHOUT_PRODUCTS else {OPERANDS[dtype]}
        if name == "project":
            expected |= {"f16", "tf32"}  # its sums of equal ids
        if name == "screen":
            expected = {"f16"}  # codes of any dtype's rows
        assert operands == expected, name


@in_every_dtype
@pytest.mark.parametrize("rank", [1, 200, 256, 400])
def test_a_warp_group_has_rows_of_its_own(dtype, rank):
    """With two on the same 64 rows Triton 3.6 makes wrong sums of float32 on a Hopper, as a GPU has shown."""
    kernels = importlib.import_module("ofa_fast.ops.factorized_cross_entropy.triton")
    with patch.object(kernels, "capability", lambda: 90), patch.object(kernels, "roomy", lambda: True):
        (rows, _), options = kernels._tiles(dtype, rank)
    assert rows >= 16 * options["num_warps"]


def test_float32_takes_three_products():
    """One TF32 product has 11 bits; the interpreter computes either in float32, so only the assembly code shows it."""
    products = _products(aot.compiled("factorized_embedding", torch.float32, 90)["lookup"].ptx)
    assert len(products) == 3 * 32 // 8  # of a depth of 32, at 8 a product
