"""Crosslingual evaluation."""

from ofa_fast.evaluation.encoding import default_layer, encode
from ofa_fast.evaluation.parallel import Pair, read_pairs
from ofa_fast.evaluation.retrieval import retrieval, retrieval_accuracy
from ofa_fast.evaluation.run import evaluate

__all__ = ["Pair", "default_layer", "encode", "evaluate", "read_pairs", "retrieval", "retrieval_accuracy"]
