"""Crosslingual sentence retrieval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ofa_fast.evaluation.encoding import check_layer, encode
from ofa_fast.evaluation.loading import load
from ofa_fast.evaluation.parallel import SIB_SPLITS, Pair, keep_pairs, read_pairs, sample
from ofa_fast.evaluation.statistics import Measured, Task, ratio
from ofa_fast.ops import topk_similarity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIRECTIONS = ("source_to_target", "target_to_source")
CSLS_NEIGHBORS = 10


def _cosine_ranks(queries: torch.Tensor, keys: torch.Tensor, k: int) -> torch.Tensor:
    return topk_similarity(queries, keys, k)[1]


def _csls_ranks(queries: torch.Tensor, keys: torch.Tensor, k: int) -> torch.Tensor:
    queries, keys = (torch.nn.functional.normalize(x.float(), dim=1) for x in (queries, keys))
    crowding = topk_similarity(keys, queries, min(CSLS_NEIGHBORS, len(queries)), "dot")[0].mean(1, keepdim=True)
    # The query's own crowding is the same for all keys, so 2 cos - crowding is one dot product of D + 1 columns.
    ones = torch.ones_like(queries[:, :1])
    return topk_similarity(torch.cat([2 * queries, -ones], 1), torch.cat([keys, crowding], 1), k, "dot")[1]


def _centered_ranks(queries: torch.Tensor, keys: torch.Tensor, k: int) -> torch.Tensor:
    return _cosine_ranks(*(x.float() - x.float().mean(0) for x in (queries, keys)), k)


SIMILARITIES = {"cosine": _cosine_ranks, "csls": _csls_ranks, "centered": _centered_ranks}


def _hits(source: torch.Tensor, target: torch.Tensor, k: Sequence[int], similarity: str) -> torch.Tensor:
    """[2, N, len(k)] bool: in both directions, whether row i is among the k nearest of row i."""
    if source.shape != target.shape or source.dim() != 2:
        raise ValueError(
            f"source and target must be two [N, D] tables of aligned rows, got {list(source.shape)} and "
            f"{list(target.shape)}"
        )
    n = len(source)
    if not k or not all(1 <= one <= n for one in k):
        raise ValueError(f"k: expected numbers from 1 to the {n} pairs, got {tuple(k)}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected one of {', '.join(SIMILARITIES)}, got {similarity!r}")
    own = torch.arange(n)[:, None]
    nearest = [SIMILARITIES[similarity](*pair, max(k)).cpu() == own for pair in ((source, target), (target, source))]
    return torch.stack([torch.stack([hit[:, :one].any(1) for one in k], 1) for hit in nearest])


def _accuracies(hits: torch.Tensor, k: Sequence[int]) -> dict:
    names = [f"top{one}" for one in k]
    means = hits.double().mean(1)
    result = {d: dict(zip(names, row.tolist(), strict=True)) for d, row in zip(DIRECTIONS, means, strict=True)}
    result["mean"] = {name: sum(result[d][name] for d in DIRECTIONS) / 2 for name in names}
    result["chance"] = {name: one / hits.shape[1] for name, one in zip(names, k, strict=True)}
    return result


def retrieval_accuracy(
    source: torch.Tensor, target: torch.Tensor, k: Sequence[int] = (1, 5, 10), similarity: str = "cosine"
) -> dict:
    """How often row i of the other side is among the k nearest, of two [N, D] tables of aligned rows.

    Args:
        similarity: "cosine", or "csls" (Conneau et al. 2018, arXiv 1710.04087, section 2.3):
            ``csls(x, y) = 2 cos(x, y) - r(x) - r(y)`` with r the mean cosine of a row and its 10 nearest of the other
            side, which keeps a row that is near everything from being everyone's nearest; or "centered", the cosine
            after each table's mean row is taken from its rows (Libovický et al. 2020, arXiv 2004.05160),
            which leaves out what all sentences of a language have in common.

    Returns:
        ``{"source_to_target": {"top1": …}, "target_to_source": …, "mean": …, "chance": …}`` with the accuracies 0 … 1
        for each k, their mean over both directions, and the accuracy k / N of guessing. Of equally near rows the one
        with the lower index counts as nearer.

    Raises:
        ValueError: the tables differ in shape; ``k`` is empty or not within 1 … N; unknown ``similarity``.
    """
    return _accuracies(_hits(source, target, k, similarity), k)


def retrieval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source_sentences: Sequence[str],
    target_sentences: Sequence[str],
    layer: int | None = None,
    pooling: str = "mean",
    k: Sequence[int] = (1, 5, 10),
    batch_size: int = 64,
    *,
    similarity: str = "cosine",
    max_length: int | None = None,
    progress: bool = False,
) -> dict:
    """Accuracy of finding a sentence's translation among all target sentences, both ways (the paper's SR-B, SR-T).

    Sentence i of one side is the translation of sentence i of the other. Pairs with an empty side (or with eBible's
    ``<range>``) are dropped and counted. Sentence vectors are those of ``encode``, compared as in
    ``retrieval_accuracy``.

    Returns:
        What ``retrieval_accuracy`` returns, with "pairs" (N), "dropped", "layer", "pooling" and "similarity".

    Raises:
        ValueError: the sides differ in length; ``k`` exceeds the pairs that are left; what ``encode`` raises.
    """
    source, target, dropped = keep_pairs(source_sentences, target_sentences)
    options = {"batch_size": batch_size, "max_length": max_length, "progress": progress}
    layer = check_layer(model, layer)
    vectors = [encode(model, tokenizer, side, layer, pooling, **options) for side in (source, target)]
    return {
        "pairs": len(source),
        "dropped": dropped,
        "layer": layer,
        "pooling": pooling,
        "similarity": similarity,
        **retrieval_accuracy(*vectors, k, similarity),
    }


def prepare(
    model: str | os.PathLike,
    data: str | os.PathLike,
    source: str,
    languages: Sequence[str] | None,
    progress: bool,
    *,
    k: Sequence[int] = (1, 5, 10),
    layer: int | None = None,
    pooling: str = "mean",
    similarity: str = "cosine",
    batch_size: int = 64,
    max_length: int | None = None,
    device: str | torch.device | None = None,
    lines: Sequence[int] | np.ndarray | None = None,
    splits: Sequence[str] = SIB_SPLITS,
    max_pairs: int | None = None,
) -> Task:
    """Retrieval for ``evaluate``, scored at the largest ``k``. Only ``max_pairs`` is drawn by a seed."""

    corpus = read_pairs(data, source, languages, lines, splits)

    def draw(seed: int) -> list[Pair]:
        pairs = [sample(pair, max_pairs, seed) for pair in corpus]
        for pair in pairs:
            if max(k) > len(pair.source):
                raise ValueError(f"k: {max(k)} exceeds the {len(pair.source)} pairs of {pair.target_language}")
        return pairs

    draw(0)
    loaded, tokenizer = load(model, device=device)
    layer = check_layer(loaded, layer)
    known: dict[str, torch.Tensor] = {}

    def vectors(sentences: list[str]) -> torch.Tensor:
        options = {"batch_size": batch_size, "max_length": max_length, "progress": progress}
        return encode(loaded, tokenizer, sentences, layer, pooling, **options)

    def measure_pair(pair: Pair) -> Measured:
        source_vectors = torch.stack([known[text] for text in pair.source])
        hits = _hits(source_vectors, vectors(pair.target), k, similarity)
        share = hits[..., list(k).index(max(k))].double().mean(0).numpy()
        numbers = {"dropped": pair.dropped, **_accuracies(hits, k)}
        return Measured(np.stack([share, np.ones_like(share)], 1), numbers)

    def measure(seed: int) -> tuple[dict[str, Measured], dict]:
        pairs = draw(seed)
        # Most source sentences occur with every language: each is encoded once.
        new = [text for text in dict.fromkeys(text for pair in pairs for text in pair.source) if text not in known]
        known.update(zip(new, vectors(new), strict=True))
        return {pair.target_language: measure_pair(pair) for pair in pairs}, {}

    return Task(
        metric=f"top{max(k)}",
        score=ratio,
        source=corpus[0].source_language,
        settings={"layer": layer, "pooling": pooling, "similarity": similarity, "k": list(k)},
        measure=measure,
        corpus=corpus,
        seeded=max_pairs is not None,
    )
