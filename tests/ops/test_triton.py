"""Triton's kernels without a GPU: the ops' own tests in its interpreter, and ahead-of-time compilation."""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checks import in_every_dtype

from ofa_fast.ops._op import OPS

pytest.importorskip("triton")

# A product takes the interpreter 10 ms, so it runs the small cases only; with a GPU all of them run on that.
INTERPRETED = {
    "truncated_svd": "not (random or threads or dominated)",
    "topk_similarity": "exact and (screened or odd or hostile and cosine and (clus or dup)) and not float16 or nan",
    "factorized_embedding": "not (panels or wide or many or threads or sparse and float16)",
    "factorized_cross_entropy": """
        small and not losses or odd or one or difficult and bfloat16 or mixed and bfloat16 or smoothing and none
        or nothing or ignored or infinite_gradients or certain or range or contiguous or opcheck or fullgraph or float64
        or extreme and (first or labels or infinity) and not 200-
    """,
}
V, R, D, N = 4096, 200, 768, 512


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


def _embedding(dtype):
    kernels = importlib.import_module("ofa_fast.ops.factorized_embedding.triton")
    ids = torch.randint(V, (N,))
    coordinates, basis, grad = (torch.zeros(*shape, dtype=dtype) for shape in ((V, R), (R, D), (N, D)))
    kernels.forward(ids, coordinates, basis)
    kernels.backward(grad, ids, coordinates, basis, -1, False, [True, True])


def _cross_entropy(dtype):
    kernels = importlib.import_module("ofa_fast.ops.factorized_cross_entropy.triton")
    labels, loss, lse, others = torch.randint(V, (N,)), torch.ones(N), torch.ones(2, N), torch.ones(N, R)
    inputs = *(torch.zeros(*shape, dtype=dtype) for shape in ((N, D), (V, R), (R, D))), labels, torch.zeros(V)
    kernels.forward(*inputs, -100, True)
    kernels.backward(loss, loss, *inputs, loss, lse, others, -100, [True] * 4)


def _search(dtype):
    kernels = importlib.import_module("ofa_fast.ops.topk_similarity.triton")
    keys, rows = torch.zeros(V, R, dtype=dtype), torch.arange(N)
    kernels._products(keys, keys, rows, rows)
    exact = SimpleNamespace(queries=keys[:N], keys=keys, query_norms=torch.ones(N))
    codes = torch.zeros(V, 256, dtype=torch.float16)
    kernels._candidates(exact, rows, codes, torch.zeros(()), kernels.CAPACITY, 10)


def _gram(dtype):
    importlib.import_module("ofa_fast.ops.truncated_svd.triton")._gram_matrix(torch.zeros(V, D, dtype=dtype))


LAUNCHES = {
    "factorized_embedding": _embedding,
    "factorized_cross_entropy": _cross_entropy,
    "topk_similarity": _search,
    "truncated_svd": _gram,
}
KERNELS = {
    "factorized_embedding": {"lookup", "project", "add_segments", "basis"},
    "factorized_cross_entropy": {"forward", "combine", "backward"},
    "topk_similarity": {"screen", "dots"},
    "truncated_svd": {"gram"},
}
PRODUCTS = {80: "mma.sync.aligned", 90: "wgmma.mma_async.sync", 100: "tcgen05.mma"}  # instructions of tensor cores
OPERANDS = {torch.float32: "tf32", torch.bfloat16: "bf16", torch.float16: "f16"}
WITHOUT_PRODUCTS = {"add_segments", "combine", "dots"}
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a program may have
SPILLED = {80: 256, 90: 0, 100: 0}  # bytes a thread


@functools.cache
def _compiled(op, dtype, capability):
    from aot import kernels

    return kernels(lambda: LAUNCHES[op](dtype), capability)


@pytest.mark.parametrize(
    ("dtype", "capability"),
    [(torch.bfloat16, 80), (torch.bfloat16, 90), (torch.bfloat16, 100), (torch.float16, 90), (torch.float32, 90)],
    ids=str,
)
@pytest.mark.parametrize("op", LAUNCHES)
def test_compiles_for_gpus(op, dtype, capability, record_property):
    compiled = _compiled(op, dtype, capability)
    assert compiled.keys() == KERNELS[op]
    for name, kernel in compiled.items():
        record_property(name, f"{kernel.registers} registers, {kernel.spilled} B spilled, {kernel.shared} B shared")
        assert kernel.registers * kernel.threads <= 65536
        assert kernel.shared <= SHARED[capability]
        assert kernel.spilled <= SPILLED[capability], name
        assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", kernel.ptx, re.MULTILINE), "sums in an order that may vary"
        if name not in WITHOUT_PRODUCTS:
            assert PRODUCTS[capability] in kernel.ptx, name


@pytest.mark.parametrize("op", [op for op in LAUNCHES if op != "topk_similarity"])
def test_sizes_of_one_compile(op, monkeypatch):
    """Triton makes a constant of an argument that is 1, which can do less than a number; the interpreter does not."""
    for size in ("V", "R", "D", "N"):
        monkeypatch.setitem(globals(), size, 1)
    assert _compiled.__wrapped__(op, torch.float32, 90).keys() == KERNELS[op]


def test_a_limit_has_a_reason():
    inputs = torch.zeros(3, 4), torch.zeros(5, 600)
    assert "ranks up to 512, got 600" in OPS["factorized_cross_entropy"].limits["triton"](*inputs)


def _products(ptx):
    return [line.split()[0] for line in ptx.splitlines() if "wgmma.mma_async.sync" in line]


@pytest.mark.parametrize("op", LAUNCHES)
@in_every_dtype
def test_products_have_the_operands_of_the_dtype(op, dtype):
    for name, kernel in _compiled(op, dtype, 90).items():
        operands = {product.rsplit(".", 1)[1] for product in _products(kernel.ptx)}
        expected = set() if name in WITHOUT_PRODUCTS else {OPERANDS[dtype]}
        if name == "project":
            expected |= {"f16", "tf32"}  # its sums of equal ids
        if name == "screen":
            expected = {"f16"}  # codes of any dtype's rows
        assert operands == expected, name


def test_float32_takes_three_products():
    """One TF32 product has 11 bits; the interpreter computes either in float32, so only the assembly code shows it."""
    products = _products(_compiled("factorized_embedding", torch.float32, 90)["lookup"].ptx)
    assert len(products) == 3 * 32 // 8  # of a depth of 32, at 8 a product
