"""What finished seeds measured, kept on disk until a report is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from ofa_fast._files import atomic_file
from ofa_fast.evaluation.report import SUFFIXES
from ofa_fast.evaluation.statistics import Measured


class Finished:
    """Seeds by what they were measured on: another model, data or option never takes them for its own.

    Args:
        out: where the report will be; None keeps nothing.
        inputs: all that a seed's numbers depend on. Of a folder, the names, sizes and times of its files, but for
            those that are hidden and for the report itself.
    """

    def __init__(self, out: str | os.PathLike | None, inputs: list) -> None:
        self.folder = None
        if out is not None:
            digest = hashlib.sha256(repr([_content(one, Path(out)) for one in inputs]).encode()).hexdigest()[:16]
            self.folder = Path(out).with_name(f".{Path(out).name}.{digest}.seeds")

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


def _content(value, out: Path) -> object:
    if isinstance(value, (str, os.PathLike)) and Path(value).is_dir():
        reports = {out.with_name(out.name + suffix).resolve() for suffix in SUFFIXES}
        files = (path for path in sorted(Path(value).rglob("*")) if path.is_file() and path.resolve() not in reports)
        named = [(path.relative_to(value), path.stat()) for path in files]
        return [
            (str(name), state.st_size, state.st_mtime_ns)
            for name, state in named
            if not any(part.startswith(".") for part in name.parts)
        ]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return sorted((name, _content(one, out)) for name, one in value.items())
    return str(value)
