"""The dense export: a stock model of the same function."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from test_build_model import AUTO, TOLERANCE, outputs
from test_save_and_load import BATCH, LOAD, built
from tiny_models import ENCODERS, OTHERS, inputs, source_model, table
from torch.testing import assert_close

from ofa_fast import build_model, to_dense


@pytest.mark.parametrize("auto", AUTO, ids=lambda auto: auto.__name__)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_dense_model_is_stock_and_computes_the_same(model_type, auto, tokenizers):
    model = built(model_type, tokenizers, auto)
    dense = to_dense(model)
    assert type(dense).__module__.startswith("transformers.")
    assert type(dense.config).__module__.startswith("transformers.")
    assert (dense.config.model_type, dense.config.vocab_size) == (model_type, 264)
    assert not hasattr(dense.config, "rank")
    assert_close(outputs(dense, BATCH), outputs(model, BATCH), **TOLERANCE)


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures(model_type, tokenizers):
    model = built(model_type, tokenizers)
    assert_close(outputs(to_dense(model), BATCH), outputs(model, BATCH), **TOLERANCE)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma", "gemma3_text", "t5", "bart", "mbart"])
def test_both_generate_the_same_text(model_type, tokenizers):
    model = built(model_type, tokenizers)
    prompt = {"inputs": BATCH["input_ids"], "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**prompt), to_dense(model).generate(**prompt))


def test_untied_head(tokenizers):
    source = source_model("llama", tie_word_embeddings=False)
    model = build_model(source, table(260, 4), tokenizers["bert"], head=table(260, 4))
    assert_close(outputs(to_dense(model), BATCH), outputs(model, BATCH), **TOLERANCE)


def test_head_is_tied_and_has_the_bias(tokenizers):
    model = built("bert", tokenizers)
    dense = to_dense(model)
    assert dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    assert_close(dense.cls.predictions.bias.detach(), model.get_output_embeddings().bias.detach())
    assert dense.cls.predictions.bias is dense.cls.predictions.decoder.bias


def test_a_process_without_ofa_fast_loads_it(tokenizers, tmp_path):
    model, tokenizer = built("roberta", tokenizers), tokenizers["bert"]
    to_dense(model).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    script = LOAD.format(imports="") + "assert not any(name.startswith('ofa_fast') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", script, tmp_path / "model", tmp_path / "logits.pt"], check=True)
    expected = model(**inputs(tokenizer, ["In the beginning"])).logits
    assert_close(torch.load(tmp_path / "logits.pt"), expected, **TOLERANCE)


def test_a_dense_model_is_refused():
    with pytest.raises(TypeError, match="BertForMaskedLM"):
        to_dense(source_model("bert"))
