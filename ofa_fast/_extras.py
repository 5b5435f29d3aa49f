"""Packages that only some of the work needs."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import a module of one of the package's extras; the error says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(f"this needs the package {package}: pip install 'ofa-fast[{extra}]' ({error})") from None
