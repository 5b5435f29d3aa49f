"""tied_gradient: the gradients of a lookup and of a loss in one buffer, with the bits of their sum."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from ofa_fast.nn import FactorizedEmbedding, FactorizedHead, _TiedCoordinates, tied_gradient


class Tied(nn.Module):
    """A tiny language model with tied ends, which may share one gradient."""

    def __init__(self, shares, lookups=1, bias=True, **options):
        super().__init__()
        self.embedding = FactorizedEmbedding(40, 4, 6, **options)
        self.head, self.layer = FactorizedHead(self.embedding, bias=bias), nn.Linear(6, 6, dtype=options.get("dtype"))
        self.shares, self.lookups = shares, lookups

    def forward(self, ids, labels, losses=1):
        with tied_gradient(self.embedding, self.head) if self.shares else nullcontext():
            hidden = sum(self.layer(self.embedding((ids + i) % 40)) for i in range(self.lookups))
            return sum(self.head(hidden * (i + 1), labels) for i in range(losses))


def twins(**options):
    shared, apart = Tied(True, **options), Tied(False, **options)
    apart.load_state_dict(shared.state_dict())
    return shared, apart


def shares(loss):
    """Whether the graph has a node in which the gradients of lookups and losses meet."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return any("TiedCoordinates" in node.name() for node in seen)


def assert_same_gradients(shared, apart):
    for (name, ours), (_, theirs) in zip(shared.named_parameters(), apart.named_parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert ours.grad.layout is torch.strided and torch.equal(ours.grad, theirs.grad), name


MANY = torch.arange(60).view(3, 20).mul(7) % 31
LABELS = torch.where(MANY % 3 == 0, MANY, -100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("options", [{}, {"lookups": 3}, {"padding_idx": 7}, {"bias": False}], ids=str)
def test_tied_gradient_is_the_sum_of_both(options, dtype):
    shared, apart = twins(dtype=dtype, **options)
    for losses in (1, 2, 1):  # gradients accumulate
        loss = shared(MANY, LABELS, losses)
        assert shares(loss)
        loss.backward()
        apart(MANY, LABELS, losses).backward()
        assert_same_gradients(shared, apart)
    assert shared.embedding._tied is shared.head._tied is None


def test_tied_gradient_is_the_losses_own_memory():
    model, written = Tied(True), []
    run = _TiedCoordinates.backward

    def backward(ctx, rows, whole):
        written.append(whole.data_ptr())
        return run(ctx, rows, whole)

    with patch.object(_TiedCoordinates, "backward", staticmethod(backward)):
        model(MANY, LABELS).backward()
    assert written == [model.embedding.coordinates.grad.data_ptr()]


def test_tied_gradient_of_a_graph_that_is_kept():
    shared, apart = twins()
    for model in (shared, apart):
        loss = model(MANY, LABELS)
        loss.backward(retain_graph=True)
        loss.backward()
    assert_same_gradients(shared, apart)
    first, again, apart = (torch.autograd.grad(m(MANY, LABELS), m.head.coordinates)[0] for m in (shared, shared, apart))
    assert torch.equal(first, again) and torch.equal(first, apart)
    (with_graph,) = torch.autograd.grad(shared(MANY, LABELS), shared.head.coordinates, create_graph=True)
    assert torch.equal(with_graph, apart)


@pytest.mark.parametrize("frozen", ["coordinates", "basis"])
def test_tied_gradient_with_a_frozen_factor(frozen):
    shared, apart = twins()
    for model in (shared, apart):
        getattr(model.embedding, frozen).requires_grad_(False)
        loss = model(MANY, LABELS)
        assert shares(loss) == (model is shared and frozen == "basis")
        loss.backward()
    assert_same_gradients(shared, apart)


@pytest.mark.parametrize("only", ["lookup", "loss"])
def test_tied_gradient_with_one_end_only(only):
    shared, apart = twins()
    for model in (shared, apart):
        with tied_gradient(model.embedding, model.head) if model is shared else nullcontext():
            hidden = model.embedding(MANY)
            loss = model.head(hidden.detach(), LABELS)
        (hidden.square().sum() if only == "lookup" else loss).backward()
    assert_same_gradients(shared, apart)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", ["model", "embedding", "head"])
def test_tied_gradient_under_checkpoints(part, reentrant):
    shared, apart = twins()
    flag = torch.ones((), requires_grad=True)  # without an input that needs a gradient reentrant ones give none

    def again(function, *inputs):
        return checkpoint(lambda _, *rest: function(*rest), flag, *inputs, use_reentrant=reentrant)

    for model in (shared, apart):
        with tied_gradient(model.embedding, model.head) if model is shared else nullcontext():
            if part == "model":
                loss = again(model, MANY, LABELS)
            else:
                embedding = (lambda ids, m=model: again(m.embedding, ids)) if part == "embedding" else model.embedding
                head = (lambda *x, m=model: again(m.head, *x)) if part == "head" else model.head
                loss = head(model.layer(embedding(MANY)), LABELS)
        loss.backward()
    assert_close(shared.embedding.coordinates.grad, apart.embedding.coordinates.grad)
    assert_close(shared.embedding.basis.grad, apart.embedding.basis.grad)


def test_tied_gradient_under_autocast_and_what_it_leaves_alone():
    shared, apart = twins()
    for model in (shared, apart):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(MANY, LABELS)
        assert shares(loss) == (model is shared)
        loss.backward()
    assert_same_gradients(shared, apart)

    with torch.no_grad():
        assert torch.equal(shared(MANY, LABELS), apart(MANY, LABELS))
    assert not shares(Tied(True, sparse=True)(MANY, LABELS))
    shared.head = FactorizedHead(FactorizedEmbedding(40, 4, 6))
    assert not shares(shared(MANY, LABELS))


def test_tied_gradient_of_logits_is_left_alone():
    shared, apart = twins()
    for model in (shared, apart):
        with tied_gradient(model.embedding, model.head) if model is shared else nullcontext():
            logits = model.head(model.layer(model.embedding(MANY)))
        logits.square().sum().backward()
    assert_close(shared.embedding.coordinates.grad, apart.embedding.coordinates.grad)


def test_tied_gradient_is_not_captured(monkeypatch):
    """The number of distinct ids is on the device, and a graph must not wait for it."""
    model = Tied(True)
    monkeypatch.setattr("ofa_fast.nn.capturing", lambda tensor: True)
    assert not shares(model(MANY, LABELS))


def test_tied_gradient_compiles():
    shared, apart = twins()
    torch.compiler.reset()
    torch.compile(shared, backend="aot_eager", fullgraph=True)(MANY, LABELS).backward()
    apart(MANY, LABELS).backward()
    for ours, theirs in zip(shared.parameters(), apart.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


def test_scopes_that_are_left_out_of_order_hold_no_graph():
    """As two threads may leave them, which share one model."""
    model, apart = twins()
    model.shares = False
    first, second = (tied_gradient(model.embedding, model.head) for _ in range(2))
    first.__enter__(), second.__enter__()
    loss = model(MANY, LABELS)
    assert shares(loss)
    first.__exit__(None, None, None), second.__exit__(None, None, None)
    assert model.embedding._tied.losses is model.embedding._tied.source is None
    assert not shares(model(MANY, LABELS))
    loss.backward()
    apart(MANY, LABELS).backward()
    assert_same_gradients(model, apart)
