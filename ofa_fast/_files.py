"""Writing files and folders that are either absent or complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SAMPLE = 1 << 16  # bytes


def files_of(folder: Path) -> list[Path]:
    """All that are not hidden, in order."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [f for f in files if not any(part.startswith(".") for part in f.relative_to(folder).parts)]


def fingerprint(path: str | os.PathLike, counts: Callable[[Path], bool] = lambda file: True) -> str:
    """16 hexadecimal digits that tell a file, or a folder's files, from others: names, sizes, and both ends of each.

    Times do not count: a copy is the same. Hidden files do not, either. A change in the middle of a long file that
    leaves its size as it was is not seen.
    """
    path, digest = Path(path), hashlib.sha256()
    for file in filter(counts, files_of(path)) if path.is_dir() else [path]:
        name = file.relative_to(path) if path.is_dir() else Path(file.name)
        size = file.stat().st_size
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with open(file, "rb") as content:
            digest.update(content.read(_SAMPLE))
            content.seek(max(0, size - _SAMPLE))
            digest.update(content.read(_SAMPLE))
    return digest.hexdigest()[:16]


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
