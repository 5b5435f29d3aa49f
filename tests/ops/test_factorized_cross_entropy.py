"""The cross entropy of the factorised head: the five checks, the inputs that break kernels, memory, and the errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from checks import (
    assert_no_worse,
    backends_of,
    concurrently,
    fullgraph,
    gradcheck,
    in_every_dtype,
    on_every_backend_of,
    opcheck,
    run,
    threads,
    use,
    values,
)

from ofa_fast.ops import factorized_cross_entropy
from ofa_fast.ops.factorized_cross_entropy import reference

pytestmark = pytest.mark.usefixtures("one_thread")  # the tests of threads set their own number
BACKENDS, on_every_backend = backends_of("factorized_cross_entropy"), on_every_backend_of("factorized_cross_entropy")
SHAPES = {  # labels' shape, V, R, D
    "small": ((7,), 11, 3, 5),
    "odd": ((3, 19), 53, 17, 37),
    "one of everything": ((1,), 1, 1, 1),
    "one column": ((9,), 30, 1, 1),
    "one entry": ((5,), 1, 4, 3),
    "one position": ((1,), 400, 20, 8),
    "tiles": ((100,), 1000, 64, 40),
    "blocks": ((2, 330), 338, 33, 65),
    "depths": ((17,), 169, 230, 20),
    "wide": ((250,), 300, 200, 30),
    "scalar label": ((), 20, 4, 33),
}


def make(shape, v, r, d, dtype=torch.float64, labelled=1.0):
    generator = torch.Generator().manual_seed(1)

    def leaf(*size, scale=1.0):
        return (torch.randn(*size, generator=generator, dtype=dtype) * scale).requires_grad_()

    labels = torch.randint(v, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) > labelled] = -100
    return leaf(*shape, d, scale=d**-0.5), leaf(v, r, scale=r**-0.5), leaf(r, d), labels, leaf(v)


@on_every_backend
@in_every_dtype
@pytest.mark.parametrize("shape", SHAPES)
def test_values(name, dtype, shape):
    with use(name):
        values(factorized_cross_entropy, reference.factorized_cross_entropy, make(*SHAPES[shape]), dtype)


@on_every_backend
@in_every_dtype
def test_values_on_difficult_inputs(name, dtype):
    hidden, *tables, labels, bias = make((4, 31), 190, 9, 24, labelled=0.5)
    coordinates, basis = tables
    twins = coordinates.detach()[torch.arange(190) // 2].requires_grad_()
    striped = coordinates.detach().mul(torch.arange(190)[:, None] % 2).requires_grad_()
    cases = {
        "ignored": (hidden, *tables, labels, bias),
        "no bias": (hidden, *tables, labels),
        "none": (hidden, *tables, labels, bias, -100, "none"),
        "sum": (hidden, *tables, labels, bias, -100, "sum"),
        "an ignored id": (hidden, *tables, labels.clamp(min=0) % 5, bias, 3),
        "int32 labels": (hidden, *tables, labels.int(), bias),
        "one label": (hidden, *tables, torch.full_like(labels, 189), bias),
        "transposed": (hidden.transpose(0, 1), *tables, labels.T, bias),
        "one state": (hidden[:, :1].expand(4, 31, 24), *tables, labels, bias),
        "duplicate rows": (hidden, twins, basis, labels, bias),
        "zero rows": (hidden, striped, basis, labels, bias),
        "frozen tables": (hidden, coordinates.detach(), basis.detach(), labels, bias.detach()),
        "frozen states": (hidden.detach(), *tables, labels, bias),
        "only the bias": (hidden.detach(), coordinates.detach(), basis.detach(), labels, bias),
        "only the basis": (hidden.detach(), coordinates.detach(), basis, labels, bias.detach()),
        "only the coordinates": (hidden.detach(), coordinates, basis.detach(), labels, bias.detach()),
    }
    with use(name):
        for inputs in cases.values():
            leaves = tuple(i.detach().requires_grad_(i.requires_grad) if torch.is_tensor(i) else i for i in inputs)
            values(factorized_cross_entropy, reference.factorized_cross_entropy, leaves, dtype)
            values(factorized_cross_entropy, reference.factorized_cross_entropy, leaves, dtype, stretched=True)


@on_every_backend
@in_every_dtype
def test_mixed_dtypes(name, dtype):
    """Autocast hands over bfloat16 states and float32 tables."""
    inputs = make((41,), 333, 200, 20, torch.float32)
    for which in ((0,), (0, 4), (1, 2)):
        mixed = tuple(i.detach().to(dtype) if n in which else i.detach() for n, i in enumerate(inputs))
        mixed = tuple(i.requires_grad_() if i.is_floating_point() else i for i in mixed)
        wide = tuple(i.detach().float().requires_grad_() if i.is_floating_point() else i for i in mixed)
        exact = tuple(i.detach().double().requires_grad_() if i.is_floating_point() else i for i in mixed)
        with use(name):
            ours, ours_grad = run(factorized_cross_entropy, mixed)
        torchs, torchs_grad = run(reference.factorized_cross_entropy, wide)
        truth, truth_grad = run(reference.factorized_cross_entropy, exact)
        assert ours[0].dtype == torch.float32
        for a, b, t in zip(ours + ours_grad, torchs + torchs_grad, truth + truth_grad, strict=True):
            assert_no_worse(a, b, t)
        assert [g.dtype for g in ours_grad] == [i.dtype for i in mixed if i.is_floating_point()]


@on_every_backend
def test_float64_among_the_inputs(name):
    hidden, coordinates, basis, labels, bias = make((6,), 20, 3, 5, torch.float32)
    loss = factorized_cross_entropy(hidden, coordinates.double(), basis, labels, bias)
    assert loss.dtype == torch.float64
    if name != "reference":
        with use(name), pytest.raises(RuntimeError, match="it takes float32, bfloat16, float16"):
            factorized_cross_entropy(hidden, coordinates.double(), basis, labels, bias)


@on_every_backend
def test_non_contiguous_tables(name):
    hidden, _, basis, labels, bias = make((40,), 200, 12, 20, torch.float32)
    striped = torch.randn(200, 24)[:, ::2]
    expected = reference.factorized_cross_entropy(hidden, striped, basis, labels, bias)
    with use(name):
        for f, p in ((striped, basis), (striped.T.contiguous().T, basis.detach().T.contiguous().T)):
            torch.testing.assert_close(factorized_cross_entropy(hidden, f, p, labels, bias), expected)


@on_every_backend
@in_every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_label_smoothing_and_z_loss(name, dtype, reduction):
    inputs = make((3, 50), 180, 9, 14, labelled=0.4)

    def expected(hidden, coordinates, basis, labels, bias):
        logits = (hidden @ basis.T @ coordinates.T + bias).flatten(0, 1)
        y = labels.flatten()
        loss = F.cross_entropy(logits, y, label_smoothing=0.2, reduction="none")
        loss = loss + 1e-2 * logits.logsumexp(1).square() * (y != -100)
        mean = loss.sum() / (y != -100).sum()
        return {"none": loss.view(labels.shape), "sum": loss.sum(), "mean": mean}[reduction]

    def ours(*inputs):
        return factorized_cross_entropy(*inputs, reduction=reduction, label_smoothing=0.2, z_loss=1e-2)

    with use(name):
        values(ours, expected, inputs, dtype)
        values(ours, expected, inputs, dtype, stretched=True)


@on_every_backend
def test_small_losses_keep_their_digits(name):
    """Two entries with logits 0 and x: the loss of the first is log(1 + exp(x)), also where it is 1e-38."""
    x = torch.linspace(-87, 200, 40_001)
    args = x[:, None], torch.tensor([[0.0], [1.0]]), torch.ones(1, 1), torch.zeros(len(x), dtype=torch.long)
    with use(name):
        loss = factorized_cross_entropy(*args, reduction="none")
    truth = F.softplus(x.double(), threshold=1000)
    if name == "reference":
        torch.testing.assert_close(loss.double(), truth, rtol=0, atol=2e-5)
    else:  # an error of the score is a relative one of a small loss; three TF32 products are right to 2**-21
        score = 2**-21 * x.abs() if name == "triton" else 0.0
        assert ((loss.double() - truth).abs() <= (2.5e-7 + score) * truth).all()


@on_every_backend
def test_gradients_of_certain_predictions_keep_their_digits(name):
    """The true gradient at the label, p - 1, is that of the loss: -1e-12 is not rounded to 0."""
    hidden = torch.tensor([[-28.0]]).requires_grad_()
    with use(name):
        loss = factorized_cross_entropy(hidden, torch.tensor([[0.0], [1.0]]), torch.ones(1, 1), torch.tensor([0]))
        (gradient,) = torch.autograd.grad(loss, hidden)
    if name != "reference":
        assert gradient.item() == pytest.approx(6.914400106940203e-13, rel=1e-6)


@on_every_backend
def test_nothing_labelled(name):
    hidden, coordinates, basis, labels, bias = make((12,), 40, 3, 5, torch.float32)
    leaves = hidden, coordinates, basis, bias
    with use(name):
        for empty, states in ((torch.full_like(labels, -100), hidden), (labels[:0], hidden[:0])):
            assert factorized_cross_entropy(states, coordinates, basis, empty, bias).isnan()
            total = factorized_cross_entropy(states, coordinates, basis, empty, bias, reduction="sum")
            assert total == 0
            assert all((g == 0).all() for g in torch.autograd.grad(total, leaves, materialize_grads=True))
            each = factorized_cross_entropy(states, coordinates, basis, empty, bias, reduction="none")
            assert torch.equal(each, torch.zeros(empty.shape))


@on_every_backend
def test_ignored_states_are_never_read(name):
    hidden, coordinates, basis, labels, bias = make((30,), 40, 3, 5, torch.float32, labelled=0.5)
    ignored = labels == -100
    hidden = hidden.detach().masked_fill(ignored[:, None], float("nan")).requires_grad_()
    with use(name):
        _, grads = run(factorized_cross_entropy, (hidden, coordinates, basis, labels, bias))
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][ignored] == 0).all() and (grads[0][~ignored] != 0).any(1).all()


def put(tensor, at, value):
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


EXTREMES = {
    "large logits": lambda h, f, p, y, b: (h, f, p, y, torch.linspace(-1e4, 1e4, 400)),
    "large exact products": lambda h, f, p, y, b: (*((t * 5).round() for t in (h * 8, f * 3, p)), y, b),
    "entries ruled out": lambda h, f, p, y, b: (h, f, p, y // 3 * 3 + 1, put(b, slice(None, None, 3), -torch.inf)),
    "labels ruled out": lambda h, f, p, y, b: (h, f, p, y, put(b, slice(None, None, 3), -torch.inf)),
    "first tiles ruled out": lambda h, f, p, y, b: (h, f, p, y % 10 + 390, put(b, slice(390), -torch.inf)),
    "all ruled out": lambda h, f, p, y, b: (h, f, p, y, torch.full_like(b, -torch.inf)),
    "an infinite entry": lambda h, f, p, y, b: (h, f, p, put(y, slice(3), 7), put(b, 7, torch.inf)),
    "minus infinity in coordinates": lambda h, f, p, y, b: (h, put(f, (399, 3), -torch.inf), p, y % 390, b),
    "infinity in coordinates": lambda h, f, p, y, b: (h, put(f, (200, 3), torch.inf), p, y % 190, b),
    "the largest coordinate": lambda h, f, p, y, b: (h / 64, put(f, (200, 3), 3.4e38), p / 64, y % 190, b),
    "an infinite state": lambda h, f, p, y, b: (put(h, (5, 2), torch.inf), f, p, y, b),
    "NaN in coordinates": lambda h, f, p, y, b: (h, put(f, (399, 3), torch.nan), p, y, b),
    "NaN in a state": lambda h, f, p, y, b: (put(h, 5, torch.nan), f, p, y, b),
}


@on_every_backend
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("rank", [8, 200])
def test_extreme_values_are_as_in_torch(name, case, rank):
    inputs = EXTREMES[case](*(t.detach() for t in make((60,), 400, rank, 8, torch.float32)))
    leaves = [t.requires_grad_() for t in inputs if t.is_floating_point()]
    expected = reference.factorized_cross_entropy(*inputs, -100, "none")
    used = expected.isfinite()
    with use(name):
        loss = factorized_cross_entropy(*inputs, reduction="none")
        ours = torch.autograd.grad(loss[used].sum(), leaves)
    torch.testing.assert_close(loss, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    if not used.any():
        return
    torchs = torch.autograd.grad(expected[used].sum(), leaves)
    torch.testing.assert_close(ours, torchs, equal_nan=True, rtol=1e-4, atol=1e-5)


@on_every_backend
def test_infinite_gradients_are_as_in_torch(name):
    """What an overflowing loss scale leaves behind; at the label torch subtracts infinities."""
    *inputs, labels, bias = make((60,), 400, 40, 8, torch.float32)
    scale, other = put(torch.ones(60), 5, torch.inf), torch.arange(400) != labels[5]
    both = factorized_cross_entropy, reference.factorized_cross_entropy
    with use(name):
        losses = [function(*inputs, labels, bias, -100, "none") for function in both]
        ours, torchs = (torch.autograd.grad(loss, inputs[1], scale)[0] for loss in losses)
    assert not ours[~other].isfinite().any()
    torch.testing.assert_close(ours[other], torchs[other], equal_nan=True, rtol=1e-4, atol=1e-5)


def test_gradcheck():
    hidden, coordinates, basis, labels, bias = make((9,), 7, 3, 4, labelled=0.7)
    for options in ({}, {"reduction": "none", "label_smoothing": 0.1, "z_loss": 0.1}):
        gradcheck(
            lambda h, f, p, b, options=options: factorized_cross_entropy(h, f, p, labels, b, **options),
            (hidden, coordinates, basis, bias),
        )


@pytest.mark.parametrize("name", [BACKENDS[0], BACKENDS[-1]])
def test_opcheck(name):
    *inputs, bias = (t.detach() for t in make((9,), 7, 3, 4, torch.float32, labelled=0.7))
    forward = torch.ops.ofa_fast.factorized_cross_entropy.default
    backward = torch.ops.ofa_fast.factorized_cross_entropy_backward.default
    with use(name):
        for b, needs in ((bias, [True] * 4), (None, [False, True, False, False])):
            saved = forward(*inputs, b, -100, needs[0])
            opcheck(forward, (*inputs, b, -100, needs[0]))
            opcheck(backward, (torch.randn(9), torch.randn(9), *inputs, b, *saved, -100, needs))


@pytest.mark.parametrize("name", [BACKENDS[0], BACKENDS[-1]])
def test_fullgraph(name):
    hidden, *tables, labels, bias = make((2, 9), 7, 3, 4, torch.float32, labelled=0.7)
    with use(name):
        fullgraph(factorized_cross_entropy, (hidden, *tables, labels, bias))
        fullgraph(factorized_cross_entropy, (hidden.detach(), *tables, labels, None, -100, "none"))


def test_float64_truth_on_200_random_shapes():
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        n, v, r, d = (int(torch.randint(1, high, (), generator=generator)) for high in (300, 600, 70, 90))
        values(factorized_cross_entropy, reference.factorized_cross_entropy, make((n,), v, r, d), torch.float32, 8)


@on_every_backend
def test_many_blocks_and_chunks(name, monkeypatch):
    """More labelled positions than the partial sums of one round, or the reference's logits, have room for."""
    monkeypatch.setattr(sys.modules[reference.__package__], "REFERENCE_LOGITS", 1700 * 400)
    inputs = make((1500,), 1700, 192, 24, torch.float32)
    with use(name):
        values(factorized_cross_entropy, reference.factorized_cross_entropy, inputs, torch.float32)


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_threads_do_not_change_the_result(name):
    inputs = make((700,), 3000, 200, 72, torch.float32, labelled=0.6)
    with use(name):
        (loss,), grads = run(factorized_cross_entropy, inputs)
        for count in (2, 5):
            with threads(count):
                (other_loss,), other_grads = run(factorized_cross_entropy, inputs)
            assert torch.equal(loss, other_loss)
            assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))


