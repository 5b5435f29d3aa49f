"""``ofa-fast compare``: initialisations side by side, before, while and after training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ofa_fast._cli_types import labelled_file, numbers, positive, ranks

SUMMARY = "compare initialisations by what their models can do before, while and after training"
EXAMPLE = (
    "compare --source my-encoder/ --tokenizer my-tokenizer/ --vectors vectors.safetensors \\\n"
    "      --methods ofa,random,ofa:neighbors=25 --ranks 100,full --seeds 0,1,2 --steps 500 --points 100,250 \\\n"
    "      --train-file text/*.txt --eval-file held-out/*.txt --eval retrieval=verses/ --processes 2 --out compared/"
)


def _seeds(text: str) -> list[int]:
    if not all(part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 0,1,2, got {text!r}")
    return [int(part) for part in text.split(",")]


def _task(text: str) -> tuple[str, Path]:
    task, equals, folder = text.partition("=")
    if not (task and equals and folder):
        raise argparse.ArgumentTypeError(f"expected TASK=DIR such as retrieval=verses/, got {text!r}")
    return task, Path(folder)


def register(_commands, subparser) -> None:
    parser = subparser("compare", run, SUMMARY, EXAMPLE)
    add = parser.add_argument
    add("--source", required=True, metavar="MODEL", help="folder or hub id of the pretrained encoder")
    add("--tokenizer", required=True, metavar="TOKENIZER", help="folder or hub id of the new tokenizer")
    add(
        "--vectors",
        nargs="+",
        type=labelled_file,
        default=[],
        metavar="[NAME=]FILE",
        help="aligned word vectors; a method takes the first, or those that it names",
    )
    add(
        "--methods",
        type=lambda text: text.split(","),
        default=["ofa", "random"],
        metavar="METHOD,...",
        help="as for init, each with options of initialize as in ofa:neighbors=25:vectors=NAME (default: ofa,random); "
        "the first is compared with the others",
    )
    add("--ranks", type=ranks, default=[100], metavar="R,...", help="(default: 100)")
    add("--seeds", type=_seeds, default=[0], metavar="N,...", help="(default: 0)")
    add("--bias", choices=("moved", "frequencies", "zero"), default="moved", help="of the output head (default: moved)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="models, evaluations, report.html; resumed where it exists",
    )
    add("--processes", type=positive, default=1, help="arms at work at once (default: 1)")
    own = parser.add_argument_group("evaluation").add_argument
    for name, when in (("--eval", "before, at --points and after"), ("--eval-ends", "before and after training alone")):
        own(
            name,
            nargs="+",
            type=_task,
            default=[],
            metavar="TASK=DIR",
            help=f"retrieval, classification, ner or pos, {when}",
        )
    own("--language", default="eng", help="that others are retrieved from or transferred from (default: eng)")
    own("--max-pairs", type=positive, help="of a language in retrieval")
    own("--points", type=numbers, default=(), metavar="STEP,...", help="steps of training after which to evaluate")
    own = parser.add_argument_group("training").add_argument
    files = {"nargs": "+", "type": labelled_file, "metavar": "[LANGUAGE=]FILE"}
    own("--train-file", dest="train_files", default=[], help="text with a passage a line, as for train", **files)
    own("--eval-file", dest="eval_files", default=[], help="held-out text, for its loss", **files)
    own("--steps", type=int, default=0, metavar="N", help="of each arm; 0 trains none (default: 0)")
    for name, kind in (("--batch-size", positive), ("--max-length", positive), ("--save-steps", positive)):
        own(name, type=kind, default=argparse.SUPPRESS, metavar="N", help="as for train")
    for name in ("--learning-rate", "--warmup-steps", "--temperature"):
        own(name, type=float, default=argparse.SUPPRESS, metavar="X", help="as for train")


_TRAINING = ("batch_size", "max_length", "save_steps", "learning_rate", "warmup_steps", "temperature")


def run(args) -> None:
    from ofa_fast.study import Task, arms_of, compare

    pairs = {} if args.max_pairs is None else {"max_pairs": args.max_pairs}
    tasks = [
        Task(kind, folder, always=always, options=pairs if kind == "retrieval" else {})
        for always, given in ((True, args.eval), (False, args.eval_ends))
        for kind, folder in given
    ]
    named = [entry if isinstance(entry, tuple) else (entry.stem, entry) for entry in args.vectors]
    if len(dict(named)) < len(named):
        raise ValueError("--vectors: two files have the same name; give them names as in small=FILE")
    compare(
        args.source,
        args.tokenizer,
        dict(named),
        arms_of(args.methods, args.ranks, args.seeds, args.steps),
        args.out,
        tasks=tasks,
        train_files=args.train_files,
        eval_files=args.eval_files,
        points=args.points,
        language=args.language,
        bias=args.bias,
        processes=args.processes,
        **{name: value for name, value in vars(args).items() if name in _TRAINING},
    )
    print((args.out / "report.md").read_text("utf-8"), file=sys.stdout)
    print(f"{args.out}/report.html shows it")
