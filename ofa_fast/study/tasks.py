"""What the arms are evaluated on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ofa_fast._files import atomic_file
from ofa_fast.evaluation import evaluate
from ofa_fast.evaluation.run import TASKS


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        kind: what ``evaluate`` calls the task.
        data: the folder of its data.
        always: measure it at each point of training, not only before and after.
        options: for ``evaluate``.
    """

    kind: str
    data: Path
    name: str = ""
    always: bool = True
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise ValueError(f"eval: expected a task among {', '.join(TASKS)}, got {self.kind!r}")
        if not Path(self.data).is_dir():
            raise FileNotFoundError(f"eval: there is no folder {self.data}")
        if not re.fullmatch(r"[\w.-]*", self.name):
            raise ValueError(
                f"eval: a task's name is part of file names: letters, digits, '-' and '.', got {self.name!r}"
            )
        object.__setattr__(self, "data", Path(self.data))
        object.__setattr__(self, "name", self.name or f"{self.kind}-{self.data.name}")

    def folders(self) -> list[Path]:
        """All that is read: verse ids are those of texts elsewhere."""
        verses = [self.data.parent / "bible"] if (self.data / "train.tsv").exists() else []
        verses = [Path(self.options["bible"])] if "bible" in self.options else verses
        return [self.data, *(folder for folder in verses if folder.is_dir())]


def measure(task: Task, model: Path | str, file: Path, source: str, seed: int, states: dict) -> dict:
    """The task's result for a model folder, from ``file`` where it is there already.

    Args:
        states: what tells the task's data, and a model that no arm is, from others.

    Returns what ``evaluate`` does, and "made_by", what it was asked for.
    """
    options = json.loads(json.dumps(task.options, default=str))
    about = {"kind": task.kind, "data": str(task.data), "language": source, "options": options} | states
    if not file.exists():
        result = evaluate(model, task.data, task.kind, source=source, seeds=[seed], **task.options) | {"made_by": about}
        with atomic_file(file) as work:
            work.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")
    result = json.loads(file.read_text("utf-8"))
    if differs(result["made_by"], about):
        raise ValueError(
            f"eval: {file} was measured with {result['made_by']}, not {about}; choose another out, or delete it"
        )
    return result


def differs(before: dict, now: dict) -> list[str]:
    """The keys of values that are others than before; an earlier version wrote fewer of them."""
    return [key for key, value in now.items() if before.get(key, value) != value]


def check_tasks(tasks: Sequence[Task]) -> list[Task]:
    """
    Raises:
        ValueError: two of them have the same name.
    """
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"eval: two tasks are called {name!r}; give them data folders with different names")
    return list(tasks)
