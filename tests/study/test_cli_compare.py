"""``ofa-fast compare`` as a user types it."""

from __future__ import annotations

import json

import pytest

from ofa_fast.cli import main


@pytest.fixture
def command(world, tmp_path) -> list[str]:
    given = {name: str(world[name]) for name in ("source", "tokenizer")}
    vectors = [f"{name}={path}" for name, path in world["vectors"].items()]
    verses = world["tasks"][0].data
    return [
        *("compare", "--source", given["source"], "--tokenizer", given["tokenizer"], "--vectors", *vectors),
        *("--methods", "ofa,ofa:vectors=unlinked,mean", "--ranks", "8,full", "--eval", f"retrieval={verses}"),
        *("--max-pairs", "12", "--out", str(tmp_path / "out")),
    ]


def test_untrained_arms_are_made_and_measured(command, tmp_path, capsys):
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    labels = [arm["label"] for arm in report["arms"]]
    assert labels == [f"{m}, {r}" for m in ("ofa", "ofa:vectors=unlinked", "mean") for r in ("rank 8", "full rank")]
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "report.md").read_text("utf-8").strip() in shown
    assert all(label in shown for label in labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--methods", "ofa:k=3"], "needs options name=value"),
        (["--seeds", "one"], "expected whole numbers such as 0,1,2"),
        (["--eval", "parsing"], "expected TASK=DIR"),
        (["--eval", "parsing=/"], "expected a task among retrieval"),
        (["--vectors", "a.bin", "b/a.bin"], "two files have the same name"),
        (["--steps", "5"], "train_files: they are needed"),
        (["--steps", "-1"], "steps: expected a number of at least 0"),
    ],
)
def test_bad_input_is_one_line(command, changes, message, tmp_path, capsys):
    try:
        code = main([*command, *changes])
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
