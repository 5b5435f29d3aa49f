"""Times, memory and errors of several ways to do one thing, measured in turns in one process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

SAMPLE = 0.01  # seconds: faster calls are timed several at once, and the mean of a call is one sample
OURS = "ofa-fast"
LEAST = 5  # rounds of ours, whose figures are the ones that all others are divided by
SLOW = 4.0  # seconds: an entry that takes longer is called once


class Skip(Exception):
    """A size that cannot be measured here, with the reason."""


@dataclass
class Contest:
    """One op at one size: ours first, then its peers, each a function without arguments that returns tensors."""

    entries: dict[str, Callable[[], object]]
    errors: Callable[[object], dict[str, float]]  # of a result, against float64
    operations: float  # multiplications and additions that the problem needs when nothing is left out
    traffic: float  # bytes of the inputs and results, which have to move once
    prepared: tuple[str, ...] = ()  # entries called once before anything is measured: they compile, or make a table
    report: Callable[[], dict] | None = None  # what ours says of how it went


def run(contest: Contest, device: str, rounds: int, seconds: float) -> dict[str, dict]:
    """Interleaved rounds: every entry once a round, until ``rounds`` or its ``seconds`` are used up.

    The first call of each gives its memory and errors; where it takes longer than ``SLOW`` seconds it is also the only
    sample. Before every other sample stands a call that is not timed: caches, threads and fresh memory are then what
    they are in continuous use, whatever ran before. Ours has at least five samples, if ``rounds`` allow.

    Returns for each entry: p20, p50 and p80 in seconds, the rounds, peak extra memory without the results in bytes,
    errors, operations and bytes a second.
    """
    if contest.prepared and "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # or sizes compiled before would count against the limit of recompilations
    for name in contest.prepared:
        contest.entries[name]()
    results, times, calls = {}, {}, {}
    gc.collect()
    gc.freeze()  # what is there stays, so that collecting what the entries leave behind takes no time
    with _threads():
        for name, entry in contest.entries.items():
            _reset_peak(device)
            before = _resident(device)
            spent, result = timed(entry, device)
            peak = _peak(device)
            memory = None if peak is None else max(0, peak - before - _size(result))
            results[name] = {"memory": memory, "errors": contest.errors(result)}
            del result
            times[name] = [spent] if spent > SLOW else []
            calls[name] = 0 if times[name] else calls_a_sample(entry, device)
        for _ in range(rounds):
            for name, entry in contest.entries.items():
                enough = len(times[name]) >= LEAST if name == OURS else bool(times[name])
                if not calls[name] or (enough and sum(times[name]) * calls[name] >= seconds):
                    continue
                gc.collect()
                entry()
                times[name].append(timed(entry, device, calls[name])[0])
    gc.unfreeze()
    for name, samples in times.items():
        results[name] |= quantiles(samples) | {"rounds": len(samples)}
        results[name]["operations_per_second"] = contest.operations / results[name]["p50"]
        results[name]["bytes_per_second"] = contest.traffic / results[name]["p50"]
    return results


def quantiles(samples: list[float]) -> dict[str, float]:
    """p20, p50 and p80, between samples where they fall there, and never beyond the smallest or largest."""
    if len(samples) == 1:
        samples = samples * 2
    low, _, _, high = statistics.quantiles(samples, n=5, method="inclusive")
    return {"p20": low, "p50": statistics.median(samples), "p80": high}


def timed(entry: Callable, device: str, calls: int = 1) -> tuple[float, object]:
    """Seconds a call, and the last result; on a GPU between two events, so that the time to launch is not counted."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            result = entry()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls, result
    begin = time.perf_counter()
    for _ in range(calls):
        result = entry()
    return (time.perf_counter() - begin) / calls, result


def calls_a_sample(entry: Callable, device: str, sample: float = SAMPLE) -> int:
    return max(1, round(sample / max(timed(entry, device)[0], 1e-6)))


def _threads():
    """numpy's, scipy's and scikit-learn's threads are torch's, too, as far as they can be told."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(torch.get_num_threads())


def tensors(result: object) -> Iterable[torch.Tensor]:
    """The tensors in nested tuples and lists; a sparse one as its parts."""
    if isinstance(result, torch.Tensor):
        yield from (result._indices(), result._values()) if result.is_sparse else (result,)
    elif isinstance(result, tuple | list):
        for part in result:
            yield from tensors(part)


def _size(result: object) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(result)}
    return sum(storages.values())


def _reset_peak(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # freed memory goes back first, or its use again would not show
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS") or 0


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None
