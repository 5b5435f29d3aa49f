"""The result of an initialisation, and its files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ofa_fast._files import atomic_file

COPIED, SIMILAR, RANDOM = 0, 1, 2
ORIGINS = ("copied", "similar", "random")

_ALWAYS = ("origin", "neighbors", "weights", "similarities", "sources", "bias")
_TOKENS = ("source_tokens", "target_tokens")
_TABLES = ("coordinates", "basis", "source_coordinates")
_NPY = {"coordinates": "target_matrix", "basis": "primitive_embeddings", "source_coordinates": "source_matrix"}


@dataclass
class Initialization:
    """A table for the target vocabulary, and how each of its rows came about.

    The table is ``coordinates @ basis``, or ``coordinates`` itself at full rank.
    """

    coordinates: torch.Tensor  # [Vt, R] float32
    basis: torch.Tensor | None  # [R, D] float32; None at full rank
    origin: torch.Tensor  # [Vt] uint8: 0 copied, 1 similar, 2 random
    neighbors: torch.Tensor  # [Vt, k] int64: source ids that a row is mixed of, nearest first; -1 where none
    weights: torch.Tensor  # [Vt, k] float32: their weights; 0 where none
    sources: torch.Tensor  # [Vt] int64: the source id of a copied row; -1 where none
    bias: torch.Tensor | None  # [Vt] float32: the output bias of each token
    source_coordinates: torch.Tensor  # [Vs, R] float32
    report: dict  # counts, coverage, parameters, seconds, versions and hashes, ready for JSON
    similarities: torch.Tensor | None = None  # [Vt, k] float16: cosines of the neighbours; 0 where none
    source_tokens: list[str] | None = field(default=None, repr=False)  # [Vs] as people read them
    target_tokens: list[str] | None = field(default=None, repr=False)  # [Vt without padding]

    def write(self, folder: str | os.PathLike, export_npy: bool = False, tables: bool = True) -> None:
        """Write ``initialization.safetensors``, then ``initialization.json``: where the second is, both are whole.

        Args:
            folder: made if it is missing.
            export_npy: write the published implementation's files too: target_matrix.npy [Vt, R] and, below full
                rank, primitive_embeddings.npy [R, D] and source_matrix.npy [Vs, R].
            tables: False leaves coordinates, basis and source_coordinates out, for a folder whose model holds them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = _ALWAYS + (_TABLES if tables else ())
        tensors = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name in _TOKENS:
            if getattr(self, name) is not None:
                tensors |= _packed(name, getattr(self, name))
        with atomic_file(folder / "initialization.safetensors") as file:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        if export_npy:
            for name, stem in _NPY.items():
                if name == "coordinates" or self.basis is not None:
                    with atomic_file(folder / f"{stem}.npy") as file, open(file, "wb") as stream:
                        np.save(stream, getattr(self, name).numpy())
        with atomic_file(folder / "initialization.json") as file:
            file.write_text(json.dumps(self.report, indent=2, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Initialization:
        """What ``write`` wrote. Without tables (``tables=False``) coordinates, basis and source_coordinates are None.

        Raises:
            FileNotFoundError: the folder holds no complete initialisation.
            ValueError: a file is damaged.
        """
        folder = Path(folder)
        report, tensors = folder / "initialization.json", folder / "initialization.safetensors"
        for file in (report, tensors):
            if not file.is_file():
                raise FileNotFoundError(f"{folder} holds no complete initialisation: {file.name} is missing")
        try:
            with safe_open(tensors, "pt") as stored:
                values = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
            tokens = {name: _unpacked(name, values) for name in _TOKENS if name in values}
            values = {name: values.get(name) for name in (*_ALWAYS, *_TABLES)}
            return cls(**values, **tokens, report=json.loads(report.read_text("utf-8")))
        except Exception as error:
            raise ValueError(f"{folder}: damaged initialisation: {error}") from error


def _packed(name: str, texts: list[str]) -> dict[str, torch.Tensor]:
    """The texts' UTF-8 bytes in a row, and [n + 1] where each begins."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    joined = torch.frombuffer(bytearray(b"".join(encoded) or b" "), dtype=torch.uint8)
    return {name: joined, f"{name}_offsets": torch.from_numpy(offsets)}


def _unpacked(name: str, tensors: dict[str, torch.Tensor]) -> list[str]:
    data, offsets = tensors[name].numpy().tobytes(), tensors[f"{name}_offsets"].tolist()
    return [data[begin:end].decode("utf-8", "surrogatepass") for begin, end in pairwise(offsets)]
