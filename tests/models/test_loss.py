"""The language-model loss without logits, and training with it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny_models import ENCODERS, OTHERS, dense, inputs, source_model, table
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ofa_fast import build_model


def twins(model_type, tokenizers, rank=5, **changes):
    """A factorised model, the dense stock model of the same function, and a labelled batch."""
    tokenizer, source = tokenizers["bert"], source_model(model_type, **changes)
    width, head = source.get_input_embeddings().embedding_dim, source.get_output_embeddings()
    result = table(len(tokenizer), rank, width, bias=head.bias is not None)
    return build_model(source, result, tokenizer), build_model(source, dense(result), tokenizer)


def factor_gradients(model, stock):
    """What the gradient of the dense table is for its factors: of coordinates and of the basis."""
    embedding, grad = model.get_input_embeddings(), stock.get_input_embeddings().weight.grad
    return grad @ embedding.basis.T, embedding.coordinates.T @ grad


@pytest.mark.parametrize("model_type", [*ENCODERS, *OTHERS])
def test_loss_and_gradients_equal_those_of_the_dense_model(model_type, tokenizers, verses):
    model, stock = twins(model_type, tokenizers)
    batch = inputs(tokenizers["bert"], verses[:6], masked=0.3)
    output, expected = model(**batch), stock(**batch)
    assert output.logits is None
    assert_close(output.loss, expected.loss)
    output.loss.backward()
    expected.loss.backward()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    coordinates, basis = factor_gradients(model, stock)
    assert_close(embedding.coordinates.grad, coordinates, rtol=1e-4, atol=1e-6)
    assert_close(embedding.basis.grad, basis, rtol=1e-4, atol=1e-5)
    others = dict(stock.named_parameters())
    for name, parameter in model.named_parameters():
        if name in others and parameter is not head.bias and others[name].grad is not None:
            assert_close(parameter.grad, others[name].grad, rtol=1e-4, atol=5e-6)
    if head.bias is not None:
        assert_close(head.bias.grad, stock.get_output_embeddings().bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("model_type", "lookups"), [("bert", 1), ("gpt2", 1), ("bart", 2), ("t5", 2)])
def test_models_write_all_gradients_of_a_tied_table_into_one(model_type, lookups, tokenizers, verses):
    model, _ = twins(model_type, tokenizers)
    nodes, names = [model(**inputs(tokenizers["bert"], verses[:4], masked=0.3)).loss.grad_fn], {}
    while nodes:
        node = nodes.pop()
        if node is not None and node not in names:
            names[node] = node.name()
            nodes += [parent for parent, _ in node.next_functions]
    assert sum("TiedCoordinates" in name for name in names.values()) == lookups


def test_a_wrapped_input_embedding_trains(tokenizers, verses):
    model, _ = twins("bert", tokenizers)
    batch = inputs(tokenizers["bert"], verses[:4], masked=0.3)
    embedding, expected = model.get_input_embeddings(), model(**batch).loss
    expected.backward()
    gradient = embedding.coordinates.grad.clone()
    model.zero_grad()
    model.base_model.embeddings.word_embeddings = torch.nn.Sequential(embedding)  # as an adapter would
    loss = model(**batch).loss
    loss.backward()
    assert torch.equal(loss, expected)
    assert_close(embedding.coordinates.grad, gradient)


def test_gradients_reach_the_factors_from_both_ends(tokenizers, verses):
    model, _ = twins("bert", tokenizers)
    batch = inputs(tokenizers["bert"], verses[:4], masked=0.3)
    model(**batch).loss.backward()
    both = model.get_input_embeddings().coordinates.grad.clone()
    model.zero_grad()
    model(inputs_embeds=model.get_input_embeddings()(batch.pop("input_ids")).detach(), **batch).loss.backward()
    from_head = model.get_input_embeddings().coordinates.grad
    assert (from_head != 0).any() and (both - from_head != 0).any()


def test_calling_conventions(tokenizers, verses):
    model, _ = twins("roberta", tokenizers)
    batch = inputs(tokenizers["bert"], verses[:4], masked=0.3)
    expected = model(**batch).loss
    labels = batch.pop("labels")
    assert model(**batch).logits.shape == (*labels.shape, 260) and model(**batch).loss is None
    assert_close(model(batch["input_ids"], batch["attention_mask"], labels=labels).loss, expected)
    assert_close(model(batch["input_ids"], batch["attention_mask"], *(None,) * 5, labels).loss, expected)
    as_tuple = model(**batch, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    states = model(**batch, labels=labels, output_hidden_states=True).hidden_states
    assert len(states) == 3
    for items in (7, torch.tensor(7)):
        total = expected * (labels != -100).sum()
        assert_close(model(**batch, labels=labels, num_items_in_batch=items).loss, total / 7)
    assert model(**batch, labels=torch.full_like(labels, -100)).loss.isnan()  # as in stock models


def test_a_model_that_scales_its_logits_keeps_its_own_loss(tokenizers, verses):
    model, stock = twins("granite", tokenizers)
    batch = inputs(tokenizers["bert"], verses[:4])
    batch["labels"] = batch["input_ids"]
    for _ in range(2):
        assert_close(model(**batch).loss, stock(**batch).loss)


class Shapes(TorchDispatchMode):
    """Counts the shapes of all results that have memory."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.seen[tuple(tensor.shape)] += 1
        return out

    def table_sized(self, rows: int, smallest: int) -> list:
        """Shapes with a vocabulary's rows on one side and at least ``smallest`` elements a row on the others."""
        return [s for s in self.seen if rows in s and torch.Size(s).numel() >= rows * smallest]


