"""The passes of the cross entropy in CUDA C++, between its Triton kernels: on a Hopper GPU, or in both emulators."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, in_every_dtype, run, use, values
from test_factorized_cross_entropy import EXTREMES, make

from ofa_fast import _native
from ofa_fast.ops import factorized_cross_entropy
from ofa_fast.ops.factorized_cross_entropy import native_step, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = torch.bfloat16, torch.float16
STEPS = {8: 128, 64: 128, 72: 128, 128: 128, 136: 112, 200: 112, 208: 80, 256: 80}  # rows at a time, by rank
WIDEST = {64, 128, 200, 256}  # that a kernel is for
in_halves = pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d).removeprefix("torch."))


def _step(rank, dtype=torch.bfloat16):
    return native_step(torch.zeros(4, rank, dtype=dtype, device=DEVICE))


if "triton" not in BACKENDS or not _step(8):
    pytest.skip("there is no GPU of compute capability 9.0", allow_module_level=True)


@pytest.fixture(autouse=True)
def _on_triton():
    with use("triton"):
        yield


@pytest.fixture
def launched(monkeypatch):
    """The passes that were."""
    names, module = [], _native.cuda

    class Watched:
        def __getattr__(self, name):
            if name.endswith("_pass"):
                names.append(name.removeprefix("factorized_cross_entropy_"))
            return getattr(module, name)

    monkeypatch.setattr(_native, "cuda", Watched())
    return names


@in_every_dtype
def test_cuda_passes_take_what_they_can(dtype, monkeypatch):
    for rank in (1, 4, *STEPS, 12, 100, 264, 400):
        assert _step(rank, dtype) == (STEPS.get(rank, 0) if dtype in HALVES else 0)
    flat = torch.zeros(4 * 64 + 8, dtype=dtype, device=DEVICE)
    assert bool(native_step(flat[8:].view(4, 64))) == (dtype in HALVES)
    assert native_step(flat[1:-7].view(4, 64)) == 0  # bulk copies begin at 16 bytes
    monkeypatch.setenv("OFA_NO_WGMMA", "1")
    assert _step(64, dtype) == 0


@in_halves
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(
    ("rank", "n", "v"),
    [
        *(pytest.param(rank, 20, 131, id=f"small-{rank}") for rank in WIDEST),
        *(pytest.param(rank, 300, 2051, id=f"many-{rank}") for rank in STEPS),
        pytest.param(200, 1, 5000, id="many-one position"),
        pytest.param(200, 1500, 77, id="many-few entries"),
        pytest.param(200, 700, 20001, id="many-splits"),
    ],
)
def test_cuda_passes_values(rank, n, v, bias, dtype, launched):
    *inputs, of_bias = make((n,), v, rank, 12, labelled=0.8 if n > 1 else 1.0)
    inputs += [of_bias] if bias else []
    values(factorized_cross_entropy, reference.factorized_cross_entropy, tuple(inputs), dtype)
    assert launched == ["forward_pass", "backward_pass"]


@in_halves
def test_cuda_passes_on_difficult_inputs(dtype):
    hidden, coordinates, basis, labels, bias = make((4, 9), 150, 72, 24, labelled=0.5)
    twins = coordinates.detach()[torch.arange(150) // 2].requires_grad_()
    frozen = [t.detach() for t in (hidden, coordinates, basis, bias)]
    cases = {
        "one labelled": (hidden, coordinates, basis, put_one(labels), bias),
        "none labelled": (hidden, coordinates, basis, torch.full_like(labels, -100), bias, -100, "sum"),
        "one label": (hidden, coordinates, basis, torch.full_like(labels, 149), bias),
        "two labels": (hidden, coordinates, basis, labels.clamp(min=0) % 2 * 127 + 1, bias),
        "an ignored id": (hidden, coordinates, basis, labels.clamp(min=0) % 5, bias, 3),
        "duplicate rows": (hidden, twins, basis, labels, bias, -100, "none"),
        "only the coordinates": (frozen[0], coordinates, frozen[2], labels, frozen[3]),
        "only the bias": (*frozen[:3], labels, bias),
        "only the states": (hidden, *frozen[1:3], labels, frozen[3]),
    }
    for inputs in cases.values():
        leaves = tuple(i.detach().requires_grad_(i.requires_grad) if torch.is_tensor(i) else i for i in inputs)
        values(factorized_cross_entropy, reference.factorized_cross_entropy, leaves, dtype)


def put_one(labels):
    return torch.where(torch.arange(labels.numel()).view(labels.shape) == 17, labels.clamp(min=0), -100)


@in_halves
def test_cuda_passes_with_a_bias_of_another_dtype(dtype):
    inputs = make((40,), 150, 72, 24)
    leaves = tuple(t.detach().to(dtype).requires_grad_() if t.is_floating_point() else t for t in inputs)
    for of_bias in (torch.float32, *HALVES):
        bias = inputs[4].detach().to(of_bias).requires_grad_()
        mixed = *leaves[:4], bias
        exact = tuple(t.detach().double().requires_grad_() if t.is_floating_point() else t for t in mixed)
        (loss,), grads = run(factorized_cross_entropy, mixed)
        (truth,), true_grads = run(reference.factorized_cross_entropy, exact)
        assert loss.item() == pytest.approx(truth.item(), rel=1e-2) and grads[-1].dtype == of_bias
        torch.testing.assert_close(grads[-1].double(), true_grads[-1], rtol=2e-2, atol=1e-3)


@in_halves
@pytest.mark.parametrize("case", EXTREMES)
def test_cuda_passes_on_extreme_values(case, dtype, monkeypatch):
    """Infinite, and no numbers, where Triton's kernels are; which the ops' own tests compare with torch in float32."""
    inputs = [t.detach().to(dtype) if t.is_floating_point() else t for t in make((60,), 400, 200, 8, torch.float32)]
    inputs = [t.to(dtype).requires_grad_() if t.is_floating_point() else t for t in EXTREMES[case](*inputs)]
    leaves = [t for t in inputs if t.is_floating_point()]

    def both():
        loss = factorized_cross_entropy(*inputs, reduction="none")
        used = loss.isfinite()
        return loss.detach(), *torch.autograd.grad(loss[used].sum(), leaves)

    ours = both()
    monkeypatch.setenv("OFA_NO_WGMMA", "1")
    for got, expected in zip(ours, both(), strict=True):
        largest = expected.float().nan_to_num(0, 0, 0).abs().max().item()  # sums of products may be next to nothing
        torch.testing.assert_close(got.float(), expected.float(), rtol=2e-2, atol=2e-2 + 1e-3 * largest, equal_nan=True)


def test_cuda_passes_give_the_same_bits():
    """Twice, and the same loss where no gradient is asked for."""
    inputs = tuple(t.detach().bfloat16() if t.is_floating_point() else t for t in make((700,), 9001, 200, 40))
    leaves = tuple(t.requires_grad_() if t.is_floating_point() else t for t in inputs)
    (loss,), grads = run(factorized_cross_entropy, leaves)
    (again,), grads_again = run(factorized_cross_entropy, leaves)
    assert torch.equal(loss, again) and all(map(torch.equal, grads, grads_again))
    assert torch.equal(torch.no_grad()(factorized_cross_entropy)(*inputs), loss)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("rank", sorted(WIDEST))
def test_cuda_passes_in_a_graph(rank, launched):  # pragma: no cover
    """Captured with some labels and replayed with others, of which fewer are labelled; no memory but torch's own."""
    hidden, *tables, labels, bias = (t.detach().cuda() for t in make((333,), 2051, rank, 40, torch.float32))
    leaves = [t.bfloat16().requires_grad_() for t in (hidden, *tables, bias)]

    def both(labels):
        loss = factorized_cross_entropy(*leaves[:3], labels, leaves[3], reduction="sum")
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both(labels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(labels)
    others = torch.where(torch.arange(333, device="cuda") % 3 == 0, labels.flip(0), -100)
    expected = both(others)
    labels.copy_(others)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, expected))
    assert launched == ["forward_pass", "backward_pass"] * 3
