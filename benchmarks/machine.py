"""What a figure must be read with: the machine, its roofs, the versions, the commit, and whether the tests pass."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import harness
from ofa_fast import _native

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "faiss-cpu", "usearch")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp", "i8mm")


def describe(device: str) -> dict:
    """Processor, instruction sets, threads and versions; never a host name."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "isa": _native.cpu.isa() if _native.cpu else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def slug(machine: dict) -> str:
    """A file name: "intel-xeon-processor-2-cores"."""
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|cpu", "", name.lower())).strip("-")


def roofs(device: str) -> dict[str, float]:
    """What this machine reaches now: operations a second of torch's own matmuls, and bytes a second of a copy.

    They are yardsticks and not the hardware's peak: torch's int8 matmul leaves most of AMX unused, for one.
    """
    a = torch.randn(4096, 4096, device=device)
    x = torch.randint(-128, 127, (4096, 4096), dtype=torch.int8, device=device)
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    return {
        "fp32 torch matmul": 2 * 4096**3 / _best(lambda: a @ a, device),
        "int8 torch._int_mm": 2 * 4096**3 / _best(lambda: torch._int_mm(x, x), device),
        "copy": 2 * source.nbytes / _best(lambda: target.copy_(source), device),
    }


def _best(function: Callable, device: str) -> float:
    function()
    return min(harness.timed(function, device)[0] for _ in range(8))


def commit() -> str:
    """The short commit, with a + where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # there is no git
        return "unknown"


def tests_pass(op: str) -> bool:
    """A speed of wrong results is worth nothing, so it is not measured."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/ops/test_{op}.py"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