PRETRAINING = {"bert": "next_sentence_label", "albert": "sentence_order_label"}


@pytest.mark.parametrize(
    ("model_type", "auto"),
    [(name, None) for name in (*ENCODERS, *OTHERS)] + [(name, AutoModelForPreTraining) for name in PRETRAINING],
)
def test_neither_table_nor_logits_are_ever_formed(model_type, auto, tokenizers, verses, tmp_path):
    tokenizer, source = tokenizers["bert"], source_model(model_type, auto)
    rows, rank, width = 277, 3, source.get_input_embeddings().embedding_dim
    with Shapes() as building:
        model = build_model(source, table(rows, rank, width), tokenizer)
    model.save_pretrained(tmp_path)
    with Shapes() as loading:
        model = type(model).from_pretrained(tmp_path)
    with Shapes() as fresh:
        type(model)(model.config)
    batch = inputs(tokenizer, verses[:4], masked=0.3)
    if auto is not None:
        batch[PRETRAINING[model_type]] = torch.tensor([0, 1, 1, 0])
    with Shapes() as training:
        model.train()(**batch).loss.backward()
    assert (batch["labels"] != -100).sum() > rank
    assert (rows, rank) in building.seen and (rows, rank) in training.seen
    for shapes in (building, loading, fresh, training):
        assert not shapes.table_sized(rows, rank + 1)
    if auto is None:
        with Shapes() as unlabelled:
            model(**{name: tensor for name, tensor in batch.items() if name != "labels"} | decoded(model, batch))
        assert unlabelled.table_sized(rows, rank + 1)  # logits are seen where there are some


def decoded(model, batch) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": batch["input_ids"]} if model.config.is_encoder_decoder else {}


@pytest.mark.parametrize("given", ["decoder_input_ids", "decoder_inputs_embeds"])
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_what_the_decoder_reads_may_be_given(model_type, given, tokenizers, verses):
    model, stock = twins(model_type, tokenizers)
    batch = inputs(tokenizers["bert"], verses[:2], masked=0.3)
    read = batch["input_ids"].flip(0)
    batch[given] = read if given == "decoder_input_ids" else stock.get_input_embeddings()(read).detach()
    output = model(**batch)
    assert output.logits is None
    assert_close(output.loss, stock(**batch).loss)


def arguments(folder, **options):
    return TrainingArguments(
        folder, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=1e-2, logging_steps=1, **options
    )


def test_trainer_trains_evaluates_and_resumes(tokenizers, verses, tmp_path):
    batch = inputs(tokenizers["bert"], verses[:16], masked=0.3)
    data = [{name: tensor[i] for name, tensor in batch.items()} for i in range(16)]
    model, _ = twins("bert", tokenizers)
    before = model.get_input_embeddings().basis.detach().clone()
    options = {"per_device_train_batch_size": 8, "prediction_loss_only": True, "save_steps": 3}
    options |= {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "max_steps": 6}
    trainer = Trainer(model, arguments(tmp_path, **options), train_dataset=data, eval_dataset=data)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    last = trainer.evaluate()["eval_loss"]
    assert last < first - 0.05
    assert (model.get_input_embeddings().basis != before).any()
    assert model.get_input_embeddings().coordinates is model.get_output_embeddings().coordinates

    def init():
        return AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-3")

    resumed = Trainer(model_init=init, args=arguments(tmp_path, **options), train_dataset=data, eval_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.evaluate()["eval_loss"] == pytest.approx(last, abs=1e-4)


def test_trainer_keeps_the_best_model(tokenizers, verses, tmp_path):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.get_input_embeddings().coordinates.data.mul_(-100.0)

    batch = inputs(tokenizers["bert"], verses[:8], masked=0.3)
    data = [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 4, "prediction_loss_only": True}
    options = arguments(tmp_path, load_best_model_at_end=True, **every)
    model = twins("bert", tokenizers)[0]
    trainer = Trainer(model, options, train_dataset=data, eval_dataset=data, callbacks=[Spoil()])
    trainer.train()
    found = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(found) < found[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(found), abs=1e-5)
    embedding, head = trainer.model.get_input_embeddings(), trainer.model.get_output_embeddings()
    assert embedding.coordinates is head.coordinates


def test_trainer_with_logits_asked_for_still_evaluates_the_loss(tokenizers, verses, tmp_path):
    batch = inputs(tokenizers["bert"], verses[:4], masked=0.3)
    data = [{name: tensor[i] for name, tensor in batch.items()} for i in range(4)]
    trainer = Trainer(twins("bert", tokenizers)[0], arguments(tmp_path), eval_dataset=data)
    assert trainer.evaluate()["eval_loss"] > 0


def test_token_classifier_trains(tokenizers, verses, tmp_path):
    source = source_model("xlm-roberta", AutoModelForTokenClassification)
    model = build_model(source, table(260, 4), tokenizers["bert"])
    batch = inputs(tokenizers["bert"], verses[:8])
    batch["labels"] = batch["input_ids"] % 2
    data = [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]
    trainer = Trainer(model, arguments(tmp_path, max_steps=3), train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_state_of_both_ends_is_shared_through_parameters(tokenizers):
    """As in stock models, both modules register the shared parameters: replication and optimisers rely on it."""
    model, _ = twins("bert", tokenizers)
    named = dict(model.named_parameters(remove_duplicate=False))
    for factor in ("coordinates", "basis"):
        ends = [named[f"{end}.{factor}"] for end in ("bert.embeddings.word_embeddings", "cls.predictions.decoder")]
        assert ends[0] is ends[1]
        assert sum(parameter is ends[0] for parameter in model.parameters()) == 1
