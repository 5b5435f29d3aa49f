"""Models whose tensors are on each device that there is, and what a step on a device may not do."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import BATCH, LABELS, TOLERANCE, built, inputs, source_model, table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from ofa_fast import build_model, to_dense

AUTO = {"roberta": AutoModelForMaskedLM, "llama": AutoModelForCausalLM, "bart": AutoModelForSeq2SeqLM}


pytestmark = pytest.mark.usefixtures("one_thread")


kinds = pytest.mark.parametrize("kind", AUTO)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_near(ours: torch.Tensor, exact: torch.Tensor, share: float = 1e-5) -> None:
    """Within ``share`` of the largest true value."""
    bound = share * float(exact.detach().abs().max()) + 1e-8
    torch.testing.assert_close(ours.detach().cpu().double(), exact.detach().cpu().double(), rtol=0, atol=bound)


def moved(batch: dict, device: str) -> dict:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@kinds
def test_losses_logits_and_gradients_are_those_of_float64(device, kind, tokenizers, verses):
    model = built(kind, tokenizers)
    exact = copy.deepcopy(model).double()
    model.to(device)
    batch = inputs(tokenizers["bert"], verses[:4], masked=0.3)
    for _ in range(2):  # BART and its kin learn in the first step that they may do without logits
        loss, true_loss = model(**moved(batch, device)).loss, exact(**batch).loss
        loss.backward()
        true_loss.backward()
        assert loss.device.type == device
        assert_near(loss, true_loss)
        ours, true = gradients(model), gradients(exact)
        assert ours.keys() == true.keys()
        for name, gradient in ours.items():
            assert gradient.device.type == device
            assert_near(gradient, true[name], 1e-4)
    del batch["labels"]
    if kind == "bart":
        batch["decoder_input_ids"] = batch["input_ids"]
    assert_near(model(**moved(batch, device)).logits, exact(**batch).logits)


@kinds
def test_autocast_is_near_float32(device, kind, tokenizers):
    model = built(kind, tokenizers).to(device)
    batch = moved(BATCH | {"labels": LABELS}, device)
    found = []
    for precise in (True, False):
        with torch.autocast(device, torch.bfloat16, enabled=not precise):
            loss = model(**batch).loss
        loss.backward()
        found.append((loss, gradients(model)))
    (exact, true), (loss, ours) = found
    assert_near(loss, exact, 2e-2)
    assert {gradient.dtype for gradient in ours.values()} == {torch.float32}
    # Of all together: the true gradient of a bias in front of a softmax is zero.
    error, norm = (
        torch.cat([g.flatten() for g in one]).norm()
        for one in ([ours[name] - true[name] for name in true], true.values())
    )
    assert error <= 0.05 * norm


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_weights(device, kind, dtype, tokenizers):
    model = built(kind, tokenizers).to(device, dtype)
    exact = copy.deepcopy(model).to("cpu", torch.float64)
    loss, true = (one(**moved(BATCH | {"labels": LABELS}, one.device)).loss for one in (model, exact))
    assert_near(loss, true, 3e-2)
    loss.backward()
    assert {(g.dtype, g.device.type) for g in gradients(model).values()} == {(dtype, device)}


@kinds
def test_gradient_checkpointing_changes_nothing(device, kind, tokenizers):
    model = built(kind, tokenizers, **{"dropout": 0.0, "attention_dropout": 0.0} if kind == "bart" else {}).to(device)
    batch, found = moved(BATCH | {"labels": LABELS}, device), []
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(**batch).loss
        loss.backward()
        found.append({"loss": loss} | gradients(model))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert_near(found[1][name], found[0][name])


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_generates_what_the_cpu_generates(device, kind, tokenizers):
    model = built(kind, tokenizers)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = copy.deepcopy(model).double().generate(**BATCH, attention_mask=torch.ones(2, 5).long(), **options)
    model.to(device)
    found = model.generate(**moved(BATCH, device), attention_mask=torch.ones(2, 5, device=device).long(), **options)
    assert found.device.type == device and found.tolist() == expected.tolist()


@kinds
def test_a_saved_model_is_the_same_on_any_device(device, kind, tokenizers, tmp_path):
    model = built(kind, tokenizers).to(device)
    model.save_pretrained(tmp_path)
    for options in ({}, {"device_map": device}):
        loaded = AUTO[kind].from_pretrained(tmp_path, **options)
        assert loaded.get_output_embeddings().coordinates is loaded.get_input_embeddings().coordinates
        for name, value in loaded.state_dict().items():
            assert value.device.type == (device if options else "cpu")
            assert torch.equal(value.cpu(), model.state_dict()[name].cpu()), name


@kinds
def test_a_model_is_built_made_dense_and_resized_where_its_source_is(device, kind, tokenizers):
    source, result = source_model(kind), table(264, 5, bias=kind != "llama")
    on_cpu = build_model(source, result, tokenizers["bert"])
    source.to(device)
    there = type(result)(**{name: v if v is None else v.to(device) for name, v in vars(result).items()})
    for factors in (result, there):
        model = build_model(source, factors, tokenizers["bert"])
        assert model.device.type == device
        for name, value in on_cpu.state_dict().items():
            assert torch.equal(model.state_dict()[name].cpu(), value), name
    batch = moved(BATCH, device)
    if kind == "bart":
        batch["decoder_input_ids"] = batch["input_ids"]
    logits, dense = model(**batch).logits, to_dense(model)
    assert dense.device.type == device
    torch.testing.assert_close(dense(**batch).logits, logits, **TOLERANCE)
    model.resize_token_embeddings(270)
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    torch.testing.assert_close(model(**batch).logits[..., :264], logits, **TOLERANCE)


class OnOneDevice(TorchDispatchMode):
    """Raises where an operation takes or gives tensors of several devices, but for numbers that are on the CPU.

    On the meta device whatever waits for a value raises, too.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        tensors = given + made
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        devices = {t.device.type for t in tensors if copies or t.dim() or t.device.type != "cpu"}
        if len(devices) > 1:
            raise RuntimeError(f"{func} mixes {' and '.join(sorted(devices))}")
        return result


def test_mixed_devices_are_seen():
    with OnOneDevice(), pytest.raises(RuntimeError, match="mixes cpu and meta"):
        torch.ones(3).to("meta")
    with OnOneDevice(), pytest.raises(RuntimeError):
        torch.ones(3, device="meta") + torch.ones(3)
    with OnOneDevice():
        torch.ones(3, device="meta") / torch.tensor(2.0)


@pytest.mark.parametrize("items", [None, 6, torch.tensor(6)], ids=["mean", "number", "tensor"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "albert", "modernbert", "llama", "gemma", "t5"])
def test_a_training_step_neither_waits_for_its_device_nor_copies(kind, items, tokenizers):
    model = built(kind, tokenizers).to("meta").train()
    batch = moved(BATCH | {"labels": LABELS}, "meta")
    if items is not None:
        batch["num_items_in_batch"] = items.to("meta") if torch.is_tensor(items) else items
    with OnOneDevice():
        loss = model(**batch).loss
        loss.backward()
    assert loss.device.type == "meta"
    assert model.get_input_embeddings().coordinates.grad.device.type == "meta"


def test_sentence_states_need_no_head(device, tokenizers):
    model = built("roberta", tokenizers, AutoModel).to(device)
    exact = copy.deepcopy(model).to("cpu", torch.float64)
    assert_near(model(**moved(BATCH, device))[0], exact(**BATCH)[0])
