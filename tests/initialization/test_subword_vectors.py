"""Subword vectors against plain loops over words."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ofa_fast import _native
from ofa_fast.initialization import WordVectors, initialize, subword_vectors, tokenization
from ofa_fast.initialization.subwords import covered_subwords, published_spellings, spellings

KINDS = ("wordpiece", "cased wordpiece", "metaspace", "byte-level")


def plain_loops(tokenizer, word_vectors, texts_of, words, once: bool) -> np.ndarray:
    lists: dict[int, list[int]] = {}
    for i, word in enumerate(words):
        found = [set(tokenizer.encode(text, add_special_tokens=False)) for text in texts_of(word)]
        for subwords in [set().union(*found)] if once else found:
            for subword in subwords:
                lists.setdefault(subword, []).append(i)
    out = np.zeros((len(tokenizer), word_vectors.vectors.shape[1]))
    for subword, members in lists.items():
        out[subword] = sum(word_vectors.vectors[i].astype(np.float64) * (1 / len(members)) for i in members)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_default_counts_a_word_once_a_subword(tokenizers, word_vectors, kind):
    tokenizer = tokenizers[kind]
    expected = plain_loops(tokenizer, word_vectors, spellings, word_vectors.words, once=True)
    expected[tokenizer.all_special_ids] = 0
    actual = subword_vectors(tokenizer, word_vectors)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_parity_counts_every_spelling(tokenizers, word_vectors, kind):
    tokenizer = tokenizers[kind]
    marked = [f"${word}$" for word in word_vectors.words]
    expected = plain_loops(tokenizer, word_vectors, published_spellings, marked, once=False)
    actual = subword_vectors(tokenizer, word_vectors, parity=True)
    assert actual.dtype == np.float64
    np.testing.assert_array_equal(actual, expected)


def test_chunks_do_not_change_the_mean(tokenizers, word_vectors, monkeypatch):
    whole = subword_vectors(tokenizers["metaspace"], word_vectors, parity=True)
    whole_default = subword_vectors(tokenizers["metaspace"], word_vectors)
    monkeypatch.setattr("ofa_fast.initialization.subwords.WORDS_PER_CHUNK", 77)
    np.testing.assert_array_equal(subword_vectors(tokenizers["metaspace"], word_vectors, parity=True), whole)
    chunked = subword_vectors(tokenizers["metaspace"], word_vectors)
    np.testing.assert_allclose(chunked, whole_default, rtol=1e-6, atol=1e-7)


def test_same_word_in_two_languages_counts_twice(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    vectors = np.array([[1.0, 0.0], [0.0, 3.0]], dtype=np.float16)
    both = subword_vectors(tokenizer, WordVectors(["water", "water"], vectors, ["eng", "deu"]))
    rows = both[both.any(1)]
    np.testing.assert_allclose(rows, np.tile([0.5, 1.5], (len(rows), 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [None, 7])
def test_words_of_different_weight(tokenizers, word_vectors, kind, columns):
    tokenizer, weights = tokenizers[kind], np.random.default_rng(0).random(len(word_vectors)).astype(np.float32) + 1e-6
    sums, totals = np.zeros((len(tokenizer), word_vectors.vectors.shape[1])), np.zeros(len(tokenizer))
    for word, vector, weight in zip(word_vectors.words, word_vectors.vectors, weights, strict=True):
        found = [tokenizer.encode(text, add_special_tokens=False) for text in spellings(word)]
        for subword in set().union(*found) - set(tokenizer.all_special_ids):
            sums[subword] += weight * vector.astype(np.float64)
            totals[subword] += weight
    expected = sums / np.where(totals > 0, totals, 1)[:, None]
    actual = subword_vectors(tokenizer, word_vectors, word_weights=weights, columns=columns)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    same = subword_vectors(tokenizer, word_vectors, word_weights=np.full(len(weights), 0.25, dtype=np.float32))
    np.testing.assert_allclose(same, subword_vectors(tokenizer, word_vectors), rtol=1e-6, atol=1e-7)


def test_languages_are_selected(tokenizers, word_vectors):
    only = subword_vectors(tokenizers["metaspace"], word_vectors, languages={"deu"})
    rows = [i for i, code in enumerate(word_vectors.languages) if code == "deu"]
    german = WordVectors([word_vectors.words[i] for i in rows], word_vectors.vectors[rows], ["deu"] * len(rows))
    np.testing.assert_array_equal(only, subword_vectors(tokenizers["metaspace"], german))


def test_truncation_and_padding_of_the_tokenizer_are_set_aside_and_restored(tokenizers, word_vectors):
    tokenizer = tokenizers["wordpiece"]
    expected = subword_vectors(tokenizer, word_vectors)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=1)
    backend.enable_padding(length=8)
    try:
        np.testing.assert_array_equal(subword_vectors(tokenizer, word_vectors), expected)
        assert backend.truncation["max_length"] == 1
        assert backend.padding["length"] == 8
    finally:
        backend.no_truncation()
        backend.no_padding()


def test_covered_subwords_are_those_with_a_vector(tokenizers, word_vectors):
    for tokenizer in tokenizers.values():
        covered = covered_subwords(tokenizer, word_vectors)
        np.testing.assert_array_equal(covered, subword_vectors(tokenizer, word_vectors).any(1))


def test_empty_words(tokenizers):
    tokenizer = tokenizers["metaspace"]
    blank = WordVectors(["", "$"], np.ones((2, 3), dtype=np.float32), None)
    for parity in (False, True):
        assert subword_vectors(tokenizer, blank, parity=parity).shape == (len(tokenizer), 3)


class PythonTokenizer:
    """What the recipe may ask of a tokenizer without a Rust backend."""

    is_fast = False

    def __init__(self, rust):
        self.rust, self.all_special_ids = rust, rust.all_special_ids

    def get_vocab(self):
        return self.rust.get_vocab()

    def __call__(self, texts, add_special_tokens):
        return self.rust(texts, add_special_tokens=add_special_tokens)


def test_python_tokenizer_gives_the_same_vectors(tokenizers, word_vectors):
    rust = tokenizers["wordpiece"]
    np.testing.assert_array_equal(
        subword_vectors(PythonTokenizer(rust), word_vectors), subword_vectors(rust, word_vectors)
    )


def test_python_tokenizer_of_many_words_warns(tokenizers):
    words = [f"word{i}" for i in range(3400)]
    many = WordVectors(words, np.ones((len(words), 2), dtype=np.float32))
    with pytest.warns(UserWarning, match="PythonTokenizer is a Python tokenizer: 10,200 texts"):
        covered_subwords(PythonTokenizer(tokenizers["wordpiece"]), many)


def test_spellings_that_read_the_same_are_encoded_once(tokenizers, word_vectors, monkeypatch):
    encoded: list[str] = []

    def batch_encoder(tokenizer, expected=None, plain=tokenization.batch_encoder):
        def encode(texts):
            encoded.extend(texts)
            return plain(tokenizer)(texts)

        return encode

    monkeypatch.setattr(tokenization, "batch_encoder", batch_encoder)
    one = WordVectors(["wasser"], np.ones((1, 2), dtype=np.float32), "deu")
    texts = {}
    for kind in KINDS:
        encoded.clear()
        subword_vectors(tokenizers[kind], one)
        texts[kind] = encoded.copy()
    assert texts == {
        "wordpiece": [" wasser"],
        "cased wordpiece": [" wasser", " Wasser"],
        "metaspace": [" wasser", " Wasser"],
        "byte-level": [" wasser", "wasser", " Wasser"],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_texts_encoded_together_have_the_ids_that_they_have_alone(tokenizers, kind, monkeypatch):
    tokenizer = tokenizers[kind]
    texts = [
        "wasser",
        " wasser",
        "",
        " ",
        "a b\tc",
        "[MASK]",
        " <mask>x",
        "##x",
        "▁x",
        "1.5%",
        "ⲙⲱⲟⲩ",
        "e\u0301",
        "\x00",
    ]
    expected = [tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for batch in (1, 2, 64):
        monkeypatch.setattr(tokenization, "TEXTS_PER_BATCH", batch)
        ids, offsets = tokenization.batch_encoder(tokenizer)(texts)
        assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == expected
        held = [*texts, "\u0091ofa-fast\u0092"]
        assert len(tokenization.batch_encoder(tokenizer)(held)[1]) == len(held) + 1
    assert tokenization.batch_encoder(tokenizer)([])[1].tolist() == [0]


def test_an_encoder_shares_the_model_and_leaves_the_tokenizer_as_it_is(tokenizers):
    backend = tokenizers["wordpiece"].backend_tokenizer
    before = backend.to_str()
    with_limits = Tokenizer.from_str(before)
    with_limits.add_tokens(["ofa fast"])
    with_limits.enable_truncation(1)
    with_limits.enable_padding(length=8)
    told = with_limits.to_str()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=with_limits, unk_token="[UNK]")
    for expected in (None, 3, 10**9):
        ids, _ = tokenization.batch_encoder(tokenizer, expected)(["ofa fast water fire"])
        assert len(ids) > 2 and ids[0] == with_limits.token_to_id("ofa fast")
    assert with_limits.to_str() == told and backend.to_str() == before


def test_a_tokenizer_that_joins_texts_differently_gets_each_alone():
    """One that prepends a space to the first piece of a text only."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0), ("▁", -1), ("▁water", -1), ("water", -1)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    ids, _ = tokenization.batch_encoder(tokenizer)(["water", "water"])
    assert ids.tolist() == tokenizer("water", add_special_tokens=False)["input_ids"] * 2


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_sums_do_not_depend_on_threads_nor_on_the_native_module(tokenizers, word_vectors, monkeypatch, threads):
    expected = subword_vectors(tokenizers["metaspace"], word_vectors)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        np.testing.assert_array_equal(subword_vectors(tokenizers["metaspace"], word_vectors), expected)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr("ofa_fast._native.cpu", None)
    np.testing.assert_allclose(subword_vectors(tokenizers["metaspace"], word_vectors), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(_native.cpu is None, reason="checks of the native module")
def test_the_native_sum_refuses_what_does_not_fit():
    def arguments(**changes) -> list:
        given = {
            "ids": torch.tensor([0, 2]),
            "id_starts": torch.tensor([0, 1, 2]),
            "vectors": torch.ones(2, 3),
            "row_starts": torch.tensor([0, 1, 2]),
            "sums": torch.zeros(3, 3, dtype=torch.float64),
            "totals": torch.zeros(3, dtype=torch.float64),
        }
        return [*(given | changes).values(), 1]

    _native.cpu.subword_sums_add(*arguments())
    for name, value, message in (
        ("ids", torch.tensor([0, 3]), r"ids must lie in \[0, 3\), got 3"),
        ("id_starts", torch.tensor([0, 3, 2]), "id_starts must ascend from 0 to 2"),
        ("row_starts", torch.tensor([0, 1]), "row_starts must have shape"),
        ("sums", torch.zeros(3, 3), "sums must be float64"),
    ):
        with pytest.raises(ValueError, match=message):
            _native.cpu.subword_sums_add(*arguments(**{name: value}))


def test_ids_with_gaps_have_zero_rows():
    model = models.WordLevel({"[UNK]": 0, "water": 5, "fire": 9}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    vectors = subword_vectors(tokenizer, WordVectors(["fire"], np.ones((1, 2), dtype=np.float32), None))
    assert vectors.shape == (10, 2)
    assert vectors.any(1).nonzero()[0].tolist() == [9]


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("wasser", ("wasser", " wasser", " Wasser")),
        ("US$", ("US$", " US$", " US$")),
        ("", ("", " ", " ")),
        ("ǆep", ("ǆep", " ǆep", " ǅep")),
        ("წყალი", ("წყალი", " წყალი", " წყალი")),
    ],
)
def test_spellings(word, texts):
    assert spellings(word) == texts


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("wasser", ("wasser", " wasser", " Wasser")),
        ("$wasser$", (" wasser ", "  wasser ", "Wasser ")),
        ("$was", (" was", "  was", "Was")),
        ("ser$", ("ser ", " ser ", " Ser ")),
    ],
)
def test_published_spellings(word, texts):
    assert published_spellings(word) == texts


def test_word_vectors_in_bytes_give_the_means_of_what_they_stand_for(tokenizers, word_vectors, tmp_path):
    word_vectors.save(tmp_path / "bytes.safetensors", np.int8)
    packed = WordVectors.load(tmp_path / "bytes.safetensors")
    tokenizer = tokenizers["metaspace"]
    unpacked = WordVectors(packed.words, packed.vectors[:], packed.languages)
    np.testing.assert_array_equal(subword_vectors(tokenizer, packed), subword_vectors(tokenizer, unpacked))
    source = tokenizers["wordpiece"]
    table = np.random.default_rng(0).standard_normal((len(source), 16)).astype(np.float32)
    results = [initialize(table, source, tokenizer, vectors, rank=8, neighbors=5) for vectors in (packed, unpacked)]
    np.testing.assert_array_equal(results[0].neighbors, results[1].neighbors)
    np.testing.assert_array_equal(results[0].coordinates, results[1].coordinates)
