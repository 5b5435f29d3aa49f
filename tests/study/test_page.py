"""The page of the study, and the charts of comparisons with more arms than there are colours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ofa_fast.study.pages import charts, html

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "study.json"


@pytest.fixture(scope="module")
def study() -> dict:
    return json.loads(NUMBERS.read_text("utf-8"))


def test_the_committed_page_is_what_its_numbers_give(tmp_path):
    subprocess.run([sys.executable, ROOT / "examples" / "study_page.py", NUMBERS, tmp_path], check=True)
    assert (tmp_path / "study.md").read_text("utf-8") == (ROOT / "docs" / "study.md").read_text("utf-8")
    made = {file.name: file.read_text("utf-8") for file in (tmp_path / "plots").iterdir()}
    committed = {file.name: file.read_text("utf-8") for file in (ROOT / "docs" / "plots").glob("study-*.svg")}
    assert made == committed
    assert set(re.findall(r"\(plots/(.*?)\)", (tmp_path / "study.md").read_text("utf-8"))) == set(made)


def _of(report: dict, arms: list[tuple[str, int | None]]) -> dict:
    """The report with its first arm's numbers under other names."""
    one, label = report["arms"][0], report["arms"][0]["label"]
    names = {arm: f"{arm[0]}, {'full rank' if arm[1] is None else f'rank {arm[1]}'}" for arm in arms}
    lines = [line for line in report["summary"] if line["label"] == label]
    return report | {
        "arms": [one | {"recipe": recipe, "rank": rank, "label": names[recipe, rank]} for recipe, rank in arms],
        "summary": [line | {"label": name} for name in names.values() for line in lines],
        "gains": [],
        "matched": [],
    }


def test_arms_share_one_chart_while_colours_last(study):
    few = _of(study["mono"], [(recipe, rank) for recipe in ("ofa", "random") for rank in (100, 200, 300, None)])
    assert charts(few, "verses") == {"": [arm["label"] for arm in few["arms"]]}


def test_more_arms_than_colours_are_drawn_rank_by_rank(study):
    recipes = ("ofa", "random", "mean", "gaussian", "wechsel", "focus")
    many = _of(study["mono"], [(recipe, rank) for rank in (100, 200, None) for recipe in recipes])
    found = charts(many, "verses")
    assert list(found) == ["all ranks", "rank 100", "rank 200", "full rank"]
    assert found["rank 200"] == [f"{recipe}, rank 200" for recipe in recipes]
    assert found["full rank"] == [f"{recipe}, full rank" for recipe in recipes]
    both = [f"{recipe}, {rank}" for rank in ("rank 100", "rank 200", "full rank") for recipe in ("ofa", "random")]
    assert found["all ranks"] == both
    assert "verses, all ranks against steps" in html(many)


def test_no_chart_is_a_part_of_another(study):
    recipes = [("ofa", rank) for rank in (100, 200)] + [("random", rank) for rank in (100, 200)]
    some = _of(study["mono"], [*recipes, *((recipe, 100) for recipe in ("mean", "gaussian", "wechsel", "focus", "x"))])
    assert list(charts(some, "verses")) == ["all ranks", "rank 100"]
    one = _of(study["mono"], [(recipe, 100) for recipe in ("ofa", *"abcdefgh")])
    assert list(charts(one, "verses")) == ["rank 100"]


def test_a_measure_taken_once_has_no_curve(study):
    once = _of(study["mono"], [("ofa", 100)])
    once["summary"] = [line for line in once["summary"] if line["step"] == 0]
    assert charts(once, "verses") == {"": []} and "against steps" not in html(once)
