"""Saved models: what is in the folder, and that the stock Auto classes load it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from tiny_models import BATCH, ENCODERS, built, inputs, outputs
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_folder_holds_each_tensor_once(model_type, tokenizers, tmp_path):
    model = built(model_type, tokenizers)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert sorted(shape for shape in shapes.values() if 264 in shape) == [(264,), (264, 5)]
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == sum(p.numel() for p in model.parameters())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert (config["model_type"], config["source_model_type"], config["rank"]) == ("ofa-fast", model_type, 5)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_masked_lm_folder_loads_as_a_plain_encoder_and_as_a_classifier(model_type, tokenizers, tmp_path):
    model = built(model_type, tokenizers)
    model.save_pretrained(tmp_path)
    expected = model.base_model(**BATCH).last_hidden_state
    for auto, fresh in ((AutoModel, "pooler"), (AutoModelForSequenceClassification, ("classifier", "bert.pooler"))):
        torch.manual_seed(1)
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert_close(loaded.base_model(**BATCH).last_hidden_state, expected, rtol=0, atol=0)
        assert info["missing_keys"] and all(name.startswith(fresh) for name in info["missing_keys"])
        assert all(name.startswith(("cls.", "lm_head.")) for name in info["unexpected_keys"])
        assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())
    torch.manual_seed(1)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_close(dict(again.state_dict()), dict(loaded.state_dict()))


@pytest.mark.parametrize("model_type", ENCODERS)
def test_plain_encoder_folder_loads_as_a_masked_lm(model_type, tokenizers, tmp_path):
    encoder = built(model_type, tokenizers, AutoModel)
    encoder.save_pretrained(tmp_path)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith(("cls.", "lm_head.")) for name in info["missing_keys"])
    assert_close(model.base_model(**BATCH)[0], encoder(**BATCH)[0], rtol=0, atol=0)
    head = model.get_output_embeddings()
    assert head.coordinates is model.get_input_embeddings().coordinates
    assert not head.bias.any()


def test_model_from_its_configuration_alone(tokenizers):
    config = built("roberta", tokenizers).config
    model = AutoModelForMaskedLM.from_config(config)
    embedding = model.get_input_embeddings()
    assert 0.01 < embedding.weight.std() < 0.04
    assert not embedding.weight[config.pad_token_id].any()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model(**BATCH).logits.shape == (2, 5, 264)


def test_other_tables_with_as_many_rows_as_the_vocabulary_are_not_mistaken_for_it(tokenizers, tmp_path):
    model = built("bert", tokenizers, max_position_embeddings=264, intermediate_size=264)
    fresh = AutoModelForMaskedLM.from_config(model.config)
    for name, parameter in fresh.named_parameters():
        assert parameter.device.type == "cpu" and torch.isfinite(parameter).all(), name
    assert 0.015 < fresh.bert.embeddings.position_embeddings.weight.std() < 0.025
    model.save_pretrained(tmp_path)
    assert_close(outputs(AutoModelForMaskedLM.from_pretrained(tmp_path), BATCH), outputs(model, BATCH))


def test_fresh_heads_are_initialised_by_the_rules_of_their_architecture(tokenizers, tmp_path):
    """ModernBERT's rules address a classifier through the model that holds it."""
    built("modernbert", tokenizers).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert 0.1 < model.classifier.weight.std() < 0.5  # hidden_size ** -0.5 = 0.25
    assert not model.classifier.bias.any()


LOAD = """
import sys, torch
{imports}
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
torch.set_num_threads(1)
folder, out = sys.argv[1:]
batch = AutoTokenizer.from_pretrained(folder)(["In the beginning"], return_tensors="pt")
batch.pop("token_type_ids", None)
torch.save(AutoModelForMaskedLM.from_pretrained(folder)(**batch).logits, out)
"""


def test_a_fresh_process_needs_only_the_import(tokenizers, tmp_path):
    model, tokenizer = built("xlm-roberta", tokenizers), tokenizers["bert"]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    script = LOAD.format(imports="import ofa_fast")
    subprocess.run([sys.executable, "-c", script, tmp_path / "model", tmp_path / "logits.pt"], check=True)
    assert_close(torch.load(tmp_path / "logits.pt"), model(**inputs(tokenizer, ["In the beginning"])).logits)


def test_configuration_and_tokenizer_load(tokenizers, tmp_path):
    built("roberta", tokenizers).save_pretrained(tmp_path)
    tokenizers["bert"].save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (type(config).__name__, config.rank, config.vocab_size) == ("FactorizedRobertaConfig", 5, 264)
    assert AutoTokenizer.from_pretrained(tmp_path)("In the beginning") == tokenizers["bert"]("In the beginning")
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("entries", "message"),
    [({"source_model_type": "nosuch", "rank": 3}, "'nosuch'"), ({"source_model_type": "bert"}, "rank .* got None")],
)
def test_folders_with_a_wrong_configuration_are_refused(entries, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ofa-fast"} | entries))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_state_dict_round_trip(tokenizers, tmp_path):
    model, other = built("roberta", tokenizers), built("roberta", tokenizers)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert not any(other.load_state_dict(torch.load(tmp_path / "state.pt")))
    assert_close(outputs(other, BATCH), outputs(model, BATCH), rtol=0, atol=0)
    assert other.get_output_embeddings().coordinates is other.get_input_embeddings().coordinates
