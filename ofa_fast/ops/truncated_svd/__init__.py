"""Truncated singular value decomposition of a tall matrix."""

from ofa_fast.ops.truncated_svd.reference import truncated_svd as _reference


def truncated_svd(matrix, rank):
    return _reference(matrix, rank)
