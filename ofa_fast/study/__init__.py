"""Comparisons of initialisations: made, trained, evaluated, and reported side by side."""

from ofa_fast.study.arms import Arm, Recipe, arms_of
from ofa_fast.study.compare import compare
from ofa_fast.study.tasks import Task

__all__ = ["Arm", "Recipe", "Task", "arms_of", "compare"]
