"""Reading text files, and how many tokens a model takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_lines(path: str | os.PathLike, argument: str = "file") -> Iterator[str]:
    """The lines of a UTF-8 file, without surrounding white space. Only ``\\n`` ends a line, so that files stay aligned.

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
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{argument}: {path}, line {number} is not UTF-8 ({error.reason})") from None


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest input the position embeddings of ``model`` take, in tokens; None where there is no such limit.

    RoBERTa-like models count positions from ``padding_idx + 1``, so a table of 514 rows takes 512 tokens.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "num_embeddings", None):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)
