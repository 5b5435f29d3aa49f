"""The dense export: a stock model of the same function."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from test_save_and_load import LOAD
from tiny_models import BATCH, ENCODERS, TOLERANCE, built, inputs, outputs, source_model
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM

from ofa_fast import to_dense


@pytest.mark.parametrize("model_type", ENCODERS)
def test_dense_model_is_stock(model_type, tokenizers):
    model = built(model_type, tokenizers)
    dense = to_dense(model)
    assert type(dense).__module__.startswith("transformers.")
    assert type(dense.config).__module__.startswith("transformers.")
    assert (dense.config.model_type, dense.config.vocab_size) == (model_type, 264)
    assert not hasattr(dense.config, "rank")


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


def test_ends_that_have_come_apart_stay_apart(tokenizers, tmp_path):
    model = built("bert", tokenizers)
    model.cls.predictions.decoder.basis = torch.nn.Parameter(model.cls.predictions.decoder.basis * 2)
    model.save_pretrained(tmp_path / "factorized")
    to_dense(model).save_pretrained(tmp_path / "dense")
    for name in ("factorized", "dense"):
        loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / name).eval()
        assert_close(outputs(loaded, BATCH), outputs(model, BATCH), **TOLERANCE)
