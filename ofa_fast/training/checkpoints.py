"""Checkpoints that are complete or absent, and the loss curve that belongs to them.

The folder ``<out>.checkpoints`` beside ``out``::

    run.json         what decides the loss curve; a resumed run must agree with it
    losses.csv       one row a step
    evaluations.csv  one row a language and measurement on held-out text
    tensorboard/     the same for TensorBoard, where it is asked for
    checkpoint-100/  complete: it appears under this name by a rename, with all its files on disk
    .partial/        what the Trainer is writing; thrown away by the next run
    data/            the packed sequences
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

from ofa_fast._files import atomic_file, atomic_folder

ENERGY = "energy_kwh.json"
COLUMNS = {
    "losses.csv": ("step", "epoch", "loss", "learning_rate", "tokens", "seconds"),
    "evaluations.csv": ("step", "language", "loss", "perplexity"),
}
TYPES = {"step": int, "tokens": int, "language": str}  # all else is float


class Checkpoints:
    def __init__(self, out: str | os.PathLike) -> None:
        self.out = out = Path(out)
        self.folder = out.with_name(f"{out.name}.checkpoints")
        self.partial = self.folder / ".partial"
        self.run_file = self.folder / "run.json"
        self.losses_file = self.folder / "losses.csv"
        self.evaluations_file = self.folder / "evaluations.csv"
        self.tensorboard = self.folder / "tensorboard"
        self.energy: float | None = 0.0  # kWh up to the checkpoint from which a run goes on

    def complete(self) -> dict[int, Path]:
        """The complete checkpoints by step, in order."""
        found = {
            int(match[1]): path
            for path in self.folder.glob("checkpoint-*")
            if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
        }
        return dict(sorted(found.items()))

    def latest(self) -> tuple[int, Path | None]:
        return max(self.complete().items(), default=(0, None))

    def start(self, run: dict) -> None:
        """Forget an earlier run, except for its packed sequences."""
        for path in self.complete().values():
            self._remove(path)
        self._clear_partial()
        for file in (self.losses_file, self.evaluations_file):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)
        with atomic_file(self.run_file) as file:
            file.write_text(json.dumps(run, indent=2))

    def resume(self, run: dict) -> None:
        """Check that ``run`` is the run of these checkpoints.

        Raises:
            ValueError: it differs in what decides the loss curve.
        """
        before = json.loads(self.run_file.read_text())
        run = json.loads(json.dumps(run))
        for name in run:
            if run[name] != before.get(name):
                raise ValueError(
                    f"{name}: {run[name]!r} differs from {before.get(name)!r}, with which the run in {self.folder} "
                    "was started; resume it with the same value, or start again with overwrite"
                )
        self._clear_partial()
        step, checkpoint = self.latest()
        self.energy = json.loads((checkpoint / ENERGY).read_text())
        for table in (self.losses_file, self.evaluations_file):
            if not table.exists():
                continue
            rows = [row for row in self.rows(table) if row["step"] <= step]
            with atomic_file(table) as file, open(file, "w", newline="") as stream:
                writer = csv.DictWriter(stream, COLUMNS[table.name])
                writer.writeheader()
                writer.writerows(rows)

    def add(self, table: Path, rows: list[dict]) -> None:
        with open(table, "a", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS[table.name])
            if stream.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
            stream.flush()
            os.fsync(stream.fileno())

    def rows(self, table: Path) -> list[dict]:
        """The rows written so far; a last line that a killed process left unfinished is dropped."""
        if not table.exists():
            return []
        text = table.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [{key: TYPES.get(key, float)(value) for key, value in row.items()} for row in csv.DictReader(lines)]

    def losses(self) -> list[dict]:
        return self.rows(self.losses_file)

    def copy_tables(self, out: Path) -> None:
        """Copy what was recorded to the folder ``out``."""
        for table in (self.losses_file, self.evaluations_file):
            if table.exists():
                shutil.copyfile(table, out / table.name)
        if self.tensorboard.exists():
            shutil.copytree(self.tensorboard, out / self.tensorboard.name)

    def commit(self, step: int, keep: int, energy: float | None) -> None:
        """Turn the Trainer's ``.partial/checkpoint-<step>`` into a complete checkpoint, then drop all but ``keep``."""
        written = self.partial / f"checkpoint-{step}"
        (written / ENERGY).write_text(json.dumps(energy))
        if step not in self.complete():
            with atomic_folder(self.folder / written.name) as work:
                for file in written.iterdir():
                    os.replace(file, work / file.name)
        self._clear_partial()
        for path in list(self.complete().values())[:-keep]:
            self._remove(path)

    def delete(self) -> None:
        """Once ``out`` is there: drop all of this, and what a process killed while it wrote ``out`` left beside it."""
        for path in self.complete().values():
            self._remove(path)
        shutil.rmtree(self.folder, ignore_errors=True)
        left = re.compile(rf"\.{re.escape(self.out.name)}\.\w+\.(partial|old)")
        for path in self.out.parent.iterdir():
            if left.fullmatch(path.name):
                shutil.rmtree(path)

    def _remove(self, checkpoint: Path) -> None:
        # Deleting a folder takes many steps; a rename takes it out of the complete ones at once.
        self.partial.mkdir(exist_ok=True)
        old = self.partial / f"old-{checkpoint.name}"
        os.replace(checkpoint, old)
        shutil.rmtree(old)

    def _clear_partial(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        for path in self.folder.glob(".checkpoint-*.partial"):
            shutil.rmtree(path)
        self.partial.mkdir(parents=True)
