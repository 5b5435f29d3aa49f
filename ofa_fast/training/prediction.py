"""``estimate``: what a run would cost, from a few of its steps."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path

from ofa_fast._extras import require
from ofa_fast.training import cost
from ofa_fast.training.text import Files, labelled, passages, rows_in

WARMUP, MEASURED = 2, 8  # steps
SAMPLE, SAMPLE_OF_A_FILE = 16_000_000, 100_000  # characters


def estimate(
    model_dir: str | os.PathLike,
    train_files: Files,
    out: str | os.PathLike,
    *,
    eval_files: Files = (),
    steps: int | None = None,
    epochs: float = 1.0,
    eval_steps: int | None = None,
    country: str | None = None,
    device: str | None = None,
    **options,
) -> dict:
    """Time, memory, energy and CO2e of ``train`` with the same arguments, from 8 of its steps after 2 for warming up.

    The steps are real ones, on the beginnings of the files, 16 million characters of them in all: what the rest of the
    text holds is extrapolated from its number of lines or rows. Nothing is written to ``out``: the steps work in
    ``<out>.estimate``, which is deleted. Runs under ``torchrun`` as ``train`` does, with the same batch a process.

    Returns:
        ``steps``, ``sequences_per_step``, ``tokens``, ``tokens_per_second``, ``seconds`` of ``tokenising``,
        ``training``, ``evaluation`` and ``total``, ``peak_memory_bytes`` of a process, ``cost`` and ``memory`` as in
        ``training.json``, and ``text_read``, the share of the text that was looked at. Writing checkpoints is left out.

    Raises: as ``train``.
    """
    PartialState = require("accelerate", "train").PartialState

    from ofa_fast.training.run import REPORT, train
    from ofa_fast.training.settings import on_cpu

    grams_per_kwh = cost.carbon_intensity(country)
    processes = PartialState(cpu=on_cpu(device))
    folder = Path(out).with_name(f"{Path(out).name}.estimate")
    try:
        with processes.main_process_first():
            files = {"train_files": train_files, "eval_files": eval_files}
            samples = {name: _sample(own, name, folder, processes.is_main_process) for name, own in files.items()}
        (train_sample, share), (eval_sample, eval_share) = samples.values()
        short = {"steps": WARMUP + MEASURED, "log_steps": 1, "save_steps": sys.maxsize, "progress": False}
        run = folder / "run"
        train(model_dir, train_sample, run, eval_files=eval_sample, device=device, **options | short, overwrite=True)
        report = json.loads((run / REPORT).read_text())
        with open(run / "losses.csv") as file:
            rows = list(csv.DictReader(file))
    finally:
        processes.wait_for_everyone()
        if processes.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)

    def a_step(column: str) -> float:
        return (float(rows[-1][column]) - float(rows[WARMUP - 1][column])) / MEASURED

    sequences = sum(part["sequences"] for part in report["data"].values()) / share
    steps = steps or math.ceil(epochs * sequences / report["sequences_per_step"])
    evaluations = 2 + (steps - 1) // eval_steps if eval_steps else 2
    seconds = {
        "tokenising": report["tokenising_seconds"] / share,
        "training": steps * a_step("seconds"),
        "evaluation": evaluations * report["evaluation_seconds"] / 2 / eval_share,
    }
    watts = report["cost"]["watts"]
    kwh = None if watts is None else watts * (seconds["training"] + seconds["evaluation"]) / cost.JOULES_PER_KWH
    return {
        "steps": steps,
        "sequences_per_step": report["sequences_per_step"],
        "tokens": round(steps * a_step("tokens")),
        "tokens_per_second": a_step("tokens") / a_step("seconds"),
        "seconds": seconds | {"total": sum(seconds.values())},
        "peak_memory_bytes": report["peak_memory_bytes"],
        "cost": cost.emissions(kwh, watts, country, grams_per_kwh, report["cost"]["energy_source"]),
        "memory": report["memory"],
        "text_read": share,
    }


def _sample(files: Files, argument: str, folder: Path, write: bool) -> tuple[list[tuple[str, Path]], float]:
    """The beginnings of ``files``, copied into ``folder``, and the share of the text that they are."""
    files = labelled(files) if files else []
    enough = max(SAMPLE_OF_A_FILE, SAMPLE // max(1, len(files)))
    sample, taken, there = [], 0, 0
    for number, (language, path) in enumerate(files):
        sample.append((language, folder / f"{argument}-{number}.jsonl"))
        if not write:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        rows, characters = 0, 0
        with open(sample[-1][1], "w", encoding="utf-8") as file:
            for own, text in passages(path, language, argument):
                file.write(json.dumps({"text": text, "language": own}) + "\n")
                rows, characters = rows + 1, characters + len(text)
                if characters >= enough:
                    break
        taken += characters
        there += characters * (max(rows, rows_in(path)) / rows if characters >= enough else 1)
    return sample, taken / there if there else 1.0


def summary(prediction: dict) -> list[str]:
    """A prediction in lines for people."""
    seconds = prediction["seconds"]
    parts = ", ".join(f"{name} {_duration(seconds[name])}" for name in ("tokenising", "training", "evaluation"))
    read = "" if prediction["text_read"] == 1 else f" ({prediction['text_read']:.1%} of the text was read for this)"
    return [
        f"steps   {prediction['steps']:,}, each of {prediction['sequences_per_step']:,} sequences: "
        f"{prediction['tokens']:,} tokens at {prediction['tokens_per_second']:,.0f} tokens/s{read}",
        f"time    {_duration(seconds['total'])}: {parts}",
        f"memory  {prediction['peak_memory_bytes'] / 2**30:.2f} GiB at most a process",
        *cost.summary(prediction),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
