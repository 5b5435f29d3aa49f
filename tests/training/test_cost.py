"""Energy, CO2e and memory in the report, and what a run is predicted to cost."""

from __future__ import annotations

import json
import signal
import socket
import time

import codecarbon
import datasets
import pytest
from transformers import AutoModelForMaskedLM

from ofa_fast.cli import main
from ofa_fast.training import cost, estimate, train
from ofa_fast.training.trainer import LanguageModelTrainer

OPTIONS = {"batch_size": 4, "max_length": 32, "progress": False}


def test_energy_is_counted_offline_and_leaves_no_files(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with cost.EnergyMeter() as meter:
        time.sleep(0.2)
        first = meter.kwh()
        time.sleep(0.2)
    assert 0 < first < meter.kwh() < 0.01
    assert 1 < meter.watts() < 10_000
    assert meter.source.startswith(("estimated from the processor's load", "measured by RAPL"))
    assert not list(tmp_path.iterdir())


def test_electricity_of_a_country():
    germany, norway = cost.carbon_intensity("DEU"), cost.carbon_intensity("NOR")
    assert 5 < norway < 100 < germany < 1000
    with pytest.raises(ValueError, match=r"country: expected an ISO 3166 code .* got 'Germany'"):
        cost.carbon_intensity("Germany")


def test_a_run_goes_on_without_energy(factorized_dir, texts, tmp_path, monkeypatch):
    def broken(**_):
        raise OSError("no such meter")

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", broken)
    report = train(factorized_dir, texts, tmp_path / "one", steps=2, country="DEU", **OPTIONS)
    assert (report["cost"]["energy_kwh"], report["cost"]["watts"], report["cost"]["co2e_kg"]) == (None, None, None)
    assert report["cost"]["energy_source"] == "not measured: codecarbon failed (OSError: no such meter)"

    monkeypatch.setattr(cost, "find_spec", lambda name: None)
    report = train(factorized_dir, texts, tmp_path / "two", steps=2, **OPTIONS)
    assert cost.summary(report)[0] == f"energy  {cost.NOT_INSTALLED}"
    with pytest.raises(ValueError, match="country: 'DEU' was given, but not measured: codecarbon is not installed"):
        train(factorized_dir, texts, tmp_path / "three", country="DEU", **OPTIONS)


def test_a_resumed_run_counts_the_energy_before(factorized_dir, texts, tmp_path, monkeypatch):
    def interrupted(self, *args):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)

    step = LanguageModelTrainer.training_step
    monkeypatch.setattr(cost.EnergyMeter, "kwh", lambda self: 1.5)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(LanguageModelTrainer, "training_step", interrupted)
        train(factorized_dir, texts, tmp_path / "out", steps=4, **OPTIONS)
    report = train(factorized_dir, texts, tmp_path / "out", steps=4, resume=True, **OPTIONS)
    assert report["cost"]["energy_kwh"] == 3.0


@pytest.mark.parametrize("folder", ["factorized_dir", "dense_dir"])
def test_memory_of_the_table(folder, texts, tmp_path, request):
    source = request.getfixturevalue(folder)
    memory = train(source, texts, tmp_path / "out", steps=1, **OPTIONS)["memory"]
    (rows, width) = AutoModelForMaskedLM.from_pretrained(source).get_input_embeddings().weight.shape
    for part, parameters in (("table", (rows + width) * 8), ("dense_table", rows * width)):
        if part == "table" and folder == "dense_dir":
            parameters = rows * width
        assert memory[part] == {
            "parameters": parameters,
            "weights": 4 * parameters,
            "gradients": 4 * parameters,
            "optimizer": 8 * parameters,
        }


def test_an_estimate_is_of_the_order_of_the_run(factorized_dir, texts, held_out, tmp_path, capsys):
    options = OPTIONS | {"eval_files": held_out, "epochs": 4, "country": "DEU"}
    predicted = estimate(factorized_dir, texts, tmp_path / "out", **options, eval_steps=20)
    assert not list(tmp_path.iterdir())
    real = train(factorized_dir, texts, tmp_path / "out", **options, eval_steps=20)
    assert predicted["steps"] == real["arguments"]["steps"]
    assert predicted["sequences_per_step"] == real["sequences_per_step"]
    assert predicted["tokens"] == pytest.approx(real["tokens"], rel=0.05)
    assert predicted["memory"] == real["memory"]
    factor = 5
    for ours, theirs in (
        (predicted["seconds"]["training"], real["seconds"]),
        (predicted["seconds"]["evaluation"], real["evaluation_seconds"]),
        (predicted["peak_memory_bytes"], real["peak_memory_bytes"]),
        (predicted["cost"]["watts"], real["cost"]["watts"]),
    ):
        assert theirs / factor < ours < theirs * factor
    for report in (predicted, real):
        assert report["cost"]["co2e_kg"] == report["cost"]["energy_kwh"] * report["cost"]["grams_co2e_per_kwh"] / 1000

    command = ["train", str(factorized_dir), "--train-file", str(texts[0]), "--out", str(tmp_path / "other")]
    assert main([*command, "--estimate", "--max-length", "32", "--batch-size", "4"]) == 0
    heads = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert heads == ["steps", "time", "memory", "energy", "table"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_estimate_reads_the_beginning_of_long_files(factorized_dir, texts, tmp_path, monkeypatch):
    lines = texts[0].read_text("utf-8").strip().split("\n")
    (tmp_path / "long.txt").write_text("\n".join(lines * 5) + "\n", "utf-8")
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines * 5), "utf-8")
    rows = datasets.Dataset.from_dict({"text": lines * 5})
    rows.to_parquet(tmp_path / "long.parquet")
    rows.save_to_disk(tmp_path / "saved")
    whole = estimate(factorized_dir, tmp_path / "long.txt", tmp_path / "out", **OPTIONS)
    assert whole["text_read"] == 1
    monkeypatch.setattr("ofa_fast.training.prediction.SAMPLE", 0)
    monkeypatch.setattr("ofa_fast.training.prediction.SAMPLE_OF_A_FILE", sum(map(len, lines)))
    for name in ("long.txt", "long.jsonl", "long.parquet", "saved"):
        part = estimate(factorized_dir, tmp_path / name, tmp_path / "out", **OPTIONS)
        assert part["text_read"] == pytest.approx(0.2, abs=0.01)
        assert part["steps"] == pytest.approx(whole["steps"], rel=0.05)
