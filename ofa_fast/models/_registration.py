"""Makes transformers' Auto classes know our model type once both packages are imported, without importing it here."""

from __future__ import annotations

import importlib.util
import sys

MODEL_TYPE = "ofa-fast"
_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def _register() -> None:
    from ofa_fast.models._classes import FactorizedConfig

    sys.modules[_AUTO_CONFIG].AutoConfig.register(MODEL_TYPE, FactorizedConfig, exist_ok=True)


class _AfterImport:
    """A finder and loader that registers once transformers' configuration mapping has been imported by somebody.

    The abstract classes of ``importlib.abc`` would cost more time than everything else in ``import ofa_fast``.
    """

    def find_spec(self, name, path, target=None):
        if name != _AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def register() -> None:
    """Importing transformers costs seconds, so it is left to the caller: register now, or when it is imported."""
    if _AUTO_CONFIG in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())
