"""What the trainer_*.py examples train: a small causal language model on six languages, its table factorised.

Its vocabulary table is coordinates [V, R] times basis [R, D]. The embedding looks up coordinates[ids] @ basis; the
head, tied to it, gives the loss without ever forming logits [tokens, V]. The rest is plain torch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import nn

from ofa_fast.nn import FactorizedEmbedding, FactorizedHead

TEXTS = sorted((Path(__file__).parent / "data" / "bible").glob("*.txt"))
VOCABULARY, RANK, WIDTH, LENGTH = 6_000, 32, 128, 48


class TinyLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = FactorizedEmbedding(VOCABULARY, RANK, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = FactorizedHead(self.embedding)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The mean loss of predicting each token of ids [B, LENGTH + 1] but the first."""
        hidden = self.embedding(ids[:, :-1]) + self.positions.weight
        future = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=ids.device).triu(1)
        return self.head(self.layers(hidden, mask=future), labels=ids[:, 1:])


def batches(size: int = 16, seed: int = 0) -> torch.utils.data.DataLoader:
    """The six texts in blocks of LENGTH + 1 tokens, in an order that only the seed decides."""
    lines = [line for text in TEXTS for line in text.read_text(encoding="utf-8").splitlines()[:600] if line]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines, VOCABULARY, show_progress=False)
    ids = torch.tensor([i for encoding in tokenizer.encode_batch(lines) for i in encoding.ids])
    blocks = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(blocks[order], batch_size=size)
