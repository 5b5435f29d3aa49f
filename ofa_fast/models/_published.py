"""Opening checkpoints that the published implementation of OFA wrote."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import cached_file

from ofa_fast.models._classes import config_twin
from ofa_fast.models._convert import NOT_COPIED

_TABLE = "embeddings.word_embeddings."
_RENAMED = {  # what their names end in: ours. Their embedding and their head hold the same two tensors.
    "embeddings.primitive_embeddings.weight": _TABLE + "basis",
    "embeddings.target_coordinates.weight": _TABLE + "coordinates",
    "lm_head.down_project.weight": "roberta." + _TABLE + "basis",
    "lm_head.vocab_project.weight": "roberta." + _TABLE + "coordinates",
    "lm_head.vocab_project.bias": "lm_head.bias",
}


def load_published(checkpoint: str | os.PathLike, auto_class=AutoModelForMaskedLM, **options) -> PreTrainedModel:
    """A checkpoint of the published OFA implementation, such as ``yihongLiu/ofa-multi-100``, as a factorised model.

    The published models (Liu et al. 2024, arXiv 2311.08849) are RoBERTa and XLM-R with the coordinates [V, R] in
    ``embeddings.target_coordinates.weight``, the transposed basis [D, R] in ``embeddings.primitive_embeddings.weight``
    and the rank in ``num_primitive`` of config.json. ``save_pretrained`` writes the model in this package's own format.

    Args:
        checkpoint: a folder, or a name on the Hugging Face hub, with config.json and model.safetensors or
            pytorch_model.bin, whole or in shards.
        auto_class: the Auto class to open it with. As in transformers, a head that the checkpoint lacks is initialised.
        options: those of ``from_pretrained``, such as ``dtype`` and ``output_loading_info``.

    Returns:
        The model, in evaluation mode. Peak extra memory: the checkpoint.

    Raises:
        ValueError: config.json has no ``num_primitive`` or one that is not the table's rank, as in checkpoints of full
            rank, which ``auto_class`` opens by itself; a head that is not tied to the embedding.
        OSError: a file or a shard is missing.
    """
    stock = AutoConfig.from_pretrained(checkpoint)
    values = {name: value for name, value in stock.to_dict().items() if name not in NOT_COPIED}
    rank = values.pop("num_primitive", None)
    if rank is None:
        raise ValueError(f"config.json in {checkpoint} has no num_primitive: {auto_class.__name__} opens such folders")
    state = _renamed(_read(checkpoint))
    tables = [tensor.shape for name, tensor in state.items() if name.endswith(_TABLE + "coordinates")]
    if len(tables) != 1 or tables[0] != (values["vocab_size"], rank):
        shapes = [list(shape) for shape in tables]
        raise ValueError(
            f"{checkpoint} must hold one embeddings.target_coordinates.weight of shape "
            f"{[values['vocab_size'], rank]}, as config.json says, got {shapes}"
        )
    config = config_twin(type(stock))(**values, rank=rank)
    model_class = auto_class._model_mapping[type(config)]  # Auto classes themselves want a folder or a name
    return model_class.from_pretrained(None, config=config, state_dict=state, **options)


def _read(checkpoint: str | os.PathLike) -> dict[str, torch.Tensor]:
    for whole_name in ("model.safetensors", "pytorch_model.bin"):
        whole, index = (
            cached_file(checkpoint, file, _raise_exceptions_for_missing_entries=False)
            for file in (whole_name, f"{whole_name}.index.json")
        )
        paths = [] if whole is None else [whole]
        if whole is None and index is not None:
            shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
            paths = [cached_file(checkpoint, shard) for shard in sorted(set(shards))]
        if paths:
            unpickle = partial(torch.load, map_location="cpu", weights_only=True)
            load = load_file if whole_name.endswith("safetensors") else unpickle
            return {name: tensor for path in paths for name, tensor in load(path).items()}
    raise OSError(f"{checkpoint} has neither model.safetensors nor pytorch_model.bin, whole or in shards")


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        theirs = next((end for end in _RENAMED if name.endswith(end)), None)
        if theirs is not None:
            name = name.removesuffix(theirs) + _RENAMED[theirs]
            if name.endswith(".basis"):
                tensor = tensor.T.contiguous()
        if name in renamed and not torch.equal(renamed[name], tensor):
            raise ValueError(f"{theirs} differs from the embedding's: the published models tie them")
        renamed[name] = tensor
    return renamed
