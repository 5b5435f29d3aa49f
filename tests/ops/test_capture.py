"""While a CUDA graph is captured the host checks nothing: what is captured must be right and safe with any input."""

from __future__ import annotations

import importlib

import pytest
import torch
from checks import backends_of, use

from ofa_fast.ops import _op, _reports, factorized_cross_entropy, factorized_embedding, topk_similarity

V, R, D, N = 40, 12, 20, 9


def _lookup(ids, coordinates, basis):
    out = factorized_embedding(ids, coordinates, basis)
    return out, *torch.autograd.grad(out, (coordinates, basis), torch.ones_like(out))


def _loss(labels, coordinates, basis):
    hidden = torch.linspace(-1, 1, N * D, device=labels.device).view(N, D).requires_grad_()
    loss = factorized_cross_entropy(hidden, coordinates, basis, labels, reduction="none")
    return loss, *torch.autograd.grad(loss.sum(), (hidden, coordinates, basis))


def _search(ids, coordinates, basis):
    """Among so many keys that they are screened; some are equal."""
    keys = torch.cat([coordinates * round(scale, 1) for scale in torch.linspace(1, 2, 100).tolist()]).detach()
    return topk_similarity(keys[ids], keys, 3, "dot")


OPS = {_lookup: "factorized_embedding", _loss: "factorized_cross_entropy"}


def _inputs(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = (V, R), (R, D)
    tables = [torch.randn(*shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    return torch.randint(V, (N,), generator=generator).to(device), *tables


@pytest.mark.parametrize("wrong", [-1, V, 1 << 40, -(1 << 40), -(1 << 63)])
@pytest.mark.parametrize(("op", "name"), [(op, name) for op, word in OPS.items() for name in backends_of(word)])
@pytest.mark.usefixtures("told_at_once")
def test_wrong_ids(op, wrong, name, monkeypatch):
    """An error, but while capturing as if the position were not there."""
    ids, *tables = _inputs()
    ids[3] = wrong
    told = max(wrong, 1 - (1 << 63)) if name in ("cuda", "triton") else wrong
    with use(name), pytest.raises(IndexError, match=f"got {told} at position 3"):
        op(ids, *tables)
    if name not in ("cuda", "triton"):
        return
    monkeypatch.setattr(_reports, "capturing", lambda tensor: True)
    monkeypatch.setattr(importlib.import_module(f"ofa_fast.ops.{OPS[op]}").REPORTS, "_records", {})
    with use(name):
        got = op(ids, *tables)
    kept = torch.arange(N) != 3
    if op is _lookup:
        expected = _lookup(ids[kept], *tables)
        torch.testing.assert_close(got[0][kept], expected[0])
        assert not got[0][3].any()
    else:
        expected = _loss(torch.where(kept, ids, -100), *tables)
        torch.testing.assert_close(got[:2], expected[:2])
    torch.testing.assert_close(got[-2:], expected[-2:])


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, word in OPS.items() for name in backends_of(word)])
def test_wrong_ids_where_nobody_waits(op, name, monkeypatch):
    """A later call tells of the first one, once; the backward pass of the same call is such a later call."""
    monkeypatch.setattr(_reports.Reports, "settle", lambda *_: None)
    ids, *tables = _inputs()
    wrong = ids.clone()
    wrong[[2, 5, 8]] = torch.tensor([-7, V, -8])
    message = rf"must lie in \[0, {V}\).*, got -7 at position 2"
    hidden = torch.ones(N, D)

    def forward(ids):
        if op is _lookup:
            return factorized_embedding(ids, *tables)
        return factorized_cross_entropy(hidden, *tables, ids, reduction="none")[:, None]

    with use(name):
        if name not in ("cuda", "triton"):  # it does not need to wait
            with pytest.raises(IndexError, match=message + "$"):
                forward(wrong)
            return
        message += "; said of an earlier call"
        out = forward(wrong)
        assert (out == 0).all(1).tolist() == [i in (2, 5, 8) for i in range(N)]
        with pytest.raises(IndexError, match=message):
            forward(ids)
        out = forward(wrong)
        with pytest.raises(IndexError, match=message):
            out.sum().backward()
        op(ids, *tables)


@pytest.mark.parametrize("name", backends_of("topk_similarity"))
def test_a_captured_search_takes_what_it_is_given(name, monkeypatch):
    ids, *tables = _inputs()
    with use(name):
        expected = _search(ids, *tables)
        monkeypatch.setattr(importlib.import_module("ofa_fast.ops.topk_similarity"), "capturing", lambda tensor: True)
        assert all(map(torch.equal, _search(ids, *tables), expected))
        with torch.no_grad():
            tables[0][ids[2]], tables[0][ids[3]] = float("nan"), float("inf")
        if name != "cuda":  # all others look at what they are given
            with pytest.raises(ValueError, match="must be finite"):
                _search(ids, *tables)
            return
        scores, indices = _search(ids, *tables)
    assert scores.shape == indices.shape == (N, 3) and indices.min() >= 0 and indices.max() < 100 * V


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize(
    ("op", "name"), [*((op, name) for op in OPS for name in ("triton", "cuda")), (_search, "cuda")]
)
def test_replayed(op, name):  # pragma: no cover
    """A graph captured with some ids and replayed with others gives what a call gives."""
    ids, *tables = _inputs("cuda")
    if why_not := _op.OPS[OPS.get(op, "topk_similarity")].refusal(name, "cuda", {torch.float32}):
        pytest.skip(why_not)
    with use(name):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            op(ids, *tables)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = op(ids, *tables)
        others = ids.flip(0) + 1
        others[0] = 5
        others %= V
        expected = op(others, *tables)
        ids.copy_(others)
        graph.replay()
        torch.cuda.synchronize()
    for got, wanted in zip(captured, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
