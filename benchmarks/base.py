"""Our ops now against those of another commit: two processes that take turns, round by round."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import quantiles
from benchmarks.machine import ROOT

TOLERANCE = 0.10
HEADING = f"{'now':>11} {'base':>11} {'ratio':>7} {'spread':>7} {'drift':>7}  verdict"


def verdict(samples: dict[str, list[float]], tolerance: float = TOLERANCE) -> dict:
    """What the rounds say: ``now`` and ``base`` are seconds a call, ``*_control`` those of a fixed matmul.

    ratio is p50 now over p50 base; spread is the two sides' (p80 - p20) / p50, combined as independent errors are;
    drift is the ratio of the controls. "slower" or "faster" only where the ratio is off 1 by more than the tolerance
    and by more than the spread; "unsteady" where the control, which is the same code, is off by more than that.
    """
    sides = {name: quantiles(values) for name, values in samples.items()}
    spread = sum(((side["p80"] - side["p20"]) / side["p50"]) ** 2 for side in (sides["now"], sides["base"])) ** 0.5
    ratio = sides["now"]["p50"] / sides["base"]["p50"]
    drift = sides["now_control"]["p50"] / sides["base_control"]["p50"]
    if abs(drift - 1) > tolerance:
        word = "unsteady"
    elif abs(ratio - 1) > max(tolerance, spread):
        word = "slower" if ratio > 1 else "faster"
    else:
        word = "same"
    return {
        "now": sides["now"],
        "base": sides["base"],
        "ratio": ratio,
        "spread": spread,
        "drift": drift,
        "verdict": word,
    }


@contextlib.contextmanager
def installed(revision: str) -> Iterator[Path]:
    """A temporary folder with the package of that revision, built from what git has."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise ValueError(f"--base {revision}: {archive.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory(prefix="ofa-fast-base-") as work:
        sources, target = Path(work) / "sources", Path(work) / "target"
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(sources, filter="data")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        if importlib.util.find_spec("scikit_build_core") and importlib.util.find_spec("pybind11"):
            pip.append("--no-build-isolation")
        subprocess.run([*pip, "--target", target, sources], check=True)
        yield target


@contextlib.contextmanager
def worker(folder: Path | None = None) -> Iterator[subprocess.Popen]:
    command = [sys.executable, Path(__file__).with_name("worker.py"), *([folder] if folder else [])]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.stdin.close()  # which ends its loop


def ask(process: subprocess.Popen, message: dict) -> dict:
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"a worker ended with status {process.wait()}")
    return json.loads(answer)


def compare(now: subprocess.Popen, base: subprocess.Popen, setup: dict, rounds: int, seconds: float) -> dict:
    """The verdict on one size, or {"refused": why}; the side that begins alternates."""
    sides = {"now": now, "base": base}
    ready = {name: ask(process, setup) for name, process in sides.items()}
    for name, answer in ready.items():
        if "refused" in answer:
            return {"refused": f"{name}: {answer['refused']}"}
    calls = max(answer["calls"] for answer in ready.values())
    samples = {name + kind: [] for name in sides for kind in ("", "_control")}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            answer = ask(sides[name], {"calls": calls})
            if "refused" in answer:
                return {"refused": f"{name}: {answer['refused']}"}
            samples[name].append(answer["seconds"])
            samples[name + "_control"].append(answer["control"])
        if sum(samples["now"]) * calls > seconds and turn >= 4:
            break
    return verdict(samples) | {"rounds": len(samples["now"])}


def row(result: dict) -> str:
    if "refused" in result:
        return result["refused"]
    times = " ".join(f"{1e3 * result[side]['p50']:9.2f}ms" for side in ("now", "base"))
    return f"{times} {result['ratio']:6.3f}x {result['spread']:6.1%} {result['drift']:6.3f}x  {result['verdict']}"


def summary(results: list[dict]) -> str:
    """The geometric mean of all ratios."""
    ratios = [result["ratio"] for result in results if "ratio" in result]
    return f"geometric mean {statistics.geometric_mean(ratios):.3f}x of {len(ratios)} sizes" if ratios else "no sizes"
