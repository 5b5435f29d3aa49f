"""``compare``: arms made, trained and evaluated, by as many processes as there are, and their report."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ofa_fast._files import atomic_file
from ofa_fast.study.arms import BIASES, Arm, check_arms
from ofa_fast.study.collect import collect
from ofa_fast.study.pages import write_pages
from ofa_fast.study.stages import Comparison, locked
from ofa_fast.study.tasks import Task, check_tasks, differs
from ofa_fast.training.text import Files, check_files


def compare(
    source: str | os.PathLike,
    tokenizer: str | os.PathLike,
    vectors: Mapping[str, str | os.PathLike],
    arms: Iterable[Arm],
    out: str | os.PathLike,
    *,
    tasks: Sequence[Task],
    train_files: Files = (),
    eval_files: Files = (),
    points: Sequence[int] = (),
    language: str = "eng",
    bias: str = "moved",
    processes: int = 1,
    title: str | None = None,
    progress: bool = True,
    **training,
) -> dict:
    """Make, train and evaluate models that differ in their initialisation alone, and report them side by side.

    Arms of one recipe and seed share one call of ``initialize``, so one neighbour search and one decomposition for all
    ranks. Each is evaluated before training, at ``points``, and after it. What is done stays done: the same call goes
    on where an earlier one was stopped or killed, in training from its last checkpoint, and processes started by hand
    on the same ``out`` share the arms between them.

    Args:
        source: folder or hub id of an encoder and its tokenizer. A missing masked-language-model head starts neutral.
        tokenizer: folder or hub id of the target tokenizer.
        vectors: aligned word vectors by name; an arm without ``vectors=`` takes the first.
        arms: from ``arms_of``, or made one by one. The first one's recipe is compared with all others.
        out: folder for models, evaluations and report. The layout is in ``stages``.
        tasks: what is measured.
        train_files, eval_files: as for ``train``; the loss on the latter is measured at the same points.
        points: steps after which an arm is evaluated while it trains.
        language: the language that others are compared with or transferred from.
        bias: of the output head: "moved" with its token from the source, "frequencies" for log p of each token in the
            training text, or "zero". Use frequencies where the source has no head.
        processes: arms at work at once; the threads of this process are divided between them.
        training: other arguments of ``train``.

    Returns:
        What ``out``/comparison.json holds: about, source, arms (each with its points), summary (means over seeds),
        gains (of the first recipe over others, with bootstrap intervals), matched (the cost of reaching the reference).
        ``out``/report.md and ``out``/report.html show it.

    Raises:
        ValueError, FileNotFoundError: an argument does not fit, or ``out`` holds an arm made with other ones.
        ChildProcessError: a process failed; the others' work stays.

    Disk: per arm its model before and after training, and two checkpoints of three times its size while it trains.
    """
    arms, tasks = check_arms(arms), check_tasks(tasks)
    _check(arms, vectors, bias, processes, train_files, points)
    out = Path(out)
    start = time.perf_counter()
    comparison = Comparison(
        source=source,
        tokenizer_folder=tokenizer,
        vectors={name: Path(path) for name, path in vectors.items()},
        out=out,
        tasks=tasks,
        points=sorted({int(point) for point in points}),
        train_files=check_files(train_files, "train_files") if train_files else [],
        eval_files=check_files(eval_files, "eval_files") if eval_files else [],
        language=language,
        bias=bias,
        training=training,
        say=_say if progress else _silent,
    )
    for arm in arms:
        _claim(comparison, arm, write=False)
    if processes == 1:
        work(comparison, arms)
    else:
        _spread(comparison, arms, processes)
    report = collect(comparison, arms, title or f"{Path(source).name}: initialisations compared")
    report["about"] |= {"processes": processes, "seconds_of_this_call": round(time.perf_counter() - start, 1)}
    with atomic_file(out / "comparison.json") as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    write_pages(report, out)
    return report


def work(comparison: Comparison, arms: Sequence[Arm]) -> None:
    """Finish every arm that no other process is at work on; then wait for these, and finish what a dead one left."""
    for wait in (False, True):
        comparison.measure_source(wait)
        for number, arm in enumerate(arms, 1):
            if comparison.finished(arm):
                continue
            with locked(comparison.folder(arm) / ".lock", wait) as mine:
                if not mine or comparison.finished(arm):
                    continue
                comparison.say(f"[{number}/{len(arms)}] {arm.folder}")
                together = [other for other in arms if (other.recipe, other.seed) == (arm.recipe, arm.seed)]
                for one in together:
                    _claim(comparison, one, write=True)
                comparison.initialise(together)
                comparison.run(arm)


def _check(arms, vectors, bias, processes, train_files, points) -> None:
    if not arms:
        raise ValueError("arms: give at least one")
    if bias not in BIASES:
        raise ValueError(f"bias: expected one of {', '.join(BIASES)}, got {bias!r}")
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    if any(point < 1 for point in points):
        raise ValueError(f"points: expected numbers of steps above 0, got {tuple(points)}")
    if not train_files and (bias == "frequencies" or any(arm.steps for arm in arms)):
        raise ValueError("train_files: they are needed for training, and for a bias of frequencies")
    for arm in arms:
        name = arm.recipe.vectors or next(iter(vectors), None)
        if arm.recipe.needs_vectors and name not in vectors:
            raise ValueError(
                f"vectors: {arm.recipe.name} needs {name or 'some'}; given: {', '.join(vectors) or 'none'}"
            )
    for name, path in vectors.items():
        if not Path(path).exists():
            raise FileNotFoundError(f"vectors: {name}: there is no file {path}")


def _claim(comparison: Comparison, arm: Arm, write: bool) -> None:
    """Check that an arm that exists was made with what is given now, and ``write`` down what another is made with."""
    folder = comparison.folder(arm)
    states, vectors = comparison.states, arm.recipe.vectors or next(iter(comparison.vectors), "")
    bias = arm.recipe.bias or comparison.bias
    read = ["source", "tokenizer", *([f"vectors {vectors}"] if arm.recipe.needs_vectors else [])]
    made_with = {
        "source": str(comparison.source),
        "tokenizer": str(comparison.tokenizer_folder),
        "vectors": str(comparison.vectors.get(vectors)),
        "states": {name: states[name] for name in read},
        "steps": arm.steps,
        "points": list(comparison.points) if arm.steps else [],
        "bias": comparison.bias,
        "train_files": states["train_files"] if arm.steps or bias == "frequencies" else "",
        "eval_files": states["eval_files"] if arm.steps else "",
        "training": {name: str(value) for name, value in comparison.training.items()} if arm.steps else {},
    }
    path = folder / "arm.json"
    if (folder / "initialised").exists() and path.exists():
        before = json.loads(path.read_text("utf-8"))
        for name in differs(before, made_with):
            raise ValueError(
                f"out: {folder} was made with {name} {before[name]}, not {made_with[name]}; choose another out"
            )
    elif write:
        with atomic_file(path) as file:
            file.write_text(json.dumps(made_with, indent=1), "utf-8")


def _spread(comparison: Comparison, arms: Sequence[Arm], processes: int) -> None:
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    workers = [context.Process(target=_worker, args=(comparison, arms, threads)) for _ in range(processes)]

    def end(*_) -> None:
        for worker in workers:
            worker.terminate()

    before = signal.signal(signal.SIGTERM, end)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:  # they have it, too, and save what they have
        for worker in workers:
            worker.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise ChildProcessError(f"a process ended with code {failed[0]}, see above; run it again to go on")


def _worker(comparison: Comparison, arms: Sequence[Arm], threads: int) -> None:
    torch.set_num_threads(threads)
    work(comparison, arms)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


def _silent(_what: str) -> None:
    pass
