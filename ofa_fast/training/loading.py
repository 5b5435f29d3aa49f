"""A language model and its tokenizer, checked against each other before anything is trained."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from typing import TYPE_CHECKING

import torch

from ofa_fast._text import max_positions
from ofa_fast.training.data import attention_within
from ofa_fast.training.packing import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_LENGTH = 512


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a model is trained to predict the next token rather than masked ones.

    It is where transformers has no masked-language-model head for its kind. A kind that has both heads, such as BERT,
    is what the class says that it was saved as.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
    from transformers.models.auto import modeling_auto

    masked, causal = (type(config) in kinds for kinds in (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING))
    if masked and causal:
        saved_as = {name.removeprefix("Factorized") for name in config.architectures or ()}
        return bool(
            saved_as
            & set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
            - set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
        )
    return causal


def load_model(model_dir: str | os.PathLike) -> tuple[PreTrainedModel, list[str], bool]:
    """The model in float32, the weights that the folder lacks and that start at random, and whether it is causal."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(model_dir)
    causal = is_causal(config)
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    try:
        model, loading = auto.from_pretrained(model_dir, config=config, dtype=torch.float32, output_loading_info=True)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"model_dir: {model_dir} holds a {config.model_type!r} model, for which transformers has neither a masked- "
            "nor a causal-language-model head; train an encoder such as XLM-R or a decoder such as Llama"
        ) from None
    return model, sorted(loading["missing_keys"]), causal


def first_position(model: PreTrainedModel) -> int:
    """The position id of a document's first token: RoBERTa-like models count from ``padding_idx + 1``."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((t.padding_idx + 1 for t in tables if getattr(t, "padding_idx", None) is not None), 0)


@torch.no_grad()
def separates_documents(model: PreTrainedModel, causal: bool) -> bool:
    """Whether a model's tokens can be kept from attending to other documents of their sequence.

    For a causal model by position ids that start again, from which transformers builds its attention masks; for another
    one by a mask [batch, 1, length, length]. Not every model uses them. So the model is tried: on two inputs of two
    documents, of which the second one is the same, its outputs at the second one have to agree.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    start = first_position(model)
    if causal and (not takes_positions or start):
        return False  # a RoBERTa decoder counts positions from the padding id, and only by itself
    if not causal and any("sliding" in kind for kind in getattr(model.config, "layer_types", None) or ()):
        return False  # the mask would take the place of a window
    rows = model.get_input_embeddings().num_embeddings
    inputs = {"input_ids": [[rows // 2, rows // 3, 1, 2], [rows - 1, rows // 4, 1, 2]]}
    if takes_positions:
        inputs["position_ids"] = [[start, start + 1, start, start + 1]] * 2
    inputs = {name: torch.tensor(ids, device=model.device) for name, ids in inputs.items()}
    if causal:
        inputs["use_cache"] = False
    else:
        inputs["attention_mask"] = attention_within(torch.tensor([[0, 0, 1, 1]] * 2, device=model.device))
    was_training = model.training
    model.eval()
    try:
        one, other = model(**inputs).logits[:, 2:]
    except (RuntimeError, TypeError, ValueError, IndexError):  # such a mask is none that it can use
        return False
    finally:
        model.train(was_training)
    return bool((one - other).abs().max() <= 1e-5 * one.abs().max())


def documents_apart(model: PreTrainedModel, causal: bool, documents: str | None, progress: bool) -> bool:
    """Whether the documents of a sequence are kept apart; ``documents`` is what ``train`` was given.

    Raises:
        ValueError: they have to be, and the model cannot.
    """
    if documents == "joined" or not (documents or causal):
        return False
    if separates_documents(model, causal):
        return True
    kind = model.config.model_type
    if documents:
        raise ValueError(f"documents: a {kind!r} model cannot keep them apart; they can only be joined")
    if progress:
        print(f"a {kind!r} model cannot keep the documents of a sequence apart: they are joined", file=sys.stderr)
    return False


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, causal: bool) -> None:
    rows = model.get_input_embeddings().num_embeddings
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        raise ValueError(
            f"model_dir: the tokenizer has token ids up to {needed - 1}, but the model's table only {rows} rows; "
            "initialise the model for this tokenizer first"
        )
    if causal and not special_tokens(tokenizer, causal)[1]:
        raise ValueError("model_dir: the tokenizer has no end-of-sequence token, which ends a document in training")
    if not causal and tokenizer.mask_token_id is None:
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
