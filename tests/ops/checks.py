"""The five checks that every op passes on every backend it has:

``values`` (1: forward and 2: gradients against float64), ``gradcheck`` (3), ``opcheck`` (4) and ``fullgraph`` (5).

Tolerance of 1 and 2: against the reference in float64, the largest error is at most that of the reference (torch's own
arithmetic) at the dtype of the inputs, plus ``slack`` units in the last place of the largest true value.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._pytree import tree_map_only

from ofa_fast import _native
from ofa_fast.ops import _op, backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EMULATED = os.environ.get("OFA_CUDA_EMULATED")  # the CUDA kernels as a module for CPUs; see test_cuda.py
ISAS = ("scalar", "avx2", "avx512", "avx512_vnni", "amx")


def _runnable_isas() -> tuple[str, ...]:
    return ISAS[: ISAS.index(_native.cpu.best_isa()) + 1] if _native.cpu else ()


BACKENDS = ["reference", *(f"cpu-{isa}" for isa in _runnable_isas())]


def _on_the_gpu(kernel: Callable) -> Callable:
    """The tensors of the tests of ops are on the CPU: to the GPU with them, and back with the results."""

    def there_and_back(*args):
        if any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args):
            return kernel(*args)  # of another test in the same process
        moved = tree_map_only(torch.Tensor, torch.Tensor.cuda, args)
        return tree_map_only(torch.Tensor, torch.Tensor.cpu, kernel(*moved))

    return there_and_back


def _runnable_on_gpus() -> Iterator[str]:
    """Backends for GPUs, made to take CPU tensors: emulators do, and a GPU is asked where there is one."""
    if EMULATED:
        specification = importlib.util.spec_from_file_location("_cuda", EMULATED)
        _native.cuda = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(_native.cuda)
    for name in ("cuda", "triton"):
        for op in _op.OPS.values():
            if name in op.backends and torch.cuda.is_available():
                op.backends[name] = _on_the_gpu(op.backends[name])
        if name == "triton" and INTERPRETED:  # small cases have many tiles, and lists that overflow
            search = importlib.import_module("ofa_fast.ops.topk_similarity.triton")
            search.BLOCK_Q, search.BLOCK_K, search.BLOCK_D, search.BLOCK_PAIRS, search.CAPACITY = 16, 16, 16, 2048, 48
        if torch.cuda.is_available() or (INTERPRETED if name == "triton" else EMULATED):
            _op.ORDER["cpu"] = (*_op.ORDER["cpu"], name)
            if any(op.refusal(name, "cpu", {torch.float32}) is None for op in _op.OPS.values()):
                yield name


BACKENDS += _runnable_on_gpus()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def backends_of(*words: str) -> list[str]:
    """Those of BACKENDS that have kernels for all of these ops: their forward and their backward."""
    ops = [op for name, op in _op.OPS.items() if name.removesuffix("_backward") in words]
    return [name for name in BACKENDS if all(name.partition("-")[0] in op.backends for op in ops)]


def on_every_backend_of(*words: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", backends_of(*words))


in_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force a backend and, behind a hyphen, an instruction set: "cpu-avx2"."""
    kind, _, isa = name.partition("-")
    before = _native.cpu.isa() if _native.cpu else None
    try:
        if isa:
            _native.cpu.set_isa(isa)
        with backend(kind):
            yield
    finally:
        if before:
            _native.cpu.set_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cast(value, dtype):
    """The same layout in another dtype; a leaf where a gradient is wanted."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        cast = value.detach().to(dtype)
        return cast.requires_grad_(value.requires_grad)
    return value


def run(function: Callable, inputs: tuple, stretched: bool = False) -> tuple[list, list]:
    """Floating outputs, and the gradients of the inputs that require one for a fixed gradient of the outputs.

    ``stretched``: that gradient is one number expanded, so all its strides are 0.
    """
    outputs = function(*inputs)
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.is_floating_point()]
    leaves = [i for i in inputs if isinstance(i, torch.Tensor) and i.requires_grad]
    if not leaves:
        return outputs, []
    generator = torch.Generator().manual_seed(7)
    cotangents = [
        torch.full((), 0.75, dtype=o.dtype).expand_as(o)
        if stretched
        else torch.randn(o.shape, generator=generator, dtype=torch.float64).to(torch.bfloat16).to(o.dtype)
        for o in outputs
    ]
    gradients = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    return [o.detach() for o in outputs], [
        torch.zeros_like(i) if g is None else g for g, i in zip(gradients, leaves, strict=True)
    ]


def values(function: Callable, reference: Callable, inputs: tuple, dtype, slack: float = 4.0, stretched=False) -> None:
    """Checks 1 and 2. ``inputs`` are float64 or float32 tensors (requires_grad where wanted) and plain values."""
    at_dtype = tuple(_cast(i, dtype) for i in inputs)
    exact = tuple(_cast(i, torch.float64) for i in at_dtype)
    ours, ours_grad = run(function, at_dtype, stretched)
    torchs, torchs_grad = run(reference, at_dtype, stretched)
    truth, truth_grad = run(reference, exact, stretched)
    labels = [f"output {i}" for i in range(len(ours))] + [f"gradient {i}" for i in range(len(ours_grad))]
    for label, a, b, t in zip(labels, ours + ours_grad, torchs + torchs_grad, truth + truth_grad, strict=True):
        assert_no_worse(a, b, t, slack, label)


def assert_no_worse(ours, torchs, truth, slack: float = 4.0, label: str = "result") -> None:
    assert ours.shape == truth.shape, f"{label}: shape {list(ours.shape)} instead of {list(truth.shape)}"
    if not truth.numel():
        return
    assert torch.isfinite(ours).all(), f"{label}: not finite"
    allowed = (torchs.double() - truth).abs().max() + slack * torch.finfo(ours.dtype).eps * truth.abs().max()
    error = (ours.double() - truth).abs().max()
    assert error <= allowed, f"{label}: error {error:.3g} where {allowed:.3g} is allowed"


def gradcheck(function: Callable, inputs: tuple) -> None:
    """Check 3, in float64 (which the reference backend computes) through the op's own backward formula."""
    exact = tuple(_cast(i, torch.float64) for i in inputs)
    assert torch.autograd.gradcheck(function, exact)


def opcheck(overload, inputs: tuple) -> None:
    """Check 4: schema, fake and autograd registration of a registered op agree with what it does."""
    torch.library.opcheck(overload, inputs)


def fullgraph(function: Callable, inputs: tuple) -> None:
    """Check 5: compiled without a graph break, with the same outputs and gradients as eager."""
    torch._dynamo.reset()
    eager, eager_grad = run(function, inputs)
    compiled, compiled_grad = run(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
    for a, b in zip(eager + eager_grad, compiled + compiled_grad, strict=True):
        torch.testing.assert_close(a, b)


def concurrently(right: Callable[[], bool], calls: int) -> None:
    """``right()`` holds in every one of ``calls`` calls from each of four Python threads at once."""
    outcomes = []

    def call():
        outcomes.extend(right() for _ in range(calls))

    team = [threading.Thread(target=call) for _ in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert outcomes == [True] * (4 * calls)


def in_forked_child(right: Callable[[], bool]) -> None:
    """``right()`` holds in a child that is forked after this process has run threads.

    Memory is not filled with NaN there: torch's own threads, which fill more than a little, would hang in a child.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads is the point here
        child = os.fork()
    if child == 0:
        torch.utils.deterministic.fill_uninitialized_memory = False
        os._exit(0 if right() else 1)
    assert os.waitpid(child, 0)[1] == 0
