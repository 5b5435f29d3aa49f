"""A saved model and its tokenizer, with the head that a task needs."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ofa_fast._device import usable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    model: str | os.PathLike,
    auto: str = "AutoModel",
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    **config,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, of transformers' class ``auto``, and its tokenizer; a new head is drawn by ``seed``.

    Args:
        device: default: a GPU if there is one.
        config: for the configuration, such as num_labels.

    Raises:
        ValueError: ``device`` is none that this machine has; the tokenizer has more ids than the model's table rows.
    """
    import transformers

    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device = usable(device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    with torch.random.fork_rng(devices=[]), _quiet(transformers):
        torch.default_generator.manual_seed(seed)  # and not those of the GPUs, which draw nothing here
        loaded = getattr(transformers, auto).from_pretrained(model, dtype=torch.float32, **config)
    loaded.config.get_text_config().pad_token_id = pad_id(tokenizer)
    rows, needed = loaded.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        raise ValueError(f"model: the tokenizer of {model} has {needed} token ids, but the model's table {rows} rows")
    return loaded.to(device), tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills a batch: the padding token, else the end of the sequence."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


@contextmanager
def _quiet(transformers):
    """Without a bar and without the warning that a head starts at random, which is what is wanted."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
