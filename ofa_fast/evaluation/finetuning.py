"""Fine-tuning a small head and its encoder on labelled text, and predicting with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ofa_fast._text import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 32  # of predictions
IGNORED = -100  # what cross entropy takes for no label
DEFAULT_LENGTH = 256
_BUCKET = 50  # batches that are sorted by length together
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune: AdamW without weight decay, the learning rate falling linearly to 0, gradients clipped at 1.

    Attributes:
        patience: epochs without a better score on dev after which training ends; None: never.
        max_train: at most so many training items, drawn by the seed.
        max_dev: the epoch is chosen on the first so many items of dev.
        freeze_table: whether the vocabulary table (with its factors) stays as it is.
        precision: of the computation, "float32" or "bfloat16" (autocast); weights and AdamW stay in float32.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    patience: int | None = None
    max_train: int | None = None
    max_dev: int | None = None
    freeze_table: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(_PRECISIONS)}, got {self.precision!r}")


@dataclass(frozen=True)
class Example:
    """Token ids, and a label, or a label per token (``IGNORED`` where there is none)."""

    ids: list[int]
    labels: int | list[int]


def input_length(model: PreTrainedModel, max_length: int | None) -> int:
    """How many tokens a text may have: ``max_length``, by default 256 or the model's limit."""
    limit = max_positions(model)
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(f"max_length: {max_length} is over the {limit} positions of the model")
    return max_length or min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)


def batches(lengths: Sequence[int], size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of items of similar length, in random order, ``size`` at a time."""
    order = generator.permutation(len(lengths))
    found = []
    for begin in range(0, len(order), size * _BUCKET):
        bucket = order[begin : begin + size * _BUCKET]
        bucket = bucket[np.argsort(np.asarray(lengths)[bucket], kind="stable")]
        found += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return (found[i] for i in generator.permutation(len(found)))


def finetune(
    model: PreTrainedModel,
    train: Sequence[Example],
    recipe: Recipe,
    seed: int,
    dev_score: Callable[[], float] | None,
    progress: bool = False,
) -> dict:
    """Train ``model`` in place and leave it as it was after the epoch that ``dev_score`` liked best, the first such.

    Without ``dev_score`` the last epoch stays. The same seed gives the same weights on the same machine.

    Returns:
        "train_items", "epoch" (from 1, the one that stayed), "dev" (its score), and of each epoch "dev_scores" and
        "loss" (its mean).

    Peak extra memory: gradients and AdamW's two moments, activations of a batch, and a copy of the trained weights.
    """
    model.get_input_embeddings().requires_grad_(not recipe.freeze_table)
    generator = np.random.default_rng(seed)
    if recipe.max_train is not None and recipe.max_train < len(train):
        chosen = np.sort(generator.choice(len(train), recipe.max_train, replace=False))
        train = [train[i] for i in chosen]
    lengths = [len(example.ids) for example in train]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    total = recipe.epochs * -(-len(train) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    losses, scores, best, kept = [], [], (0, float("-inf")), None
    with (
        torch.random.fork_rng(devices=_devices(model)),
        tqdm(total=total, desc=f"fine-tuning, seed {seed}", unit="step", disable=not progress) as bar,
    ):
        torch.manual_seed(seed)
        for epoch in range(1, recipe.epochs + 1):
            model.train()
            summed = torch.zeros((), device=model.device)
            for chosen in batches(lengths, recipe.batch_size, generator):
                with _autocast(model, recipe.precision):
                    loss = model(**_collate([train[i] for i in chosen], model)).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                summed += loss.detach() * len(chosen)
                bar.update()
            losses.append(summed.item() / len(train))
            if dev_score is None:
                best = epoch, None
                continue
            score = dev_score()
            scores.append(score)
            bar.set_postfix(dev=f"{score:.3f}")
            if score > best[1]:
                best, kept = (epoch, score), [copy.deepcopy(p.detach()) for p in parameters]
            elif recipe.patience is not None and epoch - best[0] >= recipe.patience:
                break
    if kept is not None:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
    return {"train_items": len(train), "epoch": best[0], "dev": best[1], "dev_scores": scores, "loss": losses}


@torch.no_grad()
def predict(
    model: PreTrainedModel, inputs: Sequence[list[int]], precision: str = "float32", batch_size: int = BATCH
) -> list[np.ndarray]:
    """The likeliest class of each input, or of each of its tokens; inputs are batched by length, the longest first."""
    model.eval()
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]), reverse=True)
    predicted: list[np.ndarray] = [np.empty(0)] * len(inputs)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        with _autocast(model, precision):
            logits = model(**_collate([Example(inputs[i], 0) for i in chosen], model, labelled=False)).logits
        for i, row in zip(chosen, logits.argmax(-1).cpu().numpy(), strict=True):
            predicted[i] = row[: len(inputs[i])] if row.ndim else row
    return predicted


def _collate(examples: Sequence[Example], model: PreTrainedModel, labelled: bool = True) -> dict[str, torch.Tensor]:
    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    batch = {
        "input_ids": pad([example.ids for example in examples], model.config.get_text_config().pad_token_id),
        "attention_mask": pad([[1] * len(example.ids) for example in examples], 0),
    }
    if labelled:
        labels = [example.labels for example in examples]
        per_token = isinstance(labels[0], list)
        batch["labels"] = pad(labels, IGNORED) if per_token else torch.tensor(labels)
    gpu = model.device.type == "cuda"  # it takes a copy beside its work, if only from memory that stays in place
    return {
        name: (tensor.pin_memory() if gpu else tensor).to(model.device, non_blocking=gpu)
        for name, tensor in batch.items()
    }


def _autocast(model: PreTrainedModel, precision: str):
    dtype = _PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(model.device.type, dtype)


def _devices(model: PreTrainedModel) -> list[torch.device]:
    return [] if model.device.type == "cpu" else [model.device]
