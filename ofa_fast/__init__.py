"""Move pretrained language models to new vocabularies and languages: the OFA framework with native kernels."""

from importlib import import_module as _import_module

from ofa_fast.models._registration import register as _register

__version__ = "0.1.0"

_NAMES = {
    "FactorizedEmbedding": "nn",
    "FactorizedHead": "nn",
    "WordVectors": "initialization",
    "build_model": "models",
    "initialize": "initialization",
    "to_dense": "models",
}
_SUBPACKAGES = ("compat", "evaluation", "initialization", "models", "nn", "ops", "study", "training")

__all__ = [*_NAMES, *_SUBPACKAGES]


def __getattr__(name: str):
    """Public names are imported when first used, so that ``import ofa_fast`` costs milliseconds."""
    if name in _NAMES:
        value = getattr(_import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


_register()
