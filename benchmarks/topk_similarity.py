"""Exact cosine neighbours."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import data
from benchmarks.harness import OURS, Contest, timed
from ofa_fast.ops import topk_similarity
from ofa_fast.ops.topk_similarity import gradients

TORCH, FAISS, FAISS_TUNED = "torch matmul + topk, blocks", "faiss IndexFlatIP", "faiss IndexFlatIP, tuned"
TORCH_BFLOAT16, FAISS_GPU = "torch bfloat16 matmul + topk, blocks", "faiss knn_gpu"
CUVS, USEARCH = "cuVS brute force", "usearch exact"
BAGS = "torch embedding_bag in float64"
CLUSTERED, GAUSSIAN, HEAVY = (f"8,192 x 250,002 x 200, {kind}" for kind in ("clustered", "Gaussian", "heavy tails"))
MANY, REAL, BIBLE = (
    f"{GAUSSIAN}, k = 100",
    "8,192 x subwords of a multilingual model",
    "8,192 x all subwords of six languages",
)
FEW, SMALL = "512 x 250,002 x 200, Gaussian", "small: 64 x 1,000 x 64"
SIZES = {
    CLUSTERED: {"kind": "clustered"},
    GAUSSIAN: {"kind": "Gaussian"},
    HEAVY: {"kind": "heavy tails"},
    REAL: {"kind": "files"},
    BIBLE: {"kind": "subwords"},
    MANY: {"kind": "Gaussian", "k": 100},
    FEW: {"kind": "Gaussian", "queries": 512},
    SMALL: {"kind": "Gaussian", "queries": 64, "keys": 1_000, "d": 64},
}
BLOCKS = 1_024, 8_192  # queries and keys: as fast as any of 256 to 2,048 by 4,096 to all
GPU_BLOCKS = tuple((rows, 1 << bits) for rows in (1_024, 4_096, 16_384) for bits in (13, 15, 17, 20))
# As shipped, faiss multiplies no matrices where queries * d is below 128,000, and in blocks of 4,096 by 1,024.
FAISS_SETTINGS = {
    "distance_compute_blas_threshold": 20,
    "distance_compute_blas_query_bs": 1_024,
    "distance_compute_blas_database_bs": 8_192,
}


def random_vectors(rows: int, d: int, kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, d, generator=generator)
    if kind == "clustered":
        centres = torch.randn(1_000, d, generator=torch.Generator().manual_seed(99))
        return centres[torch.randint(1_000, (rows,), generator=generator)] + 0.7 * noise
    if kind == "heavy tails":  # Student's t with three degrees of freedom
        return noise / torch.randn(rows, d, 3, generator=generator).square_().mean(2).sqrt_()
    return noise


def vectors(kind: str, queries: int, keys: int, d: int, folders: Sequence[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "files":
        return data.array("queries.npy", folders), data.array("keys.npy", folders)
    if kind == "subwords":
        all_of_them = data.subwords(d)
        generator = torch.Generator().manual_seed(1)
        return all_of_them[torch.randperm(len(all_of_them), generator=generator)[:queries]], all_of_them
    return random_vectors(queries, d, kind, 1), random_vectors(keys, d, kind, 2)


def in_blocks(
    queries: torch.Tensor, keys: torch.Tensor, k: int, dtype: torch.dtype, blocks: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's product and topk, of so many queries and keys at a time."""
    q, x = F.normalize(queries).to(dtype), F.normalize(keys).to(dtype)
    results = []
    for some in q.split(blocks[0]):
        scores, indices = [], []
        for start in range(0, len(x), blocks[1]):
            part = some @ x[start : start + blocks[1]].T
            best = part.topk(min(k, part.shape[1]))
            scores.append(best.values)
            indices.append(best.indices + start)
        best = torch.cat(scores, 1).topk(k)
        results.append((best.values, torch.cat(indices, 1).gather(1, best.indices)))
    return tuple(map(torch.cat, zip(*results, strict=True)))


def contest(
    kind: str,
    queries: int = 8_192,
    keys: int = 250_002,
    d: int = 200,
    k: int = 10,
    device: str = "cpu",
    folders: Sequence[Path] = (),
    backward: bool = False,
) -> Contest:
    """``backward``: of the gradients of given pairs, instead of the search for them."""
    queries, keys = (tensor.to(device) for tensor in vectors(kind, queries, keys, d, folders))
    d = keys.shape[1]
    if backward:
        return _backward_contest(queries, keys, k)

    @functools.cache
    def sizes(dtype) -> tuple[int, int]:
        """The fastest blocks for as many queries as the largest has."""
        if device == "cpu":
            return BLOCKS
        some, times = queries[: max(rows for rows, _ in GPU_BLOCKS)], {}
        for tried in GPU_BLOCKS:
            with contextlib.suppress(torch.OutOfMemoryError):
                in_blocks(some, keys, k, dtype, tried)
                times[tried] = timed(lambda tried=tried: in_blocks(some, keys, k, dtype, tried), device)[0]
        best = min(times, key=times.get)
        print(f"  {dtype}: blocks of {best} of", {size: f"{1e3 * spent:.1f} ms" for size, spent in times.items()})
        return best

    def blocks(dtype):
        return lambda: in_blocks(queries, keys, k, dtype, sizes(dtype))

    entries = {OURS: lambda: topk_similarity(queries, keys, k), TORCH: blocks(torch.float32)}
    if device == "cpu":
        entries |= _libraries(queries, keys, d, k)
    else:
        entries |= {TORCH_BFLOAT16: blocks(torch.bfloat16)} | _libraries_for_gpus(queries, keys, k)

    sample = torch.linspace(0, len(queries) - 1, min(256, len(queries)), device=device).long()

    @functools.cache
    def exact():
        scores = F.normalize(queries[sample].double()) @ F.normalize(keys.double()).T
        return scores, scores.topk(k).values[:, -1:]

    def errors(result):
        """Of 256 queries' true neighbours: the share that is not among the ones found; of ties any will do."""
        scores, least = exact()
        found = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, result[1][sample].long(), True)
        right = (found & (scores >= least - 1e-12)).sum()
        return {"missed": 1 - float(right) / (len(sample) * k)}

    return Contest(
        entries=entries,
        errors=errors,
        operations=2.0 * len(queries) * len(keys) * d,
        traffic=float(queries.nbytes + keys.nbytes + 12 * len(queries) * k),
        prepared=() if device == "cpu" else (TORCH, TORCH_BFLOAT16),  # their sizes are chosen
        report=lambda: topk_similarity(queries, keys, k, return_report=True)[2],
    )


