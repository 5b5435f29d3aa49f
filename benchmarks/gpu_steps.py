"""The measurements of `benchmarks/gpu.py`, each in its own process, as a kernel that fails takes its process along.

  python -m benchmarks.gpu_steps STEP --json FILE [--seconds S] [--device cpu] [--without BACKEND]

STEP is an op, which is timed on each of its backends and beside its peers at the sizes below; certified, which compares
large searches on each backend with the CPU's; or tiles, which times the cross entropy with other tiles than it takes.
FILE has what is known after every size. On a CPU all of it is small, with one peer; tiles then needs Triton's
interpreter.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

import ofa_fast.ops
from benchmarks import harness, machine
from benchmarks.harness import OURS

OPS = ("topk_similarity", "truncated_svd", "factorized_embedding", "factorized_cross_entropy")
SIZES = {
    "topk_similarity": {
        "400,000 x 250,002 x 300, k = 10": {"kind": "Gaussian", "queries": 400_000, "d": 300},
        "8,192 x 250,002 x 200, k = 10": {"kind": "Gaussian"},
    },
    "truncated_svd": {"250,002 x 768, R 400": {"kind": "decaying"}},
    "factorized_embedding": {
        f"16,384 ids of text, V 401,145, R 200, D {width}, {dtype}": {
            "gradient": "dense", "width": width, "dtype": dtype
        }
        for width, dtype in ((768, "bfloat16"), (768, "float32"), (4096, "bfloat16"))
    },
    "factorized_cross_entropy": {
        f"{tokens:,} tokens, {labelled:.0%} labelled, V 401,145, R {rank}, D 768, {dtype}": {
            "vocabulary": 401_145, "rank": rank, "tokens": tokens, "labelled": labelled, "dtype": dtype
        }
        for tokens, labelled, rank, dtype in (
            (8192, 1.0, 200, "bfloat16"), (8192, 0.15, 200, "bfloat16"), (8192, 0.15, 400, "bfloat16"),
            (8192, 0.15, 200, "float32"),
        )
    },
}  # fmt: skip
BACKENDS_ALONE = {  # sizes that are there to choose a backend by, at which peers would take time that is short
    "topk_similarity": {"512 x 250,002 x 200, k = 10": {"kind": "Gaussian", "queries": 512}},
    "factorized_embedding": {
        "16,384 ids of text, V 401,145, R 200, D 768, bfloat16, sparse": {"gradient": "sparse", "dtype": "bfloat16"},
        "16,384 ids of text, V 401,145, R 200, D 768, bfloat16, forward": {"gradient": None, "dtype": "bfloat16"},
        "512 ids, V 401,145, R 200, D 768, bfloat16": {
            "gradient": "dense", "text": False, "tokens": 512, "dtype": "bfloat16"
        },
    },
}  # fmt: skip
TILES = (
    ((128, 64), 8, 2), ((128, 64), 8, 3), ((64, 64), 4, 2), ((64, 64), 4, 3), ((64, 32), 4, 3), ((128, 32), 8, 3),
    ((128, 128), 8, 2),
)  # fmt: skip


def backends(op: str, device: str, without: str | None = None) -> dict[str, str | None]:
    """The op's backends, the one that is taken by itself first, each with the reason why it cannot be used, or None."""
    from ofa_fast.ops._op import OPS, ORDER

    refusals = {name: OPS[op].refusal(name, device, {torch.bfloat16}) for name in ORDER[device]}
    if without in refusals:
        refusals[without] = refusals[without] or "left out, as it ended the process"
    return dict(sorted(refusals.items(), key=lambda item: item[1] is not None))


def on(name: str, entry: Callable) -> Callable:
    def call():
        with ofa_fast.ops.backend(name):
            return entry()

    return call


def roofs(device: str) -> dict[str, float]:
    if device == "cpu":
        return {}
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    harness.timed(lambda: a @ a, device)
    bf16 = 2 * 8192**3 / harness.timed(lambda: a @ a, device, 10)[0]
    return machine.roofs(device) | {"bf16 torch matmul": bf16}


def usable(contest: harness.Contest, most: int) -> dict[str, str]:
    """Leaves in the contest so many peers, of those that can be called, and says why not of the others."""
    refused = {}
    contest.entries = dict(list(contest.entries.items())[: most + 1])
    for name in [name for name in contest.entries if name != OURS]:
        try:
            contest.entries[name]()
        except Exception as error:
            del contest.entries[name]
            refused[name] = f"{type(error).__name__}: {error}"[:300]
            torch.cuda.empty_cache()
    contest.prepared = tuple(name for name in contest.prepared if name in contest.entries)
    return refused


