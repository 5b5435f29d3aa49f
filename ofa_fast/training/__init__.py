"""Continued pretraining of masked and causal language models."""

from ofa_fast.training.prediction import estimate
from ofa_fast.training.run import train

__all__ = ["estimate", "train"]
