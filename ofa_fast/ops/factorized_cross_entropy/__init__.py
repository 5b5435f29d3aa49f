"""Cross entropy of a factorised tied head."""

from ofa_fast.ops.factorized_cross_entropy.reference import factorized_cross_entropy as _reference


def factorized_cross_entropy(hidden, coordinates, basis, labels, bias=None, ignore_index=-100, reduction="mean"):
    labels = labels.reshape(-1)
    loss = _reference(
        hidden.reshape(-1, hidden.shape[-1]), coordinates, basis, labels, bias, ignore_index, reduction
    )
    return loss
