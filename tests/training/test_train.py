"""Training end to end on tiny models: losses, outputs, interruption, resumption, errors."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from ofa_fast.nn import FactorizedEmbedding
from ofa_fast.training import estimate, train
from ofa_fast.training.checkpoints import Checkpoints
from ofa_fast.training.data import Stream, masking_collator
from ofa_fast.training.packing import packed_sequences
from ofa_fast.training.trainer import LanguageModelTrainer, Recorder

OPTIONS = {"steps": 12, "batch_size": 4, "max_length": 32, "learning_rate": 1e-3, "save_steps": 3, "progress": False}


def curve(folder) -> list[tuple]:
    """The loss curve as written, seconds aside."""
    with open(folder / "losses.csv") as file:
        return [tuple(value for key, value in row.items() if key != "seconds") for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(factorized_dir, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    train(factorized_dir, texts, out, **OPTIONS)
    return out


@pytest.fixture
def model_dir(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("model_dir", ["factorized_dir", "dense_dir"], indirect=True)
def test_training_lowers_the_loss_and_writes_a_loadable_model(model_dir, texts, held_out, tmp_path):
    options = OPTIONS | {"steps": None, "epochs": 1.5, "batch_size": 8, "learning_rate": 1e-2}
    report = train(model_dir, texts, tmp_path / "out", eval_files=held_out, **options)

    before, after = report["evaluations"]
    assert (before["step"], after["step"]) == (0, report["arguments"]["steps"])
    assert after["loss"] < before["loss"] - 0.2
    assert after["perplexity"] == pytest.approx(2.718281828 ** after["loss"])
    assert after["losses"] == {"eng": after["loss"]}
    n = sum(part["sequences"] for part in report["data"].values())
    assert report["arguments"]["steps"] == math.ceil(1.5 * n / 8)
    assert report["losses"][-1]["step"] == report["arguments"]["steps"]

    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out")
    factorized = isinstance(model.get_input_embeddings(), FactorizedEmbedding)
    assert factorized == (report["parameters"]["table"] < report["parameters"]["dense_table"])
    start = AutoModelForMaskedLM.from_pretrained(model_dir)
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True))
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == report
    assert (tmp_path / "out" / "loss.png").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_loss_is_the_mean_over_all_masked_tokens_of_a_step(dense_dir, texts, tokenizer, tmp_path, monkeypatch):
    model = BertForMaskedLM.from_pretrained(dense_dir, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    gradients = []

    def record(self, args, state, control, model=None, **kwargs):
        gradients.append([p.grad.clone() for p in model.parameters()])

    monkeypatch.setattr(Recorder, "on_pre_optimizer_step", record)
    options = OPTIONS | {"steps": 1, "batch_size": 3, "gradient_accumulation_steps": 4, "max_grad_norm": 1e9}
    train(tmp_path / "model", texts, tmp_path / "out", **options)

    sequences = packed_sequences(texts, "texts", dense_dir, "digest", 32, tmp_path, progress=False)
    stream, collator = Stream(sequences, 12, seed=0), masking_collator(tokenizer, 0.15, seed=0)
    total, masked = 0.0, 0
    for begin in (0, 3, 6, 9):
        batch = collator(stream.__getitems__(list(range(begin, begin + 3))))
        labels = batch.pop("labels")
        logits = model(**batch).logits
        total = total + torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        masked += int((labels != -100).sum())
    loss = total / masked
    loss.backward()
    assert float(curve(tmp_path / "out")[0][2]) == pytest.approx(loss.item(), rel=1e-5)
    for ours, parameter in zip(gradients[0], model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-6)


def test_positions_counted_from_the_padding_id(texts, tmp_path):
    """RoBERTa's table of positions has padding id + 1 rows that no token uses."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special.values()), show_progress=False)
    backend.train([str(path) for path in texts], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1, **sizes)
    XLMRobertaForMaskedLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = OPTIONS | {"steps": 2, "max_length": None}
    report = train(tmp_path / "model", texts, tmp_path / "out", **options)
    assert report["arguments"]["max_length"] == 32
    assert report["tokens"] == 2 * 4 * 32
    with pytest.raises(ValueError, match="max_length: 33 is over the 32 positions"):
        train(tmp_path / "model", texts, tmp_path / "other", **options | {"max_length": 33})


