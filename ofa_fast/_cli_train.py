"""The arguments of ``ofa-fast train``. Those that are not given are left to the preset, else to ``train``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from ofa_fast._cli_types import labelled_file, positive

SUMMARY = "continue the pretraining of a masked or causal language model"
EXAMPLE = (
    "train initialised/rank-100 --train-file deu=news.txt swh.jsonl --steps 1000 --out trained/\n"
    "  torchrun --nproc-per-node 8 -m ofa_fast.cli train initialised/rank-100 --preset ofa --train-file a.txt --out b/"
)


def register(_commands, subparser) -> None:
    parser = subparser("train", run, SUMMARY, EXAMPLE)

    def group(title: str) -> Callable:
        def add(name: str, **options) -> None:
            if "type" in options:
                options.setdefault("metavar", "X" if options["type"] is float else "N")
            own.add_argument(name, default=argparse.SUPPRESS, **options)

        own = parser.add_argument_group(title)
        return add

    parser.usage = "%(prog)s DIR --train-file FILE ... --out DIR [options]"
    parser.add_argument("model_dir", type=Path, metavar="DIR", help="a folder that init or train wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    add = group("text")
    files = {"nargs": "+", "type": labelled_file, "metavar": "[LANGUAGE=]FILE"}
    add(
        "--train-file",
        dest="train_files",
        required=True,
        help="text with a passage a line, .jsonl, .parquet, or a folder that datasets saved; language from the name",
        **files,
    )
    add("--eval-file", dest="eval_files", help="held-out text", **files)
    add("--max-length", type=positive, help="tokens a sequence (default: what the model takes, at most 512)")
    add("--temperature", type=float, help="T of the languages' shares, p ∝ n^(1/T) (default: 1)")
    add("--documents", choices=("apart", "joined"), help="of a sequence (default: apart for a decoder, else joined)")
    add("--mlm-probability", type=float, help="share of tokens an encoder predicts (default: 0.15)")
    add("--whole-words", action="store_true", help="mask all pieces of a word or none")
    add("--seed", type=int, help="of the order and the masks (default: 0)")

    add = group("recipe")
    add("--preset", choices=("ofa", "hyperofa"), help="a published recipe, for all that is not given")
    add("--steps", type=positive, help="optimiser steps; without it, --epochs decides")
    add("--epochs", type=float, help="(default: 1)")
    add("--batch-size", type=positive, help="sequences a forward pass and process (default: 32)")
    add("--gradient-accumulation-steps", type=positive, help="forward passes a step (default: 1)")
    add("--effective-batch-size", type=positive, help="sequences a step; sets the forward passes")
    add("--learning-rate", type=float, help="(default: 5e-5)")
    add("--schedule", metavar="NAME", help="of the learning rate, a name that transformers knows (default: linear)")
    add("--warmup-steps", type=float, help="below 1, a share of all steps (default: 0)")
    add("--weight-decay", type=float, help="(default: 0)")
    add("--freeze", choices=("none", "table", "body", "copied"), help="not trained; copied: all but new tokens' rows")
    add("--freeze-steps", type=positive, help="only for so many steps, then train everything")
    add("--precision", choices=("float32", "bfloat16", "float16"), help="of the computation (default: float32)")

    add = group("run")
    add("--save-steps", type=positive, help="steps between checkpoints (default: 500)")
    add("--eval-steps", type=positive, help="steps between measurements on --eval-file (default: at the ends only)")
    add("--tensorboard", action="store_true", help="write logs for TensorBoard, too")
    add("--fsdp", action="store_true", help="shard weights and optimiser states over torchrun's processes (FSDP2)")
    add("--workers", type=int, help="processes that prepare batches (default: 0)")
    add("--device", choices=("cpu",), help="stay off the GPU")
    add("--country", metavar="ISO3", help="count CO2e for electricity from there, such as DEU")
    add("--estimate", action="store_true", help="print the time, memory, energy and CO2e it would take, and stop")
    add("--resume", action="store_true", help="go on from the last checkpoint of an interrupted run")
    add("--overwrite", action="store_true", help="replace --out where it exists")


def run(args: argparse.Namespace) -> None:
    from ofa_fast.training import cost, estimate, train, with_preset

    options = {name: value for name, value in vars(args).items() if name not in ("run", "debug", "preset", "estimate")}
    if "preset" in args:
        options = with_preset(args.preset, options)
    if "estimate" in args:
        from ofa_fast.training.prediction import summary

        lines = summary(estimate(**{name: options[name] for name in options if name not in ("resume", "overwrite")}))
    else:
        report = train(**options)
        lines = [
            f"{args.out}: {report['arguments']['steps']} steps, final loss {report['final_loss']:.3f}, "
            f"{report['tokens_per_second']:,.0f} tokens/s, {report['seconds']:,.0f} s",
            *cost.summary(report),
        ]
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
        print("\n".join(lines))
