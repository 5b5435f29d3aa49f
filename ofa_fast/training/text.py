"""Passages of text, each with its language, from the formats that corpora come in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ofa_fast._extras import require
from ofa_fast._text import read_lines

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Files = (
    str | os.PathLike | Sequence[str | os.PathLike | tuple[str, str | os.PathLike]] | Mapping[str, str | os.PathLike]
)


def labelled(files: Files) -> list[tuple[str, Path]]:
    """(language, path) of each file; the language is the path's stem where none is given."""
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    elif isinstance(files, Mapping):
        files = list(files.items())
    return [(f[0], Path(f[1])) if isinstance(f, tuple) else (Path(f).stem, Path(f)) for f in files]


def check_files(files: Files, argument: str) -> list[tuple[str, Path]]:
    """``labelled`` files, each of which exists and has text."""
    found = labelled(files)
    if not found:
        raise ValueError(f"{argument}: expected at least one text file, got none")
    for language, path in found:
        if next(passages(path, language, argument), None) is None:
            raise ValueError(f"{argument}: {path} has no text, every file needs a passage that is not blank")
    return found


def states(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of a file, or of each file of a folder."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def rows_in(path: Path) -> int:
    """How many passages there are, blank ones included, without a look at them."""
    if path.is_dir():
        return len(_saved(path))
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(path).metadata.num_rows
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def passages(path: Path, language: str, argument: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each passage that is not blank.

    A folder is one that ``datasets`` saved; ``.parquet`` and ``.jsonl`` have a row a passage, with its text under
    "text" and, optionally, its own language under "language"; any other file is UTF-8 text, a line a passage.
    Memory: one batch of rows.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it cannot be read, or a line or row has no text; the message names it and the reason.
    """
    if not path.exists():
        raise FileNotFoundError(f"{argument}: there is no file {path}")
    if path.is_dir():
        unit, rows = "row", _rows(path, _saved, argument)
    elif path.suffix == ".parquet":
        unit, rows = "row", _rows(path, _parquet, argument)
    elif path.suffix == ".jsonl":
        unit, rows = "line", _json_rows(path, argument)
    else:
        unit, rows = "line", ({"text": line} for line in read_lines(path, argument))
    for number, row in enumerate(rows, 1):
        if flaw := _flaw(row):
            raise ValueError(f"{argument}: {path}, {unit} {number}: {flaw}")
        text = row["text"].strip()
        if text:
            yield row.get("language") or language, text


def _flaw(row) -> str | None:
    if not isinstance(row, dict):
        return f'expected an object with the key "text", got {json.dumps(row)[:60]}'
    if "text" not in row:
        return f'no "text" among its keys: {", ".join(row) or "it has none"}'
    if not isinstance(row["text"], str):
        return f'"text" is {row["text"]!r}, expected a string'
    if not isinstance(row.get("language") or "", str):
        return f'"language" is {row["language"]!r}, expected a string'
    return None


def _json_rows(path: Path, argument: str) -> Iterator:
    # Not with datasets: at a malformed line its reader loads the whole file, and it does not tell which line it was.
    for number, line in enumerate(read_lines(path, argument), 1):
        try:
            row = json.loads(line) if line else {"text": ""}
        except json.JSONDecodeError as error:
            reason = f"not JSON, {error.msg} at column {error.colno}"
            raise ValueError(f"{argument}: {path}, line {number}: {reason}") from None
        yield row


def _saved(path: Path) -> Dataset:
    datasets = require("datasets", "train")
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        raise ValueError(f"it holds several splits, name one of them: {', '.join(str(path / name) for name in saved)}")
    return saved


def _parquet(path: Path) -> IterableDataset:
    datasets = require("datasets", "train")
    # Streamed: the file is read as it is, and no copy goes to the cache of datasets.
    return datasets.Dataset.from_parquet(str(path), streaming=True)


def _rows(path: Path, load, argument: str) -> Iterator[dict]:
    try:
        dataset = load(path)
        columns = list(dataset.column_names)
        if "text" not in columns:
            raise ValueError(f'no column "text" among {", ".join(columns)}')
        yield from dataset.select_columns([name for name in ("text", "language") if name in columns])
    except (ValueError, OSError) as error:
        raise ValueError(f"{argument}: {path}: {error}") from None
