"""Presets, precision, the command line, and the logs of a run."""

from __future__ import annotations

import csv
import inspect

import pytest
import torch
from transformers import AutoModelForMaskedLM

from ofa_fast import training
from ofa_fast.cli import _parser, main
from ofa_fast.training import PRESETS, train, with_preset
from ofa_fast.training.settings import DECISIVE, REPLACES, accumulation

OPTIONS = {"steps": 4, "batch_size": 4, "max_length": 32, "learning_rate": 1e-3, "save_steps": 2, "progress": False}
PARAMETERS = inspect.signature(train).parameters


def test_presets_and_decisive_names_are_arguments():
    for names in (*PRESETS.values(), DECISIVE, REPLACES, REPLACES.values()):
        assert set(names) <= set(PARAMETERS)


def parsed(*line: str, monkeypatch) -> dict:
    """What ``train`` is called with."""
    called = {}
    monkeypatch.setattr(training, "train", lambda **given: called.update(given) or pytest.skip())
    args = _parser().parse_args(["train", "model", "--train-file", "a.txt", "--out", "out", *line])
    with pytest.raises(pytest.skip.Exception):
        args.run(args)
    return {name: value for name, value in called.items() if name not in ("model_dir", "train_files", "out")}


def test_what_is_not_given_is_left_to_the_preset_or_to_train(monkeypatch):
    assert parsed(monkeypatch=monkeypatch) == {}
    assert parsed("--preset", "ofa", monkeypatch=monkeypatch) == PRESETS["ofa"]
    given = parsed("--preset", "hyperofa", "--precision", "bfloat16", "--epochs", "2", monkeypatch=monkeypatch)
    expected = PRESETS["hyperofa"] | {"precision": "bfloat16", "epochs": 2.0}
    assert given == {name: value for name, value in expected.items() if name != "steps"}
    assert "effective_batch_size" not in with_preset("ofa", {"gradient_accumulation_steps": 2})


def test_every_argument_of_train_is_on_the_command_line():
    line = (
        "train model --train-file a --eval-file b --out out --max-length 9 --temperature 2 --mlm-probability 0.2 "
        "--whole-words --documents apart --seed 1 --steps 5 --epochs 2 --batch-size 3 --gradient-accumulation-steps 2 "
        "--effective-batch-size 6 --learning-rate 1e-4 --schedule cosine --warmup-steps 2 --weight-decay 0.1 "
        "--freeze body --freeze-steps 2 --precision bfloat16 --save-steps 2 --eval-steps 2 --tensorboard --workers 1 "
        "--device cpu --fsdp --country DEU --estimate --resume --overwrite"
    )
    args = _parser().parse_args(line.split())
    left = {"max_grad_norm", "keep_checkpoints", "log_steps", "progress", "milestones", "at_milestone", "energy_of"}
    assert set(vars(args)) - {"run", "debug", "estimate"} == set(PARAMETERS) - left


@pytest.mark.parametrize(("processes", "passes"), [(1, 32), (4, 8), (32, 1)])
def test_forward_passes_follow_from_the_effective_batch(processes, passes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    arguments = {"gradient_accumulation_steps": None, **PRESETS["ofa"]}
    assert accumulation(arguments) == passes
    assert accumulation(arguments | {"gradient_accumulation_steps": passes}) == passes
    with pytest.raises(ValueError, match=rf"384 is not batch_size 12 × {processes} processes × gradient_acc.*_steps 5"):
        accumulation(arguments | {"gradient_accumulation_steps": 5})
    with pytest.raises(ValueError, match=rf"384 is not batch_size 10 × {processes} processes × a whole number"):
        accumulation(arguments | {"batch_size": 10})


def test_an_effective_batch_trains_like_its_factors(factorized_dir, texts, tmp_path):
    one = train(factorized_dir, texts, tmp_path / "one", **OPTIONS, gradient_accumulation_steps=3)
    two = train(factorized_dir, texts, tmp_path / "two", **OPTIONS, effective_batch_size=12)
    assert one["losses"] == two["losses"]
    assert two["arguments"]["gradient_accumulation_steps"] == 3


@pytest.mark.parametrize(
    ("schedule", "warmup", "shares"),
    [
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [0, 0.5, 1, 0.5]),
        ("cosine", 2, [0, 0.5, 1, 0.5]),
        ("constant_with_warmup", 2, [0, 0.5, 1, 1]),
    ],
)
def test_learning_rates_of_a_schedule(schedule, warmup, shares, factorized_dir, texts, tmp_path):
    train(factorized_dir, texts, tmp_path / "out", **OPTIONS, schedule=schedule, warmup_steps=warmup)
    with open(tmp_path / "out" / "losses.csv") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([share * OPTIONS["learning_rate"] for share in shares])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_preset_for_a_gpu_says_what_a_cpu_needs(factorized_dir, texts, tmp_path, capsys):
    line = ["train", str(factorized_dir), "--train-file", str(texts[0]), "--out", str(tmp_path / "out")]
    assert main([*line, "--preset", "ofa"]) == 2
    assert "float16 needs a GPU" in capsys.readouterr().err
    small = ["--batch-size", "4", "--effective-batch-size", "8", "--max-length", "32", "--steps", "2"]
    assert main([*line, "--preset", "ofa", "--precision", "bfloat16", "--whole-words", *small]) == 0
    assert "2 steps, final loss" in capsys.readouterr().out
    AutoModelForMaskedLM.from_pretrained(tmp_path / "out")


def test_whole_words_need_an_encoder_and_are_resumed_as_such(factorized_dir, texts, tmp_path, killed):
    options = OPTIONS | {"whole_words": True}
    whole = train(factorized_dir, texts, tmp_path / "whole", **options)
    pieces = train(factorized_dir, texts, tmp_path / "pieces", **OPTIONS)
    assert whole["losses"] != pieces["losses"]
    assert whole["data"] == pieces["data"]
    with killed():
        train(factorized_dir, texts, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="whole_words: False differs from True"):
        train(factorized_dir, texts, tmp_path / "out", resume=True, **OPTIONS)
    assert train(factorized_dir, texts, tmp_path / "out", resume=True, **options)["losses"] == whole["losses"]


def test_tensorboard_gets_what_the_tables_have(factorized_dir, texts, tmp_path, killed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    options = OPTIONS | {"eval_files": texts[0], "eval_steps": 2, "tensorboard": True, "log_steps": 1}
    with killed(at=4, committed=False):  # after steps 3 and 4 were logged, which the resumed run logs again
        train(factorized_dir, texts, tmp_path / "out", **options)
    report = train(factorized_dir, texts, tmp_path / "out", resume=True, **options)
    events = accumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()

    def scalars(tag):
        return {event.step: pytest.approx(event.value, rel=1e-6) for event in events.Scalars(tag)}

    assert {point["step"]: point["loss"] for point in report["losses"]} == scalars("training/loss")
    assert len(events.Scalars("training/loss")) == 4
    assert {e["step"]: e["perplexity"] for e in report["evaluations"]} == scalars("held-out perplexity/(all)")
    assert {e["step"]: e["losses"]["eng"] for e in report["evaluations"]} == scalars("held-out loss/eng")


def test_tensorboard_that_is_not_installed(factorized_dir, texts, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard: it is not installed; pip install tensorboard"):
        train(factorized_dir, texts, tmp_path / "out", **OPTIONS, tensorboard=True)
