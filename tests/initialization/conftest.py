"""Small tokenizers of every kind and word vectors, all made from real verses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ofa_fast.initialization import WordVectors

VERSES = Path(__file__).parents[2] / "examples" / "data" / "bible"
LANGUAGES = ("eng", "deu", "spa", "chr")


@pytest.fixture(scope="session")
def verses() -> dict[str, list[str]]:
    return {code: (VERSES / f"{code}.txt").read_text("utf-8").splitlines()[:500] for code in LANGUAGES}


def words_of(line: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", line.lower())


@pytest.fixture(scope="session")
def word_vectors(verses) -> WordVectors:
    """Words that share verses across languages get close vectors: counts a verse, projected at random."""
    projection = np.random.default_rng(0).standard_normal((500, 24)).astype(np.float32)
    words, vectors, languages = [], [], []
    for code, lines in verses.items():
        verses_of: dict[str, list[int]] = {}
        for i, line in enumerate(lines):
            for word in dict.fromkeys(words_of(line)):
                verses_of.setdefault(word, []).append(i)
        for word in sorted(verses_of, key=lambda word: -len(verses_of[word]))[:300]:
            words.append(word)
            vectors.append(projection[verses_of[word]].mean(0))
            languages.append(code)
    return WordVectors(words, np.stack(vectors), languages)


def wordpiece(lines: list[str], size: int, lowercase: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(roles, special, strict=True)))


def metaspace(lines: list[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        lines,
        trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    roles = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **dict(zip(roles, special, strict=True))
    )


def byte_level(lines: list[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


@pytest.fixture(scope="session")
def tokenizers(verses) -> dict[str, PreTrainedTokenizerFast]:
    """A small English source and larger multilingual targets."""
    every = [line for lines in verses.values() for line in lines]
    return {
        "wordpiece": wordpiece(verses["eng"], 800),
        "cased wordpiece": wordpiece(every, 1500, lowercase=False),
        "metaspace": metaspace(every, 1500),
        "byte-level": byte_level(every, 1500),
    }
