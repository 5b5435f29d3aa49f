"""What finished seeds measured, kept on disk until a report is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ofa_fast._files import atomic_file, files_of
from ofa_fast.evaluation.report import SUFFIXES
from ofa_fast.evaluation.statistics import Measured


class Finished:
    """Seeds by what they were measured on: another model, data or option never takes them for its own.

    Args:
        out: where the report will be; None keeps nothing.
        model: if it is a folder, the names, sizes and times of its files tell it from another, but for those that are
            hidden and for the report itself.
        inputs: all else that a seed's numbers depend on.
    """

    def __init__(self, out: str | os.PathLike | None, model: str | os.PathLike, inputs: list) -> None:
        self.folder = None
        if out is not None:
            digest = hashlib.sha256()
            for part in _parts([str(model), _files(Path(model), Path(out)), inputs]):
                digest.update(part.encode() + b"\0")
            self.folder = Path(out).with_name(f".{Path(out).name}.{digest.hexdigest()[:16]}.seeds")

    def get(self, seed: int) -> tuple[dict[str, Measured], dict] | None:
        path = self.folder and self.folder / f"{seed}.npz"
        if not path or not path.exists():
            return None
        with np.load(path) as arrays:
            text = json.loads(str(arrays["numbers"]))
            measured = {
                code: Measured(arrays[f"counts {code}"], numbers) for code, numbers in text["languages"].items()
            }
        return measured, text["notes"]

    def put(self, seed: int, measured: dict[str, Measured], notes: dict) -> tuple[dict[str, Measured], dict]:
        if self.folder:
            text = {"languages": {code: one.numbers for code, one in measured.items()}, "notes": notes}
            arrays = {f"counts {code}": one.counts for code, one in measured.items()}
            with atomic_file(self.folder / f"{seed}.npz") as path, open(path, "wb") as file:
                np.savez_compressed(file, numbers=json.dumps(text), **arrays)
        return measured, notes

    def clear(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _files(model: Path, out: Path) -> list[tuple]:
    reports = {out.with_name(out.name + suffix).resolve() for suffix in SUFFIXES}
    files = [file for file in files_of(model) if file.resolve() not in reports] if model.is_dir() else []
    return [(file.relative_to(model), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _parts(value) -> Iterator[str]:
    """All that makes up a value, piece by piece: a corpus may be long."""
    if isinstance(value, np.ndarray):
        yield repr(value.tolist())
    elif dataclasses.is_dataclass(value):
        yield from _parts([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, dict):
        yield from _parts(sorted(value.items()))
    elif isinstance(value, (list, tuple)):
        yield str(len(value))
        for one in value:
            yield from _parts(one)
    else:
        yield str(value)
