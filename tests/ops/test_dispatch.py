"""What stands between a call and a kernel: torch's dispatcher where something needs it, autocast, views of inputs."""

from __future__ import annotations

import pytest
import torch
from checks import backends_of, use

from ofa_fast.ops import factorized_cross_entropy, factorized_embedding

V, R, D, N = 30, 5, 7, 9


def _tables(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (V, R), (R, D), (N, D)
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


IDS = torch.arange(N) * 3 % V


def test_batched_gradients():
    coordinates, basis, _ = _tables()
    out = factorized_embedding(IDS, coordinates, basis)
    seeds = torch.randn(3, *out.shape)
    batched = torch.autograd.grad(out, (coordinates, basis), seeds, is_grads_batched=True, retain_graph=True)
    for i, seed in enumerate(seeds):
        alone = torch.autograd.grad(out, (coordinates, basis), seed, retain_graph=True)
        torch.testing.assert_close([grads[i] for grads in batched], list(alone))


def test_negated_views():
    """Of a tensor whose memory has the other sign."""
    coordinates, basis, _ = _tables()
    negated = torch._neg_view(coordinates.detach()).requires_grad_()
    torch.testing.assert_close(
        factorized_embedding(IDS, negated, basis), factorized_embedding(IDS, -coordinates, basis)
    )


def test_meta_tensors():
    coordinates, basis, hidden = (tensor.detach().to("meta").requires_grad_() for tensor in _tables())
    ids = IDS.to("meta")
    out = factorized_embedding(ids, coordinates, basis)
    loss = factorized_cross_entropy(hidden, coordinates, basis, ids)
    assert out.shape == (N, D) and out.is_meta and loss.shape == () and loss.is_meta
    assert all(grad.is_meta for grad in torch.autograd.grad(out.sum() + loss, (coordinates, basis)))


@pytest.mark.parametrize("name", backends_of("factorized_cross_entropy"))
def test_views_of_labels(name):
    coordinates, basis, hidden = _tables()
    striped = torch.stack([IDS, IDS + 1], 1)[:, 0]
    same = torch.tensor([5]).expand(N)
    with use(name):
        for labels in (striped, same):
            losses = [factorized_cross_entropy(hidden, coordinates, basis, y) for y in (labels, labels.contiguous())]
            assert losses[0].item() == losses[1].item()


@pytest.mark.parametrize("name", [name for name in backends_of("factorized_cross_entropy") if "triton" not in name])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.3}])
def test_autocast_of_a_cpu_changes_nothing(name, options):
    coordinates, basis, hidden = _tables()
    found = []
    for enabled in (False, True):
        with use(name), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = factorized_cross_entropy(hidden, coordinates, basis, IDS, **options)
        with use(name):
            found.append([loss.detach(), *torch.autograd.grad(loss, (hidden, coordinates, basis))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
