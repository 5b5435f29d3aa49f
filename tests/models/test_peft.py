"""LoRA on a factorised model: adapters on its layers, and the table trained beside them."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import BATCH, LABELS, LANGUAGE_MODEL, TOLERANCE, built, outputs
from torch.testing import assert_close

from ofa_fast import to_dense

peft = pytest.importorskip("peft")

ATTENTION = {"xlm-roberta": ["query", "value"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}


def train(model) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        output = model(**BATCH, labels=LABELS)
        assert output.logits is None
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return losses


@pytest.mark.parametrize("train_table", [False, True], ids=["table frozen", "table trained"])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_an_adapter_trains_saves_loads_and_merges(kind, targets, train_table, tokenizers, tmp_path):
    base = built(kind, tokenizers)
    config = peft.LoraConfig(target_modules=ATTENTION[kind] if targets == "attention" else targets)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    embedding, before = model.get_input_embeddings(), base.get_input_embeddings().coordinates
    embedding.requires_grad_(train_table)  # both ends: the head has the same two parameters
    losses = train(model)
    assert losses[-1] < losses[0]
    assert torch.equal(embedding.coordinates, before) != train_table
    assert model.get_output_embeddings().coordinates is embedding.coordinates

    model.eval()
    expected = outputs(model, BATCH)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=train_table)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    assert_close(outputs(loaded, BATCH), expected, rtol=0, atol=0)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(base)
    assert_close(outputs(merged, BATCH), expected, **TOLERANCE)
    merged.save_pretrained(tmp_path / "merged")
    assert_close(outputs(LANGUAGE_MODEL[kind].from_pretrained(tmp_path / "merged"), BATCH), outputs(merged, BATCH))
    assert_close(outputs(to_dense(merged), BATCH), expected, **TOLERANCE)
