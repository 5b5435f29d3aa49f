"""python -m benchmarks [OP ...]: our ops beside their rivals, in turns, in one process.

python -m benchmarks                              every op at its full sizes
python -m benchmarks topk_similarity --small      one op, small sizes only
python -m benchmarks --json benchmarks/results/laptop.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks import harness

OPS = ("topk_similarity", "truncated_svd", "factorized_embedding", "factorized_cross_entropy")
PACKAGES = ("torch", "numpy", "scikit-learn", "faiss-cpu")
ROOFS = {"topk_similarity": "int8"}  # the others are measured against fp32


def table(op: str, size: str, results: dict[str, dict], roof: float) -> str:
    ours = results["ofa-fast"]["p50"]
    lines = [
        f"\n{op}: {size}",
        f"{'':30} {'p20':>9} {'p50':>9} {'p80':>9} {'ratio':>7} {'roof':>6} {'memory':>9} {'error':>9}",
    ]
    for name, r in results.items():
        share = f"{r['operations_per_second'] / roof:.0%}" if r.get("operations_per_second") else ""
        error = "" if r["error"] is None else f"{r['error']:.1e}"
        times = " ".join(f"{1e3 * r[p]:7.1f}ms" for p in ("p20", "p50", "p80"))
        lines.append(f"{name:30} {times} {r['p50'] / ours:6.2f}x {share:>6} {r['memory'] / 2**20:6.0f}MiB {error:>9}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)}; all without any")
    parser.add_argument("--small", action="store_true", help="small sizes only")
    parser.add_argument("--rounds", type=int, default=15, help="rounds at most (15)")
    parser.add_argument("--seconds", type=float, default=20, help="seconds an entry at most, but three rounds (20)")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    for op in options.ops:
        if op not in OPS:
            parser.error(f"unknown op {op!r}: choose of {', '.join(OPS)}")
    if options.threads:
        torch.set_num_threads(options.threads)

    report = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": harness.machine(PACKAGES)}
    print(json.dumps(report["machine"], indent=1))
    report["roofs"] = harness.roofs()
    print("roofs: " + ", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in report["roofs"].items()))
    report["ops"] = {}
    failed = False
    for op in options.ops or OPS:
        if not harness.tests_pass(op):
            print(f"\n{op}: its tests fail, so its speed is not measured", file=sys.stderr)
            failed = True
            continue
        module = importlib.import_module(f"benchmarks.{op}")
        report["ops"][op] = {}
        for size, arguments in module.SIZES.items():
            if options.small and not size.startswith("small"):
                continue
            results = harness.run(module.contest(*arguments), options.rounds, options.seconds)
            report["ops"][op][size] = results
            print(table(op, size, results, report["roofs"][ROOFS.get(op, "fp32")]), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
