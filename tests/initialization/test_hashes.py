"""Hashes of the inputs, which another thread makes in the meantime."""

from __future__ import annotations

from concurrent.futures import CancelledError
from threading import Event

import numpy as np
import pytest
import torch

from ofa_fast.initialization import initialize, recipe, report
from ofa_fast.initialization.sharing import Processes
from ofa_fast.initialization.stages import Stages
from ofa_fast.ops import truncated_svd


def test_no_hash_begins_before_the_checks_or_outlives_an_error(tokenizers, word_vectors, monkeypatch):
    begun, ended = [], []

    def read(array, over=None) -> str:
        begun.append(array)
        over.wait(60)
        ended.append(array)
        return ""

    def interrupted(*args) -> None:
        raise KeyboardInterrupt

    source = tokenizers["wordpiece"]
    inputs = torch.ones(len(source), 32), source, tokenizers["metaspace"], word_vectors
    monkeypatch.setattr(report, "array_sha256", read)
    monkeypatch.setattr(recipe, "make_rows", interrupted)
    with pytest.raises(ValueError, match="source_bias must be"):
        initialize(*inputs, rank=8, source_bias=torch.zeros(3))
    assert not begun
    with pytest.raises(KeyboardInterrupt):
        initialize(*inputs, rank=8)
    assert begun and len(begun) == len(ended)


def test_a_hash_ends_between_two_pieces():
    over = Event()

    class Pieces(np.ndarray):
        def __getitem__(self, rows):
            if rows.start:
                over.set()
            return super().__getitem__(rows)

    with pytest.raises(CancelledError):
        report.array_sha256(np.zeros((4, 1 << 22), np.float32).view(Pieces), over)


def test_a_table_on_the_cpu_asks_nothing_of_a_gpu(monkeypatch):
    def begun(*_):
        raise RuntimeError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", begun)
    with pytest.raises(RuntimeError, match="initialised"), torch.cuda.stream(None):
        pass
    with Stages(torch.eye(8), None, parity=False, progress=False, processes=Processes(), ranks=[3, None]) as stages:
        assert stages.factors()[0][3][0].shape == (8, 3)


def test_a_table_is_read_when_the_stream_of_the_caller_has_made_it(device):
    if device != "cuda":
        pytest.skip("of the streams of a GPU")
    table = torch.randn(1000, 32, generator=torch.Generator().manual_seed(0)).pin_memory()
    made = torch.zeros_like(table, device=device)
    truncated_svd(table.to(device), 8)  # the first one compiles for longer than the stream sleeps
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(1_000_000_000)
        made.copy_(table, non_blocking=True)
        with Stages(made, None, parity=False, progress=False, processes=Processes(), ranks=[8]) as stages:
            coordinates, basis, _ = stages.factors()[0][8]
            u, s, vh = truncated_svd(table.to(device), 8)
            assert torch.equal(coordinates, u) and torch.equal(basis, s[:, None] * vh)
            assert stages.sha256("source_embeddings") == report.array_sha256(table)
