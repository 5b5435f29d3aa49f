"""Wrong ids that a GPU finds, without one: what the host does with the words that a kernel writes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ofa_fast.ops import _reports
from ofa_fast.ops._reports import Reports

MESSAGE = r"labels must lie in \[0, 60\), got 99 at position 4"
FOUND = torch.tensor([4, 99, 60])


@pytest.fixture
def gpu(monkeypatch):
    """Tensors of GPUs, a stream that counts how often it is waited for, and whether a graph is captured."""
    state = SimpleNamespace(waited=0, capturing=False)

    def synchronize():
        state.waited += 1

    monkeypatch.setattr(_reports, "IMMEDIATE", False)
    monkeypatch.setattr(_reports, "capturing", lambda like: state.capturing)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=synchronize))
    state.tensors = [SimpleNamespace(is_cuda=True, device=torch.device("cuda", i)) for i in range(2)]
    return state


def reports():
    return Reports("labels must lie in [0, {rows})")


def test_nothing_wrong(gpu):
    some, (like, _) = reports(), gpu.tensors
    record = some.record(like)
    assert record.tolist() == [-1, -(1 << 63), -1]
    for _ in range(3):
        some.settle(like)
        some.raise_earlier(like)
        assert some.record(like) is record
    assert gpu.waited == 0


@pytest.mark.parametrize("call", [Reports.record, Reports.raise_earlier])
def test_a_later_call_tells_once(gpu, call):
    some, (like, other) = reports(), gpu.tensors
    some.record(other)
    some.record(like).copy_(FOUND)
    call(some, other)  # a device has its own
    with pytest.raises(IndexError, match=MESSAGE + "; said of an earlier call"):
        call(some, like)
    call(some, like)
    assert gpu.waited == 0


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_words_arrive_in_any_order(gpu, missing):
    some, (like, _) = reports(), gpu.tensors
    record = some.record(like)
    empty = record.clone()
    record.copy_(torch.where(torch.arange(3) == missing, empty, FOUND))
    assert some.record(like) is record
    record.copy_(FOUND)
    with pytest.raises(IndexError, match=MESSAGE):
        some.record(like)


def test_a_capture_gets_no_memory_and_no_error(gpu):
    some, (like, _) = reports(), gpu.tensors
    gpu.capturing = True
    assert some.record(like).numel() == 0
    some.settle(like)
    gpu.capturing = False
    record = some.record(like)
    record.copy_(FOUND)
    gpu.capturing = True
    assert some.record(like) is record  # for replays, which write there
    gpu.capturing = False
    with pytest.raises(IndexError, match=MESSAGE):
        some.raise_earlier(like)


def test_a_call_that_waits_tells_of_itself(gpu, monkeypatch):
    some, (like, _) = reports(), gpu.tensors
    monkeypatch.setattr(_reports, "IMMEDIATE", True)
    some.record(like).copy_(FOUND)
    gpu.capturing = True
    some.settle(like)
    assert gpu.waited == 0
    gpu.capturing = False
    with pytest.raises(IndexError, match=MESSAGE + "$"):
        some.settle(like)
    assert gpu.waited == 1


def test_a_cpu_tells_at_once(gpu):
    some, like = reports(), torch.zeros(1)
    some.record(like).copy_(FOUND)
    with pytest.raises(IndexError, match=MESSAGE + "$"):
        some.settle(like)
    assert gpu.waited == 0


def test_the_default_device_is_no_matter(gpu):
    with torch.device("meta"):
        assert reports().record(gpu.tensors[0]).device.type == "cpu"


def test_the_position_is_reset_last(gpu, monkeypatch):
    """With it a kernel may write again; what is reset after that would be lost."""
    order = []

    class Words(list):
        def __setitem__(self, i, value):
            order.append(i)
            super().__setitem__(i, value)

    with pytest.raises(IndexError, match=MESSAGE):
        reports()._raise(gpu.tensors[0], Words(FOUND.tolist()), "")
    assert order[-1] == 0 and sorted(order) == [0, 1, 2]