def test_the_loss_is_the_same_with_and_without_gradients():
    inputs = make((300,), 3000, 40, 72, torch.float32)
    loss = torch.no_grad()(factorized_cross_entropy)(*inputs)
    assert not loss.requires_grad and torch.equal(loss, factorized_cross_entropy(*inputs))


def test_concurrent_calls():
    inputs = make((200,), 1000, 24, 40, torch.float32)
    expected = factorized_cross_entropy(*inputs).detach()
    concurrently(lambda: torch.equal(factorized_cross_entropy(*inputs).detach(), expected), calls=10)


def test_logits_never_exist():
    """600 labelled positions of a vocabulary of 400,000: the logits would take 960 MB, the table [V, D] 1.6 GB."""
    script = """if True:
        import resource, torch
        from ofa_fast.ops import factorized_cross_entropy
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        torch.set_num_threads(2)
        coordinates, basis = torch.randn(400_000, 4, requires_grad=True), torch.randn(4, 1000, requires_grad=True)
        hidden, bias = torch.randn(4000, 1000, requires_grad=True), torch.zeros(400_000, requires_grad=True)
        labels = torch.arange(4000).where(torch.arange(4000) % 7 == 0, -100)
        factorized_cross_entropy(hidden[:8], coordinates, basis, labels[:8], bias).backward()
        hidden.grad = coordinates.grad = basis.grad = bias.grad = None
        before = peak()
        factorized_cross_entropy(hidden, coordinates, basis, labels, bias).backward()
        gradients = sum(t.numel() * 4 for t in (hidden, coordinates, basis, bias)) / 2**20
        print(peak() - before - gradients)
    """
    extra = float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
    assert extra < 48


