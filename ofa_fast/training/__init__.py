"""Continued pretraining of masked and causal language models."""

from ofa_fast.training.run import train
from ofa_fast.training.settings import PRESETS, with_preset

__all__ = ["PRESETS", "train", "with_preset"]
