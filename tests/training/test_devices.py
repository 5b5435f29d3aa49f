"""Training on each device that there is, and what a machine with GPUs asks of it."""

from __future__ import annotations

import csv
import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

from ofa_fast.training import settings, train
from ofa_fast.training.checkpoints import Checkpoints
from ofa_fast.training.trainer import LanguageModelTrainer, Recorder

OPTIONS = {"steps": 4, "batch_size": 4, "max_length": 32, "learning_rate": 1e-3, "save_steps": 2, "progress": False}
ARGUMENTS = train.__kwdefaults__ | OPTIONS | {"gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def model_dir(factorized_dir, tmp_path_factory):
    """Without dropout, whose draws are other ones on another device."""
    folder = tmp_path_factory.mktemp("steady") / "model"
    shutil.copytree(factorized_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def reference(model_dir, texts, held_out, tmp_path_factory):
    """The run on the CPU in float32."""
    out = tmp_path_factory.mktemp("reference") / "out"
    return train(model_dir, texts, out, eval_files=[held_out], device="cpu", **OPTIONS)


# A loss in float16 has the scale of its gradients to find first, in steps that it leaves out.
@pytest.mark.parametrize(
    ("precision", "tolerance", "steps"), [("float32", 1e-4, 4), ("bfloat16", 2e-2, 4), ("float16", 5e-3, 1)]
)
def test_the_losses_are_those_of_the_cpu_and_a_killed_run_goes_on(
    device, precision, tolerance, steps, model_dir, texts, held_out, reference, tmp_path, killed
):
    options = OPTIONS | {"precision": precision, "device": "cpu" if device == "cpu" else None}
    if (device, precision) == ("cpu", "float16"):
        with pytest.raises(ValueError, match="float16 needs a GPU"):
            train(model_dir, texts, tmp_path / "out", **options)
        return
    with killed(at=2):
        train(model_dir, texts, tmp_path / "out", eval_files=[held_out], **options)
    assert Checkpoints(tmp_path / "out").latest()[0] == 2
    report = train(model_dir, texts, tmp_path / "out", eval_files=[held_out], resume=True, **options)
    for name, count in (("losses", steps), ("evaluations", 1 if steps < OPTIONS["steps"] else 2)):
        ours, true = (torch.tensor([row["loss"] for row in of[name]]) for of in (report, reference))
        assert len(ours) == len(true)
        torch.testing.assert_close(ours[:count], true[:count], rtol=0, atol=tolerance)
    assert ("CPU" in report["device"]) == (device == "cpu")
    weights = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").state_dict()
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_copied_rows_stay_where_they_are(device, model_dir, texts, tmp_path):
    folder, copied = tmp_path / "model", torch.arange(403) % 3 == 0
    shutil.copytree(model_dir, folder)
    save_file({"origin": (~copied).to(torch.uint8)}, folder / "initialization.safetensors")
    where = "cpu" if device == "cpu" else None
    train(folder, texts, tmp_path / "out", freeze="copied", freeze_steps=3, device=where, **OPTIONS | {"steps": 3})
    before, after = (
        AutoModelForMaskedLM.from_pretrained(one).get_input_embeddings().coordinates
        for one in (folder, tmp_path / "out")
    )
    assert torch.equal(after[copied], before[copied])
    assert not torch.equal(after[~copied], before[~copied])


def test_one_process_takes_one_of_several_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "on_cpu", lambda device: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    args = settings.training_arguments(ARGUMENTS, tmp_path, False, True)
    assert (args.n_gpu, args.train_batch_size) == (1, OPTIONS["batch_size"])


@pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "gpu"])
def test_batches_are_copied_while_the_gpu_works(on_cpu, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "on_cpu", lambda device: on_cpu)
    args = settings.training_arguments(ARGUMENTS, tmp_path, False, True)
    assert (args.dataloader_pin_memory, args.accelerator_config.non_blocking) == (not on_cpu, not on_cpu)


def test_a_device_that_would_not_be_taken_is_refused(model_dir, texts, tmp_path):
    with pytest.raises(ValueError, match="device: expected one of cpu, got 'cuda:1'"):
        train(model_dir, texts, tmp_path / "out", device="cuda:1", **OPTIONS)


def test_the_time_of_steps_ends_when_the_device_has_done_them(model_dir, texts, held_out, tmp_path, monkeypatch):
    """A GPU is played by numbers that are there a moment after they were asked for."""
    write, evaluate = Recorder._write_losses, LanguageModelTrainer.evaluate
    waited, pending = [], []

    def late(self):
        if self._pending:
            waited.append((len(self._pending), self._pending[-1][0]["seconds"]))
            reduce = self.trainer.accelerator.reduce
            with monkeypatch.context() as patch:
                patch.setattr(self.trainer.accelerator, "reduce", lambda *args: time.sleep(0.1) or reduce(*args))
                write(self)

    def measured(self, *args, **options):
        pending.append(len(next(c for c in self.callback_handler.callbacks if isinstance(c, Recorder))._pending))
        return evaluate(self, *args, **options)

    monkeypatch.setattr(Recorder, "_write_losses", late)
    monkeypatch.setattr(LanguageModelTrainer, "evaluate", measured)
    options = OPTIONS | {"save_steps": 99, "eval_steps": 3, "device": "cpu"}
    report = train(model_dir, texts, tmp_path / "out", eval_files=[held_out], **options)
    assert [count for count, _ in waited] == [3, 1]  # before the measurement, and in the end
    assert pending == [0, 0, 0]  # no step is left to be done in the time of a measurement
    with open(tmp_path / "out" / "losses.csv") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)
    assert seconds[2] >= waited[0][1] + 0.2 and seconds[3] >= waited[1][1] + 0.2
    assert report["seconds"] == seconds[-1]


def test_a_milestone_looks_at_the_generators_of_this_process_alone(model_dir, texts, tmp_path, monkeypatch):
    devices = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(
        torch.random, "fork_rng", lambda *args, **options: devices.append(args) or fork(*args, **options)
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    reached, options = [], OPTIONS | {"milestones": (1,), "device": "cpu"}
    train(model_dir, texts, tmp_path / "out", at_milestone=lambda step, folder: reached.append(step), **options)
    assert reached == [1] and devices == [([],)]


def test_processes_stop_after_the_same_step_without_waiting_for_it():
    class NotYet:
        """What processes tell each other: there when the next step has been asked for."""

        def __init__(self, *numbers: int) -> None:
            self.numbers, self.there = numbers, False

        def max(self) -> int:
            assert self.there
            return max(self.numbers)

    others, told = [0, 15, 15], []
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    gather = lambda number: told.append(NotYet(int(number), others[len(told)])) or told[-1]  # noqa: E731
    recorder = Recorder.__new__(Recorder)
    recorder.trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(gather=gather))
    recorder.signal = recorder._told = None
    wanted = []
    for _ in others:
        for before in told:
            before.there = True
        wanted.append(recorder._stop_wanted())
    assert (wanted, recorder.signal) == ([False, False, True], 15)
