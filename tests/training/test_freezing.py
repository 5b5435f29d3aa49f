"""What stays as it was when a part is frozen, and held-out loss by language in the run's tables."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

from ofa_fast.training import train
from ofa_fast.training.checkpoints import Checkpoints
from ofa_fast.training.freezing import Freezing
from ofa_fast.training.trainer import LanguageModelTrainer

OPTIONS = {"steps": 6, "batch_size": 4, "max_length": 32, "learning_rate": 1e-2, "save_steps": 2, "progress": False}


def table(path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model_dir", ["factorized_dir", "dense_dir"])
@pytest.mark.parametrize("freeze", ["table", "body"])
def test_a_frozen_part_keeps_its_values_and_the_other_one_moves(model_dir, freeze, texts, tmp_path, request):
    model_dir = request.getfixturevalue(model_dir)
    report = train(model_dir, texts, tmp_path / "out", **OPTIONS, freeze=freeze, weight_decay=0.1)
    before, after = (AutoModelForMaskedLM.from_pretrained(folder) for folder in (model_dir, tmp_path / "out"))
    ends = (after.get_input_embeddings(), after.get_output_embeddings())
    own = {id(p) for module in ends for p in module.parameters()}
    assert len(own) == (3 if "factorized" in str(model_dir) else 2)  # the table or its two factors, and the bias
    for (name, p), q in zip(after.named_parameters(), before.parameters(), strict=True):
        frozen = (id(p) in own) == (freeze == "table")
        assert torch.equal(p, q) == frozen, name
    sizes = {True: 0, False: 0}
    for p in after.parameters():
        sizes[id(p) in own] += p.numel()
    assert report["parameters"]["trained"] == sizes[freeze == "body"]


COPIED = torch.arange(403) % 3 == 0


@pytest.fixture(params=["factorized_dir", "dense_dir"])
def initialised(request, tmp_path):
    """A model folder with an origin for each row of its table: every third one was copied."""
    folder = tmp_path / "initialised"
    shutil.copytree(request.getfixturevalue(request.param), folder)
    save_file({"origin": torch.where(COPIED, 0, 1).to(torch.uint8)}, folder / "initialization.safetensors")
    return folder


def test_only_new_rows_are_trained(initialised, texts, tmp_path):
    options = OPTIONS | {"gradient_accumulation_steps": 2, "weight_decay": 0.1, "freeze": "copied"}
    report = train(initialised, texts, tmp_path / "out", **options)
    before, after = (
        dict(AutoModelForMaskedLM.from_pretrained(folder).named_parameters())
        for folder in (initialised, tmp_path / "out")
    )
    by_row = [name for name, p in after.items() if len(p) == len(COPIED)]
    assert len(by_row) == 2  # coordinates or table, and bias
    for name, parameter in after.items():
        if name in by_row:
            assert torch.equal(parameter[COPIED], before[name][COPIED]), name
            assert all(not torch.equal(p, q) for p, q in zip(parameter[~COPIED], before[name][~COPIED], strict=True))
        else:
            assert torch.equal(parameter, before[name]), name
    assert report["parameters"]["trained"] == sum(after[name][~COPIED].numel() for name in by_row)


def test_rows_of_unknown_origin(factorized_dir, texts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"freeze: .*initialization.safetensors is missing"):
        train(factorized_dir, texts, tmp_path / "out", **OPTIONS, freeze="copied")
    shutil.copytree(factorized_dir, tmp_path / "model")
    save_file({"origin": torch.zeros(7, dtype=torch.uint8)}, tmp_path / "model" / "initialization.safetensors")
    with pytest.raises(ValueError, match="has the origin of 7 rows, but the model's table has 403"):
        train(tmp_path / "model", texts, tmp_path / "out", **OPTIONS, freeze="copied")


@pytest.mark.parametrize("freeze", ["body", "copied"])
def test_a_frozen_start_is_resumed_exactly(freeze, initialised, texts, tmp_path, monkeypatch, killed):
    """The part is as it was after the last of its steps, moves in the next, and a run killed on either side resumes."""
    options = OPTIONS | {"freeze": freeze, "freeze_steps": 3, "save_steps": 1, "weight_decay": 0.1, "seed": 1}
    commit, kept = Checkpoints.commit, {}

    def keep_copy(self, step, keep, energy):
        commit(self, step, keep, energy)
        kept[step] = AutoModelForMaskedLM.from_pretrained(self.latest()[1]).state_dict()

    monkeypatch.setattr(Checkpoints, "commit", keep_copy)
    train(initialised, texts, tmp_path / "whole", **options)
    monkeypatch.undo()
    start = AutoModelForMaskedLM.from_pretrained(initialised).state_dict()
    body = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(kept[3][body], start[body])
    assert not torch.equal(kept[4][body], kept[3][body])
    by_row = next(name for name in start if name.endswith(("coordinates", "word_embeddings.weight")))
    assert not torch.equal(kept[3][by_row][~COPIED], start[by_row][~COPIED])
    if freeze == "copied":
        assert torch.equal(kept[3][by_row][COPIED], start[by_row][COPIED])
        assert not torch.equal(kept[4][by_row][COPIED], kept[3][by_row][COPIED])

    for last in (2, 3, 4):
        with killed(at=last):
            train(initialised, texts, tmp_path / "out", resume=True, **options)
    train(initialised, texts, tmp_path / "out", resume=True, **options)
    first, second = (AutoModelForMaskedLM.from_pretrained(tmp_path / name).state_dict() for name in ("out", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropping_gradients_does_what_requiring_none_does(factorized_dir, texts, tmp_path, monkeypatch):
    """Several processes cannot stop requiring gradients in the middle of a run: they drop them."""
    shutil.copytree(factorized_dir, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0}))
    options = OPTIONS | {"freeze": "body", "freeze_steps": 3}
    train(tmp_path / "model", texts, tmp_path / "one", **options)
    at = Freezing.at
    monkeypatch.setattr(Freezing, "at", lambda self, step, alone: at(self, step, alone=False))
    train(tmp_path / "model", texts, tmp_path / "other", **options)
    first, second = (AutoModelForMaskedLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "other"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_held_out_loss_and_perplexity_by_language_during_training(factorized_dir, texts, tmp_path, monkeypatch, killed):
    options = OPTIONS | {"eval_files": {"eng": texts[0], "chr": texts[1]}, "eval_steps": 2, "freeze": "body"}
    report = train(factorized_dir, texts, tmp_path / "whole", **options)
    rows = table(tmp_path / "whole" / "evaluations.csv")
    assert [(int(row["step"]), row["language"]) for row in rows] == [
        (step, language) for step in (0, 2, 4, 6) for language in ("eng", "chr", "(all)")
    ]
    assert all(float(row["perplexity"]) == pytest.approx(math.exp(float(row["loss"]))) for row in rows)
    for evaluation, own in zip(report["evaluations"], zip(*[iter(rows)] * 3, strict=True), strict=True):
        by_language = [*evaluation["losses"].values(), evaluation["loss"]]
        assert [float(row["loss"]) for row in own] == by_language
        perplexities = [*evaluation["perplexities"].values(), evaluation["perplexity"]]
        assert [float(row["perplexity"]) for row in own] == perplexities
    assert rows[0]["loss"] != rows[-3]["loss"]

    # Killed after the measurement at step 4, before its checkpoint: the run goes on from step 2 and measures again.
    with killed(at=4, committed=False):
        train(factorized_dir, texts, tmp_path / "out", **options)
    assert int(table(tmp_path / "out.checkpoints" / "evaluations.csv")[-1]["step"]) == 4
    with pytest.raises(ValueError, match="freeze: 'none' differs from 'body'"):
        train(factorized_dir, texts, tmp_path / "out", resume=True, **options | {"freeze": "none"})

    step = LanguageModelTrainer.training_step

    def interrupted(self, *args):
        if self.state.global_step == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(LanguageModelTrainer, "training_step", interrupted)
    with pytest.raises(SystemExit):
        train(factorized_dir, texts, tmp_path / "out", resume=True, **options)
    monkeypatch.undo()
    train(factorized_dir, texts, tmp_path / "out", resume=True, **options)
    assert table(tmp_path / "out" / "evaluations.csv") == rows
