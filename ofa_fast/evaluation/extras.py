"""Packages that only some tasks need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import a module of the extra "evaluate"; the error says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"task: this task needs the package {module.partition('.')[0]}: pip install 'ofa-fast[evaluate]' ({error})"
        ) from None
