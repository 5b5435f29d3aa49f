"""``ofa-fast export``: a trained model as a stock Hugging Face model."""

from __future__ import annotations

from pathlib import Path


def register(_commands, subparser) -> None:
    add = subparser(
        "export",
        run,
        "write a trained model as a stock Hugging Face model",
        "export trained/ --dense --out dense/",
    ).add_argument
    add("model", type=Path, metavar="DIR", help="a folder that init or train wrote")
    add("--dense", action="store_true", required=True, help="multiply the table out: [V, D], loads without ofa-fast")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--overwrite", action="store_true", help="replace --out where it exists")


def run(args) -> None:
    from transformers import AutoConfig, AutoTokenizer

    from ofa_fast import to_dense
    from ofa_fast._cli_init import load_model
    from ofa_fast._files import atomic_folder

    with atomic_folder(args.out, overwrite=args.overwrite) as folder:
        model = load_model(args.model, AutoConfig.from_pretrained(args.model))
        to_dense(model).save_pretrained(folder)
        AutoTokenizer.from_pretrained(args.model).save_pretrained(folder)
    print(f"{args.out}: {type(model).stock_class.__name__}, loads without ofa-fast")
