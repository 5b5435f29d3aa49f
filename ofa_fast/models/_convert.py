"""From a pretrained model and an initialised table to a model for the new vocabulary, and from there to a dense one."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from ofa_fast.models._classes import config_twin, model_twin
from ofa_fast.nn import FactorizedEmbedding, FactorizedHead

NOT_COPIED = ("model_type", "source_model_type", "rank", "transformers_version", "architectures", "_name_or_path")


def build_model(source_model: PreTrainedModel, result, target_tokenizer, head=None) -> PreTrainedModel:
    """A Hugging Face model of the source's kind with an initialised table for the target tokenizer.

    Args:
        source_model: any transformers text model, such as ``AutoModelForMaskedLM.from_pretrained(...)`` returns. Its
            layers are copied; its tables are only looked at to see whether they are one.
        result: an ``Initialization``, or anything with ``coordinates`` [Vt, R], ``basis`` [R, D] or None, and ``bias``
            [Vt] or None. With a basis the new model's input embedding is a ``FactorizedEmbedding`` and its tied head
            computes logits = (h basisᵀ) coordinatesᵀ + bias. Without one, coordinates are the dense table [Vt, D] and
            the new model is of the source's own class.
        target_tokenizer: of at most Vt tokens; a table may have more rows than its tokenizer has tokens. The ids of
            special tokens in the configuration are taken from it.
        head: for a source whose output table is not tied to its input table, the ``Initialization`` of the former:
            ``initialize(source_model.get_output_embeddings().weight, …)`` with the other arguments as for the latter.

    Returns:
        The model, in the source's dtype, device and training mode. Peak extra memory: the model itself.

    Raises:
        ValueError: the tokenizer is larger than the table; the width of the table is not the model's; a bias for a head
            that has none; ``head`` missing for an untied head; no padding token where positions are counted from it.

    Models that count positions from the padding id (RoBERTa, XLM-R and their kin) keep as many usable positions at any
    padding id: their position table is shifted by the difference between the two padding ids.
    """
    stock = getattr(type(source_model), "stock_class", type(source_model))
    _check(source_model, result, target_tokenizer, head)
    values, shift = _target_config(source_model, result, target_tokenizer)
    config_class = stock.config_class
    if result.basis is None:
        model_class = stock
    else:
        model_class, config_class = model_twin(stock), config_twin(config_class)
        values["rank"] = result.basis.shape[0]
    config = config_class(**values)
    config._attn_implementation = source_model.config._attn_implementation
    model = _empty(model_class, config, source_model.dtype)
    _copy_layers(source_model, model, shift)
    with torch.no_grad():
        _fill(model.get_input_embeddings(), result)
        output = model.get_output_embeddings()
        if output is not None:
            if head is not None:
                _untie(model)
                _fill(output, head)
            per_token = _token_bias(model)
            if per_token is not None:
                bias = (head or result).bias
                per_token.zero_() if bias is None else per_token.copy_(bias)
    return model.to(source_model.device).train(source_model.training)


def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """The same function as a stock Hugging Face model that needs no ofa_fast: stock class, stock configuration.

    The table is coordinates @ basis in float32 or wider, rounded to the model's dtype. Peak extra memory: the dense
    model, and the table once more where the model's dtype is narrower.

    Raises:
        TypeError: ``model`` has no factorised table.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, FactorizedEmbedding):
        raise TypeError(f"model must have a factorised table, got {type(model).__name__}")
    stock = type(model).stock_class
    values = {name: value for name, value in model.config.to_dict().items() if name not in NOT_COPIED}
    config = stock.config_class(**values)
    config._attn_implementation = model.config._attn_implementation
    dense = _empty(stock, config, model.dtype)
    if has_untied_head(model):
        _untie(dense)
    _copy_layers(model, dense, {})
    exact = torch.promote_types(model.dtype, torch.float32)
    with torch.no_grad():
        for ours, theirs in ((embedding, dense.get_input_embeddings()), (head, dense.get_output_embeddings())):
            if ours is not None:
                theirs.weight.copy_(ours.coordinates.to(exact) @ ours.basis.to(exact))
            if isinstance(ours, FactorizedHead) and ours.bias is not None:
                theirs.bias.copy_(ours.bias)
    return dense.to(model.device).train(model.training)


def has_untied_head(model: PreTrainedModel) -> bool:
    """Whether logits are computed from a table of their own.

    A configuration that ties the two is no proof: transformers loads both of them where a checkpoint holds two that
    differ, as those of mT5 do. Only where the tables cannot be seen, on meta, is it taken at its word.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        return False
    if not model.config.get_text_config().tie_word_embeddings:
        return True
    for ours, theirs in zip(_tables(head), _tables(embedding), strict=False):
        if (
            ours is not theirs
            and not (ours.is_meta or theirs.is_meta)
            and not torch.equal(ours, theirs.to(ours.device))
        ):
            return True
    return False


def _tables(module: nn.Module) -> list[torch.Tensor]:
    names = ("coordinates", "basis") if hasattr(module, "coordinates") else ("weight",)
    return [getattr(module, name) for name in names if hasattr(module, name)]


def _untie(model: PreTrainedModel) -> None:
    """Give the head tables of its own where the configuration ties them, as T5's always does."""
    head = model.get_output_embeddings()
    for name in ("weight", "coordinates", "basis"):
        if isinstance(parameter := getattr(head, name, None), nn.Parameter):
            setattr(head, name, nn.Parameter(torch.empty_like(parameter)))


