"""python -m benchmarks report [--check]: docs/benchmarks.md, its plots, and the table in README.md.

All of it comes from benchmarks/results/*.json, which `python -m benchmarks --json` writes; nothing is typed. A gpu.json
of benchmarks/gpu.py may lie there, too, and gets a table in docs/benchmarks.md. With --check nothing is written either:
the files that differ from what the results say are named.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import factorized_cross_entropy as ce
from benchmarks import factorized_embedding as lookup
from benchmarks import gpu_table
from benchmarks import topk_similarity as topk
from benchmarks import truncated_svd as svd
from benchmarks.goals import GOALS
from benchmarks.harness import OURS
from benchmarks.machine import ROOT
from benchmarks.plot import bars

# The sizes that README.md shows; docs/benchmarks.md has all.
HEADLINES = (
    *(topk.CLUSTERED, topk.REAL, svd.DECAYING, svd.E5),
    *(lookup.DENSE, lookup.SPARSE, ce.V100_R100, ce.V401_R400),
)
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks: written by `python -m benchmarks report` -->", "<!-- end of benchmarks -->"
ROOFS = {
    "fp32 torch matmul": "operations_per_second",
    "int8 torch._int_mm": "operations_per_second",
    "copy": "bytes_per_second",
}
INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks report` from `benchmarks/results/*.json`, which `python -m benchmarks --json` measures.

All entries of a size run in one process and in turns, one sample each a round, so that a busy moment of the machine
meets all of them. Before every sample stands a call that is not timed. p20, p50 and p80 are quantiles of the samples.
An entry that takes longer than four seconds is called once, and that time stands alone. *memory* is the peak beyond
inputs and results. *of …* is how fast the problem was solved, in the operations or bytes that it needs when nothing is
left out, over what torch's own matmul (`torch._int_mm` for int8) or a copy reached on this machine just before: a
yardstick rather than the peak of the hardware, and whoever leaves work out can pass it. Errors are against float64.
"""


def shares(entry: dict, roofs: dict[str, float]) -> list[float]:
    """How fast the problem was solved over how fast each roof is; beyond 1 for who leaves work out."""
    return [entry[rate] / roofs[roof] for roof, rate in ROOFS.items()]


