"""A factorised vocabulary table with Hugging Face Accelerate: any number of processes, mixed precision.

python examples/trainer_accelerate.py          (or: accelerate launch examples/trainer_accelerate.py)
"""

from __future__ import annotations

from itertools import islice

import torch
from accelerate import Accelerator
from tiny_language_model import TinyLanguageModel, batches


def main(steps: int = 100, **options) -> list[float]:
    """``options`` are the Accelerator's, such as ``mixed_precision="bf16"`` and ``cpu=True``."""
    accelerator = Accelerator(**options)
    torch.manual_seed(0)
    model, losses = TinyLanguageModel(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    for ids in islice(loader, steps):
        loss = model(ids)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(accelerator.gather(loss.detach()).mean().item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} nats a token in {len(losses)} steps")
