"""The compiled modules: ``cpu`` and ``cuda``, each a module or None. ``reason`` tells why one is None."""

from __future__ import annotations

import importlib
from types import ModuleType

reason: dict[str, str] = {}


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"ofa_fast._native._{name}")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        reason[name] = "not built into this installation" if missing else f"cannot be loaded: {error}"
        return None


cpu = _load("cpu")
cuda = _load("cuda")
