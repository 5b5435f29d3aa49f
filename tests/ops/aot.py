"""Compiles Triton kernels for GPUs that need not be here, with the arguments that the ops themselves give them.

python tests/ops/aot.py     writes docs/gpu_kernels.md, the registers, spills and shared memory of every kernel
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TABLE = Path(__file__).parents[2] / "docs" / "gpu_kernels.md"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


SIZES = {"V": 4096, "R": 200, "D": 768, "N": 512}


def _embedding(dtype):
    kernels = importlib.import_module("ofa_fast.ops.factorized_embedding.triton")
    v, r, d, n = SIZES.values()
    ids = torch.randint(v, (n,))
    coordinates, basis, grad = (torch.zeros(*shape, dtype=dtype) for shape in ((v, r), (r, d), (n, d)))
    kernels.forward(ids, coordinates, basis)
    kernels.backward(grad, ids, coordinates, basis, -1, False, [True, True])


def _cross_entropy(dtype):
    kernels = importlib.import_module("ofa_fast.ops.factorized_cross_entropy.triton")
    v, r, d, n = SIZES.values()
    labels, loss, lse, others = torch.randint(v, (n,)), torch.ones(n), torch.ones(2, n), torch.ones(n, r)
    inputs = *(torch.zeros(*shape, dtype=dtype) for shape in ((n, d), (v, r), (r, d))), labels, torch.zeros(v)
    kernels.forward(*inputs, -100, True)
    kernels.backward(loss, loss, *inputs, loss, lse, others, -100, [True] * 4)


def _search(dtype):
    kernels = importlib.import_module("ofa_fast.ops.topk_similarity.triton")
    keys, rows = torch.zeros(SIZES["V"], SIZES["R"], dtype=dtype), torch.arange(SIZES["N"])
    kernels._products(keys, keys, rows, rows)
    exact = SimpleNamespace(queries=keys[: SIZES["N"]], keys=keys, query_norms=torch.ones(SIZES["N"]))
    codes = torch.zeros(SIZES["V"], 256, dtype=torch.float16)
    kernels._candidates(exact, rows, codes, torch.zeros(()), kernels.CAPACITY, 10)
    indices = torch.randint(SIZES["V"], (SIZES["N"], 10))
    kernels.backward(indices.float(), exact.queries, keys, indices.float(), indices, "cosine", [True, True])


def _gram(dtype):
    kernels = importlib.import_module("ofa_fast.ops.truncated_svd.triton")
    kernels._gram_matrix(torch.zeros(SIZES["V"], SIZES["D"], dtype=dtype))


LAUNCHES = {
    "topk_similarity": (_search, {"screen", "dots", "sums"}),
    "truncated_svd": (_gram, {"gram"}),
    "factorized_embedding": (_embedding, {"lookup", "project", "add_segments", "basis"}),
    "factorized_cross_entropy": (_cross_entropy, {"keys", "gather", "forward", "finish", "prepare", "backward"}),
}
TARGETS = tuple(itertools.product((torch.bfloat16, torch.float16, torch.float32), (80, 90, 100)))
RANKS = {op: (SIZES["R"],) for op in LAUNCHES} | {"factorized_cross_entropy": (200, 400)}  # whose tiles depend on it


@dataclass
class Compiled:
    """One kernel as it would run: what it takes of a processor, and its assembly code."""

    shared: int  # bytes a program
    registers: int  # a thread
    spilled: int  # bytes of local memory a thread
    threads: int
    ptx: str


class _NoDevice:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return f"sm_{self._target.arch}"  # under which a kernel keeps what was compiled for it

    def get_current_stream(self, _device):
        return 0


@contextmanager
def _compiling_for(capability: int) -> Iterator[dict]:
    """Inside, a launch only compiles; the dictionary has the last kernel of each name."""
    launch, found = JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **kwargs):
        found[self.__name__.lstrip("_")] = launch(self, *args, grid=grid, warmup=True, **kwargs)

    before = driver._active
    driver.set_active(_NoDevice(capability))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = launch
        driver._active = before


def _resources(binary: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{field}:(\d+)", said)[1]) for field in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def kernels(launch: Callable[[], object], capability: int) -> dict[str, Compiled]:
    """The kernels that ``launch()``, a call of a launcher with CPU tensors, would run on capability 80, 90 or 100."""
    with _compiling_for(capability) as found:
        launch()
    compiled = {}
    for name, kernel in found.items():
        registers, spilled = _resources(kernel.asm["cubin"])
        threads = 32 * kernel.metadata.num_warps
        compiled[name] = Compiled(kernel.metadata.shared, registers, spilled, threads, kernel.asm["ptx"])
    return compiled


@functools.cache
def compiled(op: str, dtype: torch.dtype, capability: int, rank: int = SIZES["R"]) -> dict[str, Compiled]:
    launch, names = LAUNCHES[op]
    with patch.dict(SIZES, R=rank):
        found = kernels(lambda: launch(dtype), capability)
    assert found.keys() == names, f"{op} launched {sorted(found)}"
    return found


def table() -> str:
    """The page docs/gpu_kernels.md."""
    titles = [f"{str(dtype).removeprefix('torch.')}, sm_{capability}" for dtype, capability in TARGETS]
    lines = [
        "# What the Triton kernels take of a GPU",
        "",
        "Registers a thread, spilled bytes a thread, shared KiB and warps a program, as compiled ahead of time by",
        "Triton {} for V {:,}, R {}, D {}, N {} with a float32 bias.".format(triton.__version__, *SIZES.values()),
        "Written by `python tests/ops/aot.py`; `tests/ops/test_triton.py` holds the kernels to it.",
        "",
        f"| kernel | {' | '.join(titles)} |",
        f"|---|{'---|' * len(titles)}",
    ]
    for op, (_, names) in LAUNCHES.items():
        for rank, name in itertools.product(RANKS[op], sorted(names)):
            cells = []
            for dtype, capability in TARGETS:
                kernel = compiled(op, dtype, capability, rank)[name]
                shared = f"{kernel.shared / 1024:.0f}"
                cells.append(f"{kernel.registers}, {kernel.spilled}, {shared}, {kernel.threads // 32}")
            named = name if rank == SIZES["R"] else f"{name}, R {rank}"
            lines.append(f"| `{op}` {named} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
