"""Causal language models: packed documents that do not see each other, the loss, resumption."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForCausalLM,
)

from ofa_fast import build_model
from ofa_fast.nn import FactorizedEmbedding, FactorizedHead
from ofa_fast.training import train
from ofa_fast.training.data import causal_collator
from ofa_fast.training.loading import is_causal, separates_documents
from ofa_fast.training.packing import packed_sequences, special_tokens
from ofa_fast.training.trainer import LanguageModelTrainer

OPTIONS = {"steps": 8, "batch_size": 4, "max_length": 32, "learning_rate": 1e-2, "save_steps": 3, "progress": False}
ROWS = 300
ROBERTA = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def tokenizer_for(kind: str, texts) -> PreTrainedTokenizerFast:
    special = {"eos_token": "<end>", "bos_token": "<end>"}
    if kind == "llama":
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS, special_tokens=list({*special.values()}), initial_alphabet=alphabet, show_progress=False
    )
    backend.train([str(path) for path in texts], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def dense_model(kind: str):
    """With weights large enough for attention to matter."""
    torch.manual_seed(0)
    model = _fresh_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _fresh_model(kind: str):
    if kind == "gpt2":
        config = GPT2Config(vocab_size=ROWS, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0)
        config.eos_token_id = 0
        return GPT2LMHeadModel(config)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, max_position_embeddings=64, tie_word_embeddings=True, **sizes))


@pytest.fixture(scope="module")
def decoders(texts, tmp_path_factory):
    """Folders of tiny decoders, by kind and by whether the table is factorised."""
    folders = {}
    for kind in ("gpt2", "llama"):
        tokenizer, dense = tokenizer_for(kind, texts), dense_model(kind)
        generator = torch.Generator().manual_seed(1)
        table = SimpleNamespace(
            coordinates=torch.randn(ROWS, 6, generator=generator) * 6**-0.5,
            basis=torch.randn(6, 16, generator=generator) * 0.2,
            bias=None,
        )
        for form, model in (("dense", dense), ("factorized", build_model(dense, table, tokenizer))):
            folder = folders[kind, form] = tmp_path_factory.mktemp("decoders") / f"{kind}-{form}"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return folders


EVERY = [(kind, form) for kind in ("gpt2", "llama") for form in ("dense", "factorized")]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("which", EVERY)
def test_the_loss_of_packed_documents_is_that_of_each_alone(which, decoders):
    model, tokenizer = load(decoders[which])
    model.train()  # a cache, which models keep in training as well, would hide the documents
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    end = tokenizer.eos_token_id
    documents = [[5, 6, 7, 8, end], [9, end], [20, 21, 22, end], [30, 31, 32, 33, 34]]
    sequences = [documents[0] + documents[1], documents[2] + documents[3]]
    assert separates_documents(model, causal=True)
    batch = causal_collator(tokenizer, apart=True)(
        [{"input_ids": torch.tensor(ids).numpy(), "position": i} for i, ids in enumerate(sequences)]
    )
    assert batch["position_ids"].tolist()[0][:7] == [0, 1, 2, 3, 4, 0, 1]
    loss = LanguageModelTrainer.compute_loss(None, model, batch)

    total, count = 0.0, 0
    for ids in documents:
        logits = model(torch.tensor([ids])).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
        count += len(ids) - 1
    expected = total / count
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)

    joined = causal_collator(tokenizer, apart=False)(
        [{"input_ids": torch.tensor(ids).numpy(), "position": i} for i, ids in enumerate(sequences)]
    )
    assert "position_ids" not in joined
    assert abs(LanguageModelTrainer.compute_loss(None, model, joined) - expected) > 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_documents_are_packed_whole_with_their_special_tokens(kind, decoders, texts, tmp_path):
    folder = decoders[kind, "dense"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start, end = special_tokens(tokenizer, causal=True)
    assert (start, end) == ([] if kind == "gpt2" else [tokenizer.bos_token_id], [tokenizer.eos_token_id])
    sequences = packed_sequences(texts[0], "texts", folder, "digest", 32, tmp_path, progress=False, causal=True)
    lines = [line.strip() for line in texts[0].read_text("utf-8").split("\n") if line.strip()]
    documents = tokenizer(lines, add_special_tokens=False).input_ids
    assert [i for ids in sequences for i in ids.tolist()] == [i for ids in documents for i in (*start, *ids, *end)]
    assert all(len(ids) == 32 for ids in list(sequences)[:-1])

    last = len(sequences) - 1
    batch = causal_collator(tokenizer, apart=True)([{"input_ids": sequences[i], "position": i} for i in (0, last)])
    labels, ids = batch["labels"], batch["input_ids"]
    unpredicted = torch.zeros_like(ids, dtype=torch.bool)
    unpredicted[:, 0] = True
    unpredicted[:, 1:] = ids[:, :-1] == end[0]
    unpredicted[1, len(sequences[last]) :] = True
    assert torch.equal(labels == -100, unpredicted)
    assert torch.equal(labels[~unpredicted], ids[~unpredicted])


@pytest.mark.parametrize("which", EVERY)
def test_training_a_decoder(which, decoders, texts, held_out, tmp_path, monkeypatch):
    if which[1] == "factorized":
        monkeypatch.setattr(
            FactorizedHead, "forward", lambda *args: pytest.fail("logits were formed")
        )  # but for the trial of the attention mask, before training
        monkeypatch.setattr("ofa_fast.training.loading.separates_documents", lambda *_: True)
    options = OPTIONS | {"steps": 40}
    report = train(decoders[which], texts, tmp_path / "out", eval_files=held_out, **options)
    assert (report["objective"], report["documents_apart"]) == ("causal", True)
    before, after = report["evaluations"]
    assert after["loss"] < before["loss"] - 0.3
    assert 32 * 4 * 39 < report["tokens"] <= 32 * 4 * 40
    monkeypatch.undo()
    model, tokenizer = load(tmp_path / "out")
    assert model.config.use_cache
    assert isinstance(model.get_input_embeddings(), FactorizedEmbedding) == (which[1] == "factorized")
    prompt = tokenizer("the", return_tensors="pt").input_ids
    assert model.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.shape[1]


@pytest.mark.parametrize("which", [("gpt2", "factorized"), ("llama", "dense")])
def test_an_interrupted_decoder_resumes_to_the_same_curve_and_weights(which, decoders, texts, tmp_path, monkeypatch):
    options = OPTIONS | {"gradient_accumulation_steps": 2, "temperature": 2.0}
    whole = train(decoders[which], texts, tmp_path / "whole", **options)
    step = LanguageModelTrainer.training_step

    sent = []

    def interrupted(self, *args):
        if self.state.global_step == 4 and not sent:  # once a step, of two micro-batches
            sent.append(True)
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(LanguageModelTrainer, "training_step", interrupted)
    with pytest.raises(SystemExit):
        train(decoders[which], texts, tmp_path / "out", **options)
    monkeypatch.undo()
    report = train(decoders[which], texts, tmp_path / "out", resume=True, **options)
    assert [point["loss"] for point in report["losses"]] == [point["loss"] for point in whole["losses"]]
    first, second = (load(tmp_path / name)[0].state_dict() for name in ("out", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "model",
    [
        BloomForCausalLM(BloomConfig(vocab_size=ROWS, hidden_size=16, n_layer=1, n_head=2)),
        OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=ROWS, n_positions=64, n_embd=16, n_layer=1, n_head=2)),
        RobertaForCausalLM(RobertaConfig(is_decoder=True, pad_token_id=1, max_position_embeddings=40, **ROBERTA)),
    ],
    ids=["bloom", "openai-gpt", "roberta"],
)
def test_a_model_that_cannot_keep_documents_apart_is_found_out(model, texts, tmp_path):
    """One takes no position ids, one for its embeddings only, one counts them from 2."""
    assert not separates_documents(model, causal=True)
    model.save_pretrained(tmp_path / "model")
    tokenizer_for("gpt2", texts).save_pretrained(tmp_path / "model")
    report = train(tmp_path / "model", texts, tmp_path / "out", **OPTIONS | {"steps": 2})
    assert (report["objective"], report["documents_apart"]) == ("causal", False)


def test_what_decides_between_masked_and_causal():
    assert is_causal(GPT2Config())
    assert not is_causal(BertConfig())
    assert not is_causal(BertConfig(architectures=["BertForMaskedLM"]))
    assert is_causal(BertConfig(architectures=["BertLMHeadModel"], is_decoder=True))


def test_a_tokenizer_without_end_of_sequence(decoders, texts, tmp_path):
    dense_model("gpt2").save_pretrained(tmp_path / "model")
    backend = tokenizer_for("gpt2", texts).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="the tokenizer has no end-of-sequence token"):
        train(tmp_path / "model", texts, tmp_path / "out", **OPTIONS)
