"""Crosslingual sentence retrieval."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import ofa_fast
from ofa_fast._files import atomic_file
from ofa_fast.evaluation.encoding import check_layer, encode
from ofa_fast.evaluation.parallel import keep_pairs, read_pairs
from ofa_fast.ops import topk_similarity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIRECTIONS = ("source_to_target", "target_to_source")


def retrieval_accuracy(source: torch.Tensor, target: torch.Tensor, k: Sequence[int] = (1, 5, 10)) -> dict:
    """How often row i of the other side is among the k nearest by cosine, of two [N, D] tables of aligned rows.

    Returns:
        ``{"source_to_target": {"top1": …}, "target_to_source": …, "mean": …, "chance": …}`` with the accuracies 0 … 1
        for each k, their mean over both directions, and the accuracy k / N of guessing. Of equally near rows the one
        with the lower index counts as nearer.

    Raises:
        ValueError: the tables differ in shape; ``k`` is empty or not within 1 … N.
    """
    if source.shape != target.shape or source.dim() != 2:
        raise ValueError(
            f"source and target must be two [N, D] tables of aligned rows, got {list(source.shape)} and "
            f"{list(target.shape)}"
        )
    n = len(source)
    if not k or not all(1 <= one <= n for one in k):
        raise ValueError(f"k: expected numbers from 1 to the {n} pairs, got {tuple(k)}")
    own = torch.arange(n)[:, None]
    result = {}
    for direction, queries, keys in zip(DIRECTIONS, (source, target), (target, source), strict=True):
        hit = topk_similarity(queries, keys, max(k))[1].cpu() == own
        result[direction] = {f"top{one}": hit[:, :one].any(1).double().mean().item() for one in k}
    result["mean"] = {name: sum(result[d][name] for d in DIRECTIONS) / 2 for name in result[DIRECTIONS[0]]}
    result["chance"] = {f"top{one}": one / n for one in k}
    return result


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
    max_length: int | None = None,
    progress: bool = False,
) -> dict:
    """Accuracy of finding a sentence's translation among all target sentences, both ways (the paper's SR-B, SR-T).

    Sentence i of one side is the translation of sentence i of the other. Pairs with an empty side (or with eBible's
    ``<range>``) are dropped and counted. Sentence vectors are those of ``encode``, compared by cosine.

    Returns:
        What ``retrieval_accuracy`` returns, with "pairs" (N), "dropped", "layer" and "pooling".

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
        **retrieval_accuracy(*vectors, k),
    }


def retrieval_report(
    model: PreTrainedModel | str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    source: str = "eng",
    languages: Sequence[str] | None = None,
    layer: int | None = None,
    pooling: str = "mean",
    k: Sequence[int] = (1, 5, 10),
    batch_size: int = 64,
    max_length: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    **selection,
) -> dict:
    """Retrieval between ``source`` and every language of a folder, as a dict, and as ``out``.json and ``out``.md.

    Args:
        model: a model, with its ``tokenizer``, or the folder (or hub id) of both.
        data: a folder in one of the layouts that ``read_pairs`` knows; ``source``, ``languages`` and ``selection``
            (lines, splits, max_pairs, seed) are passed to it.
        device: where to run a model given by its folder; default: a GPU if there is one.

    Returns:
        ``{"model", "data", "source", "layer", "pooling", "languages": {language: as from retrieval},
        "average": {"top1": …}, "seconds", "versions"}``; the average is of the languages' means over both directions.
    """
    start = time.perf_counter()
    pairs = read_pairs(data, source, languages, **selection)
    for pair in pairs:
        if max(k) > len(pair.source):
            raise ValueError(f"k: {max(k)} exceeds the {len(pair.source)} pairs of {pair.target_language}")
    name = str(getattr(model, "name_or_path", model))
    if isinstance(model, (str, os.PathLike)):
        model, tokenizer = _load(model, device)
    elif tokenizer is None:
        raise ValueError("tokenizer: a model needs its tokenizer; only a folder brings both")
    layer = check_layer(model, layer)

    def vectors(sentences: list[str]) -> torch.Tensor:
        return encode(
            model, tokenizer, sentences, layer, pooling, batch_size=batch_size, max_length=max_length, progress=progress
        )

    # Most source sentences occur with every language: each is encoded once.
    row = {text: i for i, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair.source))}
    source_vectors = vectors(list(row))
    results = {}
    for pair in pairs:
        accuracy = retrieval_accuracy(source_vectors[[row[text] for text in pair.source]], vectors(pair.target), k)
        results[pair.target_language] = {"pairs": len(pair.source), "dropped": pair.dropped, **accuracy}
    report = {
        "model": name,
        "data": str(data),
        "source": pairs[0].source_language,
        "layer": layer,
        "pooling": pooling,
        "languages": results,
        "average": {f"top{one}": sum(r["mean"][f"top{one}"] for r in results.values()) / len(results) for one in k},
        "seconds": round(time.perf_counter() - start, 2),
        "versions": {"ofa-fast": ofa_fast.__version__, "torch": torch.__version__},
    }
    if out is not None:
        base = Path(out)
        base = base.with_suffix("") if base.suffix in (".json", ".md") else base
        for suffix, text in ((".json", json.dumps(report, indent=2)), (".md", markdown(report))):
            with atomic_file(base.with_name(base.name + suffix)) as file:
                file.write_text(text + "\n", "utf-8")
    return report


def markdown(report: dict) -> str:
    """The report as a table: one line a language, per k both directions and their mean, in percent."""
    source, names = report["source"], list(report["average"])
    head = ["language", "pairs", "dropped"]
    for name in names:
        k = name.removeprefix("top")
        head += [f"top-{k} from {source}", f"top-{k} to {source}", f"top-{k} mean", "chance"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for language, result in report["languages"].items():
        columns = [(result[part][name]) for name in names for part in (*DIRECTIONS, "mean", "chance")]
        rows.append([language, str(result["pairs"]), str(result["dropped"]), *(f"{100 * c:.1f}" for c in columns)])
    average = [cell for name in names for cell in ("", "", f"{100 * report['average'][name]:.1f}", "")]
    rows.append(["average", "", "", *average])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"# Sentence retrieval\n\n{report['model']} on {report['data']}: layer {report['layer']}, "
        f"{report['pooling']} pooling, cosine; accuracy in %.\n\n{table}"
    )


def _load(folder: str | os.PathLike, device: str | torch.device | None):
    from transformers import AutoModel, AutoTokenizer

    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device)
    return model, AutoTokenizer.from_pretrained(folder)
