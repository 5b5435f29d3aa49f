"""FactorizedEmbedding and FactorizedHead used by themselves."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ofa_fast import FactorizedEmbedding, FactorizedHead

IDS = torch.tensor([[3, 0, 7], [7, 2, 3]])


def pair(padding_idx=None, rank=4):
    """An embedding and the dense one with its table."""
    embedding = FactorizedEmbedding(11, rank, 6, padding_idx=padding_idx, dtype=torch.float64)
    dense = nn.Embedding(11, 6, padding_idx=padding_idx, dtype=torch.float64)
    dense.weight.data.copy_(embedding.weight.detach())
    return embedding, dense


@pytest.mark.parametrize("padding_idx", [None, 3, -4])
def test_embedding_and_its_gradients_are_those_of_nn_embedding(padding_idx):
    embedding, dense = pair(padding_idx)
    upstream = torch.randn(*IDS.shape, 6, dtype=torch.float64)
    out = embedding(IDS)
    assert_close(out, dense(IDS))
    out.backward(upstream)
    dense(IDS).backward(upstream)
    assert_close(embedding.coordinates.grad, dense.weight.grad @ embedding.basis.detach().T)
    assert_close(embedding.basis.grad, embedding.coordinates.detach().T @ dense.weight.grad)
    assert embedding.padding_idx == dense.padding_idx


def test_padding_row_starts_at_zero_and_gets_no_gradient():
    embedding = FactorizedEmbedding(11, 4, 6, padding_idx=7)
    assert not embedding(IDS)[0, 2].any() and embedding(IDS)[0, 0].any()
    embedding(IDS).sum().backward()
    assert not embedding.coordinates.grad[7].any()
    with torch.inference_mode():
        assert_close(embedding(IDS), embedding.weight[IDS])
    assert not embedding.requires_grad_(False)(IDS).requires_grad


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_rows_may_be_changed_in_place(padding_idx):
    embedding, dense = pair(padding_idx)
    embedding(IDS).mul_(2).square().sum().backward()
    dense(IDS).mul_(2).square().sum().backward()
    assert_close(embedding.basis.grad, embedding.coordinates.detach().T @ dense.weight.grad)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_sparse_embedding_and_its_gradients_are_those_of_a_sparse_nn_embedding(padding_idx):
    table = torch.randn(11, 6, dtype=torch.float64)
    embedding = FactorizedEmbedding.from_dense(table, 6, padding_idx, sparse=True)
    dense = embedding.materialize()
    assert dense.sparse and "sparse=True" in repr(embedding)
    for model in (embedding, dense):
        model(IDS).square().sum().backward()
    grad = dense.weight.grad.coalesce()
    assert embedding.coordinates.grad.is_sparse
    ours = embedding.coordinates.grad.coalesce()
    assert_close(ours.indices(), grad.indices())
    assert_close(ours.values(), grad.values() @ embedding.basis.detach().T)
    assert_close(embedding.basis.grad, embedding.coordinates.detach().T @ grad.to_dense())


def test_sparse_embedding_with_a_tied_head():
    embedding, twin = (FactorizedEmbedding(11, 4, 6, sparse=sparse) for sparse in (True, False))
    twin.load_state_dict(embedding.state_dict())
    for model in (embedding, twin):
        FactorizedHead(model).loss(model(IDS), IDS).backward()
    assert_close(embedding.coordinates.grad, twin.coordinates.grad)


def test_fresh_table_has_the_spread_of_a_language_models():
    weight = FactorizedEmbedding(500, 30, 40).weight
    assert 0.018 < weight.std() < 0.022 and abs(weight.mean()) < 0.002


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_from_dense_is_the_best_table_of_its_rank(rank):
    table = torch.randn(40, 6)
    embedding = FactorizedEmbedding.from_dense(table, rank, padding_idx=2)
    tail = torch.linalg.svdvals(table)[rank:].square().sum().sqrt()
    assert_close((table - embedding.weight).norm(), tail, rtol=1e-4, atol=1e-5)
    assert (embedding.num_embeddings, embedding.rank, embedding.embedding_dim) == (40, rank, 6)
    assert embedding.padding_idx == 2
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in embedding.parameters())


def test_materialize_is_a_plain_trainable_embedding():
    embedding, _ = pair(padding_idx=3)
    dense = embedding.materialize()
    assert type(dense) is nn.Embedding and dense.padding_idx == 3 and dense.weight.requires_grad
    assert_close(dense(IDS), embedding(IDS))


@pytest.mark.parametrize("bias", [True, False])
def test_head_and_its_loss_are_those_of_a_tied_linear(bias):
    embedding, dense = pair()
    head, linear = FactorizedHead(embedding, bias=bias), nn.Linear(6, 11, bias=bias, dtype=torch.float64)
    linear.weight = dense.weight
    if bias:
        nn.init.normal_(head.bias)
        linear.bias.data.copy_(head.bias.detach())
    hidden, labels = torch.randn(2, 3, 6, dtype=torch.float64), IDS.clone()
    labels[0, 1] = -100
    assert_close(head(hidden), linear(hidden))
    loss, expected = (
        head.loss(hidden, labels),
        nn.functional.cross_entropy(linear(hidden).flatten(0, 1), labels.flatten()),
    )
    assert_close(loss, expected)
    called = []
    head.register_forward_pre_hook(lambda *_: called.append(True))
    for again in (head(hidden, labels), head.loss(hidden, labels)):  # hooks that gather parameters run in both
        assert_close(again, expected)
    assert len(called) == 2
    loss.backward()
    expected.backward()
    assert_close(embedding.coordinates.grad, dense.weight.grad @ embedding.basis.detach().T)
    total = head.loss(hidden, labels, reduction="sum", ignore_index=-100)
    assert_close(total, expected * 5)


def test_training_moves_both_ends():
    embedding = FactorizedEmbedding(11, 4, 6)
    head = FactorizedHead(embedding)
    model = nn.ModuleList([embedding, head])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = head.loss(embedding(IDS), IDS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert head.coordinates is embedding.coordinates and len(list(model.parameters())) == 3


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_tied(duplicate):
    embedding = FactorizedEmbedding(11, 4, 6, padding_idx=1)
    twin = duplicate(nn.ModuleList([embedding, FactorizedHead(embedding)]))
    assert twin[0].coordinates is twin[1].coordinates and twin[0].basis is twin[1].basis
    assert_close(twin[0](IDS), embedding(IDS))


def test_embedding_compiles_in_one_graph():
    embedding = FactorizedEmbedding(11, 4, 6, padding_idx=3)
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    compiled(IDS).sum().backward()
    got = embedding.coordinates.grad.clone()
    embedding.zero_grad()
    embedding(IDS).sum().backward()
    assert_close(got, embedding.coordinates.grad)


def test_modules_work_on_the_meta_device_and_in_half_precision():
    embedding = FactorizedEmbedding(11, 4, 6, device="meta")
    assert embedding.weight.shape == (11, 6) and FactorizedHead(embedding).bias.device.type == "meta"
    half = FactorizedEmbedding(11, 4, 6, dtype=torch.bfloat16)
    assert half(IDS).dtype == torch.bfloat16
    assert FactorizedHead(half)(half(IDS)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 6), "num_embeddings must be at least 1"),
        ((11, 0, 6), "rank must be at least 1"),
        ((11, 4, 0), "embedding_dim must be at least 1"),
        ((11, 4, 6, 11), "padding_idx must lie in the table of 11 rows, got 11"),
    ],
)
def test_sizes_that_make_no_table_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FactorizedEmbedding(*arguments)


def test_ids_outside_the_table_are_refused():
    with pytest.raises(IndexError, match="11"):
        FactorizedEmbedding(11, 4, 6)(torch.tensor([11]))
    with pytest.raises(IndexError, match="11"):
        FactorizedHead(FactorizedEmbedding(11, 4, 6)).loss(torch.randn(1, 6), torch.tensor([11]))
