"""Wrong ids and labels on a GPU: kernels that meet one write it down, and the host reads that when it comes by.

To ask the device would be to wait until it has done all that is queued. A kernel gets three words of page-locked memory
of the host instead, which it writes to only where something is wrong, and every later call looks at them, which costs
nothing. So a wrong entry of a call is told of by one of the next calls of the op, or by its backward pass; with
CUDA_LAUNCH_BLOCKING=1 in the environment, and where tensors are on the CPU, the call itself waits and tells.
"""

from __future__ import annotations

import os

import torch

from ofa_fast.ops._op import capturing

IMMEDIATE = os.environ.get("CUDA_LAUNCH_BLOCKING") == "1"
NONE, UNKNOWN = -1, -(1 << 63)  # no position, and an entry that is not written yet: kernels write one more instead
LATER = "; said of an earlier call, as a GPU is not waited for (CUDA_LAUNCH_BLOCKING=1 makes the call itself say it)"


class Reports:
    """Of one argument, for each device: [position, entry, rows] of its first wrong entry since the last error.

    ``demand`` is what it must be, with a place for ``rows``: "input_ids must lie in [0, {rows})". A forward pass calls
    ``record`` before its kernel and ``settle`` behind it, and a backward pass calls ``raise_earlier``.
    """

    def __init__(self, demand: str) -> None:
        self.demand = demand
        self._records: dict[torch.device, tuple[torch.Tensor, memoryview]] = {}

    def record(self, like: torch.Tensor) -> torch.Tensor:
        """Where a kernel on the device of ``like`` writes, int64 [3]: the position, which is negative till then, last.

        Raises IndexError if earlier calls have left something there. What is [0] instead is for nobody: page-locked
        memory cannot be had while a CUDA graph is captured, so a graph reports only if a call came before it.
        """
        record = self._records.get(like.device)
        if record is None:
            if capturing(like):
                return torch.empty(0, dtype=torch.int64, device="cpu")
            tensor = torch.tensor([NONE, UNKNOWN, NONE], device="cpu")  # whatever the default device is
            tensor = tensor.pin_memory() if like.is_cuda else tensor
            record = self._records.setdefault(like.device, (tensor, memoryview(tensor.numpy())))
        elif record[1][0] != NONE:
            self._raise(like, record[1], LATER)
        return record[0]

    def raise_earlier(self, like: torch.Tensor, remark: str = LATER) -> None:
        record = self._records.get(like.device)
        if record is not None and record[1][0] != NONE:
            self._raise(like, record[1], remark)

    def settle(self, like: torch.Tensor) -> None:
        """Behind the kernel: waits for it and raises, where calls tell of their own wrong entries."""
        if like.is_cuda:
            if not IMMEDIATE or capturing(like):
                return
            torch.cuda.current_stream(like.device).synchronize()
        self.raise_earlier(like, "")

    def _raise(self, like: torch.Tensor, words: memoryview, remark: str) -> None:
        position, entry, rows = words
        # Words are written in any order: what is not whole yet is told of next time. An error would end a capture.
        if entry == UNKNOWN or rows == NONE or capturing(like):
            return
        words[1], words[2], words[0] = UNKNOWN, NONE, NONE  # with the last of them a kernel may write again
        raise IndexError(f"{self.demand.format(rows=rows)}, got {entry} at position {position}{remark}")
