"""Shared by all tests: fixed seeds, and NaN in memory that nobody wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Without it cuBLAS warns that its sums may differ from run to run, and a warning from this package is an error.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True, scope="session")
def _gpus_in_use():
    """What takes a GPU by itself, such as ``train``, takes none while this list is empty: most tests expect a CPU."""
    available, in_use = torch.accelerator.is_available, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: bool(in_use) and available())
        yield in_use


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request, _gpus_in_use):
    """Each kind of device that there is: ``-k cuda`` selects the tests on a GPU."""
    if request.param == "cuda":
        _gpus_in_use.append(request.param)
    yield request.param
    _gpus_in_use.clear()


@pytest.fixture(scope="module")
def one_thread():
    """Enough for small models, and quicker on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def told_at_once(monkeypatch):
    """A call on a GPU waits, and tells of its own wrong ids."""
    monkeypatch.setattr("ofa_fast.ops._reports.IMMEDIATE", True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _nan_in_unwritten_memory():
    """``torch.empty`` is filled with NaN, so that an output that a kernel forgets to write is seen."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2, which is fetched once a machine."""
    script = Path(__file__).parents[1] / "examples" / "get_minilm.py"
    return Path(subprocess.check_output([sys.executable, script], text=True).strip())
