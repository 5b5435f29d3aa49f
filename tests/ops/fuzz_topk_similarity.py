"""Random cases of the top-k search against a float64 sort, bit for bit, on every backend. Run by hand:

python tests/ops/fuzz_topk_similarity.py --cases 10000 --seed 1
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from checks import backends_of, threads, use

from ofa_fast.ops import topk_similarity

KINDS = {
    "Gaussian": lambda rows, rng: rows,
    "tied": lambda rows, rng: np.sign(rows),
    "duplicates": lambda rows, rng: rows[rng.integers(max(1, len(rows) // 20), size=len(rows))],
    "one row throughout": lambda rows, rng: rows[:1].repeat(len(rows), 0),
    "almost one row": lambda rows, rng: rows[:1] + 10.0 ** rng.uniform(-7, -1) * rows,
    "ever better": lambda rows, rng: np.abs(rows[:1]) + np.linspace(2, 0, len(rows))[:, None] * np.abs(rows),
    "zero rows": lambda rows, rng: rows * (rng.random((len(rows), 1)) < rng.random()),
    "sparse": lambda rows, rng: rows * (rng.random(rows.shape) < 0.1),
    "negative": lambda rows, rng: -np.abs(rows),
    "tiny": lambda rows, rng: 1e-30 * rows,
    "huge": lambda rows, rng: 1e30 * rows,
    "denormal": lambda rows, rng: 10.0 ** rng.uniform(-45, -38) * rows,
    "all magnitudes": lambda rows, rng: rows * 10.0 ** rng.uniform(-36, 36, (len(rows), 1)),
    "one large entry": lambda rows, rng: np.where(np.arange(rows.shape[1]) == rows.shape[1] - 1, 1e4 * rows, rows),
    "heavy tails": lambda rows, rng: rng.standard_t(2, rows.shape),
    "clustered": lambda rows, rng: rows[rng.integers(max(1, len(rows) // 50), size=len(rows))] + 0.3 * rows,
}


def truth(queries, keys, k, metric):
    """Scores and order in numpy: eight lanes of float64 products, then halves added to halves."""
    q, x = queries.double().numpy(), keys.double().numpy()

    def dot(a, b):
        lanes = np.zeros((8, *np.broadcast_shapes(a.shape[:-1], b.shape[:-1])))
        for i in range(a.shape[-1]):
            lanes[i % 8] += a[..., i] * b[..., i]
        for half in (4, 2, 1):
            lanes = lanes[:half] + lanes[half:]
        return lanes[0]

    scores = dot(q[:, None], x[None])
    if metric == "cosine":
        norms = np.sqrt(dot(q, q))[:, None] * np.sqrt(dot(x, x))[None]
        scores = np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.take_along_axis(scores, order, 1).astype(np.float32)), torch.from_numpy(order)


def random_case(rng):
    """Queries and keys of any kind and size, k and the metric; at most a few million products."""
    d = int(np.exp(rng.uniform(0, np.log(2000.5))))
    n = int(np.exp(rng.uniform(0, np.log(min(20000, 4e6 / d)))))
    q = int(np.exp(rng.uniform(0, np.log(max(2, min(120, 1.2e7 / (n * d)))))))
    k = min(n, int(np.exp(rng.uniform(0, np.log(1000.5)))))
    dtype = (torch.float32, torch.float32, torch.bfloat16, torch.float16)[rng.integers(4)]
    limit = float(torch.finfo(dtype).max)

    def rows(count):
        kind = list(KINDS)[rng.integers(len(KINDS))]
        with np.errstate(over="ignore"):
            made = np.clip(KINDS[kind](rng.standard_normal((count, d)), rng), -limit, limit)
        return kind, torch.from_numpy(made).to(dtype)

    key_kind, keys = rows(n)
    query_kind, queries = rows(q)
    if rng.random() < 0.3:  # some queries among the keys
        queries = torch.cat([queries, keys[torch.from_numpy(rng.integers(n, size=int(rng.integers(1, 9))))]])
    metric = ("cosine", "dot")[rng.integers(2)]
    name = f"{query_kind} {list(queries.shape)} by {key_kind} {list(keys.shape)}, {dtype}, k {k}, {metric}"
    return name, (queries, keys, k, metric)


def check(cases: int, seed: int, backends: list[str], report_every: int = 0) -> None:
    """Runs ``cases`` random cases on each of ``backends``."""
    for case in range(cases):
        rng = np.random.default_rng((seed, case))
        name, arguments = random_case(rng)
        expected = truth(*arguments)
        for backend in backends:
            count = int(rng.integers(1, 6))
            with use(backend), threads(count):
                result = topk_similarity(*arguments)
            if not all(map(torch.equal, result, expected)):
                raise AssertionError(f"seed {seed}, case {case}, {backend}, {count} threads: {name}")
        if report_every and (case + 1) % report_every == 0:
            print(f"{case + 1} cases on {', '.join(backends)}, no difference", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    check(arguments.cases, arguments.seed, backends_of("topk_similarity")[1:], report_every=500)
