"""Encoders whose documents share a sequence, but neither attention nor positions."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from ofa_fast.training import train
from ofa_fast.training.data import masking_collator
from ofa_fast.training.loading import first_position, separates_documents
from ofa_fast.training.packing import packed_sequences
from ofa_fast.training.trainer import LanguageModelTrainer

OPTIONS = {"steps": 4, "batch_size": 4, "max_length": 32, "learning_rate": 1e-2, "save_steps": 3, "progress": False}
SIZES = {"vocab_size": 403, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def encoder_of(kind: str, factorized_dir, dense_dir):
    torch.manual_seed(0)
    if kind == "roberta":
        model = RobertaForMaskedLM(
            RobertaConfig(pad_token_id=0, max_position_embeddings=40, intermediate_size=24, **SIZES)
        )
    else:
        model = AutoModelForMaskedLM.from_pretrained(factorized_dir if kind == "factorized" else dense_dir)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough for attention to matter
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.mark.parametrize("kind", ["dense", "factorized", "roberta"])
def test_the_loss_of_packed_documents_is_that_of_each_alone(kind, factorized_dir, dense_dir, tokenizer):
    model = encoder_of(kind, factorized_dir, dense_dir)
    assert separates_documents(model, causal=False)
    assert first_position(model) == (1 if kind == "roberta" else 0)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    documents = [[cls, *range(20, 29), sep], [cls, 40, sep], [cls, *range(60, 66), sep], [cls, *range(90, 97)]]
    sequences = [documents[0] + documents[1], documents[2] + documents[3]]
    collator = masking_collator(tokenizer, 0.4, 0, first_position(model))
    batch = collator([{"input_ids": torch.tensor(ids).numpy(), "position": i} for i, ids in enumerate(sequences)])
    assert batch["documents"].tolist()[1] == [1] * 8 + [2] * 8
    loss = LanguageModelTrainer.compute_loss(None, model, batch)

    total, count = 0.0, 0
    for row, begin, ids in ((0, 0, documents[0]), (0, 11, documents[1]), (1, 0, documents[2]), (1, 8, documents[3])):
        own = slice(begin, begin + len(ids))
        labels = batch["labels"][row, own]
        logits = model(batch["input_ids"][None, row, own]).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count += int((labels != -100).sum())
    assert count > 6
    expected = total / count
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True),
        torch.autograd.grad(expected, list(model.parameters()), allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    joined = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    assert abs(LanguageModelTrainer.compute_loss(None, model, joined) - expected) > 1e-4


def test_every_passage_has_its_special_tokens(dense_dir, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(dense_dir)
    sequences = packed_sequences(texts[0], "texts", dense_dir, "digest", 32, tmp_path, progress=False, apart=True)
    lines = [line.strip() for line in texts[0].read_text("utf-8").split("\n") if line.strip()]
    passages = tokenizer(lines, add_special_tokens=False).input_ids
    expected = [i for ids in passages for i in (tokenizer.cls_token_id, *ids, tokenizer.sep_token_id)]
    assert [i for ids in sequences for i in ids.tolist()] == expected
    assert all(len(ids) == 32 for ids in list(sequences)[:-1])


def test_documents_of_an_encoder_are_joined_unless_asked_for(factorized_dir, texts, held_out, tmp_path):
    apart = train(factorized_dir, texts, tmp_path / "a", **OPTIONS, documents="apart", eval_files=held_out)
    joined = train(factorized_dir, texts, tmp_path / "b", **OPTIONS, documents="joined", eval_files=held_out)
    default = train(factorized_dir, texts, tmp_path / "c", **OPTIONS, eval_files=held_out)
    assert [report["documents_apart"] for report in (apart, joined, default)] == [True, False, False]
    assert joined["losses"] == default["losses"] != apart["losses"]
    assert joined["evaluations"] == default["evaluations"] != apart["evaluations"]


def test_models_that_cannot_keep_documents_apart(dense_dir, tokenizer, texts, tmp_path):
    """One adds the mask to its scores, one has windows of attention."""
    eager = BertForMaskedLM.from_pretrained(dense_dir, attn_implementation="eager")
    windows = ModernBertForMaskedLM(ModernBertConfig(intermediate_size=24, pad_token_id=0, **SIZES))
    assert not separates_documents(windows, causal=False)
    with torch.no_grad():
        for parameter in eager.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert not separates_documents(eager, causal=False)
    windows.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="documents: a 'modernbert' model cannot keep them apart"):
        train(tmp_path / "model", texts, tmp_path / "out", **OPTIONS, documents="apart")
