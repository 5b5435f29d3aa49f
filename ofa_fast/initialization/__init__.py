"""Initialisation of a new vocabulary's table: word vectors, subword vectors, matching, and the OFA recipe."""

from ofa_fast.initialization.align_vectors import align_word_vectors
from ofa_fast.initialization.build_vectors import build_word_vectors
from ofa_fast.initialization.cache import Cache
from ofa_fast.initialization.matching import match_vocabularies
from ofa_fast.initialization.plan import estimate, plan
from ofa_fast.initialization.recipe import initialize
from ofa_fast.initialization.result import Initialization
from ofa_fast.initialization.subwords import subword_vectors
from ofa_fast.initialization.translation import translation_precision
from ofa_fast.initialization.word_vectors import WordVectors

__all__ = [
    "Cache",
    "Initialization",
    "WordVectors",
    "align_word_vectors",
    "build_word_vectors",
    "estimate",
    "initialize",
    "match_vocabularies",
    "plan",
    "subword_vectors",
    "translation_precision",
]
