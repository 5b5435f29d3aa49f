"""``ofa-fast evaluate``: what a model can do in the languages of a folder of test data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ofa_fast._cli_types import lines, numbers, positive

EXAMPLE = (
    "evaluate trained/ --task retrieval --data bible/ --lines 23214-31170 --out retrieval\n"
    "  ofa-fast evaluate trained/ --task classification --data sib200/ --seeds 0,1,2 --out topics"
)
TASKS = ("retrieval", "classification", "ner", "pos")


def register(_commands, subparser) -> None:
    parser = subparser("evaluate", run, "measure retrieval, classification, NER or POS in many languages", EXAMPLE)
    parser.usage = "%(prog)s MODEL --task TASK --data DIR [options]"
    parser.add_argument("model", metavar="MODEL", help="folder or hub id, ours or stock")
    add = parser.add_argument
    add("--task", choices=TASKS, default="retrieval", help="what to measure (default: retrieval)")
    add("--data", type=Path, required=True, metavar="DIR", help="a folder in a layout of docs/evaluation.md")
    add("--source", default="eng", metavar="LANGUAGE", help="retrieved from, or fine-tuned on (default: eng)")
    add("--languages", nargs="+", metavar="LANGUAGE", help="only these (default: all)")
    add("--seeds", type=seeds, default=(0,), metavar="N,...", help="a run each (default: 0)")
    add("--out", type=Path, metavar="FILE", help="write FILE.json, FILE.md, FILE.tex and FILE.html")

    def group(title: str):
        own = parser.add_argument_group(title)

        def add(name: str, **options) -> None:
            if "type" in options:
                options.setdefault("metavar", "X" if options["type"] is float else "N")
            own.add_argument(name, default=argparse.SUPPRESS, **options)

        return add

    add = group("any task")
    add("--batch-size", type=positive, help="sentences at a time (default: 64; fine-tuning: 16, or 32 to tag)")
    add("--max-length", type=positive, help="tokens a sentence, longer ones are cut (default: the model's, or 256)")
    add("--device", metavar="NAME", help="such as cpu (default: a GPU if there is one)")

    add = group("retrieval")
    add("--layer", type=int, help="whose states are used, 0 the embeddings (default: two thirds up)")
    add("--pooling", choices=("mean", "max", "cls"), help="of a sentence's states (default: mean)")
    add("--similarity", choices=("cosine", "csls", "centered"), help="(default: cosine)")
    add("--k", type=numbers, metavar="K,...", help="accuracies at these, the largest is the score (default: 1,5,10)")
    add("--lines", type=lines, metavar="FIRST-LAST", help="of line-aligned texts, only these (from 1)")
    add("--max-pairs", type=positive, help="at most so many a language, drawn by the seed")

    add = group("fine-tuning")
    add("--epochs", type=positive, help="at most (default: 40 for classification, else 10)")
    add("--learning-rate", type=float, help="(default: 1e-5 for classification, else 2e-5)")
    add("--patience", type=positive, help="stop after so many epochs without a better dev score")
    add("--max-train", type=positive, help="at most so many training items, drawn by the seed")
    add("--max-dev", type=positive, help="choose the epoch on the first so many items of dev")
    add("--freeze-table", action="store_true", help="leave the vocabulary table as it is")
    add("--precision", choices=("float32", "bfloat16"), help="of the computation (default: float32)")
    add("--bible", type=Path, metavar="DIR", help="texts of Taxi1500's verses (default: beside --data)")


def seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,1,2, got {text!r}")
    return tuple(map(int, parts))


def run(args) -> None:
    from ofa_fast.evaluation import evaluate
    from ofa_fast.evaluation.report import describe, rows

    options = {name: value for name, value in vars(args).items() if name not in ("run", "debug")}
    report = evaluate(**options, progress=sys.stderr.isatty())
    print(describe(report))
    table = list(rows(report))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
