"""What the arguments of ``ofa-fast`` may be: each function turns the text of one into its value."""

from __future__ import annotations

import argparse
from pathlib import Path


def numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def ranks(text: str) -> list[int | None]:
    return [None if part == "full" else positive(part) for part in text.split(",")]


def positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return number


def language_file(text: str) -> tuple[str, Path]:
    language, _, path = text.rpartition("=")
    return language or Path(path).name.split(".")[0], Path(path)


def dictionary_file(text: str) -> tuple[tuple[str, str], Path]:
    languages, separator, path = text.partition("=")
    source, dash, target = languages.partition("-")
    if not (separator and dash and source and target and path):
        raise argparse.ArgumentTypeError(f"expected LANGUAGE-LANGUAGE=FILE such as eng-deu=german.txt, got {text!r}")
    return (source, target), Path(path)


def bitext(text: str) -> dict[str, Path]:
    """``FILE`` for ``FILE.deu`` and ``FILE.eng`` where it ends in ``deu-eng``; or ``deu-eng=FILE.de,FILE.en``."""
    languages, separator, paths = text.rpartition("=")
    codes = (languages or Path(text).name.rpartition(".")[2]).split("-")
    files = paths.split(",") if separator else [f"{text}.{code}" for code in codes]
    if len(codes) != 2 or len(files) != 2 or codes[0] == codes[1] or any(len(code) != 3 for code in codes):
        raise argparse.ArgumentTypeError(
            f"expected FILE.LANGUAGE-LANGUAGE such as tatoeba.deu-eng, or deu-eng=FILE,FILE, got {text!r}"
        )
    return dict(zip(codes, map(Path, files), strict=True))


def lines(text: str) -> range:
    first, separator, last = text.partition("-")
    if not (separator and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"expected FIRST-LAST such as 23214-31170, got {text!r}")
    return range(int(first) - 1, int(last))


def labelled_file(text: str) -> Path | tuple[str, Path]:
    language, separator, path = text.partition("=")
    return Path(text) if not (separator and language) or Path(text).exists() else (language, Path(path))
