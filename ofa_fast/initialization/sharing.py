"""A vocabulary shared out to the processes of a ``torch.distributed`` group."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ofa_fast.initialization import rows as streams


class Processes:
    """This process among those of ``group``; the only one where that is None.

    Tensors on the CPU are sent, so the group's backend has to be able to: gloo is.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def part(self, rows: int, rank: int | None = None) -> slice:
        """The rows that are the work of a process, by default this one: about as many for each, in order."""
        rank = self.rank if rank is None else rank
        block = streams.ROWS_PER_STREAM
        blocks = -(-rows // block)
        begin, end = (min(r * blocks // self.size * block, rows) for r in (rank, rank + 1))
        return slice(begin, end)

    def exchange(self, mine) -> list:
        """What each process gave, by rank, on every process. Pickled, so for what is small."""
        if self.size == 1:
            return [mine]
        parts = [None] * self.size
        dist.all_gather_object(parts, mine, group=self.group)
        return parts

    def gather(self, part: torch.Tensor, rows: int) -> torch.Tensor | None:
        """On the first process, the parts of all processes as one tensor of ``rows`` rows; None on the others."""
        if self.size == 1:
            return part
        if self.rank:
            if len(part):
                dist.send(part.contiguous(), group=self.group, group_dst=0)
            return None
        whole = part.new_empty(rows, *part.shape[1:])
        whole[self.part(rows)] = part
        for rank in range(1, self.size):
            theirs = whole[self.part(rows, rank)]
            if len(theirs):
                dist.recv(theirs, group=self.group, group_src=rank)
        return whole
