"""Shared by all tests: fixed seeds, and NaN in memory that nobody wrote."""

from __future__ import annotations

import pytest
import torch


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
