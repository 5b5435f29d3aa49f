"""The arms of a comparison: what is initialised how, at which rank, with which seed."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ofa_fast.initialization import initialize
from ofa_fast.initialization.methods import METHODS

# What ``compare`` itself gives to ``initialize``.
_GIVEN = {
    *("source_embeddings", "source_tokenizer", "target_tokenizer", "word_vectors", "rank", "method", "seed"),
    *("source_bias", "target_rows", "progress", "group"),
}
OPTIONS = {*inspect.signature(initialize).parameters} - _GIVEN
BIASES = ("moved", "frequencies", "zero")


@dataclass(frozen=True)
class Recipe:
    """A method with the options that set it apart: ``name`` is its text, such as "ofa:neighbors=25:vectors=small"."""

    name: str
    method: str
    vectors: str | None = None
    bias: str | None = None
    options: tuple[tuple[str, object], ...] = ()

    @classmethod
    def read(cls, text: str) -> Recipe:
        """
        Raises:
            ValueError: an unknown method, or an option that ``initialize`` does not have.
        """
        method, *rest = text.split(":")
        if method not in METHODS:
            raise ValueError(f"methods: expected one of {', '.join(METHODS)}, got {method!r}")
        options = {}
        for option in rest:
            name, equals, value = option.partition("=")
            if not equals or name not in OPTIONS | {"vectors", "bias"}:
                known = ", ".join(sorted(OPTIONS | {"vectors", "bias"}))
                raise ValueError(f"methods: {text!r} needs options name=value, with a name among {known}")
            options[name] = _value(value)
        bias, vectors = options.pop("bias", None), options.pop("vectors", None)
        if bias not in (None, *BIASES):
            raise ValueError(f"methods: {text!r}: bias is one of {', '.join(BIASES)}")
        return cls(text, method, None if vectors is None else str(vectors), bias, tuple(options.items()))

    @property
    def needs_vectors(self) -> bool:
        return METHODS[self.method].keys is not None


def _value(text: str) -> object:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True)
class Arm:
    """One model that is made and trained; with ``steps`` = 0 it is only made and evaluated."""

    recipe: Recipe
    rank: int | None
    seed: int
    steps: int

    @property
    def label(self) -> str:
        """What it has in common with the arms of other seeds."""
        return f"{self.recipe.name}, {rank_name(self.rank)}"

    @property
    def folder(self) -> str:
        rank = "full" if self.rank is None else self.rank
        return f"{re.sub(r'[^A-Za-z0-9.=_-]+', '_', self.recipe.name)}-rank-{rank}-seed-{self.seed}"


def rank_name(rank: int | None) -> str:
    return "full rank" if rank is None else f"rank {rank}"


def arms_of(methods: Sequence[str], ranks: Sequence[int | None], seeds: Sequence[int], steps: int) -> list[Arm]:
    """Every method at every rank with every seed: seed by seed, so that an early stop leaves whole comparisons.

    Raises:
        ValueError: none are left, or a number is out of range.
    """
    if not (methods and ranks and seeds):
        raise ValueError("methods, ranks and seeds: give at least one of each")
    if steps < 0:
        raise ValueError(f"steps: expected a number of at least 0, got {steps}")
    recipes = [Recipe.read(method) for method in methods]
    return check_arms(Arm(recipe, rank, seed, steps) for seed, recipe, rank in itertools.product(seeds, recipes, ranks))


def check_arms(arms: Iterable[Arm]) -> list[Arm]:
    """
    Raises:
        ValueError: two arms would share a folder.
    """
    arms = list(arms)
    seen = {}
    for arm in arms:
        other = seen.setdefault(arm.folder, arm)
        if other is not arm:
            raise ValueError(
                f"arms: {arm.label} with seed {arm.seed} is given twice, with {arm.steps} and {other.steps} steps"
            )
    return arms
