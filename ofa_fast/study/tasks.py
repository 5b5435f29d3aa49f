"""What the arms are evaluated on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ofa_fast._files import atomic_file

TASKS = ("retrieval", "classification", "ner", "pos")


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
            raise ValueError(f"eval: a task's name is part of file names: letters, digits, '-' and '.', got {self.name!r}")
        object.__setattr__(self, "data", Path(self.data))
        object.__setattr__(self, "name", self.name or f"{self.kind}-{self.data.name}")


def measure(task: Task, model: Path | str, file: Path, source: str, seed: int) -> dict:
    """The task's result for a model folder, from ``file`` where it is there already.

    Returns what ``evaluate`` does, ``{"metric", "average", "languages": {code: {"score", …}}, …}``, and the "task".
    """
    about = {"kind": task.kind, "data": str(task.data), "options": json.loads(json.dumps(task.options, default=str))}
    if not file.exists():
        result = _evaluate(model, task, source, seed) | {"task": about}
        with atomic_file(file) as work:
            work.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")
    result = json.loads(file.read_text("utf-8"))
    if result["task"] != about:
        raise ValueError(f"eval: {file} was measured with {result['task']}, not {about}; choose another out, or delete it")
    return result


def _evaluate(model: Path | str, task: Task, source: str, seed: int) -> dict:
    from ofa_fast.evaluation import retrieval_report

    report = retrieval_report(model, task.data, source=source, progress=False, seed=seed, **task.options)
    name = f"top{task.options.get('k', (1, 5, 10))[-1]}"
    languages = {
        language: {"score": result["mean"][name], "items": result["pairs"], "chance": result["chance"][name]}
        for language, result in report["languages"].items()
    }
    return {"metric": name, "languages": languages, "average": {"score": report["average"][name]}, "seconds": report["seconds"]}


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
