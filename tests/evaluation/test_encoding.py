"""Sentence vectors against a forward pass sentence by sentence."""

from __future__ import annotations

import pytest
import torch

from ofa_fast.evaluation import default_layer, encode

POOLED = {
    "mean": lambda states: states.mean(0),
    "max": lambda states: states.amax(0),
}


def token_states(model, tokenizer, sentence, layer):
    tokens = tokenizer(sentence, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("layer", [0, 2, 3, -1])
def test_vectors_are_pooled_states_of_own_tokens(model, dense, tokenizer, english, layer, pooling):
    sentences = english[:9]
    vectors = encode(model, tokenizer, sentences, layer, pooling, batch_size=4)
    assert vectors.dtype == torch.float32
    for sentence, vector in zip(sentences, vectors, strict=True):
        states = token_states(dense, tokenizer, sentence, layer)
        expected = states[0] if pooling == "cls" else POOLED[pooling](states[1:-1])
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_vectors_do_not_depend_on_the_batch(model, tokenizer, english):
    one, many = (encode(model, tokenizer, english[:20], batch_size=size) for size in (1, 20))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)


def test_unknown_tokens_count_and_sentences_without_tokens_are_zero(model, dense, tokenizer):
    unknown, empty = encode(model, tokenizer, ["☃ ☃", ""], layer=1)
    expected = token_states(dense, tokenizer, "☃ ☃", 1)[1:-1].mean(0)
    torch.testing.assert_close(unknown, expected, rtol=1e-4, atol=1e-5)
    assert not empty.any()
    assert not encode(model, tokenizer, [""], layer=1, pooling="max").any()


def test_no_sentences_give_no_vectors(model, tokenizer):
    assert encode(model, tokenizer, []).shape == (0, 32)


def test_long_sentences_are_cut(model, dense, tokenizer, english):
    long = " ".join(english[:20])
    assert len(tokenizer(long, verbose=False).input_ids) > 128
    cut = encode(model, tokenizer, [long], layer=1, max_length=16)[0]
    short = tokenizer(long, truncation=True, max_length=16, return_tensors="pt")
    expected = dense(**short, output_hidden_states=True).hidden_states[1][0, 1:-1].mean(0)
    torch.testing.assert_close(cut, expected, rtol=1e-4, atol=1e-5)
    assert encode(model, tokenizer, [long]).isfinite().all()


def test_the_model_keeps_its_mode(model, tokenizer):
    model.train()
    first, second = encode(model, tokenizer, ["In the beginning"] * 2)
    assert model.training
    assert torch.equal(first, second)
    model.eval()


def test_the_default_layer_is_two_thirds_up(model):
    assert default_layer(model) == 2
    model.config.num_hidden_layers = 12
    assert default_layer(model) == 8
    model.config.num_hidden_layers = 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "sum"}, "pooling: expected one of mean, max, cls, got 'sum'"),
        ({"layer": 4}, r"layer: the model has layers 0 \(the embeddings\) to 3, got 4"),
        ({"layer": -5}, "layer: the model has layers"),
        ({"max_length": 129}, "max_length: 129 is over the 128 positions"),
    ],
)
def test_bad_options_are_named(model, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        encode(model, tokenizer, ["a"], **options)
