"""Parts of a model that a run does not train, or not at first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Freezing:
    """Keeps a part of ``model`` as it is, for good or until ``steps`` steps are done.

    The part is "none", the "table" (the input embedding, and the head over the vocabulary with its bias), the "body"
    (all else), or all that is "copied": the body, and of the table everything but the rows of tokens that the
    pretrained model did not have. ``rows`` names the parameters of which only such rows are trained.
    """

    def __init__(self, model: PreTrainedModel, part: str, steps: int | None, model_dir: str | os.PathLike) -> None:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        table = {id(p) for module in ends if module is not None for p in module.parameters()}
        count = model.get_input_embeddings().num_embeddings
        self._model, self.steps, self.active, self.rows = model, steps, False, set()
        self._frozen = []
        for name, parameter in model.named_parameters():
            in_table = id(parameter) in table
            if part == "copied" and in_table and len(parameter) == count:
                self.rows.add(name)
                parameter.register_hook(self._keep_copied)
            elif part == "copied" or part == ("table" if in_table else "body"):
                self._frozen.append(parameter)
        if self.rows:
            self._copied = copied_rows(model_dir, count)
        if steps is None:  # before the Trainer makes the optimiser, which then has no state for them
            self._require_gradients(False)

    def trained(self) -> int:
        """How many numbers the run trains, in the end."""
        copied = int(self._copied.sum()) if self.rows and self.steps is None else 0
        return sum(
            p.numel() - (copied * p[0].numel() if name in self.rows else 0)
            for name, p in self._model.named_parameters()
            if p.requires_grad
        )

    def at(self, step: int, alone: bool) -> None:
        """To be called before a forward pass of the given step, counted from 0; ``alone``: of a single process."""
        active = self.steps is None or step < self.steps
        if active != self.active and self.steps is not None and alone:
            # Otherwise not: DistributedDataParallel reduces what required gradients when it was built.
            self._require_gradients(not active)
        self.active = active

    def drop_gradients(self) -> None:
        """To be called after a backward pass. Without a gradient a weight has neither an update nor optimiser state."""
        if self.active:
            for parameter in self._frozen:
                parameter.grad = None

    def _require_gradients(self, required: bool) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(required)

    def _keep_copied(self, gradient: torch.Tensor) -> torch.Tensor | None:
        if not self.active:
            return None
        self._copied = self._copied.to(gradient.device)
        return gradient.masked_fill(self._copied[:, None] if gradient.ndim == 2 else self._copied, 0)


def copied_rows(model_dir: str | os.PathLike, rows: int) -> torch.Tensor:
    """Which rows of the table are those of the pretrained model [V], from the initialisation beside the model.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is that of another table.
    """
    from safetensors import safe_open

    file = Path(model_dir) / "initialization.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"freeze: {file} is missing, which says what rows were copied; ofa-fast init writes it")
    with safe_open(file, "pt") as stored:
        origin = stored.get_tensor("origin")
    if len(origin) != rows:
        raise ValueError(f"freeze: {file} has the origin of {len(origin)} rows, but the model's table has {rows}")
    return origin == 0
