"""The native unigram beside the tokenizer that it stands for."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ofa_fast import _native
from ofa_fast.initialization.unigram import SEPARATOR, native_unigram

pytestmark = pytest.mark.skipif(_native.cpu is None, reason="of the native module")

LETTERS = ["a", "b", "c", " ", " ", "▁", "é", "水", "𝒳", "\u0301", "\u094d", "क", "\u00a0", "\n", "ﬁ", "x"]


def tokenizer(pieces: list[tuple[str, float]], **model) -> Tokenizer:
    made = Tokenizer(models.Unigram(pieces, unk_id=0, **model))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def test_random_texts_and_vocabularies_give_the_same_ids():
    draw = random.Random(0)
    for _ in range(60):
        pieces = {"".join(draw.choices(LETTERS, k=draw.randint(1, 4))).replace(" ", "▁") for _ in range(80)}
        backend = tokenizer([("<unk>", 0.0), *((piece, -draw.randint(1, 9) / 2) for piece in sorted(pieces))])
        native = native_unigram(backend)
        texts = ["".join(draw.choices(LETTERS, k=draw.randint(0, 12))) for _ in range(120)]
        ids, offsets = native(texts)
        expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
        assert [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(len(texts))] == expected


def test_texts_with_added_tokens_or_the_separator_are_left_to_the_tokenizer():
    backend = tokenizer([("<unk>", 0.0), ("▁a", -1.0)])
    backend.add_special_tokens(["<mask>"])
    native = native_unigram(backend)
    assert native(["a"]) is not None
    assert native(["a<mask>"]) is None
    assert native([f"a{SEPARATOR}"]) is None


def test_other_kinds_of_tokenizers_have_no_native_form():
    pieces = [("<unk>", 0.0), ("▁a", -1.0)]
    assert native_unigram(tokenizer(pieces)) is not None
    assert native_unigram(tokenizer(pieces, byte_fallback=True)) is None
    first = tokenizer(pieces)
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert native_unigram(first) is None
    assert native_unigram(Tokenizer(models.BPE())) is None


def test_an_interrupt_leaves_the_garbage_collector_on(monkeypatch):
    disable = gc.disable

    def interrupted() -> None:
        disable()
        raise KeyboardInterrupt

    monkeypatch.setattr(gc, "disable", interrupted)
    with pytest.raises(KeyboardInterrupt):
        native_unigram(tokenizer([("<unk>", 0.0), ("▁a", -1.0)]))
    assert gc.isenabled()


def test_the_native_functions_refuse_what_does_not_fit():
    native = native_unigram(tokenizer([("<unk>", 0.0), ("▁a", -1.0)]))
    text = torch.tensor([97, 0xC2, 0x91], dtype=torch.uint8)

    def encode(nodes=native.nodes, unknown=0, text=text, texts=1):
        ids, ends = torch.empty(len(text), dtype=torch.int64), torch.empty(texts, dtype=torch.int64)
        return _native.cpu.unigram_encode(nodes, native.labels, native.scores, unknown, -11.0, text, ids, ends, 1)

    assert encode() == 1
    with pytest.raises(ValueError, match="unknown must be a piece"):
        encode(unknown=2)
    with pytest.raises(ValueError, match="text must hold an end for each of 2 texts"):
        encode(texts=2)
    with pytest.raises(ValueError, match="text must end with the last of its texts"):
        encode(text=torch.cat([text, text]))
    with pytest.raises(ValueError, match="nodes must be those of a trie"):
        encode(nodes=native.nodes * 2)
    pieces = torch.tensor([98, 97], dtype=torch.uint8)
    nodes, labels = torch.empty(4, 2, dtype=torch.int32), torch.empty(4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="pieces must ascend"):
        _native.cpu.unigram_build_trie(pieces, torch.arange(3), torch.arange(2), nodes, labels, 1)