@pytest.mark.usefixtures("told_at_once")
@on_every_backend
@pytest.mark.parametrize("bad", [-1, 7])
def test_labels_out_of_range(name, bad):
    inputs = torch.randn(4, 3), torch.randn(7, 2), torch.randn(2, 3), torch.tensor([0, 6, -100, bad])
    with use(name), pytest.raises(IndexError, match=rf"labels must lie in \[0, 7\) .* got {bad} at position 3"):
        factorized_cross_entropy(*inputs)


def test_backward_through_backward_is_refused():
    hidden, coordinates, basis, labels, bias = make((5,), 7, 2, 3)
    loss = factorized_cross_entropy(hidden, coordinates, basis, labels, bias).square()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(loss, hidden, create_graph=True)[0].sum().backward()


GOOD = dict(
    hidden=torch.zeros(2, 4), coordinates=torch.zeros(5, 3), basis=torch.zeros(3, 4), labels=torch.zeros(2).long()
)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(2)}, TypeError, "labels must be int64 or int32, got float32"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels must be \[2\].*got \[3\]"),
        ({"hidden": torch.zeros(2, 4).int()}, TypeError, "hidden must be float32.*got int32"),
        ({"hidden": torch.zeros(2, 5)}, ValueError, r"hidden must be \[..., 4\].*got \[2, 5\]"),
        ({"hidden": torch.zeros(())}, ValueError, r"hidden must be \[..., 4\].*got \[\]"),
        ({"coordinates": torch.zeros(5, 2)}, ValueError, r"with the same R, got \[5, 2\] and \[3, 4\]"),
        ({"coordinates": torch.zeros(5)}, ValueError, r"coordinates must be \[V, R\]"),
        ({"basis": torch.zeros(3, 4).to(torch.complex64)}, TypeError, "basis must be float32"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[5\].*got \[4\]"),
        ({"bias": torch.zeros(5).long()}, TypeError, "bias must be float32.*got int64"),
        ({"reduction": "average"}, ValueError, 'reduction must be "mean", "sum" or "none", got \'average\''),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        factorized_cross_entropy(**(GOOD | change))
