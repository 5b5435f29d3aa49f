from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from ofa_fast import build_model
from ofa_fast.training.checkpoints import Checkpoints

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


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> list[Path]:
    """English and Cherokee verses, 120 each."""
    folder = tmp_path_factory.mktemp("texts")
    for language in ("eng", "chr"):
        verses = (BIBLE / f"{language}.txt").read_text("utf-8").split("\n")[:120]
        (folder / f"{language}.txt").write_text("\n".join(verses), "utf-8")
    return [folder / "eng.txt", folder / "chr.txt"]


@pytest.fixture(scope="session")
def held_out(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("held-out") / "eng.txt"
    path.write_text("\n".join((BIBLE / "eng.txt").read_text("utf-8").split("\n")[500:520]), "utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(texts) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(SPECIAL.values()), show_progress=False)
    backend.train([str(path) for path in texts], trainer)
    # The trainer gives the same tokens other ids in every process: sorted, every run of the tests is the same.
    tokens = [*SPECIAL.values(), *sorted(set(backend.get_vocab()) - set(SPECIAL.values()))]
    backend.model = models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.fixture(scope="session")
def dense_dir(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer) + 3, max_position_embeddings=64, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def factorized_dir(dense_dir, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("factorized") / "model"
    dense = BertForMaskedLM.from_pretrained(dense_dir)
    generator = torch.Generator().manual_seed(1)
    table = SimpleNamespace(
        coordinates=torch.randn(len(tokenizer) + 3, 8, generator=generator) * 8**-0.5,
        basis=torch.randn(8, 32, generator=generator) * 0.02,
        bias=None,
    )
    build_model(dense, table, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def killed(monkeypatch):
    """``with killed(at=4):`` the run inside dies after it has committed that checkpoint, or before; by default any."""

    @contextmanager
    def killed(at: int | None = None, committed: bool = True):
        commit = Checkpoints.commit

        def die(self, step, keep, energy):
            dies = at in (None, step)
            if committed or not dies:
                commit(self, step, keep, energy)
            if dies:
                raise MemoryError

        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(Checkpoints, "commit", die)
            yield

    return killed
