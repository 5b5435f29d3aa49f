"""The top-k similarity search: the five checks, exactness to the bit on hostile inputs, and the errors."""

from __future__ import annotations

import importlib
import os

import numpy as np
import pytest
import torch
from checks import (
    assert_no_worse,
    backends_of,
    concurrently,
    fullgraph,
    gradcheck,
    in_every_dtype,
    in_forked_child,
    on_every_backend_of,
    opcheck,
    threads,
    use,
    values,
)
from fuzz_topk_similarity import KINDS, check, truth

from ofa_fast.ops import topk_similarity
from ofa_fast.ops.topk_similarity import gradients, reference

search = importlib.import_module("ofa_fast.ops.topk_similarity")  # the name in `ops` is the function's

SHAPES = {  # Q, K, d, k
    "small": (7, 11, 3, 4),
    "odd": (19, 203, 27, 10),
    "screened": (40, 500, 17, 10),
    "one query": (1, 40, 9, 3),
    "one key": (9, 1, 5, 1),
    "one number": (1, 1, 1, 1),
    "no queries": (0, 6, 4, 2),
    "no columns": (9, 6, 0, 2),
    "all keys": (10, 64, 17, 64),
    "many neighbours": (9, 1100, 7, 1000),
}
TILES = {  # what takes the CUDA kernels several tiles, rounds or stages
    "one round": (30, 1400, 20, 5),
    "three rounds": (6, 6100, 20, 1),
    "long rows": (33, 1000, 200, 5),
    "rows too long to stay": (33, 1000, 800, 5),  # in a processor's shared memory, of which an H100 has 227 KiB
    "two slabs": (270, 400, 9, 3),
    "many neighbours": (7, 5200, 5, 40),
}
BACKENDS = backends_of("topk_similarity")
on_every_backend = on_every_backend_of("topk_similarity")
HALF = {"one round": torch.bfloat16, "two slabs": torch.float16}
metrics = pytest.mark.parametrize("metric", ["cosine", "dot"])


def make(q, n, d, dtype=torch.float32):
    generator = torch.Generator().manual_seed(q + n + d)
    queries = torch.randn(q, d, generator=generator, dtype=torch.float64).to(dtype)
    return queries, torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def assert_exact(queries, keys, k, metric):
    scores, indices = topk_similarity(queries, keys, k, metric)
    true_scores, true_indices = truth(queries, keys, k, metric)
    assert torch.equal(indices, true_indices)
    assert torch.equal(scores, true_scores)


@on_every_backend
@in_every_dtype
@metrics
@pytest.mark.parametrize("shape", [s for s in SHAPES if s not in ("one number", "no columns")])  # constant cosines
def test_values(name, dtype, metric, shape):
    q, n, d, k = SHAPES[shape]
    queries, keys = make(q, n, d, torch.float64)
    leaves = queries.requires_grad_(), keys.requires_grad_()
    with use(name):
        values(topk_similarity, reference.topk_similarity, (*leaves, k, metric), dtype)
        values(topk_similarity, reference.topk_similarity, (*leaves, k, metric), dtype, stretched=True)


@on_every_backend
@in_every_dtype
@metrics
@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "no queries"])
def test_exact(name, dtype, metric, shape):
    q, n, d, k = SHAPES[shape]
    with use(name):
        assert_exact(*make(q, n, d, dtype), k, metric)


@on_every_backend
@pytest.mark.parametrize("shape", TILES)
def test_values_of_small_tiles(name, shape):
    q, n, d, k = TILES[shape]
    with use(name):
        assert_exact(*make(q, n, d, HALF.get(shape, torch.float32)), k, "cosine")


@on_every_backend
@pytest.mark.parametrize("d", [20, 800])
def test_more_candidates_than_there_is_room_for(name, d):
    queries, keys = make(33, 1000, d)
    keys[5:] = keys[5]
    with use(name):
        assert_exact(queries, keys, 5, "dot")


@on_every_backend
@metrics
@pytest.mark.parametrize("kind", KINDS)
def test_exact_on_hostile_inputs(name, metric, kind):
    rng = np.random.default_rng(5)
    keys = torch.from_numpy(KINDS[kind](rng.standard_normal((900, 24)), rng)).float()
    plain = torch.from_numpy(rng.standard_normal((15, 24))).float()
    with use(name):
        for queries in (plain, plain.abs(), keys[5:20], torch.zeros(15, 24)):
            assert_exact(queries, keys, 10, metric)
            assert_exact(queries[:2], keys, 10, metric)
        assert_exact(torch.cat([plain.abs(), keys[:25]]), keys, 5, metric)


