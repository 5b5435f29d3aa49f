"""A factorised vocabulary table with PyTorch Lightning.

pip install lightning
python examples/trainer_lightning.py
"""

from __future__ import annotations

import lightning
import torch
from tiny_language_model import TinyLanguageModel, batches


class LanguageModel(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.losses = TinyLanguageModel(), []

    def training_step(self, ids: torch.Tensor, batch_index: int) -> torch.Tensor:
        loss = self.model(ids)
        self.log("loss", loss, prog_bar=True)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(steps: int = 100, **options) -> list[float]:
    """``options`` are the Trainer's, such as ``accelerator="gpu"`` and ``precision="bf16-mixed"``."""
    torch.manual_seed(0)
    module = LanguageModel()
    lightning.Trainer(max_steps=steps, enable_checkpointing=False, logger=False, **options).fit(module, batches())
    return module.losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} nats a token in {len(losses)} steps")