@pytest.mark.parametrize("model_dir", ["factorized_dir", "dense_dir"], indirect=True)
def test_a_batch_of_unknown_tokens_only_changes_nothing(model_dir, tmp_path):
    (tmp_path / "text.txt").write_text("☃ ☃ ☃ ☃ ☃ ☃ ☃ ☃\n")
    train(model_dir, tmp_path / "text.txt", tmp_path / "out", **OPTIONS | {"steps": 2})
    assert [float(row[2]) for row in curve(tmp_path / "out")] == [0.0, 0.0]
    start, end = (AutoModelForMaskedLM.from_pretrained(folder) for folder in (model_dir, tmp_path / "out"))
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), end.parameters(), strict=True))


def test_signals_save_a_checkpoint_and_resuming_gives_the_same_curve(
    uninterrupted, factorized_dir, texts, tmp_path, monkeypatch, capsys
):
    out, step = tmp_path / "out", LanguageModelTrainer.training_step
    for number, at in ((signal.SIGTERM, 4), (signal.SIGINT, 8)):

        def interrupted(self, *args, number=number, at=at):
            if self.state.global_step == at:
                signal.raise_signal(number)
            return step(self, *args)

        monkeypatch.setattr(LanguageModelTrainer, "training_step", interrupted)
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as exit:
            train(factorized_dir, texts, out, resume=True, **OPTIONS)
        assert exit.value.code == 128 + number
        assert signal.getsignal(number) is before
        assert f"stopped after step {at + 1} of 12; the same call with resume goes on" in capsys.readouterr().err
        assert not out.exists()
        assert Checkpoints(out).latest()[0] == at + 1
    monkeypatch.undo()
    report = train(factorized_dir, texts, out, resume=True, **OPTIONS)

    assert curve(out) == curve(uninterrupted)
    first, second = (AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (out, uninterrupted))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert train(factorized_dir, texts, out, resume=True, **OPTIONS) == report


