"""Everything a machine with a GPU is asked, in one call of a few minutes that needs no network.

  python benchmarks/gpu.py                    build, run the ops' tests on the GPU, time them beside their peers
  python benchmarks/gpu.py --wheels DIR       build requirements and peers come from the wheels in DIR
  python benchmarks/gpu.py --dry-run          the same steps on a CPU, with small sizes and tests only collected

It needs Python with torch for CUDA and triton. Each step has a share of --minutes; what it does not finish is reported.
A table is printed last, and --json FILE has everything, in the form of `python -m benchmarks --json`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ("scikit-build-core", "pybind11", "cmake", "ninja")
PEERS = ("liger-kernel", "cut-cross-entropy", "faiss-gpu-cu12", "cuvs-cu12")
SIZES = {
    "topk_similarity": {
        "400,000 x 250,002 x 300, k = 10": {"kind": "Gaussian", "queries": 400_000, "d": 300},
        "8,192 x 250,002 x 200, k = 10": {"kind": "Gaussian"},
    },
    "truncated_svd": {"250,002 x 768, R 400": {"kind": "decaying"}},
    "factorized_embedding": {
        f"16,384 ids of text, V 401,145, R 200, D {width}, {dtype}": {
            "gradient": "dense", "width": width, "dtype": dtype
        }
        for width in (768, 4096)
        for dtype in ("bfloat16", "float32")
    },
    "factorized_cross_entropy": {
        f"{tokens:,} labelled, V 401,145, R {rank}, D 768, {dtype}": {
            "vocabulary": 401_145, "rank": rank, "tokens": tokens, "labelled": 1.0, "dtype": dtype
        }
        for tokens, rank, dtype in (
            (8192, 200, "bfloat16"), (2458, 200, "bfloat16"), (2458, 400, "bfloat16"), (2458, 200, "float32")
        )
    },
}  # fmt: skip


def step(name: str, command: list, seconds: float, **options) -> dict:
    """Runs a command for so many seconds at most; what it said at the end is kept."""
    begin = time.monotonic()
    print(f"\n{name}: {' '.join(map(str, command))}", flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            timeout=max(seconds, 1),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )
        status, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        status, said = "not finished", said.decode(errors="replace") if isinstance(said, bytes) else said
    except OSError as error:
        status, said = str(error), ""
    lines = said.strip().splitlines()
    print("\n".join(lines[-4:]), f"\n{name}: {'passed' if status == 0 else status}", flush=True)
    return {"status": status, "seconds": round(time.monotonic() - begin, 1), "said": lines[-40:]}


def build(options: argparse.Namespace, seconds: float) -> dict:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if options.wheels:
        wheels = [*pip, "--no-index", "--find-links", options.wheels]
        step("build requirements", [*wheels, *BUILD, "pytest", "pytest-timeout"], seconds)
        for peer in PEERS:
            step(f"peer {peer}", [*wheels, "--no-deps", peer], seconds)
    return step("build", [*pip, "--no-build-isolation", "--no-deps", "-e", ROOT], seconds)


def tests(options: argparse.Namespace, seconds: float) -> dict:
    """The ops' tests with every backend for GPUs, and small ones under the sanitizer where it is installed."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    chosen = [*pytest, "tests/ops", "-k", "triton or cuda"]
    if options.dry_run:
        return {"tests": step("tests", [*chosen, "--collect-only"], seconds)}
    results = {"tests": step("tests", chosen, seconds)}
    if sanitizer := shutil.which("compute-sanitizer"):
        small = [*pytest, "tests/ops", "-k", "(triton or cuda) and values and small"]
        for tool in ("memcheck", "racecheck"):
            command = [sanitizer, "--tool", tool, "--error-exitcode", "1", *small]
            environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            results[tool] = step(tool, command, seconds / 4, env=environment)
    return results


def backend(op: str, device: str) -> str:
    import torch

    from ofa_fast.ops._op import OPS, ORDER

    return next(name for name in ORDER[device] if OPS[op].refusal(name, device, {torch.bfloat16}) is None)


def measure(options: argparse.Namespace, seconds: float) -> dict:
    """Ours and every peer at the sizes above, as far as time allows."""
    import torch

    from benchmarks import harness, machine

    device = "cpu" if options.dry_run else "cuda"
    roofs = machine.roofs(device)
    if device == "cuda":
        a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        harness.timed(lambda: a @ a, device)
        roofs["bf16 torch matmul"] = 2 * 8192**3 / harness.timed(lambda: a @ a, device, 10)[0]
    results, end = {}, time.monotonic() + seconds
    for op, sizes in SIZES.items():
        module, used = importlib.import_module(f"benchmarks.{op}"), backend(op, device)
        if options.dry_run:
            sizes = {module.SMALL: module.SIZES[module.SMALL]}
        elif used == "reference":
            print(f"\n{op}: no kernel for this GPU, so nothing to time", flush=True)
            continue
        for size, arguments in sizes.items():
            if time.monotonic() > end:
                print(f"\n{op}, {size}: no time left", flush=True)
                continue
            print(f"\n{op}, {size}, {used}", flush=True)
            contest = None  # its memory is free before the next one's is asked for
            try:
                contest = module.contest(**arguments, device=device)
                entries = harness.run(contest, device, rounds=15, seconds=0.1 if options.dry_run else 2)
            except (harness.Skip, torch.OutOfMemoryError, RuntimeError) as reason:
                print(f"skipped: {type(reason).__name__}: {reason}", flush=True)
                continue
            results.setdefault(op, {})[size] = {"backend": used, "roofs": roofs, "entries": entries}
            for name, entry in entries.items():
                print(f"  {name:48} {1e3 * entry['p50']:10.3f} ms  {entry['errors']}", flush=True)
    return {"machine": machine.describe(device), "commit": machine.commit(), "ops": results}


def table(results: dict) -> str:
    from benchmarks.harness import OURS

    lines = [f"{'':76} {'ours':>11} {'best peer':>11} {'ratio':>7} {'memory':>9}"]
    for op, sizes in results["ops"].items():
        for size, measured in sizes.items():
            ours = measured["entries"][OURS]
            peers = [entry["p50"] for name, entry in measured["entries"].items() if name != OURS]
            times = f"{1e3 * ours['p50']:9.3f}ms {1e3 * min(peers):9.3f}ms {min(peers) / ours['p50']:6.2f}x"
            memory = "" if ours["memory"] is None else f"{ours['memory'] / 2**20:.0f}MiB"
            lines.append(f"{f'{op}: {size}'[:76]:76} {times} {memory:>9}")
    lines += [f"{name}: {done['status']} in {done['seconds']} s" for name, done in results["steps"].items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", metavar="DIR", help="wheels of build requirements and peers")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it (9)")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "gpu.json", metavar="FILE", help="(out/gpu.json)")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: small sizes, tests only collected, no build")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    steps = {} if options.dry_run else {"build": build(options, 60 * options.minutes / 3)}
    if steps and steps["build"]["status"] != 0:
        return 1
    steps |= tests(options, (end - time.monotonic()) / 2)
    sys.path.append(str(ROOT))  # behind site-packages, where the compiled package is
    results = measure(options, end - time.monotonic() - 15) | {"steps": steps}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + table(results))
    return int(any(done["status"] != 0 for done in steps.values()))


if __name__ == "__main__":
    raise SystemExit(main())