def _check(source_model: PreTrainedModel, result, target_tokenizer, head) -> None:
    tables = {"result": result} | ({} if head is None else {"head": head})
    width = source_model.get_input_embeddings().embedding_dim
    for name, table in tables.items():
        rows = table.coordinates.shape[0]
        if len(target_tokenizer) > rows:
            raise ValueError(
                f"target_tokenizer has {len(target_tokenizer)} tokens, but {name}.coordinates has {rows} rows"
            )
        got = (table.coordinates if table.basis is None else table.basis).shape[1]
        if got != width:
            raise ValueError(f"{name} is a table of width {got}, but the model's width is {width}")
    output = source_model.get_output_embeddings()
    untied = has_untied_head(source_model)
    if untied and head is None:
        raise ValueError(
            "the source model's output table is not tied to its input table: give its initialisation as head"
        )
    if head is not None and not untied:
        raise ValueError("head is for source models with an untied output table, which this one has not")
    if head is not None:
        shapes = [None if t.basis is None else list(t.basis.shape) for t in (result, head)]
        if shapes[0] != shapes[1] or head.coordinates.shape != result.coordinates.shape:
            raise ValueError("head and result must be tables of the same size and rank")
    if output is not None and _token_bias(source_model) is None and (head or result).bias is not None:
        raise ValueError("the initialisation has a bias per token, but the source model's head has none")


def _target_config(source_model: PreTrainedModel, result, tokenizer) -> tuple[dict, dict[str, int]]:
    """Values for the new configuration, and by how many rows each position table moves."""
    source = source_model.config
    values = {name: value for name, value in source.to_dict().items() if name not in (*NOT_COPIED, "tokenizer_class")}
    values["vocab_size"] = result.coordinates.shape[0]
    values |= _token_ids(values, tokenizer)
    counted = [
        name
        for name, module in source_model.named_modules()
        if isinstance(module, nn.Embedding)
        and module is not source_model.get_input_embeddings()
        and module.padding_idx is not None
        and module.num_embeddings == getattr(source, "max_position_embeddings", None)
    ]
    if not counted:
        return values, {}
    if values["pad_token_id"] is None:
        raise ValueError("target_tokenizer has no padding token, but the source model counts positions from its id")
    shift = values["pad_token_id"] - source.pad_token_id
    values["max_position_embeddings"] += shift
    return values, dict.fromkeys(counted, shift)


def _token_ids(values: dict, tokenizer) -> dict:
    """The ``..._token_id`` entries of a configuration, by the target tokenizer.

    A tokenizer that brackets its text with [CLS] and [SEP] has these for a model that speaks of bos and eos. Entries
    that are no special token of a tokenizer, such as ``decoder_start_token_id``, follow the one that they equalled.
    """
    stand_in = {"bos": "cls", "eos": "sep", "cls": "bos", "sep": "eos"}
    roles = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")
    ids = {}
    for key in values:
        role = key.removesuffix("_token_id")
        if key == role:
            continue
        if role not in roles:
            role = next(
                (r for r in roles if values[key] is not None and values.get(f"{r}_token_id") == values[key]), role
            )
        ids[key] = getattr(tokenizer, f"{role}_token_id", None)
        if ids[key] is None and role in stand_in and values[key] is not None:
            ids[key] = getattr(tokenizer, f"{stand_in[role]}_token_id", None)
    return ids


def _empty(model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with no_init_weights():
        model = model_class._from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def _copy_layers(source: nn.Module, target: nn.Module, shift: dict[str, int]) -> None:
    """Copy all that is not the vocabulary's, moving the rows of position tables by ``shift``."""
    ends = [m for model in (source, target) for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    vocabulary = {id(p) for module in ends if module is not None for p in module.parameters()}
    kept = dict(source.named_parameters(remove_duplicate=False)) | dict(source.named_buffers())
    rows = [model.get_input_embeddings().num_embeddings for model in (source, target)]
    with torch.no_grad():
        for name, parameter in [*target.named_parameters(), *target.named_buffers()]:
            if id(parameter) in vocabulary:
                continue
            table = name.removesuffix(".weight")
            if table in shift:
                _shift_rows(kept[name], parameter, shift[table])
                if target.get_submodule(table).padding_idx != target.config.pad_token_id:
                    raise ValueError(
                        f"{type(source).__name__} counts positions from a fixed padding id, "
                        f"{target.get_submodule(table).padding_idx}, which is not the target tokenizer's, "
                        f"{target.config.pad_token_id}"
                    )
            elif name in kept and kept[name].shape == parameter.shape:
                parameter.copy_(kept[name])
            elif name in kept and [list(kept[name].shape), list(parameter.shape)] == [[own] for own in rows]:
                parameter.zero_()  # a bias beside that of an untied head, which nothing reads
            elif isinstance(parameter, nn.Parameter):
                raise ValueError(f"the source model has no {name} of shape {list(parameter.shape)}")


def _shift_rows(source: torch.Tensor, target: torch.Tensor, by: int) -> None:
    target.zero_()
    if by >= 0:
        target[by:].copy_(source)
    else:
        target.copy_(source[-by:])


def _fill(module: nn.Module, result) -> None:
    if result.basis is None:
        module.weight.copy_(result.coordinates)
    else:
        module.coordinates.copy_(result.coordinates)
        module.basis.copy_(result.basis)


def _token_bias(model: PreTrainedModel) -> torch.Tensor | None:
    """What moves the logits of each token: the head's bias, or what BART and its kin add to the head's output."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return getattr(model, "final_logits_bias", None) if bias is None else bias
