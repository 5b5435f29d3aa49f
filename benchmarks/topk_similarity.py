"""Exact top-10 cosine neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.harness import Contest
from ofa_fast.ops import topk_similarity

SIZES = {
    "8,192 x 250,002 x 200, clustered": (8_192, 250_002, 200, "clustered"),
    "8,192 x 250,002 x 200, Gaussian": (8_192, 250_002, 200, "Gaussian"),
    "8,192 x 250,002 x 200, heavy tails": (8_192, 250_002, 200, "heavy tails"),
    "small: 64 x 1,000 x 64": (64, 1_000, 64, "Gaussian"),
}
K = 10


def vectors(rows: int, d: int, kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, d, generator=generator)
    if kind == "clustered":
        centres = torch.randn(1_000, d, generator=torch.Generator().manual_seed(99))
        return centres[torch.randint(1_000, (rows,), generator=generator)] + 0.7 * noise
    if kind == "heavy tails":  # Student's t with three degrees of freedom
        return noise / torch.randn(rows, d, 3, generator=generator).square_().mean(2).sqrt_()
    return noise


def contest(queries_count: int, keys_count: int, d: int, kind: str) -> Contest:
    queries, keys = vectors(queries_count, d, kind, 1), vectors(keys_count, d, kind, 2)

    def chunked():
        q, x = F.normalize(queries), F.normalize(keys)
        return tuple(torch.cat(part) for part in zip(*((some @ x.T).topk(K) for some in q.split(512)), strict=True))

    entries = {"ofa-fast": lambda: topk_similarity(queries, keys, K), "torch chunked matmul + topk": chunked}
    try:
        import faiss
    except ImportError:
        pass
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())

        def flat():
            index = faiss.IndexFlatIP(d)
            index.add(F.normalize(keys).numpy())
            return tuple(map(torch.from_numpy, index.search(F.normalize(queries).numpy(), K)))

        entries["faiss IndexFlatIP"] = flat

    sample = slice(0, 256)
    exact = (F.normalize(queries[sample].double()) @ F.normalize(keys.double()).T).topk(K)

    def error(result):
        """The share of the first queries' neighbours that are not those of float64."""
        return 1 - float((result[1][sample] == exact.indices).double().mean())

    return Contest(entries, error, operations=2.0 * queries_count * keys_count * d)
