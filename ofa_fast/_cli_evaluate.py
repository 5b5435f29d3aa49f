"""``ofa-fast evaluate``: what a model can do in the languages of a folder of test data."""

from __future__ import annotations

import sys
from pathlib import Path

from ofa_fast._cli_types import numbers, positive


def register(_commands, subparser) -> None:
    add = subparser(
        "evaluate",
        run,
        "measure crosslingual sentence retrieval",
        "evaluate trained/ --task retrieval --data bible/ --source eng --out report",
    ).add_argument
    add("model", metavar="MODEL", help="folder or hub id")
    add("--task", choices=("retrieval",), default="retrieval", help="what to measure (default: retrieval)")
    add("--data", type=Path, required=True, metavar="DIR", help="line-aligned texts, Tatoeba pairs or SIB-200")
    add("--source", default="eng", metavar="LANGUAGE", help="every other language is retrieved from it (default: eng)")
    add("--languages", nargs="+", metavar="LANGUAGE", help="only these (default: all)")
    add("--layer", type=int, help="whose states are used, 0 the embeddings (default: two thirds up)")
    add("--pooling", default="mean", help="of a sentence's states: mean, max or cls (default: mean)")
    add("--k", type=numbers, default=(1, 5, 10), metavar="K,...", help="accuracies at these (default: 1,5,10)")
    add("--max-pairs", type=positive, help="at most so many a language, drawn by --seed")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--batch-size", type=positive, default=64, help="sentences at a time (default: 64)")
    add("--out", type=Path, metavar="FILE", help="write the numbers to FILE.json and a table to FILE.md")


def run(args) -> None:
    from ofa_fast.evaluation import retrieval_report

    options = {name: value for name, value in vars(args).items() if name not in ("run", "debug", "task")}
    report = retrieval_report(**options, progress=sys.stderr.isatty())
    print("  ".join(f"{head:>8}" for head in ("language", "pairs", *report["average"])))
    for language, result in report["languages"].items():
        print("  ".join([f"{language:>8}  {result['pairs']:>8}", *(f"{v:>8.3f}" for v in result["mean"].values())]))
    print("  ".join([f"{'average':>18}", *(f"{value:>8.3f}" for value in report["average"].values())]))
