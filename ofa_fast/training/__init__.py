"""Masked-language-model continued pretraining."""

from ofa_fast.training.run import train

__all__ = ["train"]
