"""Hugging Face models with a factorised vocabulary table: build, save, load, export.

``Factorized<Name>`` is the factorised twin of the transformers class ``<Name>``, for every text model and configuration
class: ``from ofa_fast.models import FactorizedBertForMaskedLM``.
"""

from __future__ import annotations

__all__ = ["build_model", "to_dense"]


def __getattr__(name: str):
    if name in __all__:
        from ofa_fast.models import _convert

        return getattr(_convert, name)
    if name.startswith("Factorized"):
        from ofa_fast.models import _classes

        twin = _classes.twin_by_name(name)
        if twin is not None:
            return twin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
