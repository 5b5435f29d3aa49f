"""Models that multiply their embedding's output, and BART's bias behind the head."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BATCH, TOLERANCE, WIDTH, dense, inputs, outputs, source_model, table
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ofa_fast import build_model, to_dense

SCALED = ("gemma", "gemma2", "gemma3_text", "bart", "mbart")


def pair(model_type, tokenizers, auto=None, rank=5, dtype=torch.float32, **changes):
    """The factorised model and the stock model of the same function."""
    source, result = source_model(model_type, auto, **changes).to(dtype), table(260, rank)
    return build_model(source, result, tokenizers["bert"]), build_model(source, dense(result), tokenizers["bert"])


@pytest.mark.parametrize("model_type", SCALED)
def test_the_lookup_is_scaled_and_the_table_is_not(model_type, tokenizers):
    model, stock = pair(model_type, tokenizers)
    embedding, ids = model.get_input_embeddings(), BATCH["input_ids"]
    assert_close(embedding(ids), stock.get_input_embeddings()(ids))
    assert_close(embedding(ids), embedding.weight[ids] * WIDTH**0.5)
    assert "scale=4" in repr(embedding)
    plain, stock = pair("bart", tokenizers, scale_embedding=False)
    assert_close(plain.get_input_embeddings()(ids), stock.get_input_embeddings()(ids))


@pytest.mark.parametrize("model_type", SCALED)
def test_in_bfloat16_the_scale_is_the_stock_one(model_type, tokenizers):
    """Lookups of unit coordinates are exact, so another rounding of the scale would show."""
    width = 24  # sqrt(24) is no bfloat16
    width_key = "d_model" if "bart" in model_type else "hidden_size"
    source = source_model(model_type, **{width_key: width}).bfloat16()
    result = table(260, width, width)
    result.coordinates = torch.eye(width).repeat(11, 1)[:260]
    result.basis = result.basis.bfloat16().float()
    model = build_model(source, result, tokenizers["bert"])
    stock = build_model(source, dense(result), tokenizers["bert"])
    ids = torch.arange(260)
    expected = stock.get_input_embeddings()(ids)
    assert_close(model.get_input_embeddings()(ids), expected, rtol=0, atol=0)
    assert expected.dtype == torch.bfloat16


def test_labels_of_barts_decoder_are_not_shifted(tokenizers):
    model, stock = pair("bart", tokenizers, AutoModelForCausalLM, is_decoder=True)
    labels = torch.tensor([[9, 31, -100, 4, 3], [6, 2, 8, -100, 3]])
    for arguments in ({}, {"attention_mask": torch.ones_like(labels)}):
        assert_close(model(**BATCH, labels=labels, **arguments).loss, stock(**BATCH, labels=labels, **arguments).loss)


def test_an_untied_head_is_not_scaled(tokenizers):
    source, result, head = source_model("gemma", tie_word_embeddings=False), table(260, WIDTH), table(260, WIDTH)
    model = build_model(source, result, tokenizers["bert"], head=head)
    stock = build_model(source, dense(result), tokenizers["bert"], head=dense(head))
    assert_close(outputs(model, BATCH), outputs(stock, BATCH), **TOLERANCE)


@pytest.mark.parametrize("model_type", ["bart", "mbart"])
def test_the_bias_behind_the_head_counts(model_type, tokenizers, verses, tmp_path):
    source, result = source_model(model_type), table(260, WIDTH, bias=True)
    model = build_model(source, result, tokenizers["bert"])
    stock = build_model(source, dense(result), tokenizers["bert"])
    assert_close(model.final_logits_bias, result.bias[None])
    assert_close(outputs(model, BATCH), outputs(stock, BATCH), **TOLERANCE)
    batch = inputs(tokenizers["bert"], verses[:4], masked=0.5)
    for _ in range(2):
        output = model(**batch)
        assert output.logits is None
        assert_close(output.loss, stock(**batch).loss)
    assert_close(model.final_logits_bias, result.bias[None])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert_close(outputs(loaded, BATCH), outputs(model, BATCH), rtol=0, atol=0)
    assert_close(outputs(to_dense(model), BATCH), outputs(model, BATCH), **TOLERANCE)
    model.resize_token_embeddings(264)
    assert outputs(model, BATCH).shape[-1] == model.final_logits_bias.shape[-1] == 264


def test_capped_logits_keep_the_stock_loss(tokenizers, verses):
    model, stock = pair("gemma2", tokenizers, final_logit_softcapping=3.0)
    batch = inputs(tokenizers["bert"], verses[:4])
    batch["labels"] = batch["input_ids"]
    for _ in range(2):
        assert_close(model(**batch).loss, stock(**batch).loss)