@pytest.mark.parametrize("kind", dict.fromkeys(name.partition("-")[0] for name in BACKENDS[1:]))
def test_random_cases(kind):
    """A short run of the script that compares as many as one likes; Triton compiles for most of them."""
    backends = [name for name in BACKENDS if name.startswith(kind)]
    check(int(os.environ.get("OFA_RANDOM_CASES", 200)), seed=11, backends=backends)


@on_every_backend
def test_non_contiguous_rows(name):
    queries, keys = make(20, 300, 32)
    expected = topk_similarity(queries, keys, 7)
    strided = torch.stack([keys, -keys], 2).flatten(1)[:, ::2]
    with use(name):
        for q, x in ((queries.T.contiguous().T, keys), (queries, strided), (queries[::2], keys.T.contiguous().T)):
            scores, indices = topk_similarity(q, x, 7)
            step = 20 // len(q)
            assert torch.equal(scores, expected[0][::step])
            assert torch.equal(indices, expected[1][::step])


@metrics
def test_gradcheck(metric):
    queries, keys = (x.requires_grad_() for x in make(5, 12, 4, torch.float64))
    gradcheck(lambda q, x: topk_similarity(q, x, 3, metric)[0], (queries, keys))


@metrics
def test_zero_vectors_have_no_cosine_gradient(metric):
    queries, keys = make(9, 30, 6)
    queries[2], keys[4] = 0, 0
    leaves = queries.requires_grad_(), keys.requires_grad_()
    values(topk_similarity, reference.topk_similarity, (*leaves, 30, metric), torch.float32)


def test_gradient_of_one_side_only(monkeypatch):
    queries, keys = make(9, 30, 6)
    asked, run = [], search._backward

    def spy(*args):
        asked.append(args[-1])
        return run(*args)

    monkeypatch.setattr(search, "_backward", spy)
    both = torch.autograd.grad(
        topk_similarity(queries.requires_grad_(), keys.requires_grad_(), 4)[0].sum(), (queries, keys)
    )
    for leaf, other, expected in ((queries, keys, both[0]), (keys, queries, both[1])):
        pair = {id(leaf): leaf, id(other): other.detach()}
        (own,) = torch.autograd.grad(topk_similarity(pair[id(queries)], pair[id(keys)], 4)[0].sum(), leaf)
        assert torch.equal(own, expected)
    assert asked == [[True, True], [True, False], [False, True]]


@metrics
def test_second_derivatives(metric):
    queries, keys = (x.requires_grad_() for x in make(5, 12, 4, torch.float64))
    assert torch.autograd.gradgradcheck(lambda q, x: topk_similarity(q, x, 3, metric)[0], (queries, keys))


# queries, keys, columns, k: a key that all queries have found, more columns than a program has, keys that nobody found
PAIRED = {
    "hub": (75, 4, 20, 4),
    "wide": (6, 9, 150, 3),
    "alone": (3, 40, 5, 1),
    "none": (0, 5, 4, 2),
    "flat": (5, 6, 0, 2),
}


def paired(shape, dtype):
    q, n, d, k = PAIRED[shape]
    queries, keys = make(q, n, d, dtype)
    queries[1:2], keys[2] = 0, 0
    indices = torch.rand(q, n, generator=torch.Generator().manual_seed(3)).argsort(dim=1)[:, :k]
    exact = reference.topk_similarity(queries.double(), keys.double(), n, "cosine")
    scores = torch.zeros(q, n, dtype=torch.float64).scatter(1, exact[1], exact[0]).gather(1, indices)
    return queries, keys, scores.float(), indices


@on_every_backend
@in_every_dtype
@metrics
@pytest.mark.parametrize("shape", PAIRED)
def test_gradients_of_given_pairs(name, dtype, metric, shape):
    queries, keys, scores, indices = paired(shape, dtype)
    grad = torch.linspace(-1, 2, max(1, scores.numel()))[: scores.numel()].view(scores.shape)
    leaves = [x.double().requires_grad_() for x in (queries, keys)]
    products = (leaves[0][:, None] * leaves[1][indices]).sum(2)
    if metric == "cosine":
        norms = [torch.linalg.vector_norm(x, dim=1) for x in leaves]
        whole = norms[0][:, None] * norms[1][indices]
        products = torch.where(whole > 0, products / whole.masked_fill(whole == 0, 1), 0.0)
    truth = [g.nan_to_num() for g in torch.autograd.grad((products * grad).sum(), leaves)]  # a norm's at 0 is NaN
    call = torch.ops.ofa_fast.topk_similarity_backward
    with use(name):
        both = call(grad, queries, keys, scores, indices, metric, [True, True])
        strided = call(grad.T.contiguous().T, queries.T.contiguous().T, keys, scores, indices, metric, [True, False])
        last = call(grad, queries, keys, scores, indices, metric, [False, True])
        nothing = call(grad, queries, keys, scores, indices, metric, [False, False])
    for ours, true in zip(both, truth, strict=True):
        assert_no_worse(ours, true.to(dtype), true, slack=1.0)
    assert torch.equal(strided[0], both[0]) and torch.equal(last[1], both[1])
    assert not any(x.numel() for x in (strided[1], last[0], *nothing))