def measure(op: str, device: str, seconds: float, write, without: str | None = None) -> None:
    """Ours on each of its backends, and every peer, at the sizes above, as far as time allows."""
    module, end = importlib.import_module(f"benchmarks.{op}"), time.monotonic() + seconds
    refusals = backends(op, device, without)
    default, *others = [name for name, refusal in refusals.items() if refusal is None]
    if device == "cuda":
        others = [name for name in others if name != "reference"]  # a definition, not made for large sizes
    results = {"backend": default, "backends": refusals, "roofs": roofs(device), "sizes": {}}
    write(results)
    alone = BACKENDS_ALONE.get(op, {})
    sizes = SIZES[op] | alone if device == "cuda" else {module.SMALL: module.SIZES[module.SMALL]}
    for size, arguments in sizes.items():
        if time.monotonic() > end:
            results["sizes"][size] = {"refused": "no time left"}
            continue
        contest = None  # its memory is free before the next one's is asked for
        try:
            contest = module.contest(**arguments, device=device)
            ours = contest.entries.pop(OURS)
            own = {OURS: on(default, ours)} | {f"{OURS} on {name}": on(name, ours) for name in others}
            contest.entries = own | contest.entries
            peers = 0 if size in alone else 99 if device == "cuda" else 1
            refused = usable(contest, len(own) - 1 + peers)
            entries = harness.run(contest, device, rounds=9, seconds=0.5 if device == "cuda" else 0.05)
            results["sizes"][size] = {"entries": entries, "refused_peers": refused}
            if contest.report:
                for name, key in zip((default, *others), own, strict=True):
                    if key in entries:
                        entries[key]["report"] = on(name, contest.report)()
            for name, entry in entries.items():
                print(f"  {name:48} {1e3 * entry['p50']:10.3f} ms  {entry['errors']}", flush=True)
        except (harness.Skip, torch.OutOfMemoryError, RuntimeError) as error:
            results["sizes"][size] = {"refused": f"{type(error).__name__}: {error}"[:300]}
        write(results)
    write(results)


def certified(device: str, write, without: str | None = None) -> None:
    """Searches of many queries on each backend, and of some of them on the CPU: the same bits are asked for."""
    from benchmarks.topk_similarity import random_vectors
    from ofa_fast.ops import topk_similarity

    many, count, d, some = (400_000, 250_002, 300, 4_096) if device == "cuda" else (300, 2_000, 24, 50)
    used = [name for name, refusal in backends("topk_similarity", device, without).items() if refusal is None]
    if device == "cuda" and used != ["reference"]:
        used.remove("reference")
    results = {}
    for kind in ("clustered", "heavy tails"):
        queries, keys = random_vectors(many, d, kind, 1), random_vectors(count, d, kind, 2)
        keys[1], keys[count // 2] = keys[0], keys[0]  # ties
        sample = torch.linspace(0, many - 1, some).long()
        there = queries.to(device), keys.to(device)
        expected = topk_similarity(queries[sample], keys, 10)
        for name in used:
            search = on(name, lambda there=there: topk_similarity(*there, 10, return_report=True))
            spent, (*found, report) = harness.timed(search, device)
            same = [torch.equal(got.cpu()[sample], want) for got, want in zip(found, expected, strict=True)]
            results[f"{many:,} x {count:,} x {d}, {kind}, {name}"] = {
                "compared": some,
                "same_scores": same[0],
                "same_indices": same[1],
                "first_call": spent,
            } | report
            write(results)
    if not all(result["same_scores"] and result["same_indices"] for result in results.values()):
        raise SystemExit("the search on this device is not the CPU's")


def tiles(device: str, seconds: float, write) -> None:
    """Milliseconds of both directions of the cross entropy by tile, warps and stages, which change bits only."""
    from ofa_fast.ops.factorized_cross_entropy import triton as kernels

    end, results, before = time.monotonic() + seconds, {}, kernels._tiles
    n, v, r, d = (8192, 401_145, 200, 768) if device == "cuda" else (16, 64, 16, 32)
    hidden, coordinates, basis = (
        torch.randn(*shape, device=device).mul_(scale).bfloat16()
        for shape, scale in (((n, d), 1.0), ((v, r), r**-0.5), ((r, d), 0.05))
    )
    for labelled in (n, n * 3 // 20):
        labels = torch.where(torch.arange(n) < labelled, torch.randint(v, (n,)), -100).to(device)
        inputs = hidden, coordinates, basis, labels, None
        for tile, warps, stages in TILES if device == "cuda" else TILES[:1]:
            name = f"{labelled:,} labelled, tile {tile[0]} x {tile[1]}, {warps} warps, {stages} stages"
            if time.monotonic() > end:
                return
            compiled = {"num_warps": warps, "num_stages": stages, "maxnreg": 255}
            kernels._tiles = lambda dtype, rank, tile=tile, compiled=compiled: (tile, compiled)
            try:
                saved = kernels.forward(*inputs, -100, True)
                slopes = torch.full_like(saved[0], 1 / n), torch.zeros_like(saved[0])
                calls = {
                    "forward": lambda inputs=inputs: kernels.forward(*inputs, -100, True),
                    "backward": lambda inputs=inputs, saved=saved, slopes=slopes: kernels.backward(
                        *slopes, *inputs, *saved, -100, [True, True, True, False]
                    ),
                }
                times = {}
                for way, call in calls.items():
                    call()
                    times[way] = min(harness.timed(call, device)[0] for _ in range(5 if device == "cuda" else 1))
                results[name] = times
            except Exception as error:  # a tile that does not fit
                results[name] = {"refused": f"{type(error).__name__}: {error}"[:200]}
            finally:
                kernels._tiles = before
            print(f"  {name}: {results[name]}", flush=True)
            write(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*OPS, "certified", "tiles"))
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--without", metavar="BACKEND", help="measure all but this one")
    options = parser.parse_args()

    def write(results: dict) -> None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")

    if options.step in OPS:
        measure(options.step, options.device, options.seconds, write, options.without)
    elif options.step == "certified":
        certified(options.device, write, options.without)
    else:
        tiles(options.device, options.seconds, write)


if __name__ == "__main__":
    main()
