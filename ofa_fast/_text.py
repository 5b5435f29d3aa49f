"""Reading text files, and how many tokens a model takes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_lines(path: str | os.PathLike, argument: str = "file", strip: str | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file, without surrounding white space. Only ``\\n`` ends a line, so that files stay aligned.

    ``strip`` names the characters to take off instead of white space.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``path`` is a folder, or a line is not UTF-8; the message names the line.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{argument}: {path} is a folder, expected a text file")
    if not path.exists():
        raise FileNotFoundError(f"{argument}: there is no file {path}")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip(strip)
            except UnicodeDecodeError as error:
                raise ValueError(f"{argument}: {path}, line {number} is not UTF-8 ({error.reason})") from None


def read_table(path: str | os.PathLike, argument: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """The number, from 1, and the tab-separated cells of each line of a UTF-8 file that is not blank.

    Args:
        quoted: whether a cell may stand in quotation marks, which are doubled inside it. A line where they do not match
            is taken as it is, and none goes on in the next: an apostrophe or a speech that a cell begins with must not
            swallow the lines that follow.
    """
    for number, line in enumerate(read_lines(path, argument, strip="\r\n"), 1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if quoted and '"' in line:
            with suppress(csv.Error):
                (cells,) = csv.reader([line], delimiter="\t", strict=True)
        yield number, cells


def read_headed(path: str | os.PathLike, argument: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns of a table whose cells may be quoted, and its rows as ``read_table`` gives them."""
    rows = read_table(path, argument, quoted=True)
    _, header = next(rows, (1, []))
    return [cell.strip() for cell in header], rows


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest input the position embeddings of ``model`` take, in tokens; None where there is no such limit.

    RoBERTa-like models count positions from ``padding_idx + 1``, so a table of 514 rows takes 512 tokens.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "num_embeddings", None):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)