def test_columns_by_columns_and_rows_by_rows_are_the_whole(monkeypatch):
    for metric in ("cosine", "dot"):
        inputs = torch.ones(75, 4), *paired("hub", torch.float32), metric, [True, True]
        expected = gradients.backward(*inputs)
        with monkeypatch.context() as patched:
            patched.setattr(gradients, "_BLOCK", 250)  # three columns or twelve rows at a time
            assert all(map(torch.equal, gradients.backward(*inputs), expected))


@on_every_backend
def test_opcheck_of_gradients(name):
    with use(name):
        inputs = paired("hub", torch.float32)
        for needs in ([True, True], [False, True]):
            opcheck(torch.ops.ofa_fast.topk_similarity_backward.default, (torch.ones(75, 4), *inputs, "cosine", needs))


@on_every_backend
def test_opcheck(name):
    with use(name):
        for metric in ("cosine", "dot"):
            opcheck(torch.ops.ofa_fast.topk_similarity.default, (*make(9, 40, 6), 5, metric))


@on_every_backend
@metrics
def test_fullgraph(name, metric):
    queries, keys = (x.requires_grad_() for x in make(9, 40, 6))
    with use(name):
        fullgraph(lambda q, x: topk_similarity(q, x, 5, metric)[0], (queries, keys))


@on_every_backend
@pytest.mark.parametrize("q", [3, 10, 300])
def test_threads_do_not_change_the_result(name, q):
    queries, keys = make(q, 9000, 20)
    queries.requires_grad_(), keys.requires_grad_()

    def outcome():
        scores, indices = topk_similarity(queries, keys, 10)
        return scores, indices, *torch.autograd.grad(scores.sin().sum(), (queries, keys))

    with use(name):
        with threads(1):
            expected = outcome()
        for count in (2, 5):
            with threads(count):
                assert all(torch.equal(a, b) for a, b in zip(outcome(), expected, strict=True))


def same_again():
    """A check that the search gives what it gave."""
    queries, keys = make(100, 2000, 24)
    expected = topk_similarity(queries, keys, 10)
    return lambda: all(map(torch.equal, topk_similarity(queries, keys, 10), expected))


def test_concurrent_calls():
    concurrently(same_again(), calls=10)


def test_forked_child():
    in_forked_child(same_again())


@on_every_backend
def test_report(name):
    queries, keys = make(50, 4000, 24)
    with use(name):
        easy = topk_similarity(queries, keys, 10, return_report=True)[2]
        hard = topk_similarity(queries, keys[:1].expand(4000, 24), 10, return_report=True)[2]
    if name == "reference":
        assert easy == hard == {"undecided": 0, "rescored": 50 * 4000}
    else:
        assert easy["undecided"] == 0
        assert 50 * 10 <= easy["rescored"] < 50 * 200
        assert hard["undecided"] == 50


@on_every_backend
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("argument", ["queries", "keys"])
def test_values_that_are_not_finite(name, value, argument):
    rows = dict(zip(("queries", "keys"), make(20, 700, 5), strict=True))
    rows[argument][13, 4] = value
    with use(name), pytest.raises(ValueError, match=f"{argument} must be finite, got NaN or infinity in row 13"):
        topk_similarity(rows["queries"], rows["keys"], 3)


@pytest.mark.parametrize(
    ("queries", "keys", "k", "metric", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "dot", ValueError, r"k must lie in \[1, K\].* 4; got 5"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "dot", ValueError, r"k must lie in \[1, K\]"),
        (torch.zeros(2, 3), torch.zeros(0, 3), 1, "dot", ValueError, r"k must lie in \[1, K\]"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 1.0, "dot", TypeError, "k must be an integer"),
        (torch.zeros(2, 3), torch.zeros(4, 2), 1, "dot", ValueError, "the same d"),
        (torch.zeros(3), torch.zeros(4, 3), 1, "dot", ValueError, r"queries must be \[Q, d\]"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 1, "euclidean", ValueError, "metric must be one of cosine, dot"),
        (torch.zeros(2, 3), torch.zeros(4, 3).half(), 1, "dot", TypeError, "one floating-point dtype"),
        (torch.zeros(2, 3).int(), torch.zeros(4, 3).int(), 1, "dot", TypeError, "one floating-point dtype"),
        (torch.zeros(2, 3), torch.zeros(4, 3, device="meta"), 1, "dot", ValueError, "on one device"),
    ],
)
def test_bad_input(queries, keys, k, metric, error, message):
    with pytest.raises(error, match=message):
        topk_similarity(queries, keys, k, metric)
