"""The measurements of `benchmarks/gpu.py`, each in its own process, as a kernel that fails takes its process along.

  python -m benchmarks.gpu_steps STEP --json FILE [--seconds S] [--device cpu] [--without NAME]

STEP is an op, which is timed on each of its backends at the sizes below; peers, which times it in turns with everything
else that does what it does; certified, which compares large searches on each backend with the CPU's; profile, which
says what kernels a call consists of; machine, which says what all of it ran on and how fast that is; or tiles, which
times the cross entropy with other tiles than it takes.

FILE has what is known after every entry, and under `running` the backend or peer that was at work when it was written:
where the process ended, the one that ended it. On a CPU all of it is small, with one peer; tiles then needs Triton's
interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
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
        f"16,384 ids, V 401,145, R 200, D {width}, {dtype}": {
            "gradient": "dense", "text": False, "width": width, "dtype": dtype
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
BACKENDS_ALONE = {  # sizes that are there to choose a backend by, without peers
    "topk_similarity": {"512 x 250,002 x 200, k = 10": {"kind": "Gaussian", "queries": 512}},
    "factorized_embedding": {
        f"{size}, V 401,145, R 200, D 768, bfloat16, {gradient or 'forward'}": {
            "gradient": gradient, "text": False, "tokens": tokens, "dtype": "bfloat16"
        }
        for size, tokens, gradient in (
            ("16,384 ids", 16_384, "sparse"), ("16,384 ids", 16_384, None), ("512 ids", 512, "dense")
        )
    },
}  # fmt: skip
BACKWARD = {  # with one backend each, Triton's and torch's: measured beside peers, after everything else
    "topk_similarity": {"backward, 8,192 x 250,002 x 200, k = 10": {"kind": "Gaussian", "backward": True}},
    "truncated_svd": {"backward, 250,002 x 768, R 400": {"kind": "decaying", "backward": True}},
}
# How sizes and peers begin that take seconds a call, or to compile: they come after the op's others, at its first size.
SLOW = ("400,000", "torch.linalg.svd", "torch.compile")
TILES = (
    ((128, 64), 8, 2), ((128, 64), 8, 3), ((64, 64), 4, 2), ((64, 64), 4, 3), ((64, 32), 4, 3), ((128, 32), 8, 3),
    ((128, 128), 8, 2),
)  # fmt: skip


# What a peer is imported by, and what of it is used.
LIBRARIES = {
    "faiss": "StandardGpuResources",
    "cuvs.neighbors.brute_force": "search",
    "liger_kernel.transformers": "LigerFusedLinearCrossEntropyLoss",
    "cut_cross_entropy": "linear_cross_entropy",
}


class Found:
    """What is known, and until when there is time to find out more."""

    def __init__(self, file: Path, device: str, seconds: float, without: list[str]) -> None:
        self.file, self.device, self.end, self.without = file, device, time.monotonic() + seconds, without
        self.known: dict = {"running": None}

    def write(self) -> None:
        whole = self.file.with_suffix(".part")
        whole.write_text(json.dumps(self.known, indent=1) + "\n")
        whole.replace(self.file)

    @contextlib.contextmanager
    def entry(self, name: str, failed: dict[str, str]) -> Iterator[None]:
        """One backend or peer at work; its error is kept, and what comes behind it goes on."""
        self.known["running"] = name
        self.write()
        try:
            if time.monotonic() > self.end:
                raise TimeoutError("no time left")
            yield
        except Exception as error:  # Triton's derive from Exception alone
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            print(f"  {name}: {failed[name]}", flush=True)
            if self.device == "cuda":
                torch.cuda.synchronize()  # after an illegal access it fails as all calls will, which ends this process
                torch.cuda.empty_cache()
        self.known["running"] = None
        self.write()

    def run(self, contest: harness.Contest, name: str = "", **changes: object) -> dict[str, dict]:
        """The contest with its fields changed; ``name`` is what to call an entry that is alone."""
        contest, seconds = dataclasses.replace(contest, **changes), 0.5 if self.device == "cuda" else 0.05
        found = harness.run(contest, self.device, rounds=9, seconds=seconds)
        for entry, measured in found.items():
            print(f"  {name or entry:48} {1e3 * measured['p50']:10.3f} ms  {measured['errors']}", flush=True)
        return found


def backends(op: str, device: str, without: list[str]) -> dict[str, str | None]:
    """The op's backends, those that can be used first, each with the reason why it cannot be, or None."""
    from ofa_fast.ops._op import OPS, ORDER

    refusals = {name: OPS[op].refusal(name, device, {torch.bfloat16}) for name in ORDER[device]}
    for name in without:
        if name in refusals:
            refusals[name] = refusals[name] or "left out, as it ended the process"
    return dict(sorted(refusals.items(), key=lambda item: item[1] is not None))


