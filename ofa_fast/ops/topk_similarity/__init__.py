"""Batched exact top-k similarity search."""

from __future__ import annotations

import torch

from ofa_fast import _native
from ofa_fast.ops._op import Op, capturing, on_first_use, workspace
from ofa_fast.ops.topk_similarity import gradients, reference

METRICS = ("cosine", "dot")
_MOST_NEIGHBORS_CUDA = 1024
_BLOCK = 1 << 22  # scores that the reference holds at once


def _forward_native(queries, keys, k, metric):
    (q, d), n = queries.shape, keys.shape[0]
    threads = torch.get_num_threads()
    scores = queries.new_empty(q, k, dtype=torch.float32)
    indices = torch.empty(q, k, dtype=torch.int64)
    report = torch.zeros(2, dtype=torch.int64)
    if q:
        scratch = workspace(_native.cpu.topk_similarity_workspace(q, n, d, k, threads), scores)
        _native.cpu.topk_similarity(
            queries.contiguous(), keys.contiguous(), k, metric == "cosine", scores, indices, report, scratch, threads
        )
    return scores, indices, report


def _forward_cuda(queries, keys, k, metric):
    (q, d), n = queries.shape, keys.shape[0]
    scores = queries.new_empty(q, k, dtype=torch.float32)
    indices = queries.new_empty(q, k, dtype=torch.int64)
    report = (queries.new_empty if q else queries.new_zeros)(4, dtype=torch.int64)
    if q:
        scratch = workspace(_native.cuda.topk_similarity_workspace(q, n, d, k, max(queries.get_device(), 0)), queries)
        _native.cuda.topk_similarity(
            queries.contiguous(), keys.contiguous(), k, metric == "cosine", scores, indices, report, scratch, 0
        )
        if not capturing(queries):
            for name, row in zip(("queries", "keys"), report[2:].tolist(), strict=True):
                if row >= 0:
                    raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}")
    return scores, indices, report[:2]


def _cuda_limit(queries, keys, k, metric):
    if k > _MOST_NEIGHBORS_CUDA:
        return f"it takes k up to {_MOST_NEIGHBORS_CUDA}, got {k}"
    rows = max(len(queries), len(keys))
    return f"it takes fewer than 2^31 rows, got {rows}" if rows >= 1 << 31 else None


def _forward_reference(queries, keys, k, metric):
    for name, rows in (("keys", keys), ("queries", queries)):
        bad = ~rows.isfinite().all(dim=1)
        if bad.any():
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {int(bad.nonzero()[0])}")
    blocks = [
        reference.topk_similarity(block, keys, k, metric) for block in queries.split(max(1, _BLOCK // keys.shape[0]))
    ]
    scores, indices = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    report = torch.zeros(2, dtype=torch.int64, device=queries.device)
    report[1] = queries.shape[0] * keys.shape[0]
    return scores, indices, report


def _fake(queries, keys, k, metric):
    shape = queries.shape[0], k
    return (
        queries.new_empty(shape, dtype=torch.promote_types(queries.dtype, torch.float32)),
        queries.new_empty(shape, dtype=torch.int64),
        queries.new_empty(2, dtype=torch.int64),
    )


_forward = Op(
    "topk_similarity(Tensor queries, Tensor keys, SymInt k, str metric) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backends={
        "cpu": _forward_native,
        "cuda": _forward_cuda,
        "triton": on_first_use(f"{__name__}.triton", "forward"),
        "reference": _forward_reference,
    },
    limits={"cuda": _cuda_limit},
)


def _backward_beside_cuda(grad, *args):
    """CUDA C++ has no kernel for it: Triton's, or where that cannot run torch's."""
    dtypes = {tensor.dtype for tensor in (grad, *args[:3])}
    name = "reference" if _backward.refusal("triton", grad.device.type, dtypes, (grad, *args)) else "triton"
    return _backward.backends[name](grad, *args)


def _backward_fake(grad, queries, keys, scores, indices, metric, needs):
    return tuple(like.new_empty(like.shape if need else 0) for like, need in zip((queries, keys), needs, strict=True))


# Gradients of queries and of keys; those that `needs` does not ask for are empty.
_backward = Op(
    "topk_similarity_backward(Tensor grad, Tensor queries, Tensor keys, Tensor scores, Tensor indices, str metric, "
    "bool[] needs) -> (Tensor, Tensor)",
    fake=_backward_fake,
    backends={
        "cpu": gradients.backward,
        "cuda": _backward_beside_cuda,
        "triton": on_first_use(f"{__name__}.triton", "backward"),
        "reference": gradients.backward,
    },
)


class _TopkSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys, k, metric):
        scores, indices, report = _forward(queries, keys, k, metric)
        ctx.save_for_backward(queries, keys, scores, indices)
        ctx.mark_non_differentiable(indices, report)
        ctx.metric = metric
        return scores, indices, report

    @staticmethod
    def backward(ctx, grad, _indices, _report):
        needs = list(ctx.needs_input_grad[:2])
        run = gradients.backward if torch.is_grad_enabled() else _backward  # the op itself has no gradient
        grads = run(grad, *ctx.saved_tensors, ctx.metric, needs)
        return *(own if need else None for own, need in zip(grads, needs, strict=True)), None, None


