"""The ``ofa-fast`` command. A subcommand imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
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


def _dictionary_file(text: str) -> tuple[tuple[str, str], Path]:
    languages, separator, path = text.partition("=")
    source, dash, target = languages.partition("-")
    if not (separator and dash and source and target and path):
        raise argparse.ArgumentTypeError(f"expected LANGUAGE-LANGUAGE=FILE such as eng-deu=german.txt, got {text!r}")
    return (source, target), Path(path)


def _lines(text: str) -> range:
    first, separator, last = text.partition("-")
    if not (separator and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"expected FIRST-LAST such as 23214-31170, got {text!r}")
    return range(int(first) - 1, int(last))


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
        _vectors("build"),
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
    add("--lines", type=_lines, metavar="FIRST-LAST", help="use these lines only, counted from 1")
    add("--pivot", metavar="LANGUAGE", help="to which the others' words are linked (default: eng, or the first)")
    add(
        "--case",
        choices=("natural", "lower", "keep"),
        default="natural",
        help="of the words (default: as within a sentence)",
    )

    add = command(
        "convert",
        _vectors("convert"),
        "convert word vectors of any readable format to memory-mapped safetensors",
        "vectors convert cc.de.300.vec.gz --language deu --out deu.safetensors",
        vectors,
    )
    add("vectors", type=Path, metavar="FILE", help=".vec .txt .bin .wv .kv .npz or .safetensors, gzipped or not")
    add("--language", help="ISO 639-3 code of all words, where the words carry none")
    add("--languages", nargs="+", metavar="LANGUAGE", help="keep the words of these languages only")
    add("--max-words", type=_positive, help="keep only this many words from the start of the file")
    add("--half", action="store_true", help="store float16")
    add("--skip-bad-lines", action="store_true", help="leave out malformed lines of text, and count them")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")

    add = command(
        "align",
        _vectors("align"),
        "bring word vectors of single languages into one space",
        "vectors align eng=cc.en.vec.gz deu=cc.de.vec.gz --dictionary eng-deu=german.txt --out aligned.safetensors",
        vectors,
    )
    add("vectors", nargs="+", type=_language_file, metavar="[LANGUAGE=]FILE", help="one file a language")
    add(
        "--dictionary",
        nargs="+",
        type=_dictionary_file,
        required=True,
        metavar="LANGUAGE-LANGUAGE=FILE",
        help="lines: word TAB translation; two languages may be joined through a third",
    )
    add("--pivot", metavar="LANGUAGE", help="whose space is the common one (default: that with most word pairs)")
    add("--max-words", type=_positive, help="keep only this many words of each language")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")

    add = command(
        "evaluate",
        _vectors("evaluate"),
        "judge word vectors by translating the words of a dictionary",
        "vectors evaluate vectors.safetensors --dictionary german.txt --source eng --target deu",
        vectors,
    )
    add("vectors", type=Path, metavar="FILE")
    add("--dictionary", type=Path, required=True, metavar="FILE", help="lines: word TAB translation")
    add("--source", required=True, metavar="LANGUAGE", help="ISO 639-3 code of the first column")
    add("--target", required=True, metavar="LANGUAGE", help="ISO 639-3 code of the second column")
    add("--k", type=_numbers, default=(1, 10), metavar="K,...", help="precision at these (default: 1,10)")
    add("--frequent", type=_positive, metavar="N", help="query only the first N words of the source language")

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
        metavar="FILE",
        help="aligned word vectors of both vocabularies' languages; mean, gaussian and random need none",
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
    methods = ("ofa", "wechsel", "focus", "mean", "gaussian", "random")
    add("--method", choices=methods, default="ofa", help="ofa, or one of its rivals (default: ofa)")
    add("--neighbors", type=_positive, help="source subwords that make up a new one (default: 10; focus: 256)")
    add("--temperature", type=float, help="of the softmax over their similarities (default: 0.1; focus: 1)")
    add("--weighting", choices=("softmax", "sparsemax"), help="of the similarities (default: the method's own)")
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


def _vectors(name: str):
    def run(args) -> None:
        from ofa_fast import _cli_vectors

        getattr(_cli_vectors, name)(args)

    return run


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
