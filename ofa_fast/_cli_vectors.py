"""``ofa-fast vectors``: build, convert, align and judge word vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ofa_fast._cli_types import bitext, dictionary_file, language_file, lines, numbers, positive


def register(commands, subparser) -> None:
    vectors = commands.add_parser("vectors", help="make, convert and judge multilingual word vectors")
    vectors = vectors.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add = subparser(
        "build",
        build,
        "build aligned word vectors from texts that are translations of each other, line by line",
        "vectors build --parallel bible/*.txt --out vectors.safetensors",
        among=vectors,
    ).add_argument
    add(
        "--parallel",
        nargs="+",
        type=language_file,
        default=[],
        metavar="[LANGUAGE=]FILE",
        help="one text a language, ISO 639-3 code from the file's name unless given; line i means the same in all",
    )
    add(
        "--bitext",
        nargs="+",
        type=bitext,
        default=[],
        metavar="FILE",
        help="two texts each: corpus.deu-eng for corpus.deu-eng.deu and corpus.deu-eng.eng, or deu-eng=FILE,FILE",
    )
    add(
        "--dictionary",
        nargs="+",
        type=dictionary_file,
        default=[],
        metavar="LANGUAGE-LANGUAGE=FILE",
        help="lines: word TAB translation, not used in building: report how well the vectors translate them",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    add("--dim", type=positive, default=200, help="length of a vector (default: 200)")
    add("--min-count", type=positive, default=2, help="leave out words rarer than this (default: 2)")
    add("--lines", type=lines, metavar="FIRST-LAST", help="use these lines only, counted from 1")
    add(
        "--method",
        choices=("lines", "graph"),
        default="lines",
        help="factorise words by lines, or embed the graph of words and the pivot's words (default: lines)",
    )
    add("--colexification", type=Path, metavar="FILE", help="edges between English concepts, as CLICS has them")
    add("--pivot", metavar="LANGUAGE", help="to which the others' words are linked (default: eng, or the first)")
    add(
        "--case",
        choices=("natural", "lower", "keep"),
        default="natural",
        help="of the words (default: as within a sentence)",
    )

    parser = subparser(
        "convert",
        convert,
        "convert word vectors of any readable format to memory-mapped safetensors",
        "vectors convert cc.de.300.vec.gz --language deu --out deu.safetensors",
        among=vectors,
    )
    add = parser.add_argument
    add("vectors", type=Path, metavar="FILE", help=".vec .txt .bin .wv .kv .npz or .safetensors, gzipped or not")
    add("--language", help="ISO 639-3 code of all words, where the words carry none")
    add("--languages", nargs="+", metavar="LANGUAGE", help="keep the words of these languages only")
    add("--max-words", type=positive, help="keep only this many words from the start of the file")
    add("--max-rank", type=positive, help="keep only this many words of each language")
    add("--words", type=Path, metavar="FILE", help="of a fastText .bin: take these words, one a line, seen or unseen")
    stored = parser.add_mutually_exclusive_group().add_argument
    stored("--half", action="store_true", help="store float16")
    stored("--int8", action="store_true", help="store one byte a value, within 1/254 of a vector's largest")
    add("--skip-bad-lines", action="store_true", help="leave out malformed lines of text, and count them")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")

    add = subparser(
        "align",
        align,
        "bring word vectors of single languages into one space",
        "vectors align eng=cc.en.vec.gz deu=cc.de.vec.gz --dictionary eng-deu=german.txt --out aligned.safetensors",
        among=vectors,
    ).add_argument
    add("vectors", nargs="+", type=language_file, metavar="[LANGUAGE=]FILE", help="one file a language")
    add(
        "--dictionary",
        nargs="+",
        type=dictionary_file,
        required=True,
        metavar="LANGUAGE-LANGUAGE=FILE",
        help="lines: word TAB translation; two languages may be joined through a third",
    )
    add("--pivot", metavar="LANGUAGE", help="whose space is the common one (default: that with most word pairs)")
    add("--max-words", type=positive, help="keep only this many words of each language")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")

    add = subparser(
        "evaluate",
        evaluate,
        "judge word vectors by translating the words of a dictionary",
        "vectors evaluate vectors.safetensors --dictionary german.txt --source eng --target deu",
        among=vectors,
    ).add_argument
    add("vectors", type=Path, metavar="FILE")
    add("--dictionary", type=Path, required=True, metavar="FILE", help="lines: word TAB translation")
    add("--source", required=True, metavar="LANGUAGE", help="ISO 639-3 code of the first column")
    add("--target", required=True, metavar="LANGUAGE", help="ISO 639-3 code of the second column")
    add("--k", type=numbers, default=(1, 10), metavar="K,...", help="precision at these (default: 1,10)")
    add("--frequent", type=positive, metavar="N", help="query only the first N words of the source language")


def build(args) -> None:
    from ofa_fast.initialization import build_word_vectors, translation_precision

    texts = ([_by_language(args.parallel, "--parallel")] if args.parallel else []) + args.bitext
    if not texts:
        raise ValueError("--parallel or --bitext must name the texts to build from")
    vectors = build_word_vectors(
        texts,
        dim=args.dim,
        min_count=args.min_count,
        case=args.case,
        lines=args.lines,
        pivot=args.pivot,
        method=args.method,
        colexification=args.colexification,
        progress=sys.stderr.isatty(),
    )
    if args.dictionary:
        report = {f"{a}-{b}": translation_precision(vectors, pairs, a, b) for (a, b), pairs in args.dictionary}
        print(json.dumps({"precision": report}, indent=2))
    _save(vectors, args.out)


def convert(args) -> None:
    import numpy as np

    from ofa_fast._text import read_lines
    from ofa_fast.initialization import WordVectors

    if args.words:
        words = list(dict.fromkeys(filter(None, read_lines(args.words, "--words"))))
        vectors = WordVectors.from_fasttext(args.vectors, words, args.language)
        vectors = vectors.select(args.languages, args.max_words, args.max_rank)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        vectors = WordVectors.load(
            args.vectors,
            language=args.language,
            languages=args.languages,
            max_words=args.max_words,
            max_rank=args.max_rank,
            progress=sys.stderr.isatty(),
            skip_bad_lines=args.skip_bad_lines,
            folder=args.out.parent,
        )
    _save(vectors, args.out, np.int8 if args.int8 else np.float16 if args.half else None)


def align(args) -> None:
    from ofa_fast.initialization import WordVectors, align_word_vectors

    files = _by_language(args.vectors, "vectors")
    spaces = {
        language: WordVectors.load(path, max_words=args.max_words, progress=sys.stderr.isatty())
        for language, path in files.items()
    }
    vectors, report = align_word_vectors(spaces, dict(args.dictionary), pivot=args.pivot, progress=sys.stderr.isatty())
    print(json.dumps(report, indent=2))
    _save(vectors, args.out)


def evaluate(args) -> None:
    from ofa_fast.initialization import WordVectors, translation_precision

    vectors = WordVectors.load(args.vectors)
    precision = translation_precision(
        vectors, args.dictionary, args.source, args.target, k=args.k, frequent=args.frequent
    )
    print(json.dumps(precision, indent=2))


def _by_language(files, argument: str) -> dict:
    found = dict(files)
    if len(found) < len(files):
        raise ValueError(f"{argument} names a language twice: write LANGUAGE=FILE where file names do not tell")
    return found


def _save(vectors, out, dtype=None) -> None:
    vectors.save(out, dtype)
    of = f" in {len(set(vectors.languages))} languages" if vectors.languages else ""
    print(f"{out}: {len(vectors.words):,} words{of}, {vectors.vectors.shape[1]} dimensions")
