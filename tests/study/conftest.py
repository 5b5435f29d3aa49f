from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ofa_fast.initialization import build_word_vectors
from ofa_fast.study import Task

BIBLE = Path(__file__).parents[2] / "examples" / "data" / "bible"
LANGUAGES = ("eng", "deu", "chr")
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


def _texts(folder: Path, lines: slice, languages=LANGUAGES) -> list[Path]:
    folder.mkdir()
    for language in languages:
        verses = (BIBLE / f"{language}.txt").read_text("utf-8").split("\n")[lines]
        (folder / f"{language}.txt").write_text("\n".join(verses) + "\n", "utf-8")
    return sorted(folder.glob("*.txt"))


def _tokenizer(files: list[Path], size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(SPECIAL.values())
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    backend.train([str(file) for file in files], trainer)
    tokens = [*special, *sorted(set(backend.get_vocab()) - set(special))]
    backend.model = models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> dict:
    """Inputs of ``compare``: an English BERT of two layers without a head, three languages, verses held out."""
    root = tmp_path_factory.mktemp("world")
    train, _, loss = (
        _texts(root / name, lines)
        for name, lines in (("train", slice(0, 150)), ("verses", slice(150, 180)), ("loss", slice(180, 190)))
    )
    english = _tokenizer([file for file in train if file.stem == "eng"], 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(english), max_position_embeddings=64, **sizes)).save_pretrained(root / "source")
    english.save_pretrained(root / "source")
    _tokenizer(train, 500).save_pretrained(root / "tokenizer")
    vectors = {"linked": root / "linked.safetensors", "unlinked": root / "unlinked.safetensors"}
    for iterations, path in zip((3, 0), vectors.values(), strict=True):
        files = {file.stem: file for file in train}
        build_word_vectors(files, dim=16, iterations=iterations).save(path)
    return {
        "source": root / "source",
        "tokenizer": root / "tokenizer",
        "vectors": vectors,
        "train_files": train,
        "eval_files": loss,
        "tasks": [
            Task("retrieval", root / "verses", options={"k": (1, 5)}),
            Task("retrieval", root / "train", "seen", always=False, options={"k": (1, 5), "max_pairs": 20}),
        ],
        "points": (2, 4),
        "bias": "frequencies",
        "batch_size": 4,
        "max_length": 32,
        "progress": False,
    }
