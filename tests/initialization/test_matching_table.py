"""Every kind of vocabulary against every other: what is matched is what the tokens stand for in running text."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `matching_table`, under --import-mode=importlib
from matching_table import KINDS, ROOT, committed, compare, tokenizer_of

from ofa_fast.initialization import initialize, match_vocabularies
from ofa_fast.initialization.tokenization import batch_encoder

LANGUAGES = sorted(path.stem for path in (ROOT / "examples" / "data" / "bible").glob("*.txt"))


@pytest.mark.parametrize("source", KINDS)
def test_all_equal_tokens_are_matched_and_none_other_but_by_a_fuzzy_rule(source):
    for target in KINDS:
        pair = compare(source, target)
        assert pair["missed"] == [], target
        assert pair["wrong"] == [], target
        assert pair["exact"] >= 10, target


def test_the_table_has_a_row_and_a_column_for_each_kind():
    """Its counts are not compared: training breaks ties in the order of hashes, so they differ a little each time."""
    head, _, *rows = (line.strip("| ").split(" | ") for line in committed().splitlines())
    assert [cells[0].split(":")[0] for cells in rows] == head[1:] == list(KINDS)
    assert all(len(cells) == len(head) for cells in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_words_encoded_together_have_the_ids_that_they_have_alone(kind):
    words: dict[str, None] = {}
    for code in LANGUAGES:
        text = (ROOT / f"examples/data/bible/{code}.txt").read_text("utf-8").split("\n")[300:350]
        words |= dict.fromkeys(word for line in text for word in line.split())
    texts = [f"{space}{word}" for word in words for space in ("", " ")]
    assert len(texts) > 5000
    tokenizer = tokenizer_of(kind)
    ids, offsets = batch_encoder(tokenizer)(texts)
    alone = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [ids[begin:end].tolist() for begin, end in pairwise(offsets)] == alone
    assert np.all(np.diff(offsets) >= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_table_and_ids_with_gaps_serve_any_kind(kind):
    source, target = tokenizer_of("whole words"), tokenizer_of(kind)
    size = max(source.get_vocab().values()) + 1
    table = torch.randn(size + 13, 4)
    rows = max(target.get_vocab().values()) + 1
    made = initialize(table, source, target, None, rank=None, method="mean", target_rows=rows + 7)
    found = torch.from_numpy(match_vocabularies(source, target))
    assert torch.equal(made.sources[:rows], found) and (made.sources[rows:] == -1).all()
    assert torch.equal(made.coordinates[:rows][found >= 0], table[found[found >= 0]])
    assert torch.allclose(made.coordinates[rows:], table[:size].mean(0).expand(7, 4))
