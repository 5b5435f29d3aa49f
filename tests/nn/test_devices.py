"""Modules whose tensors are on each device that there is: what the CPU computes in float64, and nothing left behind."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ofa_fast.nn import FactorizedEmbedding, FactorizedHead, tied_gradient

V, R, D = 60, 6, 16
IDS = torch.arange(48).view(3, 16).mul(7) % 41
LABELS = torch.where(IDS % 3 == 0, (IDS + 1) % V, -100)
# Of the largest true value: a few units in the last place of each dtype, as sums are made in another order.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
in_every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


pytestmark = pytest.mark.usefixtures("one_thread")


class TinyModel(nn.Module):
    """An embedding, a layer and the tied head with its loss."""

    def __init__(self, device="cpu", dtype=None, **options):
        super().__init__()
        self.embedding = FactorizedEmbedding(V, R, D, padding_idx=0, device=device, dtype=dtype, **options)
        self.layer = nn.Linear(D, D, device=device, dtype=dtype)
        self.head = FactorizedHead(self.embedding)

    def forward(self, ids, labels=None):
        with tied_gradient(self.embedding, self.head):
            return self.head(torch.tanh(self.layer(self.embedding(ids))), labels)


def assert_near(ours, exact, dtype):
    """Within ``TOLERANCE[dtype]`` of the largest value of a float64 result."""
    bound = TOLERANCE[dtype] * float(exact.abs().max())
    assert_close(ours.cpu().double(), exact, rtol=0, atol=bound)


@in_every_dtype
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_values_and_gradients_are_those_of_float64(device, dtype, sparse):
    model = TinyModel(device, dtype, sparse=sparse)
    exact = copy.deepcopy(model).to("cpu", torch.float64)
    loss, true_loss = model(IDS.to(device), LABELS.to(device)), exact(IDS, LABELS)
    logits, true_logits = model(IDS.to(device)), exact(IDS)
    for ours, true in ((loss, true_loss), (logits, true_logits)):
        assert ours.device.type == device
        assert_near(ours.detach(), true.detach(), dtype)
    loss.backward()
    true_loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (ours.grad.device, ours.grad.dtype) == (ours.device, dtype), name
        assert_near(ours.grad.to_dense(), theirs.grad.to_dense(), dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_an_untied_sparse_embedding(device, dtype):
    embedding = FactorizedEmbedding(V, R, D, padding_idx=0, sparse=True, device=device)
    exact = copy.deepcopy(embedding).to("cpu", torch.float64)
    embedding(IDS.to(device, dtype)).square().sum().backward()
    exact(IDS).square().sum().backward()
    gradient = embedding.coordinates.grad
    assert gradient.is_sparse and gradient.device.type == device
    assert gradient.coalesce().indices().flatten().tolist() == [i for i in IDS.unique().tolist() if i]
    assert_near(gradient.to_dense(), exact.coordinates.grad.to_dense(), torch.float32)
    assert_near(embedding.basis.grad, exact.basis.grad, torch.float32)


@pytest.mark.usefixtures("told_at_once")
def test_bad_ids_and_labels_are_named(device):
    model = TinyModel(device)
    for bad in (-1, V):
        with pytest.raises(IndexError, match="input_ids"):
            model(torch.tensor([1, bad], device=device))
        with pytest.raises(IndexError, match="labels"):
            model(torch.tensor([1, 2], device=device), torch.tensor([1, V], device=device))
    assert torch.isfinite(model(IDS.to(device), LABELS.to(device)))  # the device has survived


@in_every_dtype
def test_a_state_goes_to_a_file_and_to_another_device(device, dtype):
    model, file = TinyModel(device, dtype), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    there, back = TinyModel(dtype=dtype), TinyModel(device, dtype)
    there.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    back.load_state_dict(there.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), there.state_dict()[name]) and torch.equal(value, back.state_dict()[name]), name
    assert torch.equal(model(IDS.to(device)), back(IDS.to(device)))


def test_moving_a_model_keeps_it_tied(device):
    model = TinyModel().to(device)
    assert model.head.coordinates is model.embedding.coordinates and model.head.basis is model.embedding.basis
    assert {parameter.device.type for parameter in model.parameters()} == {device}


def test_to_dense_and_back(device):
    table = torch.randn(V, D, generator=torch.Generator().manual_seed(0)).to(device)
    embedding = FactorizedEmbedding.from_dense(table, D, padding_idx=3)
    assert {parameter.device for parameter in embedding.parameters()} == {table.device}
    assert_near(embedding.weight.detach(), table.cpu().double(), torch.float32)
    dense = embedding.materialize()
    assert dense.weight.device == table.device
    assert_near(embedding(IDS.to(device)).detach(), dense(IDS.to(device)).detach().cpu().double(), torch.float32)


def test_compiles(device):
    model = TinyModel(device)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    ids, labels = IDS.to(device), LABELS.to(device)
    losses = [one(ids, labels) for one in (model, compiled)]
    for loss in losses:
        loss.backward()
    assert_near(losses[1].detach(), losses[0].detach().cpu().double(), torch.float32)
    for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        assert_near(ours.grad, theirs.grad.cpu().double(), torch.float32)


def test_an_optimizer_takes_the_steps_that_it_takes_on_the_cpu(device):
    torch.manual_seed(0)
    model = TinyModel(device)
    exact = copy.deepcopy(model).to("cpu", torch.float64)
    for one, at in ((model, device), (exact, "cpu")):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.5)
        for _ in range(3):
            one(IDS.to(at), LABELS.to(at)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert_near(ours.detach(), theirs.detach(), torch.float32)
