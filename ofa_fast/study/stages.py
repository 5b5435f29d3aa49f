"""The stages of an arm, each absent or complete on disk, so that a comparison goes on wherever it was stopped.

The folder of a comparison::

    source/                      evaluations of the source model as it is
    <recipe>-rank-<R>-seed-<s>/  one arm
        initialised/             the model before training, with initialization.json
        trained/                 the model after it, with training.json and losses.csv
        evaluations/             one JSON file a task and step
        .lock                    held by the process that is at work on it
"""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch

from ofa_fast._files import atomic_folder, fingerprint
from ofa_fast.evaluation.report import SUFFIXES
from ofa_fast.initialization import WordVectors, initialize
from ofa_fast.models import build_model
from ofa_fast.study.arms import Arm
from ofa_fast.study.tasks import Task, measure
from ofa_fast.training import train
from ofa_fast.training.text import passages


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process holds the lock; the system lets go of it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass
class Comparison:
    """What all arms have in common: inputs, tasks and the recipe of training."""

    source: Path | str
    tokenizer_folder: Path | str
    vectors: Mapping[str, Path]
    out: Path
    tasks: Sequence[Task]
    points: Sequence[int]
    train_files: Sequence[tuple[str, Path]]
    eval_files: Sequence[tuple[str, Path]] = ()
    language: str = "eng"
    bias: str = "moved"
    training: dict = field(default_factory=dict)
    say: Callable[[str], None] = print

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer_folder)

    @cached_property
    def source_model(self):
        """In float32, with its head; a missing one is the same for all arms and neutral (see ``neutral_head``)."""
        from transformers import AutoModelForMaskedLM

        torch.manual_seed(0)
        model, loading = AutoModelForMaskedLM.from_pretrained(
            self.source, dtype=torch.float32, output_loading_info=True
        )
        return neutral_head(model, loading["missing_keys"]).eval()

    @cached_property
    def log_frequencies(self) -> torch.Tensor:
        """log of each token's share of the training text, each counted once more than it occurs: [V]."""
        counts = torch.ones(max(self.tokenizer.get_vocab().values()) + 1, dtype=torch.float64)
        for language, path in self.train_files:
            texts = (text for _, text in passages(path, language, "train_files"))
            while some := list(islice(texts, 10_000)):
                ids = self.tokenizer(some, add_special_tokens=False)["input_ids"]
                counts += torch.bincount(torch.tensor([i for line in ids for i in line]), minlength=len(counts))
        return torch.log(counts / counts.sum()).float()

    @cached_property
    def states(self) -> dict[str, str]:
        """A fingerprint of all that is read, to tell whether an arm and an evaluation are of the same."""
        out = self.out.resolve()

        def given(file: Path) -> bool:
            return not file.resolve().is_relative_to(out)

        vectors = {f"vectors {name}": path for name, path in self.vectors.items()}
        found = {"source": self.source, "tokenizer": self.tokenizer_folder, **vectors}
        states = {name: fingerprint(path, given) if Path(path).exists() else "" for name, path in found.items()}
        for task in self.tasks:  # reports of their evaluation may lie beside them
            prints = [fingerprint(f, lambda file: given(file) and file.suffix not in SUFFIXES) for f in task.folders()]
            states[f"task {task.name}"] = " ".join(prints)
        for name, files in (("train_files", self.train_files), ("eval_files", self.eval_files)):
            prints = [f"{language} {fingerprint(path)}" for language, path in files]
            states[name] = hashlib.sha256("\n".join(prints).encode()).hexdigest()[:16]
        return states

    def folder(self, arm: Arm) -> Path:
        return self.out / arm.folder

    def evaluation(self, arm: Arm, task: Task, step: int) -> Path:
        return self.folder(arm) / "evaluations" / f"{task.name}-step-{step}.json"

    def initialise(self, arms: Sequence[Arm]) -> None:
        """Initialise arms that differ in their ranks alone, in one call, where it has not been done."""
        first = arms[0]
        with locked(self.folder(first) / ".initialise.lock", wait=True):
            arms = [arm for arm in arms if not (self.folder(arm) / "initialised").exists()]
            if not arms:
                return
            self.say(f"initialise {first.recipe.name}, seed {first.seed}: {len(arms)} ranks")
            from transformers import AutoTokenizer

            head = self.source_model.get_output_embeddings()
            results = initialize(
                self.source_model.get_input_embeddings().weight.detach(),
                AutoTokenizer.from_pretrained(self.source),
                self.tokenizer,
                self._vectors_of(first),
                rank=[arm.rank for arm in arms],
                method=first.recipe.method,
                seed=first.seed,
                source_bias=getattr(head, "bias", None),
                **dict(first.recipe.options),
            )
            for arm, result in zip(arms, results, strict=True):
                model = build_model(self.source_model, result, self.tokenizer)
                self._set_bias(model, arm.recipe.bias or self.bias)
                with atomic_folder(self.folder(arm) / "initialised") as folder:
                    model.save_pretrained(folder)
                    self.tokenizer.save_pretrained(folder)
                    result.write(folder, tables=False)

    def _vectors_of(self, arm: Arm) -> WordVectors | None:
        if not arm.recipe.needs_vectors:
            return None
        name = arm.recipe.vectors or next(iter(self.vectors), None)
        if name not in self.vectors:
            raise ValueError(
                f"vectors: {arm.recipe.name} needs {name or 'some'}; given: {', '.join(self.vectors) or 'none'}"
            )
        return WordVectors.load(self.vectors[name])

    def _set_bias(self, model, bias: str) -> None:
        head = model.get_output_embeddings()
        own = getattr(head, "bias", None)
        if own is None or bias == "moved":
            return
        with torch.no_grad():
            own.zero_()
            if bias == "frequencies":
                own[: len(self.log_frequencies)] = self.log_frequencies

    def measure(self, arm: Arm, step: int, model: Path, tasks: Sequence[Task]) -> None:
        for task in tasks:
            file = self.evaluation(arm, task, step)
            measure(task, model, file, self.language, arm.seed, {"state": self.states[f"task {task.name}"]})

    def run(self, arm: Arm) -> None:
        """All that is left of an arm, whose model is initialised."""
        folder = self.folder(arm)
        always = [task for task in self.tasks if task.always]
        self.say(f"{arm.label}, seed {arm.seed}: before training")
        self.measure(arm, 0, folder / "initialised", self.tasks)
        if not arm.steps:
            return
        self.say(f"{arm.label}, seed {arm.seed}: {arm.steps} steps")
        train(
            folder / "initialised",
            list(self.train_files),
            folder / "trained",
            eval_files=list(self.eval_files),
            steps=arm.steps,
            milestones=[point for point in self.points if point < arm.steps],
            at_milestone=lambda step, checkpoint: self._measure_checkpoint(arm, step, checkpoint, always),
            seed=arm.seed,
            energy_of="process",
            resume=True,
            progress=False,
            **self.training,
        )
        self.measure(arm, arm.steps, folder / "trained", self.tasks)

    def _measure_checkpoint(self, arm: Arm, step: int, checkpoint: Path, tasks: Sequence[Task]) -> None:
        """A checkpoint comes without the tokenizer that an evaluation wants beside the model."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in ("config.json", "model.safetensors"):
                (folder / file).symlink_to((checkpoint / file).resolve())
            self.tokenizer.save_pretrained(folder)
            self.measure(arm, step, folder, tasks)

    def finished(self, arm: Arm) -> bool:
        ends = {0, arm.steps}
        made = (self.folder(arm) / ("trained" if arm.steps else "initialised")).exists()
        return made and all(self.evaluation(arm, task, step).exists() for task in self.tasks for step in ends)

    def measure_source(self, wait: bool) -> None:
        """The source model as it is, with its own tokenizer, on every task."""
        with locked(self.out / "source" / ".lock", wait) as mine:
            for task in self.tasks if mine else ():
                file = self.out / "source" / f"{task.name}-step-0.json"
                states = {"state": self.states[f"task {task.name}"], "model": [str(self.source), self.states["source"]]}
                measure(task, self.source, file, self.language, 0, states)


@torch.no_grad()
def neutral_head(model, missing):
    """Let a masked-language-model head that the checkpoint lacks pass hidden states on, as far as it can.

    At random it would make the body unlearn what it knows before it learns: its square matrices become the identity.
    """
    for name, parameter in model.named_parameters():
        if name in missing and parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1]:
            torch.nn.init.eye_(parameter)
    return model
