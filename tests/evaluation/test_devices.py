"""Encoding, retrieval and fine-tuning on each device that there is."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import BertForSequenceClassification, BertForTokenClassification

from ofa_fast import build_model
from ofa_fast.evaluation.encoding import encode
from ofa_fast.evaluation.finetuning import IGNORED, Example, Recipe, _collate, finetune, predict
from ofa_fast.evaluation.loading import load
from ofa_fast.evaluation.retrieval import retrieval_accuracy


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices") / "model"
    for one in (model, tokenizer):
        one.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_sentence_vectors_are_those_of_the_cpu(device, pooling, model, tokenizer, english):
    there = copy.deepcopy(model).to(device)
    ours, true = (encode(one, tokenizer, english[:40], pooling=pooling, batch_size=16) for one in (there, model))
    assert (ours.device.type, ours.dtype) == ("cpu", torch.float32)
    assert_close(ours, true, rtol=0, atol=1e-4)


@pytest.mark.parametrize("similarity", ["cosine", "csls", "centered"])
def test_retrieval_takes_vectors_where_they_are(device, similarity):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(90, 16, generator=generator)
    target = source + torch.randn(90, 16, generator=generator)
    true = retrieval_accuracy(source, target, similarity=similarity)
    assert retrieval_accuracy(source.to(device), target.to(device), similarity=similarity) == true
    assert true["chance"]["top10"] < true["mean"]["top1"] < 1


def classifier(kind, model, tokenizer, device):
    """A factorised classifier of two classes without dropout, the same one on every device."""
    torch.manual_seed(3)
    config = model.config.stock_class(**model.config.to_dict() | {"num_labels": 2})
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    embedding = model.get_input_embeddings()
    table = type("Table", (), {"coordinates": embedding.coordinates, "basis": embedding.basis, "bias": None})
    return build_model(kind(config), table, tokenizer).to(device)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForTokenClassification])
def test_fine_tuning_goes_as_on_the_cpu(device, kind, precision, model, tokenizer, english):
    per_token = kind is BertForTokenClassification
    examples = []
    for number, text in enumerate(english[:48]):
        ids = tokenizer(text, truncation=True, max_length=24)["input_ids"]
        label = [i % 2 if i > 4 else IGNORED for i in ids] if per_token else number % 2
        examples.append(Example(ids, label))
    recipe, found = Recipe(epochs=2, learning_rate=1e-3, batch_size=8, precision=precision), []
    for at in ("cpu", device):
        network = classifier(kind, model, tokenizer, at)
        record = finetune(network, examples, recipe, seed=1, dev_score=None)
        found.append((record["loss"], predict(network, [example.ids for example in examples], precision)))
    (true, expected), (losses, predicted) = found
    np.testing.assert_allclose(losses, true, rtol=0, atol=1e-3 if precision == "float32" else 5e-2)
    assert losses[1] < losses[0]
    if precision == "float32":
        agree = [np.mean(np.asarray(ours) == theirs) for ours, theirs in zip(predicted, expected, strict=True)]
        assert np.mean(agree) > 0.95
    assert all(isinstance(one, (np.ndarray, np.generic)) for one in predicted)


def test_batches_are_copied_while_the_gpu_works(monkeypatch):
    """Else the host would wait for each, and so for the step before."""
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(pad_token_id=0))
    examples, pinned, copied = [Example([5, 6], 1), Example([7], 0)], [], []

    def to(tensor, device, non_blocking=False):
        copied.append((str(device), non_blocking, id(tensor) in pinned))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(id(tensor)) or tensor)
    monkeypatch.setattr(torch.Tensor, "to", to)
    for name in ("cpu", "cuda"):
        batch = _collate(examples, SimpleNamespace(config=config, device=torch.device(name)))
        assert {key: value.tolist() for key, value in batch.items()} == {
            "input_ids": [[5, 6], [7, 0]],
            "attention_mask": [[1, 1], [1, 0]],
            "labels": [1, 0],
        }
        assert copied == [(name, name == "cuda", name == "cuda")] * 3
        copied.clear()


def test_loading_leaves_the_generators_of_gpus_as_they_are(device, folder, monkeypatch):
    """A head is drawn on the CPU."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    one, other = (load(folder, "AutoModelForSequenceClassification", device=device)[0] for _ in range(2))
    assert not seeded and torch.equal(torch.get_rng_state(), before)
    assert one.device.type == device
    assert torch.equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named_before_anything_is_read(name, tmp_path):
    with pytest.raises(ValueError, match=f"device: '{name}' cannot be used here .*; 'cpu' always can"):
        load(tmp_path / "no such folder", device=name)
