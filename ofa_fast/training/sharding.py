"""FSDP2: weights, gradients and optimiser states sharded over the processes of a run."""

from __future__ import annotations

import functools
import os
import warnings

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ofa_fast.training.trainer import LanguageModelTrainer

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def check_processes() -> None:
    if not torch.distributed.is_initialized():
        raise ValueError("fsdp: there is one process only; start several, with torchrun --nproc-per-node 8 for example")


def shard(model: nn.Module, device: torch.device) -> None:
    """Shard ``model`` in place: a group for each layer, and one for all that is used outside of the layers.

    The latter has the embedding and the head together, because they share parameters, and it is gathered from the
    start of the forward to the end of the backward pass, because the loss is computed in neither of the two modules.
    """
    # Nothing here works in place on what a model returns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    layers: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and not any(module is m for layer in layers for m in layer.modules()):
            layers += [layer for layer in module if next(layer.parameters(), None) is not None]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


class ShardedTrainer(LanguageModelTrainer):
    """A ``LanguageModelTrainer`` of a sharded model. Its checkpoints hold whole weights and whole optimiser states.

    Accelerate shards by itself, but never on a CPU, and it puts the embedding and the head into two groups unless they
    share an attribute ``weight``, which for a factorised table is no parameter.
    """

    def __init__(self, *, model, args, **options) -> None:
        shard(model, args.device)
        super().__init__(model=model, args=args, **options)
        # Autocast as usual, but neither DDP nor another placement.
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = lambda model, **_: prepare(model, device_placement=False, evaluation_mode=True)

    def weights(self) -> dict[str, torch.Tensor]:
        return get_model_state_dict(self.model, options=WHOLE)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        weights = self.weights()
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = get_optimizer_state_dict(self.model, self._plain_optimizer(), options=WHOLE)
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, "optimizer.pt"))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, "scheduler.pt"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        load = functools.partial(torch.load, map_location="cpu", weights_only=True)
        state = load(os.path.join(checkpoint, "optimizer.pt")) if self.args.process_index == 0 else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_optimizer_state_dict(self.model, self._plain_optimizer(), state, options=options)
        self.lr_scheduler.load_state_dict(load(os.path.join(checkpoint, "scheduler.pt")))

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)