def topk_similarity(
    queries: torch.Tensor, keys: torch.Tensor, k: int, metric: str = "cosine", return_report: bool = False
) -> tuple[torch.Tensor, ...]:
    """The k keys most similar to each query, exactly.

    Row i holds the first k keys j in the order (s_ij descending, j ascending), where s_ij = queries[i] · keys[j],
    divided by the product of both norms if ``metric`` is "cosine" (0 if one of them is zero). s_ij is accumulated in
    float64 in one fixed order, so scores and indices are the same bits for every backend and number of threads.

    Args:
        queries: [Q, d], float32, bfloat16, float16 or float64. keys: [K, d], of the same dtype.
        k: 1 <= k <= K. metric: "cosine" or "dot".
        return_report: also return {"undecided": queries for which the low-precision screen let more than half of the
            keys pass, "rescored": pairs whose float64 score was computed}.

    Returns:
        scores [Q, k], float64 for float64 inputs, else float32 (a "dot" beyond float32's range is infinite), and
        indices [Q, k], int64. Scores are differentiable in queries and keys for fixed indices, deterministically and
        twice; a zero vector gets a zero cosine gradient.

    Raises:
        ValueError: a shape, ``k`` or ``metric``, or NaN or infinity in the inputs. TypeError: a dtype.

    No [Q, K] matrix is formed. Peak extra memory on the CPU for contiguous inputs: 8 (Q + K) bytes of norms, 8 MiB of
    encoded keys, at most 50 MiB of queries encoded with their bounds, candidates and k best (more where k exceeds
    50,000: 32 k bytes for each of 32 queries), and 140 d bytes a thread. The backward pass takes 100 bytes for each of
    the Q k pairs and four float64 copies of some rows or columns, 32 MiB each; Triton's, which GPUs use, no copies.
    float64 inputs are computed by the reference, four million scores at a time.

    Source: the search of Liu et al. 2024 (arXiv 2311.08849), section 3.2, for the subwords most similar to a new one.
    """
    if queries.dim() != 2 or keys.dim() != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries must be [Q, d] and keys [K, d] with the same d, got {list(queries.shape)} and {list(keys.shape)}"
        )
    if not queries.is_floating_point() or queries.dtype != keys.dtype:
        raise TypeError(f"queries and keys must share one floating-point dtype, got {queries.dtype} and {keys.dtype}")
    if queries.device != keys.device:
        raise ValueError(f"queries and keys must be on one device, got {queries.device} and {keys.device}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if isinstance(k, float | bool):
        raise TypeError(f"k must be an integer, got {k!r}")
    if k < 1 or k > keys.shape[0]:
        raise ValueError(f"k must lie in [1, K], where K is the number of keys, {keys.shape[0]}; got {k}")
    # without autograd's own 30 microseconds where nothing asks for a gradient
    run = _TopkSimilarity.apply if queries.requires_grad or keys.requires_grad else _forward
    scores, indices, report = run(queries, keys, k, metric)
    if not return_report:
        return scores, indices
    undecided, rescored = report.tolist()
    return scores, indices, {"undecided": undecided, "rescored": rescored}
