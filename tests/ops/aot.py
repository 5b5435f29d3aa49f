"""Compiles Triton kernels for GPUs that need not be here, with the arguments that the ops themselves give them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


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
