"""Runs killed at random moments, again and again, end as if nothing had happened.

``KILLS=20 pytest -s tests/training/test_kills.py`` kills more often, and prints what the kills interrupted.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ofa_fast.training import train
from ofa_fast.training.checkpoints import Checkpoints

KILLS = int(os.environ.get("KILLS", "3"))
STEPS = 30 * KILLS
OPTIONS = {
    "steps": STEPS,
    "batch_size": 4,
    "max_length": 32,
    "learning_rate": 1e-3,
    "save_steps": 1,  # most of the time goes into checkpoints
    "eval_steps": STEPS // 2,
    "freeze": "body",
    "freeze_steps": STEPS // 2,
    "whole_words": True,
    "temperature": 2.0,
    "device": "cpu",
    "progress": False,
}
WHOLE = {"model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


@pytest.fixture(scope="module")
def run():
    """Starts a training in a process of its own, whose imports are done."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.trainer", "ofa_fast.models", "ofa_fast.training.trainer"])

    warm = context.Process(target=time.sleep, args=(0,))
    warm.start()
    warm.join()

    def start(*arguments, **options) -> multiprocessing.Process:
        process = context.Process(target=train, args=arguments, kwargs=OPTIONS | options)
        process.start()
        return process

    yield start
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


def interrupted(out: Path) -> str:
    """What the killed process was doing, from what it left behind."""
    if list(out.parent.glob(f".{out.name}.*.partial")):
        return "writing the result"
    folder = Checkpoints(out).folder
    for pattern, doing in {
        "data/.*.partial": "tokenising",
        ".checkpoint-*.partial": "completing a checkpoint",
        ".partial/old-*": "deleting a checkpoint",
        ".partial/checkpoint-*": "writing a checkpoint",
        "checkpoint-*": "training or starting again",
    }.items():
        if list(folder.glob(pattern)):
            return doing
    return "starting" if not out.exists() else "cleaning up"


def tables(out: Path) -> list[list[dict]]:
    """The loss curve and the held-out losses, seconds aside."""
    contents = []
    for name in ("losses.csv", "evaluations.csv"):
        with open(out / name) as file:
            contents.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    return contents


def check(out: Path, expected: Path) -> None:
    ours, theirs = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert tables(out) == tables(expected)


def test_a_run_that_is_killed_at_random_moments_ends_like_one_that_is_not(
    run, factorized_dir, texts, held_out, tmp_path
):
    out, expected = tmp_path / "out", tmp_path / "expected"
    arguments = (factorized_dir, texts)
    begin, first = time.perf_counter(), None
    process = run(*arguments, expected, eval_files=held_out)
    while process.is_alive():
        if first is None and Checkpoints(expected).complete():
            first = time.perf_counter()
        time.sleep(0.002)
    assert process.exitcode == 0
    start, training = first - begin, time.perf_counter() - first

    draw = random.Random(os.urandom(8))
    kills, left = 0, Counter()
    while kills < KILLS:
        if out.exists():  # the result was whole before it was killed
            check(out, expected)
            shutil.rmtree(out)
        process = run(*arguments, out, eval_files=held_out, resume=True)
        process.join(draw.uniform(0, start + 1.5 * training / KILLS))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            left[interrupted(out)] += 1
        else:
            assert process.exitcode == 0
        for folder in Checkpoints(out).complete().values():
            assert {file.name for file in folder.iterdir()} >= WHOLE
            load_file(folder / "model.safetensors")
    print(f"\n{kills} kills in runs of {start:.1f} + {training:.1f} s:", dict(left.most_common()))
    process = run(*arguments, out, eval_files=held_out, resume=True)
    process.join()
    assert process.exitcode == 0
    check(out, expected)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "expected"}
