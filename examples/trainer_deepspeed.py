"""A factorised vocabulary table with DeepSpeed: optimiser states and gradients sharded (ZeRO stage 2).

pip install deepspeed
torchrun --nproc-per-node 1 examples/trainer_deepspeed.py        one process a GPU; or on the CPU, through gloo

On its first run DeepSpeed compiles an operator of its own, which takes a minute or two.
"""

from __future__ import annotations

from itertools import islice

import deepspeed
import torch
from tiny_language_model import TinyLanguageModel, batches

CONFIG = {
    "train_micro_batch_size_per_gpu": 16,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,  # torch's AdamW, not one that DeepSpeed compiles
    "bf16": {"enabled": torch.cuda.is_available()},
}


def main(steps: int = 100) -> list[float]:
    torch.manual_seed(0)
    model, losses = TinyLanguageModel(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    for ids in islice(batches(), steps):
        loss = engine(ids.to(engine.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} nats a token in {len(losses)} steps")
