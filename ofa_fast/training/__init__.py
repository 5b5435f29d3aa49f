"""Continued pretraining of masked and causal language models."""

from ofa_fast.training.prediction import estimate
from ofa_fast.training.run import train
from ofa_fast.training.settings import PRESETS, with_preset

__all__ = ["PRESETS", "estimate", "train", "with_preset"]
