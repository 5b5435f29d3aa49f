"""Results of stages kept on disk, each found by a hash of what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ofa_fast._files import atomic_file

# Part of every key: a change of what a stage computes, or of how it is stored, gets a new number.
VERSION = 1
LIMIT = 16 << 30
STALE = 3600.0  # seconds after which a temporary file is taken for one of a process that was killed


def default_folder() -> Path:
    """The user's folder for caches: XDG_CACHE_HOME, ~/Library/Caches on macOS, or ~/.cache."""
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "ofa-fast" / "stages"


def key_of(*parts) -> str:
    """SHA-256 of parts that JSON can write, and of the version of the code."""
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)} ".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Cache:
    """A folder of tensors by stage and key.

    An entry is absent or complete, and carries a hash of its contents: one that is damaged is removed, and counts as
    absent. Processes may share the folder; of two that write the same entry the later one stays. After each write the
    entries that were not used for the longest time are removed until ``limit`` bytes are left. Where the folder
    cannot be written, a warning says so, and the work goes on without it.
    """

    def __init__(self, folder: str | os.PathLike, limit: int = LIMIT) -> None:
        self.folder, self.limit = Path(folder), limit
        self.hits = self.misses = 0

    def _file(self, stage: str, key: str) -> Path:
        return self.folder / f"{stage}-{key[:40]}.safetensors"

    def read(self, stage: str, key: str) -> dict[str, torch.Tensor] | None:
        file = self._file(stage, key)
        try:
            with safe_open(file, "pt") as stored:
                tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
                told = stored.metadata() or {}
            if told.get("key") != key or told.get("sha256") != _digest(tensors):
                raise ValueError("its contents are not those that were written")
            os.utime(file)
        except FileNotFoundError:
            self.misses += 1
            return None
        except Exception as error:  # whatever damage raises
            warnings.warn(f"{file}: a damaged cache entry, made anew: {error}", stacklevel=2)
            file.unlink(missing_ok=True)
            self.misses += 1
            return None
        self.hits += 1
        return tensors

    def write(self, stage: str, key: str, tensors: dict[str, torch.Tensor]) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        try:
            with atomic_file(self._file(stage, key)) as work:
                save_file(tensors, work, {"key": key, "sha256": _digest(tensors)})
            self._prune()
        except OSError as error:
            warnings.warn(f"{self.folder}: nothing is cached: {error}", stacklevel=2)

    def _prune(self) -> None:
        entries = []
        for file in self.folder.iterdir():
            try:
                told = file.stat()
            except FileNotFoundError:
                continue
            if file.suffix == ".partial" and time.time() - told.st_mtime > STALE:
                file.unlink(missing_ok=True)
            elif file.suffix == ".safetensors":
                entries.append((told.st_mtime, told.st_size, file))
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries)[:-1]:
            if total <= self.limit:
                break
            file.unlink(missing_ok=True)
            total -= size


def opened(cache: str | os.PathLike | Cache | None) -> Cache | None:
    return cache if cache is None or isinstance(cache, Cache) else Cache(cache)
