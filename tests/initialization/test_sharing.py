"""How a vocabulary is shared out to processes; that they make what one makes is tested with the command."""

import pytest

from ofa_fast.initialization import initialize
from ofa_fast.initialization.rows import ROWS_PER_STREAM
from ofa_fast.initialization.sharing import Processes


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 1024, 5000, 250_037])
def test_parts_are_all_rows_in_order_at_the_bounds_of_random_streams(rows, size):
    processes = Processes()
    processes.size = size
    parts = [processes.part(rows, rank) for rank in range(size)]
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert all(part.start % ROWS_PER_STREAM == 0 or part.start == rows for part in parts)
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 2 * ROWS_PER_STREAM


def test_parity_takes_one_process(monkeypatch, tokenizers, word_vectors):
    monkeypatch.setattr("torch.distributed.get_rank", lambda group: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 2)
    source, target = tokenizers["wordpiece"], tokenizers["metaspace"]
    with pytest.raises(ValueError, match="group has several processes, but parity=True"):
        initialize(None, source, target, word_vectors, parity=True, group=object())
