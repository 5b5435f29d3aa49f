"""A factorised vocabulary table in plain torch.

python examples/trainer_torch.py
"""

from __future__ import annotations

from itertools import islice

import torch
from tiny_language_model import TinyLanguageModel, batches


def main(steps: int = 100) -> list[float]:
    torch.manual_seed(0)
    model, losses = TinyLanguageModel(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for ids in islice(batches(), steps):
        loss = model(ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} nats a token in {len(losses)} steps")
