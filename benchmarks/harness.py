"""Times, memory and errors of several ways to do one thing, measured in turns in one process."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ofa_fast import _native

ROOT = Path(__file__).parent.parent


@dataclass
class Contest:
    """One op at one size: ours first, then its rivals, each a function without arguments that returns tensors."""

    entries: dict[str, Callable]
    error: Callable[[object], float] | None = None  # of a result, against float64
    operations: float | None = None  # multiplications and additions that the problem needs
    results: dict[str, dict] = field(default_factory=dict)


def run(contest: Contest, rounds: int, seconds: float) -> dict[str, dict]:
    """Interleaved rounds: every entry once a round, until ``rounds`` or ``seconds`` an entry are used up.

    Returns for each entry: p20, p50, p80 in seconds, rounds, peak extra memory in bytes, and the error.
    """
    times: dict[str, list[float]] = {name: [] for name in contest.entries}
    for name, entry in contest.entries.items():  # the warm-up, which also gives memory and error
        before = _reset_peak()
        result = entry()
        peak = max(0, _peak() - before)
        error = contest.error(result) if contest.error else None
        contest.results[name] = {"memory": peak, "error": error}
        del result
    for _ in range(rounds):
        for name, entry in contest.entries.items():
            if sum(times[name]) > seconds and len(times[name]) >= 3:
                continue
            gc.collect()
            begin = time.perf_counter()
            entry()
            times[name].append(time.perf_counter() - begin)
    for name, spent in times.items():
        low, *_, high = statistics.quantiles(spent, n=5) if len(spent) > 1 else spent * 2
        contest.results[name] |= {"p20": low, "p50": statistics.median(spent), "p80": high, "rounds": len(spent)}
        if contest.operations:
            contest.results[name]["operations_per_second"] = contest.operations / contest.results[name]["p50"]
    return contest.results


def _reset_peak() -> int:
    """Resident bytes now, from where the peak is counted anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field_name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field_name}")


def _best(function: Callable, repeats: int = 5) -> float:
    function()
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def roofs() -> dict[str, float]:
    """What this machine reaches now: fp32 and int8 operations a second, and bytes a second copied."""
    a = torch.randn(2048, 2048)
    x = torch.randint(-128, 127, (4096, 4096), dtype=torch.int8)
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    return {
        "fp32": 2 * 2048**3 / _best(lambda: a @ a),
        "int8": 2 * 4096**3 / _best(lambda: torch._int_mm(x, x), 3),
        "copy": 2 * source.nbytes / _best(lambda: target.copy_(source)),
    }


def machine(packages: tuple[str, ...] = ("torch", "numpy")) -> dict:
    """What a figure must be read with: processor, threads, instruction set, versions."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    versions = {}
    for package in ("ofa-fast", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _native.cpu.isa() if _native.cpu else None,
        "python": platform.python_version(),
        "versions": versions,
        "load": os.getloadavg()[0],
    }


def tests_pass(op: str) -> bool:
    """A speed of wrong results is worth nothing, so it is not measured."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/ops/test_{op}.py"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
