"""Sentence vectors from the token states of one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from ofa_fast._text import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _mean(states: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    return (states * content[..., None]).sum(1) / content.sum(1, keepdim=True).clamp(min=1)


def _max(states: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    highest = states.masked_fill(~content[..., None], float("-inf")).amax(1)
    return highest.where(content.any(1, keepdim=True), 0.0)


def _cls(states: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


# From states [B, T, D] float32 and content [B, T] bool (true at tokens of the sentence itself) to [B, D].
POOLING: dict[str, Callable] = {"mean": _mean, "max": _max, "cls": _cls}


def default_layer(model: PreTrainedModel) -> int:
    """Two thirds up, which is the paper's layer 8 for the 12 layers of RoBERTa-base and XLM-R-base."""
    return round(model.config.get_text_config().num_hidden_layers * 2 / 3)


def check_layer(model: PreTrainedModel, layer: int | None) -> int:
    layers = model.config.get_text_config().num_hidden_layers
    if layer is None:
        return default_layer(model)
    if not -layers - 1 <= layer <= layers:
        raise ValueError(f"layer: the model has layers 0 (the embeddings) to {layers}, got {layer}")
    return layer % (layers + 1)


@torch.no_grad()
def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    layer: int | None = None,
    pooling: str = "mean",
    *,
    batch_size: int = 64,
    max_length: int | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """One vector a sentence: ``pooling`` over the states of its own tokens, special and padding tokens left out.

    Args:
        model: any transformers encoder or decoder; a head is not run. It runs where it is, in its own dtype.
        layer: 0 for the embeddings, 1 … L for the output of a layer, negative from the end; default ``default_layer``.
        pooling: "mean", "max", or "cls" for the state of the first token.
        batch_size: sentences at a time; they are batched by length, the longest first.
        max_length: tokens a sentence with special tokens, longer ones are cut; default: the model's limit.

    Returns:
        [len(sentences), D] float32 on the CPU, in the order given. A sentence without a token of its own has the zero
        vector under "mean" and "max".

    Raises:
        ValueError: unknown ``pooling``, a layer that the model lacks, ``max_length`` over the model's positions.

    Peak extra memory: the model's activations for one batch, all its layers' states, and the result.
    """
    if pooling not in POOLING:
        raise ValueError(f"pooling: expected one of {', '.join(POOLING)}, got {pooling!r}")
    layer = check_layer(model, layer)
    limit = max_positions(model)
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(f"max_length: {max_length} is over the {limit} positions of the model")
    max_length = max_length or limit
    base = getattr(model, "base_model", model)
    vectors = torch.empty(len(sentences), base.config.get_text_config().hidden_size)
    if not len(sentences):
        return vectors
    tokens = tokenizer(
        list(sentences),
        truncation=max_length is not None,
        max_length=max_length,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids = [torch.tensor(x) for x in tokens["input_ids"]]
    own = [torch.tensor(x) == 0 for x in tokens["special_tokens_mask"]]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    was_training = base.training
    base.eval()
    try:
        with tqdm(total=len(ids), desc="encoding", unit="sentence", disable=not progress) as bar:
            for begin in range(0, len(order), batch_size):
                batch = order[begin : begin + batch_size]
                states, content = _token_states(
                    base, tokenizer, [ids[i] for i in batch], [own[i] for i in batch], layer
                )
                vectors[batch] = POOLING[pooling](states, content).cpu()
                bar.update(len(batch))
    finally:
        base.train(was_training)
    return vectors


def _token_states(base, tokenizer, ids, own, layer) -> tuple[torch.Tensor, torch.Tensor]:
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    input_ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad).to(base.device)
    content = torch.nn.utils.rnn.pad_sequence(own, batch_first=True).to(base.device)
    lengths = torch.tensor([len(x) for x in ids], device=base.device)
    attention_mask = (torch.arange(input_ids.shape[1], device=base.device) < lengths[:, None]).long()
    outputs = base(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    return outputs.hidden_states[layer].float(), content
