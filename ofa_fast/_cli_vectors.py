"""``ofa-fast vectors``: build, convert, align and judge word vectors."""

from __future__ import annotations

import json
import sys


def build(args) -> None:
    from ofa_fast.initialization import build_word_vectors

    vectors = build_word_vectors(
        _by_language(args.parallel, "--parallel"),
        dim=args.dim,
        min_count=args.min_count,
        case=args.case,
        lines=args.lines,
        pivot=args.pivot,
        progress=sys.stderr.isatty(),
    )
    _save(vectors, args.out)


def convert(args) -> None:
    import numpy as np

    from ofa_fast.initialization import WordVectors

    vectors = WordVectors.load(
        args.vectors,
        language=args.language,
        languages=args.languages,
        max_words=args.max_words,
        progress=sys.stderr.isatty(),
        skip_bad_lines=args.skip_bad_lines,
    )
    if args.half:
        vectors = vectors.astype(np.float16)
    _save(vectors, args.out)


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


def _save(vectors, out) -> None:
    vectors.save(out)
    of = f" in {len(set(vectors.languages))} languages" if vectors.languages else ""
    print(f"{out}: {len(vectors.words):,} words{of}, {vectors.vectors.shape[1]} dimensions")
