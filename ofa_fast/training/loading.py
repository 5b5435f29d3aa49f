"""A masked-language model and its tokenizer, checked against each other before anything is trained."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import torch

from ofa_fast._text import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_LENGTH = 512


def load_model(model_dir: str | os.PathLike) -> tuple[PreTrainedModel, list[str]]:
    """The model in float32, and the names of the weights that the folder lacks and that start at random."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(model_dir)
    try:
        model, loading = AutoModelForMaskedLM.from_pretrained(
            model_dir, config=config, dtype=torch.float32, output_loading_info=True
        )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"model_dir: {model_dir} holds a {config.model_type!r} model, for which transformers has no "
            "masked-language-model head; train an encoder such as BERT, RoBERTa or XLM-R"
        ) from None
    return model, sorted(loading["missing_keys"])


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    rows = model.get_input_embeddings().num_embeddings
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        raise ValueError(
            f"model_dir: the tokenizer has token ids up to {needed - 1}, but the model's table only {rows} rows; "
            "initialise the model for this tokenizer first"
        )
    if tokenizer.mask_token_id is None:
        raise ValueError("model_dir: the tokenizer has no mask token, which masked-language-model training needs")


def sequence_length(max_length: int | None, model: PreTrainedModel) -> int:
    limit = max_positions(model)
    if max_length is None:
        return DEFAULT_LENGTH if limit is None else min(DEFAULT_LENGTH, limit)
    if limit is not None and max_length > limit:
        raise ValueError(f"max_length: {max_length} is over the {limit} positions of the model")
    return max_length


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what the tokenizer does, so that text tokenised by another one is never taken for its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
