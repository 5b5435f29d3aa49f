from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from ofa_fast import build_model

BIBLE = Path(__file__).parents[2] / "examples" / "data" / "bible"
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """For all tests here."""


def verses(language: str, count: int) -> list[str]:
    return (BIBLE / f"{language}.txt").read_text("utf-8").split("\n")[:count]


@pytest.fixture(scope="session")
def english() -> list[str]:
    """Verses that differ from each other."""
    return [verse for verse in dict.fromkeys(verses("eng", 320)) if verse][:200]


@pytest.fixture(scope="session")
def tokenizer(english) -> PreTrainedTokenizerFast:
    """Lower-cases, so that a text in capitals is a perfect translation."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(SPECIAL.values()), show_progress=False)
    backend.train_from_iterator(english, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.fixture(scope="session")
def dense(tokenizer) -> BertForMaskedLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)).eval()


@pytest.fixture(scope="session")
def model(dense, tokenizer):
    """The same with a factorised table of full rank: the table itself is unchanged."""
    table = dense.get_input_embeddings().weight.detach()
    result = SimpleNamespace(coordinates=table.clone(), basis=torch.eye(32), bias=None)
    return build_model(dense, result, tokenizer)
