"""The four native ops. Each is one public function with the same result on every backend.

Letters, in this order, throughout: V vocabulary rows, R rank, D model width, N tokens, Q queries, K keys, k neighbours.
"""

from ofa_fast.ops._op import backend
from ofa_fast.ops.factorized_cross_entropy import factorized_cross_entropy
from ofa_fast.ops.factorized_embedding import factorized_embedding
from ofa_fast.ops.topk_similarity import topk_similarity
from ofa_fast.ops.truncated_svd import truncated_svd

__all__ = ["backend", "factorized_cross_entropy", "factorized_embedding", "topk_similarity", "truncated_svd"]