def duration(seconds: float) -> str:
    """Three digits and a unit: "451 ms"."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995 or unit == "µs":
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.{1 if value >= 9.995 else 2}f} {unit}"
    raise AssertionError


def memory(entry: dict) -> str:
    return "" if entry["memory"] is None else f"{entry['memory'] / 2**20:,.0f} MiB"


def title(machine: dict) -> str:
    """The processor with its cores, or the GPU."""
    return machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"


def facts(machine: dict) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items() if version)
    flags = ", ".join(machine["flags"])
    return (
        f"{machine['threads']} threads; our kernels use {machine['isa']}; instruction sets: {flags or 'not known'}; "
        f"Python {machine['python']}, {versions}."
    )


def rows(cells: list[list[str]], right: int = 1) -> list[str]:
    """A Markdown table of a heading and rows; from column ``right`` on numbers, to the right."""
    rule = ["---" if column < right else "---:" for column in range(len(cells[0]))]
    return ["| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:])]


def size_table(measured: dict) -> list[str]:
    entries, roofs = measured["entries"], measured["roofs"]
    names = list(entries[OURS]["errors"])
    cells = [["", "p20", "p50", "p80", "rounds", "over ours", *(f"of {roof}" for roof in ROOFS), "memory", *names]]
    for name, entry in entries.items():
        times = [duration(entry[p]) for p in ("p20", "p50", "p80")]
        if entry["rounds"] == 1:
            times = ["", times[1], ""]
        errors = [f"{entry['errors'][n]:.1e}" if n in entry["errors"] else "" for n in names]
        ratio = f"{entry['p50'] / entries[OURS]['p50']:.2f}×"
        parts = [f"{share:.0%}" for share in shares(entry, roofs)]
        cells.append(
            [
                f"**{name}**" if name == OURS else name,
                *times,
                str(entry["rounds"]),
                ratio,
                *parts,
                memory(entry),
                *errors,
            ]
        )
    return rows(cells)


def goal_table(op: str, sizes: dict[str, dict], device: str) -> list[str]:
    cells = [["on", "what", "goal", "measured", "reached"]]
    for goal in (goal for goal in GOALS if (goal.op, goal.device) == (op, device)):
        for size in (size for size in goal.sizes if size in sizes):
            value = goal.measured(sizes[size]["entries"], sizes[size]["roofs"])
            if value is None:
                continue
            sign = "≥" if goal.at_least else "≤"
            bound, got = (goal.unit.format(number).replace("x", "×") for number in (goal.bound, value))
            cells.append([size, goal.what, f"{sign} {bound}", got, "yes" if goal.reached(value) else "**no**"])
    return rows(cells, right=2) if len(cells) > 1 else []


def of_gpu_script(result: dict) -> bool:
    """Whether this is a gpu.json, and not what `python -m benchmarks --json` writes."""
    return "steps" in result


def gpu_section(result: dict) -> list[str]:
    """What `benchmarks/gpu.py` measured: p50 of ours alone, by backend; peers beside the first of them."""
    described = result.get("machine")
    cells = [["", "ours", "on", "memory", "peers, and how many times ours they take"]]
    for op, measured in result["ops"].items():
        alone, turns = measured.get("ops", {}).get(op, {}), result["peers"].get(op, {})
        for size in {**alone, **turns}:
            peers = turns.get(size, {}).get("entries", {})
            others = sorted((peer["p50"], name, peer["beside"]) for name, peer in peers.items() if name != OURS)
            theirs = " · ".join(f"{name} {duration(spent)}, **{spent / beside:.1f}**" for spent, name, beside in others)
            ours = alone[size]["entries"] if size in alone else {"in turns": peers[OURS]} if OURS in peers else {}
            for i, (backend, entry) in enumerate(ours.items()):
                cells.append([f"`{op}`, {size}", duration(entry["p50"]), backend, memory(entry), "" if i else theirs])
    return [
        *("", f"## {title(described) if described else 'A GPU'}, by `benchmarks/gpu.py`", ""),
        *(facts(described) if described else "Of a machine that is not known.", ""),
        *(f"Commit {result.get('commit', 'unknown')}; p50 of ours alone; peers over ours in the same turns.", ""),
        *rows(cells, right=5),
        *("", *(f"- {line.strip()}" for line in gpu_table.tests_and_jobs(result))),
    ]


def page(results: dict[str, dict]) -> str:
    lines = [
        *INTRODUCTION.splitlines(),
    ]
    for name, result in results.items():
        if of_gpu_script(result):
            lines += gpu_section(result)
            continue
        lines += ["", f"## {title(result['machine'])}", "", facts(result["machine"])]
        for op, sizes in result["ops"].items():
            lines += ["", f"### {op}", "", f"![{op}: times over ours](plots/{name}-{op}.svg)", ""]
            lines += goal_table(op, sizes, "cuda" if result["machine"]["gpu"] else "cpu")
            for size, measured in sizes.items():
                roofs = ", ".join(f"{roof} {value / 1e9:,.0f} G/s" for roof, value in measured["roofs"].items())
                lines += ["", f"#### {size}", "", f"{measured['date']}, commit {measured['commit']}; {roofs}.", ""]
                lines += size_table(measured)
    return "\n".join(lines) + "\n"


def readme_table(results: dict[str, dict]) -> str:
    lines = []
    for result in results.values():
        cells = [["op", "on", "ofa-fast", "memory", "times as fast as its fastest peers"]]
        for op, sizes in result["ops"].items():
            for size, measured in sizes.items():
                if size not in HEADLINES:
                    continue
                entries = measured["entries"]
                ours = entries[OURS]
                peers = sorted((e["p50"] / ours["p50"], peer) for peer, e in entries.items() if OURS not in peer)
                ratios = " · ".join(f"{peer} **{ratio:.1f}**" for ratio, peer in peers[:4])
                cells.append([f"`{op}`", size, duration(ours["p50"]), memory(ours), ratios])
        machine = result["machine"]
        lines += ["", f"{title(machine)}, {machine['threads']} threads:", "", *rows(cells, right=5)]
    return "\n".join([*lines, ""])


def generated(results_folder: Path = RESULTS, root: Path = ROOT) -> dict[Path, str]:
    """Every file that the results determine, with its content; of README.md what stands between the markers changes."""
    results = {file.stem: json.loads(file.read_text()) for file in sorted(results_folder.glob("*.json"))}
    files = {root / "docs" / "benchmarks.md": page(results)}
    in_turns = {name: result for name, result in results.items() if not of_gpu_script(result)}
    for name, result in in_turns.items():
        for op, sizes in result["ops"].items():
            groups = [
                (
                    size,
                    [
                        (entry, e["p50"] / measured["entries"][OURS]["p50"], duration(e["p50"]))
                        for entry, e in measured["entries"].items()
                    ],
                )
                for size, measured in sizes.items()
            ]
            files[root / "docs" / "plots" / f"{name}-{op}.svg"] = bars(
                f"{op}: time over that of {OURS}, logarithmic", groups
            )
    readme = (root / "README.md").read_text(encoding="utf-8")
    before, found, rest = readme.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"README.md must hold {BEGIN} and {END}")
    files[root / "README.md"] = before + BEGIN + "\n" + readme_table(in_turns) + "\n" + END + after
    return files


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a file would change")
    check = parser.parse_args(arguments).check
    stale = False
    for file, content in generated().items():
        if not file.exists() or file.read_text(encoding="utf-8") != content:
            stale = True
            print(f"{'differs' if check else 'written'}: {file.relative_to(ROOT)}")
            if not check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, encoding="utf-8")
    return int(check and stale)
