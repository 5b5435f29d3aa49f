"""What each op is meant to reach on a kind of device, as rules over the results of one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import factorized_cross_entropy as ce
from benchmarks import factorized_embedding as lookup
from benchmarks import topk_similarity as topk
from benchmarks import truncated_svd as svd
from benchmarks.harness import OURS

MIB = 2**20


@dataclass(frozen=True)
class Goal:
    op: str
    sizes: tuple[str, ...]
    what: str
    measured: Callable[[dict, dict], float | None]  # of the entries of one size, and the roofs
    bound: float
    unit: str  # a format for both numbers
    at_least: bool = True
    device: str = "cpu"  # whose results it is for

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def faster(op: str, sizes: tuple[str, ...], peer: str, bound: float, ours: str = OURS) -> Goal:
    def ratio(entries, roofs):
        return entries[peer]["p50"] / entries[ours]["p50"] if peer in entries and ours in entries else None

    return Goal(
        op,
        sizes,
        f"times as fast as {peer}" if ours == OURS else f"{ours}: times as fast as {peer}",
        ratio,
        bound,
        "{:.1f}x",
    )


def of_roof(op: str, sizes: tuple[str, ...], roof: str, bound: float) -> Goal:
    def share(entries, roofs):
        return entries[OURS]["operations_per_second"] / roofs[roof]

    return Goal(op, sizes, f"rate over that of {roof}", share, bound, "{:.0%}")


def memory(op: str, sizes: tuple[str, ...], bound: float) -> Goal:
    def extra(entries, roofs):
        return None if entries[OURS]["memory"] is None else entries[OURS]["memory"] / MIB

    return Goal(op, sizes, "memory beyond inputs and results", extra, bound, "{:.0f} MiB", at_least=False)


def memory_share(op: str, sizes: tuple[str, ...], peer: str, bound: float) -> Goal:
    def share(entries, roofs):
        peers = entries[peer]["memory"] if peer in entries else None
        return entries[OURS]["memory"] / peers if peers else None

    return Goal(op, sizes, f"memory over that of {peer}", share, bound, "{:.0%}", at_least=False)


def error(op: str, sizes: tuple[str, ...], name: str, bound: float) -> Goal:
    return Goal(op, sizes, f"error: {name}", lambda e, roofs: e[OURS]["errors"][name], bound, "{:.0e}", at_least=False)


def no_worse(op: str, sizes: tuple[str, ...], name: str, peer: str) -> Goal:
    def ratio(entries, roofs):
        theirs = entries[peer]["errors"][name] if peer in entries else None
        return entries[OURS]["errors"][name] / theirs if theirs else None

    return Goal(op, sizes, f"error of the {name} over that of {peer}", ratio, 1.0, "{:.2f}x", at_least=False)


SEARCHES = (topk.CLUSTERED, topk.GAUSSIAN, topk.HEAVY, topk.REAL)
TABLES = (svd.DECAYING, svd.FLAT, svd.E5, svd.MINILM)
HEADS = (ce.V100_R100, ce.V100_R400, ce.V401_R100, ce.V401_R400)
GOALS = (
    faster("topk_similarity", SEARCHES, topk.FAISS, 12),
    faster("topk_similarity", SEARCHES, topk.TORCH, 6),
    of_roof("topk_similarity", SEARCHES, "int8 torch._int_mm", 0.75),
    memory("topk_similarity", SEARCHES, 64),
    error("topk_similarity", (*SEARCHES, topk.BIBLE, topk.MANY, topk.FEW, topk.SMALL), "missed", 0.0),
    faster("topk_similarity", (topk.SMALL,), topk.TORCH, 1),
    faster("truncated_svd", TABLES, svd.RANDOMIZED, 14),
    faster("truncated_svd", TABLES, svd.LOWRANK, 8),
    faster("truncated_svd", TABLES, svd.NUMPY, 20),
    faster("truncated_svd", TABLES, svd.COVARIANCE, 1.8),
    error("truncated_svd", (*TABLES, svd.STEEP), "residual", 1e-6),
    faster("factorized_embedding", (lookup.DENSE,), lookup.EAGER, 2),
    faster("factorized_embedding", (lookup.DENSE,), lookup.COMPILE, 2),
    faster("factorized_embedding", (lookup.SPARSE,), lookup.EAGER_DENSE, 6),
    faster("factorized_embedding", (lookup.SPARSE,), lookup.COMPILE, 6),
    faster("factorized_embedding", (lookup.INFERENCE,), lookup.DENSE_TABLE, 1, ours=lookup.MATERIALIZED),
    faster("factorized_cross_entropy", HEADS, ce.GATHERED, 1.8),
    memory_share("factorized_cross_entropy", HEADS, ce.GATHERED, 0.10),
    faster("factorized_cross_entropy", HEADS, ce.FUSED, 10),
    error("factorized_cross_entropy", HEADS, "loss", 1e-6),
    no_worse("factorized_cross_entropy", HEADS, "gradient", ce.GATHERED),
)
