"""Writing files and folders that are either absent or complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _finish(path: Path) -> None:
    """Readable by others, which safetensors' own files are not, and on the disk."""
    path.chmod(0o755 if path.is_dir() else 0o644)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: choose another folder, or overwrite it explicitly")


@contextmanager
def atomic_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends without an error, and vanishes otherwise.

    A process that is killed leaves at most a hidden ``.{name}.*.partial`` folder, which no loader takes for a result.

    Raises:
        FileExistsError: ``path`` exists and is not an empty folder, unless ``overwrite``.
    """
    path = Path(path)
    check_free(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield work
        for file in work.rglob("*"):
            _finish(file)
        _finish(work)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.replace(path, old)
            os.replace(work, path)
            shutil.rmtree(old)
        else:
            os.replace(work, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path whose file becomes ``path`` when the block ends without an error, and vanishes otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield work
        _finish(work)
        os.replace(work, path)
        _sync(path.parent)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
