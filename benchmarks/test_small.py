"""pytest benchmarks --benchmark-only: the small size of every op, ours and its peers; no time is asserted.

The plain test run does not collect this file. Peers whose first call compiles are left to `python -m benchmarks`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))  # behind site-packages, where the compiled package is
from benchmarks.__main__ import OPS


def _entries():
    for op in OPS:
        module = importlib.import_module(f"benchmarks.{op}")
        contest = module.contest(**module.SIZES[module.SMALL])
        for name, entry in contest.entries.items():
            if name not in contest.prepared:
                yield pytest.param(op, entry, contest.errors, id=f"{op}: {name}")


@pytest.mark.parametrize(("op", "entry", "errors"), _entries())
def test_small(benchmark, op, entry, errors):
    benchmark.group = op
    result = benchmark(entry)
    assert all(error < 1e-2 for error in errors(result).values())