def usable(refusals: dict[str, str | None], device: str) -> list[str]:
    names = [name for name, refusal in refusals.items() if refusal is None]
    if device == "cuda":  # the reference is a definition, not made for large sizes
        return [name for name in names if name != "reference"] or names
    return names


def on(name: str, entry: Callable) -> Callable:
    def call():
        with ofa_fast.ops.backend(name):
            return entry()

    return call


def contests(op: str, found: Found, sizes: dict) -> Iterator[tuple[str, harness.Contest, dict]]:
    """Every size whose inputs can be made, with its contest and where its results go."""
    module = importlib.import_module(f"benchmarks.{op}")
    for size, arguments in sizes.items():
        result = found.known["ops"].setdefault(op, {}).setdefault(size, {"entries": {}, "failed": {}})
        contest = None
        with found.entry("inputs", result["failed"]):
            contest = module.contest(**arguments, device=found.device)
        if contest:
            yield size, contest, result


def sizes_of(op: str, device: str) -> dict:
    module = importlib.import_module(f"benchmarks.{op}")
    return SIZES[op] if device == "cuda" else {module.SMALL: module.SIZES[module.SMALL]}


def measure(op: str, found: Found) -> None:
    """Ours on each of its backends."""
    refusals = backends(op, found.device, found.without)
    sizes = sizes_of(op, found.device) | (BACKENDS_ALONE.get(op, {}) if found.device == "cuda" else {})
    found.known |= {"backends": refusals, "ops": {}}
    for size, contest, result in contests(op, found, sizes):
        for name in usable(refusals, found.device)[: 1 if size.startswith(SLOW) else None]:
            with found.entry(name, result["failed"]):
                alone = {OURS: on(name, contest.entries[OURS])}
                prepared = tuple(alone) if found.device == "cuda" else ()  # else Triton's compiling would count
                result["entries"][name] = found.run(contest, name, entries=alone, prepared=prepared)[OURS]
                if contest.report:
                    result["entries"][name]["report"] = on(name, contest.report)()
    if any(result["failed"] for result in found.known["ops"][op].values()):
        raise SystemExit("some of it could not be measured")


def absent() -> dict[str, str]:
    """Libraries that cannot be measured here, each with the reason."""
    reasons = {}
    for module, name in LIBRARIES.items():
        try:
            getattr(importlib.import_module(module), name)
        except Exception as error:  # a library that this machine cannot load may raise anything
            reasons[module] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    return reasons


def in_turns(contest: harness.Contest, names: list[str], found: Found, result: dict) -> None:
    working = {}
    if contest.prepared:
        torch.compiler.reset()  # or sizes compiled before would count against the limit of recompilations
    for name in (OURS, *names):
        with found.entry(name, result["failed"]):
            contest.entries[name]()  # which compiles
            working[name] = contest.entries[name]
    with found.entry("in turns", result["failed"]):
        measured = found.run(contest, entries=working, prepared=())
        for peer in measured.keys() - {OURS}:
            measured[peer]["beside"] = measured[OURS]["p50"]
        result["entries"] = measured | result["entries"]


def peers(found: Found) -> None:
    """Ours and everything else in turns, an op's slow ones last; one that fails is no failure of this step."""
    found.known |= {"absent": absent(), "ops": {}}
    for op in OPS:
        for slow in (False, True) if found.device == "cuda" else (False,):
            sizes = sizes_of(op, found.device)
            sizes = (
                dict(list(sizes.items())[:1]) if slow else {s: a for s, a in sizes.items() if not s.startswith(SLOW)}
            )
            for size, contest, result in contests(op, found, sizes):
                names = [name for name in contest.entries if name != OURS and name not in found.without]
                names = [name for name in names if (size.startswith(SLOW) or name.startswith(SLOW)) == slow]
                if names:
                    in_turns(contest, names if found.device == "cuda" else names[:1], found, result)
    for op, sizes in BACKWARD.items():
        if found.device != "cuda":
            module = importlib.import_module(f"benchmarks.{op}")
            sizes = {f"backward, {module.SMALL}": module.SIZES[module.SMALL] | {"backward": True}}
        for _, contest, result in contests(op, found, sizes):
            in_turns(contest, [name for name in contest.entries if name != OURS], found, result)