def test_what_a_killed_run_leaves_half_written_is_ignored(uninterrupted, factorized_dir, texts, tmp_path, killed):
    out = tmp_path / "out"
    checkpoints = Checkpoints(out)
    with killed(at=9, committed=False):
        train(factorized_dir, texts, out, **OPTIONS)
    assert (checkpoints.partial / "checkpoint-9").exists()
    (checkpoints.folder / ".checkpoint-8.x.partial").mkdir()
    (tmp_path / ".out.x_1.partial").mkdir()
    with open(checkpoints.losses_file, "a") as file:
        file.write("10,0.3,5.1")

    assert list(checkpoints.complete()) == [3, 6]
    train(factorized_dir, texts, out, resume=True, **OPTIONS)
    assert curve(out) == curve(uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_as_another(factorized_dir, texts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    step = LanguageModelTrainer.training_step
    monkeypatch.setattr(
        LanguageModelTrainer, "training_step", lambda *args: signal.raise_signal(signal.SIGTERM) or step(*args)
    )
    with pytest.raises(SystemExit):
        train(factorized_dir, texts, out, **OPTIONS)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="unfinished run: resume it, or overwrite it explicitly"):
        train(factorized_dir, texts, out, **OPTIONS)
    with pytest.raises(ValueError, match=r"learning_rate: 0.1 differs from 0.001"):
        train(factorized_dir, texts, out, resume=True, **OPTIONS | {"learning_rate": 0.1})
    with pytest.raises(ValueError, match=r"train_files: .* differs from"):
        train(factorized_dir, texts[:1], out, resume=True, **OPTIONS)


def test_overwriting_starts_anew(uninterrupted, factorized_dir, texts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").touch()
    with pytest.raises(FileExistsError, match="exists already"):
        train(factorized_dir, texts, tmp_path / "out", **OPTIONS)
    train(factorized_dir, texts, tmp_path / "out", overwrite=True, **OPTIONS)
    assert curve(tmp_path / "out") == curve(uninterrupted)
    assert not (tmp_path / "out" / "something").exists()


def test_an_encoder_without_head_gets_one(dense_dir, tokenizer, texts, tmp_path):
    BertModel.from_pretrained(dense_dir).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    report = train(tmp_path / "encoder", texts, tmp_path / "out", **OPTIONS | {"steps": 2})
    assert "cls.predictions.transform.dense.weight" in report["new_weights"]


def test_bfloat16_and_worker_processes(factorized_dir, texts, tmp_path):
    report = train(
        factorized_dir, texts, tmp_path / "out", **OPTIONS | {"steps": 4, "precision": "bfloat16", "workers": 1}
    )
    assert report["losses"][-1]["loss"] < 7
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_a_diverging_loss_ends_the_run(dense_dir, texts, tmp_path):
    with pytest.raises(ValueError, match="learning_rate: the loss is nan at step"):
        train(dense_dir, texts, tmp_path / "out", **OPTIONS | {"learning_rate": 1e30})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_files": "nowhere.txt"}, FileNotFoundError, "train_files: there is no file nowhere.txt"),
        ({"train_files": []}, ValueError, "train_files: expected at least one text file"),
        ({"train_files": "blank.txt"}, ValueError, "train_files: blank.txt has no text"),
        ({"train_files": "latin.txt"}, ValueError, "train_files: latin.txt, line 2 is not UTF-8"),
        ({"eval_files": "nowhere.txt"}, FileNotFoundError, "eval_files: there is no file nowhere.txt"),
        ({"max_length": 65}, ValueError, "max_length: 65 is over the 64 positions of the model"),
        ({"max_length": 2}, ValueError, "max_length: 2 leaves no room"),
        ({"batch_size": 0}, ValueError, "batch_size: expected a positive whole number, got 0"),
        ({"temperature": 0.5}, ValueError, "temperature: expected a number of at least 1, got 0.5"),
        ({"schedule": "slow"}, ValueError, "schedule: expected one of linear, cosine, .*, got 'slow'"),
        ({"freeze": "head"}, ValueError, "freeze: expected one of none, table, body, copied, got 'head'"),
        ({"freeze_steps": 3}, ValueError, "freeze_steps: nothing is frozen; say what with freeze"),
        ({"precision": "bf16"}, ValueError, "precision: expected one of float32, bfloat16, float16, got 'bf16'"),
        ({"precision": "float16", "device": "cpu"}, ValueError, "precision: float16 needs a GPU"),
        ({"effective_batch_size": 10}, ValueError, "10 is not batch_size 4 × 1 processes × a whole number"),
        ({"mlm_probability": 1.5}, ValueError, "mlm_probability: expected a share"),
    ],
)
def test_bad_input_is_named(change, error, message, dense_dir, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "latin.txt").write_bytes(b"fine\nna\xefve\n")
    options = {"train_files": texts, **OPTIONS, **change}
    with pytest.raises(error, match=message):
        train(dense_dir, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", [train, estimate])
def test_a_package_that_is_missing_is_named_with_its_extra(call, dense_dir, texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match=r"needs the package accelerate: pip install 'ofa-fast\[train\]'"):
        call(dense_dir, texts, tmp_path / "out", **OPTIONS)


def test_a_tokenizer_larger_than_the_table(dense_dir, tokenizer, texts, tmp_path):
    BertForMaskedLM.from_pretrained(dense_dir).save_pretrained(tmp_path / "model")
    larger = AutoTokenizer.from_pretrained(dense_dir)
    larger.add_tokens([f"new{i}" for i in range(4)])
    larger.save_pretrained(tmp_path / "model")
    rows = len(tokenizer) + 3
    with pytest.raises(ValueError, match=f"token ids up to {rows}, but the model's table only {rows} rows"):
        train(tmp_path / "model", texts, tmp_path / "out", **OPTIONS)


def test_a_model_without_language_model_head(tokenizer, texts, tmp_path):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(
        ValueError, match="a 't5' model, for which transformers has neither a masked- nor a causal-language-model head"
    ):
        train(tmp_path / "m", texts, tmp_path / "out", **OPTIONS)


def test_importing_the_package_is_cheap():
    program = "import sys, ofa_fast.training, ofa_fast.evaluation; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert not {"datasets", "matplotlib", "transformers", "accelerate"} & set(loaded)


def test_milestones_are_measured_and_leave_the_curve_as_it_is(
    uninterrupted, factorized_dir, texts, held_out, tmp_path, killed
):
    seen = []

    def look(step, checkpoint):
        assert AutoModelForMaskedLM.from_pretrained(checkpoint).config.rank == 8
        torch.manual_seed(1)  # whatever it draws is its own business
        seen.append(step)

    options = {"eval_files": held_out, "milestones": (2, 7), "at_milestone": look, "energy_of": "process"} | OPTIONS
    with killed(at=7):
        train(factorized_dir, texts, tmp_path / "out", **options)
    assert seen == [2]
    report = train(factorized_dir, texts, tmp_path / "out", resume=True, **options)
    assert seen == [2, 7]
    assert [evaluation["step"] for evaluation in report["evaluations"]] == [0, 2, 7, 12]
    assert curve(tmp_path / "out") == curve(uninterrupted)
    with pytest.raises(ValueError, match="energy_of: expected one of machine, process"):
        train(factorized_dir, texts, tmp_path / "other", energy_of="city")
