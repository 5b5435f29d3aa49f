"""Continued pretraining of masked and causal language models."""

from ofa_fast.training.run import train

__all__ = ["train"]