def certified(found: Found) -> None:
    """Searches of many queries on each backend, and of some of them on the CPU: the same bits are asked for."""
    from benchmarks.topk_similarity import random_vectors
    from ofa_fast.ops import topk_similarity

    device, found.known["failed"], found.known["searches"] = found.device, {}, {}
    many, count, d, some = (400_000, 250_002, 300, 4_096) if device == "cuda" else (300, 2_000, 24, 50)
    names = usable(backends("topk_similarity", device, found.without), device)
    for kind in ("clustered", "heavy tails"):
        queries, keys = random_vectors(many, d, kind, 1), random_vectors(count, d, kind, 2)
        keys[1], keys[count // 2] = keys[0], keys[0]  # ties
        sample = torch.linspace(0, many - 1, some).long()
        there = queries.to(device), keys.to(device)
        expected = topk_similarity(queries[sample], keys, 10)
        for name in names:
            with found.entry(name, found.known["failed"]):
                search = on(name, lambda there=there: topk_similarity(*there, 10, return_report=True))
                spent, (*results, report) = harness.timed(search, device)
                same = [torch.equal(got.cpu()[sample], want) for got, want in zip(results, expected, strict=True)]
                found.known["searches"][f"{many:,} x {count:,} x {d}, {kind}, {name}"] = {
                    "compared": some,
                    "same_scores": same[0],
                    "same_indices": same[1],
                    "first_call": spent,
                } | report
    searches = found.known["searches"].values()
    if found.known["failed"] or not all(result["same_scores"] and result["same_indices"] for result in searches):
        raise SystemExit("a search on this device failed, or is not the CPU's")


def profiled(found: Found) -> None:
    """Of a call of each op: seconds of the host and in all, and its kernels by time, on a CPU its operations."""
    kind = torch.autograd.DeviceType.CUDA if found.device == "cuda" else torch.autograd.DeviceType.CPU
    found.known |= {"ops": {}, "calls": {}}
    for op in OPS:
        sizes = {size: a for size, a in sizes_of(op, found.device).items() if not size.startswith(SLOW)}
        for size, contest, result in contests(op, found, dict(list(sizes.items())[:1])):
            with found.entry(op, result["failed"]):
                call = contest.entries[OURS]
                _, whole = call(), harness.timed(call, found.device, 5)[0]
                begin = time.perf_counter()
                call()
                host = time.perf_counter() - begin
                with torch.profiler.profile() as profile:
                    call()
                    if found.device == "cuda":
                        torch.cuda.synchronize()
                spent = {
                    event.key[:120]: [event.count, (event.self_device_time_total or event.self_cpu_time_total) / 1e6]
                    for event in profile.key_averages()
                    if event.device_type == kind
                }
                longest = sorted(spent.items(), key=lambda item: -item[1][1])[:20]
                found.known["calls"][f"{op}: {size}"] = {"host": host, "whole": whole, "kernels": dict(longest)}


def described(found: Found) -> None:
    versions = {}
    for package in ("triton", "transformers", "tokenizers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    described = machine.describe(found.device)
    described["versions"] |= versions | {"cuda": torch.version.cuda}
    found.known |= {"machine": described, "commit": machine.commit(), "failed": {}}
    found.write()
    if found.device == "cuda":
        with found.entry("roofs", found.known["failed"]):
            a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
            harness.timed(lambda: a @ a, "cuda")
            bf16 = 2 * 8192**3 / harness.timed(lambda: a @ a, "cuda", 10)[0]
            found.known["roofs"] = machine.roofs("cuda") | {"bf16 torch matmul": bf16}


def tiles(found: Found) -> None:
    """Milliseconds of both directions of the cross entropy by tile, warps and stages, which change bits only."""
    from ofa_fast.ops.factorized_cross_entropy import triton as kernels

    device, before, found.known["failed"] = found.device, kernels._tiles, {}
    results = found.known["tiles"] = {}
    n, v, r, d = (8192, 401_145, 200, 768) if device == "cuda" else (16, 64, 16, 32)
    hidden, coordinates, basis = (
        torch.randn(*shape, device=device).mul_(scale).bfloat16()
        for shape, scale in (((n, d), 1.0), ((v, r), r**-0.5), ((r, d), 0.05))
    )
    for tile, warps, stages in TILES if device == "cuda" else TILES[:1]:
        compiled = {"num_warps": warps, "num_stages": stages, "maxnreg": 255}
        for labelled in (n, n * 3 // 20):
            labels = torch.where(torch.arange(n) < labelled, torch.randint(v, (n,)), -100).to(device)
            inputs = hidden, coordinates, basis, labels, None
            name = f"{labelled:,} labelled, tile {tile[0]} x {tile[1]}, {warps} warps, {stages} stages"
            kernels._tiles = lambda dtype, rank, tile=tile, compiled=compiled: (tile, compiled)
            with found.entry(name, found.known["failed"]):
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
                print(f"  {name}: {times}", flush=True)
            kernels._tiles = before


STEPS = {"peers": peers, "certified": certified, "profile": profiled, "machine": described, "tiles": tiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*OPS, *STEPS))
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="all but this backend or peer")
    options = parser.parse_args()
    found = Found(options.json, options.device, options.seconds, options.without)
    if options.step in OPS:
        measure(options.step, found)
    else:
        STEPS[options.step](found)
    found.write()


if __name__ == "__main__":
    main()
