"""Real inputs: from the texts in examples/data, or from folders given with --data."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Skip

BIBLE = Path(__file__).parent.parent / "examples" / "data" / "bible"
CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ofa-fast"
)  # where examples/get_minilm.py writes
SUBWORDS = 60_000


def find(path: str, folders: Sequence[Path]) -> Path:
    """The first ``path`` below one of ``folders``; without any, the size is skipped."""
    for folder in (*folders, CACHE):
        if (folder / path).exists():
            return folder / path
    raise Skip(f"needs {path} in a folder given with --data")


def array(path: str, folders: Sequence[Path]) -> torch.Tensor:
    return torch.from_numpy(np.load(find(path, folders)).astype(np.float32))


def vocabulary_table(model: str, folders: Sequence[Path]) -> torch.Tensor:
    """The word embeddings in the model.safetensors of a Hugging Face folder."""
    from safetensors import safe_open

    with safe_open(find(f"{model}/model.safetensors", folders), "pt") as file:
        names = [name for name in file.keys() if "word_embeddings" in name or "embed_tokens" in name]  # noqa: SIM118
        return file.get_tensor(names[0]).float().clone()  # or the first to read would bear the pages of the file


@functools.cache
def _tokenizer():
    """A byte-pair tokenizer of the six languages, trained here."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train([str(file) for file in _texts()], trainers.BpeTrainer(vocab_size=SUBWORDS, show_progress=False))
    return tokenizer


def _texts() -> list[Path]:
    return sorted(BIBLE.glob("*.txt"))


@functools.cache
def text_ids(tokens: int, vocabulary: int) -> torch.Tensor:
    """Ids of verses of all six languages in random order, spread over the vocabulary in their order."""
    verses = [verse for text in _texts() for verse in text.read_text(encoding="utf-8").splitlines() if verse]
    random.Random(0).shuffle(verses)
    ids = []
    while len(ids) < tokens:
        ids += _tokenizer().encode(verses.pop()).ids
    return torch.tensor(ids[:tokens]) * (vocabulary // SUBWORDS)


def zipf_ids(tokens: int, vocabulary: int) -> torch.Tensor:
    """Ids whose frequencies fall off as 1 / (rank + 2.7), as those of words do."""
    weights = 1 / (torch.arange(vocabulary, dtype=torch.float64) + 2.7)
    return torch.multinomial(weights, tokens, replacement=True)


@functools.cache
def subwords(d: int) -> torch.Tensor:
    """The vectors [K, d] of all subwords of the six languages, as the initialisation makes them."""
    from transformers import PreTrainedTokenizerFast

    from ofa_fast.initialization import build_word_vectors
    from ofa_fast.initialization.subwords import subword_vectors

    words = build_word_vectors({text.stem: text for text in _texts()}, dim=d)
    vectors = torch.from_numpy(subword_vectors(PreTrainedTokenizerFast(tokenizer_object=_tokenizer()), words))
    return vectors[vectors.any(dim=1)]
