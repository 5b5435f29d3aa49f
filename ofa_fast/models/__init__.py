"""Hugging Face models with a factorised vocabulary table: build, save, load, export.

``Factorized<Name>`` is the factorised twin of the transformers class ``<Name>``, for every text model and configuration
class: ``from ofa_fast.models import FactorizedBertForMaskedLM``.
"""

from __future__ import annotations

from importlib import import_module as _import_module

_NAMES = {"build_model": "_convert", "load_published": "_published", "to_dense": "_convert"}

__all__ = [*_NAMES]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(_import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name.startswith("Factorized"):
        from ofa_fast.models import _classes

        twin = _classes.twin_by_name(name)
        if twin is not None:
            return twin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
