"""Our ops beside their peers, in turns, in one process; or now beside another commit.

  python -m benchmarks                                    every op at its full sizes
  python -m benchmarks topk_similarity --size Gaussian    the sizes of one op that have this in their names
  python -m benchmarks --small                            small sizes only
  python -m benchmarks --data DIR --json                  with real tables, into benchmarks/results/<machine>.json
  python -m benchmarks report                             from there the tables and plots of the documentation
  python -m benchmarks --base main                        our ops now and at a commit, in two processes that take turns

DIR may hold e5/model.safetensors and minilm/model.safetensors (Hugging Face folders) and queries.npy and keys.npy
(float32, [Q, d] and [K, d]); what is not there is skipped with a line. An op whose tests fail is not timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks import base, harness, machine, report

OPS = ("topk_similarity", "truncated_svd", "factorized_embedding", "factorized_cross_entropy")


def table(entries: dict[str, dict], roofs: dict[str, float]) -> str:
    ours = entries[harness.OURS]["p50"]
    names = list(entries[harness.OURS]["errors"])
    head = f"{'':40} {'p20':>10} {'p50':>10} {'p80':>10} {'rounds':>6} {'ratio':>8} {'fp32':>6} {'int8':>6} {'copy':>6}"
    lines = [f"{head} {'memory':>9} " + " ".join(f"{name:>9}" for name in names)]
    for name, entry in entries.items():
        times = " ".join(f"{1e3 * entry[p]:8.2f}ms" for p in ("p20", "p50", "p80"))
        shares = " ".join(f"{share:6.0%}" for share in report.shares(entry, roofs))
        memory = "" if entry["memory"] is None else f"{entry['memory'] / 2**20:.0f}MiB"
        errors = " ".join(f"{entry['errors'][n]:9.1e}" if n in entry["errors"] else " " * 9 for n in names)
        ratio = f"{entry['p50'] / ours:7.2f}x"
        lines.append(f"{name:40} {times} {entry['rounds']:6} {ratio} {shares} {memory:>9} {errors}")
    return "\n".join(lines)


def stored(file: Path, described: dict) -> dict:
    """The results that ``file`` has of the same machine, threads and versions, to which new ones are added."""
    found = json.loads(file.read_text()) if file.exists() else {"machine": described, "ops": {}}
    if found["machine"] == described:
        return found
    print(f"{file} is of another machine, other threads or other versions, and will be replaced", file=sys.stderr)
    return {"machine": described, "ops": {}}


def in_order(ops: dict[str, dict]) -> dict[str, dict]:
    """Ops and sizes in the order of the code, without sizes that it no longer has."""
    known = {op: importlib.import_module(f"benchmarks.{op}").SIZES for op in OPS if op in ops}
    return {op: {size: ops[op][size] for size in names if size in ops[op]} for op, names in known.items()}


def sizes(op: str, options: argparse.Namespace):
    module = importlib.import_module(f"benchmarks.{op}")
    for size, arguments in module.SIZES.items():
        if (options.small and not size.startswith("small")) or options.size not in size:
            continue
        yield module, size, arguments


def measure(options: argparse.Namespace) -> bool:
    """Ours and every peer; False where an op's tests fail."""
    described = machine.describe(options.device)
    print(json.dumps(described, indent=1))
    file = options.json and Path(options.json)
    if options.json == "":
        file = report.RESULTS / f"{machine.slug(described)}.json"
    results = stored(file, described) if file else {"ops": {}}
    passed = True
    for op in options.ops:
        if not machine.tests_pass(op):
            print(f"\n{op}: its tests fail, so its speed is not measured", file=sys.stderr)
            passed = False
            continue
        roofs = machine.roofs(options.device)
        print(f"\n{op}; roofs: " + ", ".join(f"{name} {value / 1e9:,.0f} G/s" for name, value in roofs.items()))
        for module, size, arguments in sizes(op, options):
            print(f"\n{size}", flush=True)
            begin = time.perf_counter()
            try:
                contest = module.contest(**arguments, device=options.device, folders=options.data)
                entries = harness.run(contest, options.device, options.rounds, options.seconds)
            except harness.Skip as reason:
                print(f"skipped: {reason}")
                continue
            finally:
                contest = None  # its memory is free before the next one's is asked for
            print(table(entries, roofs))
            print(f"measured in {time.perf_counter() - begin:.0f} s", flush=True)
            now = datetime.now(timezone.utc).isoformat(timespec="minutes")
            measured = {"date": now, "commit": machine.commit(), "roofs": roofs, "entries": entries}
            results["ops"].setdefault(op, {})[size] = measured
            results["ops"] = in_order(results["ops"])
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(results, indent=1) + "\n")
    return passed


def compare(options: argparse.Namespace) -> bool:
    """Now against ``options.base``; False where tests fail or a size became slower."""
    tested = [op for op in options.ops if machine.tests_pass(op)]
    for op in sorted(set(options.ops) - set(tested)):
        print(f"{op}: its tests fail, so its speed is not measured", file=sys.stderr)
    results = []
    with base.installed(options.base) as folder, base.worker() as now, base.worker(folder) as then:
        print(f"{'':60} {base.HEADING}")
        for op in tested:
            for _, size, _ in sizes(op, options):
                folders = [str(path) for path in options.data]
                setup = {"op": op, "size": size, "device": options.device, "threads": torch.get_num_threads()}
                result = base.compare(now, then, setup | {"folders": folders}, options.rounds, options.seconds)
                results.append({"op": op, "size": size, **result})
                print(f"{f'{op}: {size}':60} {base.row(result)}", flush=True)
    print(base.summary(results))
    if options.json:
        Path(options.json).write_text(json.dumps({"base": options.base, "sizes": results}, indent=1) + "\n")
    return len(tested) == len(options.ops) and not any(result.get("verdict") == "slower" for result in results)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:
        return report.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)}; all without any")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", metavar="GIT_REV", help="compare our ops with those of this commit, not with peers")
    parser.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="add the results to FILE (benchmarks/results/<machine>.json)",
    )
    parser.add_argument("--data", type=Path, action="append", default=[], metavar="DIR", help="where real inputs are")
    parser.add_argument("--small", action="store_true", help="small sizes only")
    parser.add_argument("--size", default="", metavar="TEXT", help="only sizes with TEXT in their names")
    parser.add_argument("--rounds", type=int, default=15, help="rounds at most (15)")
    parser.add_argument("--seconds", type=float, default=2, help="a peer stops after so many, and one round (2)")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--list", action="store_true", help="name ops and sizes, and measure nothing")
    options = parser.parse_args(arguments)
    for op in options.ops:
        if op not in OPS:
            parser.error(f"unknown op {op!r}: choose of {', '.join(OPS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device on this machine; choose cpu")
    options.ops = options.ops or OPS
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.list:
        print("\n".join(f"{op}: {size}" for op in options.ops for _, size, _ in sizes(op, options)))
        return 0
    if options.base:
        if options.json == "":
            parser.error("--base with --json needs a FILE")
        return int(not compare(options))
    return int(not measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