def _backward_contest(queries: torch.Tensor, keys: torch.Tensor, k: int) -> Contest:
    scores, indices = topk_similarity(queries, keys, k)
    inputs = torch.ones_like(scores), queries, keys, scores, indices, "cosine", [True, True]
    entries = {
        OURS: lambda: torch.ops.ofa_fast.topk_similarity_backward(*inputs),
        BAGS: lambda: gradients.backward(*inputs),
    }

    def errors(result):
        """Of the gradients of the first 256 queries and keys, by the formula of one pair."""
        q, x, s = F.normalize(queries.double()), F.normalize(keys.double()), scores.double()
        of_queries = torch.stack([x[found] - s[i, :, None] * q[i] for i, found in enumerate(indices[:256])]).sum(1)
        of_keys = torch.zeros_like(x[:256])
        query, place = (indices < 256).nonzero(as_tuple=True)
        key = indices[query, place]
        of_keys.index_add_(0, key, q[query] - s[query, place, None] * x[key])
        found = {}
        for name, rows, ours, truth in zip(
            ("queries", "keys"), (queries, keys), result, (of_queries, of_keys), strict=True
        ):
            truth = truth / torch.linalg.vector_norm(rows[: len(truth)].double(), dim=1, keepdim=True)
            found[name] = float((ours[: len(truth)] - truth).abs().max() / truth.abs().max())
        return found

    rows = 2 * (queries.nbytes + keys.nbytes)
    pairs = 2.0 * indices.numel() * keys.shape[1]
    return Contest(entries=entries, errors=errors, operations=2 * pairs, traffic=pairs * keys.element_size() + rows)


def _libraries_for_gpus(queries: torch.Tensor, keys: torch.Tensor, k: int) -> dict:
    entries = {}
    try:
        import faiss
        import faiss.contrib.torch_utils

        resources = faiss.StandardGpuResources()
    except Exception:  # no library, or one that this machine cannot load; the faiss of CPUs has no resources
        pass
    else:

        def faiss_gpu():
            q, x = F.normalize(queries), F.normalize(keys)
            return faiss.knn_gpu(resources, q, x, k, metric=faiss.METRIC_INNER_PRODUCT)

        entries[FAISS_GPU] = faiss_gpu
    try:
        from cuvs.neighbors import brute_force
    except Exception:
        pass
    else:

        def cuvs():
            distances, indices = brute_force.search(brute_force.build(keys, metric="cosine"), queries, k)
            return 1 - torch.as_tensor(distances, device="cuda"), torch.as_tensor(indices, device="cuda")

        entries[CUVS] = cuvs
    return entries


def _libraries(queries: torch.Tensor, keys: torch.Tensor, d: int, k: int) -> dict:
    entries, threads = {}, torch.get_num_threads()
    try:
        import faiss
    except ImportError:
        pass
    else:
        faiss.omp_set_num_threads(threads)

        def flat(**settings):
            before = {name: getattr(faiss.cvar, name) for name in settings}
            for name, value in settings.items():
                setattr(faiss.cvar, name, value)
            index = faiss.IndexFlatIP(d)
            index.add(F.normalize(keys).numpy())
            result = tuple(map(torch.from_numpy, index.search(F.normalize(queries).numpy(), k)))
            for name, value in before.items():
                setattr(faiss.cvar, name, value)
            return result

        entries[FAISS] = flat
        entries[FAISS_TUNED] = functools.partial(flat, **FAISS_SETTINGS)
    if len(queries) > 1_024:
        return entries  # usearch compares pair by pair, which takes it more than a minute for 8,192 queries
    try:
        from usearch.index import MetricKind, search
    except ImportError:
        pass
    else:

        def pairs():
            matches = search(keys.numpy(), queries.numpy(), k, MetricKind.Cos, exact=True, threads=threads)
            return torch.from_numpy(1 - matches.distances), torch.from_numpy(matches.keys.astype("int64"))

        entries[USEARCH] = pairs
    return entries
