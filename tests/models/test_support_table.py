"""The table in docs/models.md says what the checks find."""

from __future__ import annotations

from functools import partial

import pytest
from support_table import ARCHITECTURES, CHECKS, PRETRAINED, committed, real, row, tiny


def check(name, make):
    line, remarks = row(name, make)
    documented = committed().splitlines()
    assert line in documented, "python tests/models/support_table.py writes the table anew"
    assert [text for text in documented if text.startswith(f"- {name}, ")] == remarks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_row_is_what_the_checks_find(name, tokenizers):
    check(name, partial(tiny, name, tokenizers["bert"]))


def test_row_of_a_pretrained_model(minilm):
    check(PRETRAINED[0], partial(real, minilm))


def test_table_has_these_rows_and_columns():
    lines = [line for line in committed().splitlines() if line.startswith("| ")]
    assert lines[0] == f"| | {' | '.join(CHECKS)} |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[1:]] == [*ARCHITECTURES, *PRETRAINED]


def test_a_check_that_fails_is_not_marked(tokenizers, monkeypatch):
    def broken(case):
        raise ValueError("so it is\nnot")

    monkeypatch.setitem(CHECKS, "save", broken)
    line, remarks = row("BERT", partial(tiny, "BERT", tokenizers["bert"]))
    assert line.startswith("| BERT | yes | no* | yes |")
    assert remarks == ["- BERT, save: ValueError: so it is."]
