"""Move pretrained language models to new vocabularies and languages: the OFA framework with native kernels."""

__version__ = "0.1.0"
