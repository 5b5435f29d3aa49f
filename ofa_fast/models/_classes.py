"""The factorised twins of transformers' configuration and model classes, made when they are first asked for.

A twin is a subclass of the stock class. Nothing of its forward pass is copied: the stock constructor and the stock
forward run with another input embedding and another output head.
"""

from __future__ import annotations

import functools
import inspect
from typing import ClassVar

import transformers
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from ofa_fast.models._registration import MODEL_TYPE

_MODULE = "ofa_fast.models"
_PREFIX = "Factorized"


class FactorizedConfig(PreTrainedConfig):
    """What the factorised twin of any configuration class adds to it.

    Args:
        source_model_type: the transformers model type whose architecture this is, such as "xlm-roberta".
        rank: R of the table's coordinates [V, R] and basis [R, D].
    """

    model_type = MODEL_TYPE
    source_model_type: ClassVar[str] = ""
    rank: int | None = None

    def to_dict(self) -> dict:
        return super().to_dict() | {"source_model_type": self.source_model_type, "rank": self.rank}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        if cls is FactorizedConfig:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING

            source = config_dict.get("source_model_type")
            if source not in CONFIG_MAPPING:
                raise ValueError(
                    f"source_model_type {source!r} in config.json is not an architecture of "
                    f"transformers {transformers.__version__}"
                )
            rank = config_dict.get("rank")
            if not isinstance(rank, int) or rank < 1:
                raise ValueError(f"rank in config.json must be a positive integer, got {rank!r}")
            return config_twin(CONFIG_MAPPING[source]).from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)


@functools.cache
def config_twin(stock: type[PreTrainedConfig]) -> type[FactorizedConfig]:
    """The factorised twin of a configuration class, known to every Auto class that knows the stock one."""
    if issubclass(stock, FactorizedConfig):
        return stock
    twin = type(
        _PREFIX + stock.__name__,
        (stock, FactorizedConfig),  # in this order the stock class's defaults win over PreTrainedConfig's
        {
            "__module__": _MODULE,
            "__doc__": f"{stock.__name__} of a model with a factorised vocabulary table.",
            "model_type": MODEL_TYPE,
            "source_model_type": stock.model_type,
            "stock_class": stock,
        },
    )
    _register_models(stock, twin)
    return twin


def _register_models(stock: type[PreTrainedConfig], twin: type[FactorizedConfig]) -> None:
    from transformers.models.auto import modeling_auto

    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        models = mapping.get(stock, None) if inspect.isclass(auto) and mapping is not None else None
        if isinstance(models, (list, tuple)):
            auto.register(twin, tuple(_model_twin(model, twin) for model in models))
        elif models is not None:
            auto.register(twin, _model_twin(models, twin))


def model_twin(stock: type[nn.Module]) -> type[nn.Module]:
    """The factorised twin of a transformers model class."""
    return _model_twin(stock, config_twin(stock.config_class))


@functools.cache
def _model_twin(stock: type[nn.Module], config: type[FactorizedConfig]) -> type[nn.Module]:
    from ofa_fast.models._modeling import FactorizedModel, language_model_forward

    namespace = {
        "__module__": _MODULE,
        "__doc__": f"{stock.__name__} with a factorised vocabulary table.",
        "config_class": config,
        "stock_class": stock,
    }
    forward = language_model_forward(stock)
    if forward is not None:
        namespace["forward"] = forward
    return type(_PREFIX + stock.__name__, (FactorizedModel, stock), namespace)


def twin_by_name(name: str) -> type | None:
    """The twin called ``name``, which is what makes twins importable and so their instances picklable."""
    stock = getattr(transformers, name.removeprefix(_PREFIX), None)
    if not inspect.isclass(stock):
        return None
    if issubclass(stock, PreTrainedConfig):
        return config_twin(stock)
    return model_twin(stock) if issubclass(stock, transformers.PreTrainedModel) else None
