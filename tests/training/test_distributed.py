"""Two gloo processes on a CPU train as one does: DDP and FSDP2, saved, stopped, killed and resumed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForMaskedLM

from ofa_fast.nn import FactorizedEmbedding
from ofa_fast.training import train
from ofa_fast.training.checkpoints import Checkpoints

EXAMPLES = Path(__file__).parents[2] / "examples" / "accelerate"
# Of a loss: float32 sums in another order, through ten Adam steps.
TOLERANCE = 1e-5
OPTIONS = {"steps": 10, "batch_size": 3, "max_length": 32, "learning_rate": 1e-3, "save_steps": 4, "progress": False}


def launch(*jobs: dict) -> int:
    program = Path(__file__).with_name("two_processes.py")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *torchrun, str(program), json.dumps(jobs, default=str)]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}) as process:
        try:
            return process.wait(timeout=200)
        finally:
            process.terminate()  # torchrun passes it on; killed, it would leave its processes behind


def curve(folder: Path) -> list[float]:
    with open(folder / "losses.csv") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def job(dense_dir, factorized_dir, tokenizer, texts, held_out, tmp_path_factory) -> dict:
    """Arguments of a run; without dropout, whose draws depend on the process."""
    for source in (dense_dir, factorized_dir):
        folder = tmp_path_factory.getbasetemp() / source.parent.name / "without-dropout"
        model = AutoModelForMaskedLM.from_pretrained(source, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return OPTIONS | {"model_dir": folder, "train_files": [str(t) for t in texts], "eval_files": str(held_out)}


@pytest.fixture(scope="module")
def dense_job(job) -> dict:
    folder = job["model_dir"]
    return job | {"model_dir": folder.parents[1] / folder.parent.name.replace("factorized", "dense") / folder.name}


@pytest.fixture(scope="module")
def runs(job, dense_job, tmp_path_factory) -> Path:
    """The same training by one process, whose batch is that of both, and by two."""
    folder = tmp_path_factory.mktemp("runs")
    for name, own in (("one", job), ("one-dense", dense_job)):
        train(**own | {"batch_size": 2 * OPTIONS["batch_size"]}, out=folder / name)
    code = launch(
        job | {"out": folder / "ddp"},
        job | {"out": folder / "fsdp", "fsdp": True, "stop_at": 6},
        dense_job | {"out": folder / "fsdp-dense", "fsdp": True},
    )
    assert code == 0
    return folder


@pytest.mark.parametrize(("two", "one"), [("ddp", "one"), ("fsdp", "one"), ("fsdp-dense", "one-dense")])
def test_two_processes_train_as_one(runs, two, one):
    assert curve(runs / two) == pytest.approx(curve(runs / one), rel=TOLERANCE)
    ours, theirs = (json.loads((runs / name / "training.json").read_text()) for name in (two, one))
    assert (ours["processes"], theirs["processes"], ours["tokens"]) == (2, 1, theirs["tokens"])
    before, after = ([e["loss"] for e in report["evaluations"]][-2:] for report in (ours, theirs))
    assert before == pytest.approx(after, rel=TOLERANCE)
    assert (ours["parameters"], ours["memory"]) == (theirs["parameters"], theirs["memory"])
    first, second = (AutoModelForMaskedLM.from_pretrained(runs / name) for name in (two, one))
    assert isinstance(first.get_input_embeddings(), FactorizedEmbedding) == (one == "one")
    assert {p.name for p in (runs / two).iterdir()} == {p.name for p in (runs / one).iterdir()}
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_a_killed_process_costs_at_most_one_checkpoint_interval(job, runs, tmp_path):
    out, every, killed_at = tmp_path / "out", OPTIONS["save_steps"], 8
    assert launch(job | {"out": out, "kill_at": killed_at}) != 0
    assert not out.exists()
    assert Checkpoints(out).latest()[0] >= killed_at - every
    assert launch(job | {"out": out, "resume": True}) == 0
    assert curve(out) == curve(runs / "ddp")


def test_what_cannot_be_sharded(job, tmp_path, monkeypatch):
    for options, message in (
        ({}, "there is one process only; start several, with torchrun"),
        ({"freeze": "copied"}, "sharded weights are frozen whole and for good"),
        ({"precision": "float16"}, "sharded gradients have no loss scaling"),
    ):
        with pytest.raises(ValueError, match=f"fsdp: {message}"):
            train(**job, out=tmp_path / "out", fsdp=True, **options)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp: accelerate is configured to shard by itself"):
        train(**job, out=tmp_path / "out")


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("deepspeed", "DEEPSPEED")])
def test_accelerate_takes_the_configurations(name, kind):
    config = load_config_from_file(str(EXAMPLES / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (kind, 8, "no")
    assert config.deepspeed_config.get("zero_stage") == (2 if name == "deepspeed" else None)
