"""The ``ofa-fast`` command. A subcommand imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ofa_fast import _cli_train

# What bad input raises, in ofa_fast and in the libraries that read the user's files.
INPUT_ERRORS = (ValueError, TypeError, IndexError, OSError, UnicodeError)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"ofa-fast: error: {message} (see: {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    args = _parser().parse_args(argv)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too
    try:
        args.run(args)
    except KeyboardInterrupt:
        return _fail("interrupted; no unfinished result was left behind", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except INPUT_ERRORS as error:
        if args.debug:
            raise
        return _fail(f"error: {' '.join(str(error).split()) or type(error).__name__}", 2)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"ofa-fast: {message}", file=sys.stderr)
    return code


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _ranks(text: str) -> list[int | None]:
    return [None if part == "full" else _positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return number


def _language_file(text: str) -> tuple[str, Path]:
    language, _, path = text.rpartition("=")
    return language or Path(path).name.split(".")[0], Path(path)


def _labelled_file(text: str) -> Path | tuple[str, Path]:
    language, separator, path = text.partition("=")
    return Path(text) if not (separator and language) or Path(text).exists() else (language, Path(path))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ofa-fast", description="Move pretrained language models to new vocabularies and languages.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def subparser(name, run, summary, example, among=commands):
        sub = among.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  ofa-fast {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    def command(*arguments):
        return subparser(*arguments).add_argument

    vectors = commands.add_parser("vectors", help="make, convert and judge multilingual word vectors")
    vectors = vectors.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add = command(
        "build",
        _vectors_build,
        "build aligned word vectors from texts that are translations of each other, line by line",
        "vectors build --parallel bible/*.txt --out vectors.safetensors",
        vectors,
    )
    add(
        "--parallel",
        nargs="+",
        type=_language_file,
        required=True,
        metavar="[LANGUAGE=]FILE",
        help="one text a language, ISO 639-3 code from the file's name unless given; line i means the same in all",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    add("--dim", type=_positive, default=200, help="length of a vector (default: 200)")
    add("--min-count", type=_positive, default=2, help="leave out words rarer than this (default: 2)")
    add(
        "--case",
        choices=("natural", "lower", "keep"),
        default="natural",
        help="of the words (default: as within a sentence)",
    )

    add = command(
        "convert",
        _vectors_convert,
        "convert word vectors of any readable format to memory-mapped safetensors",
        "vectors convert cc.de.300.vec.gz --language deu --out deu.safetensors",
        vectors,
    )
    add("vectors", type=Path, metavar="FILE", help=".vec .txt .bin .wv .kv .npz or .safetensors, gzipped or not")
    add("--language", help="ISO 639-3 code of all words, where the words carry none")
    add("--max-words", type=_positive, help="keep only this many words from the start of the file")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")

    add = command(
        "evaluate",
        _vectors_evaluate,
        "judge word vectors by translating the words of a dictionary",
        "vectors evaluate vectors.safetensors --dictionary german.txt --source eng --target deu",
        vectors,
    )
    add("vectors", type=Path, metavar="FILE")
    add("--dictionary", type=Path, required=True, metavar="FILE", help="lines: word TAB translation")
    add("--source", required=True, metavar="LANGUAGE", help="ISO 639-3 code of the first column")
    add("--target", required=True, metavar="LANGUAGE", help="ISO 639-3 code of the second column")
    add("--k", type=_numbers, default=(1, 10), metavar="K,...", help="precision at these (default: 1,10)")

    add = command(
        "init",
        _init,
        "give a pretrained model a new vocabulary",
        "init --source sentence-transformers/all-MiniLM-L6-v2 --tokenizer my-tokenizer/ \\\n"
        "      --vectors vectors.safetensors --rank 100,full --out initialised/\n"
        "  torchrun --nproc-per-node 8 -m ofa_fast.cli init ...     shares the vocabulary out to processes",
    )
    add("--source", required=True, metavar="MODEL", help="folder or hub id of the pretrained model and its tokenizer")
    add("--tokenizer", required=True, metavar="TOKENIZER", help="folder or hub id of the new tokenizer")
    add(
        "--vectors",
        type=Path,
        required=True,
        metavar="FILE",
        help="aligned word vectors of both vocabularies' languages",
    )
    add("--language", help="ISO 639-3 code of all words, where the vectors carry none")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; DIR/rank-R/ where several ranks are given",
    )
    add(
        "--rank",
        type=_ranks,
        default=[100],
        metavar="R,...",
        help="ranks of the table; 'full' keeps it dense (default: 100)",
    )
    add("--method", choices=("ofa", "random"), default="ofa", help="random is the baseline (default: ofa)")
    add("--neighbors", type=_positive, default=10, help="source subwords that make up a new one (default: 10)")
    add("--temperature", type=float, default=0.1, help="of the softmax over their similarities (default: 0.1)")
    add("--seed", type=int, default=114514, help="of the random rows (default: 114514)")
    add("--parity", action="store_true", help="reproduce the published implementation, its quirks included")
    add(
        "--export-npy", action="store_true", help="write the matrices as the published implementation's .npy files, too"
    )
    add("--overwrite", action="store_true", help="replace --out where it exists")
    add("--dry-run", action="store_true", help="print the counts and the memory that it would take, and stop")

    train = subparser("train", _cli_train.run, _cli_train.SUMMARY, _cli_train.EXAMPLE)
    _cli_train.add_arguments(train, _positive, _labelled_file)

    add = command(
        "evaluate",
        _evaluate,
        "measure crosslingual sentence retrieval",
        "evaluate trained/ --task retrieval --data bible/ --source eng --out report",
    )
    add("model", metavar="MODEL", help="folder or hub id")
    add("--task", choices=("retrieval",), default="retrieval", help="what to measure (default: retrieval)")
    add("--data", type=Path, required=True, metavar="DIR", help="line-aligned texts, Tatoeba pairs or SIB-200")
    add("--source", default="eng", metavar="LANGUAGE", help="every other language is retrieved from it (default: eng)")
    add("--languages", nargs="+", metavar="LANGUAGE", help="only these (default: all)")
    add("--layer", type=int, help="whose states are used, 0 the embeddings (default: two thirds up)")
    add("--pooling", default="mean", help="of a sentence's states: mean, max or cls (default: mean)")
    add("--k", type=_numbers, default=(1, 5, 10), metavar="K,...", help="accuracies at these (default: 1,5,10)")
    add("--max-pairs", type=_positive, help="at most so many a language, drawn by --seed")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--batch-size", type=_positive, default=64, help="sentences at a time (default: 64)")
    add("--out", type=Path, metavar="FILE", help="write the numbers to FILE.json and a table to FILE.md")

    add = command(
        "export",
        _export,
        "write a trained model as a stock Hugging Face model",
        "export trained/ --dense --out dense/",
    )
    add("model", type=Path, metavar="DIR", help="a folder that init or train wrote")
    add("--dense", action="store_true", required=True, help="multiply the table out: [V, D], loads without ofa-fast")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--overwrite", action="store_true", help="replace --out where it exists")

    command("info", _info, "show versions, hardware, and the backend that each op would use", "info")
    return parser


def _vectors_build(args) -> None:
    from ofa_fast.initialization import build_word_vectors

    files = dict(args.parallel)
    if len(files) < len(args.parallel):
        raise ValueError("--parallel names a language twice: write LANGUAGE=FILE where file names do not tell")
    vectors = build_word_vectors(
        files, dim=args.dim, min_count=args.min_count, case=args.case, progress=sys.stderr.isatty()
    )
    vectors.save(args.out)
    print(f"{args.out}: {len(vectors.words):,} words in {len(files)} languages, {vectors.vectors.shape[1]} dimensions")


def _vectors_convert(args) -> None:
    from ofa_fast.initialization import WordVectors

    vectors = WordVectors.load(args.vectors, language=args.language, max_words=args.max_words)
    vectors.save(args.out)
    print(f"{args.out}: {len(vectors.words):,} words, {vectors.vectors.shape[1]} dimensions")


def _vectors_evaluate(args) -> None:
    from ofa_fast.initialization import WordVectors, translation_precision

    vectors = WordVectors.load(args.vectors)
    print(json.dumps(translation_precision(vectors, args.dictionary, args.source, args.target, k=args.k), indent=2))


def _init(args) -> None:
    from ofa_fast._cli_init import run

    run(args)


def _evaluate(args) -> None:
    from ofa_fast.evaluation import retrieval_report

    options = {name: value for name, value in vars(args).items() if name not in ("run", "debug", "task")}
    report = retrieval_report(**options, progress=sys.stderr.isatty())
    print("  ".join(f"{head:>8}" for head in ("language", "pairs", *report["average"])))
    for language, result in report["languages"].items():
        print("  ".join([f"{language:>8}  {result['pairs']:>8}", *(f"{v:>8.3f}" for v in result["mean"].values())]))
    print("  ".join([f"{'average':>18}", *(f"{value:>8.3f}" for value in report["average"].values())]))


def _export(args) -> None:
    from transformers import AutoConfig, AutoTokenizer

    from ofa_fast import to_dense
    from ofa_fast._cli_init import load_model
    from ofa_fast._files import atomic_folder

    with atomic_folder(args.out, overwrite=args.overwrite) as folder:
        model = load_model(args.model, AutoConfig.from_pretrained(args.model))
        to_dense(model).save_pretrained(folder)
        AutoTokenizer.from_pretrained(args.model).save_pretrained(folder)
    print(f"{args.out}: {type(model).stock_class.__name__}, loads without ofa-fast")


def _info(args) -> None:
    from ofa_fast._cli_info import report

    print(report())


if __name__ == "__main__":
    sys.exit(main())
