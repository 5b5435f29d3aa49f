"""The checks of the recipe's arguments: each error names the argument, what was given and what would work."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from ofa_fast.initialization.methods import METHODS, WEIGHTINGS, Method
from ofa_fast.initialization.rows import ROWS_AT_ONCE


def ranks_of(rank) -> list[int | None]:
    ranks = list(rank) if isinstance(rank, (list, tuple)) else [rank]
    if not ranks:
        raise ValueError("rank must name at least one rank, got an empty list")
    for r in ranks:
        if r is not None and (isinstance(r, bool) or not hasattr(r, "__index__")):
            raise TypeError(f"rank must be an integer, None, or a list of these, got {r!r}")
    return ranks


def fitting_rank(rank: int | None, size: int, dim: int) -> int | None:
    """``rank``, or None where it means no factorisation."""
    if rank is None or rank == dim:
        return None
    if not 1 <= rank <= min(size, dim):
        raise ValueError(
            f"rank must lie in [1, {min(size, dim)}] for a source table of {size} tokens x {dim}, got {rank}; "
            f"None or {dim} means no factorisation"
        )
    return operator.index(rank)


def method_of(method, neighbors, temperature, weighting, word_vectors, seed, parity) -> Method:
    """The method with its own neighbours, temperature and weighting where none are given."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if parity and method not in ("ofa", "random"):
        raise ValueError(
            f'parity=True takes the methods of the published implementation, ofa and random, got "{method}"'
        )
    if weighting not in (None, *WEIGHTINGS):
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    chosen = METHODS[method]
    if chosen.keys and word_vectors is None:
        without = ", ".join(name for name, other in METHODS.items() if not other.keys)
        raise ValueError(f'word_vectors is None: method="{method}" needs word vectors; {without} do without')
    neighbors = chosen.neighbors if neighbors is None else neighbors
    temperature = chosen.temperature if temperature is None else temperature
    for name, value in (("neighbors", neighbors), ("seed", seed)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be an integer, got {value!r}")
    if neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, got {neighbors}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
    if not (temperature > 0 and np.isfinite(temperature)):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    return replace(
        chosen, neighbors=int(neighbors), temperature=float(temperature), weighting=weighting or chosen.weighting
    )


def word_weights_of(word_weights, word_vectors, parity: bool) -> np.ndarray | None:
    """[W] float32: 1 / rank of each word in its language for "rank", or those that are given."""
    if word_weights is not None and parity:
        raise ValueError("word_weights: the published implementation weighs all words alike; leave out parity=True")
    if word_weights is None or word_vectors is None:
        return None
    words = len(word_vectors.words)
    if isinstance(word_weights, str):
        if word_weights != "rank":
            raise ValueError(f'word_weights must be "rank", a number for each word or None, got {word_weights!r}')
        _, of = np.unique(word_vectors.languages or ["und"] * words, return_inverse=True)
        order = np.argsort(of, kind="stable")
        starts = np.cumsum(np.bincount(of)) - np.bincount(of)
        ranks = np.empty(words, dtype=np.int64)
        ranks[order] = np.arange(words) - starts[of[order]]
        return (1.0 / (1 + ranks)).astype(np.float32)
    weights = np.asarray(word_weights, dtype=np.float32)
    if weights.shape != (words,):
        raise ValueError(f"word_weights must be [{words}], a number for each word, got {list(weights.shape)}")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        word = word_vectors.words[int(np.argmin(np.isfinite(weights) & (weights > 0)))]
        raise ValueError(f"word_weights must be above 0 and finite, but that of {word!r} is not")
    return weights


def copied_share_of(copied_share, method: str, parity: bool) -> float:
    if not 0 <= copied_share <= 1:
        raise ValueError(f"copied_share must lie in [0, 1], got {copied_share}")
    if copied_share != 1 and (parity or method != "ofa"):
        given = "parity=True" if parity else f'method="{method}"'
        raise ValueError(f'copied_share={copied_share} is for method="ofa" without parity, got {given}')
    return float(copied_share)


def language_codes(languages: Iterable[str] | None) -> set[str] | None:
    if isinstance(languages, str):
        raise TypeError(f"languages must be a list of codes, got the string {languages!r}")
    return None if languages is None else set(languages)


def check_ids(name: str, tokenizer, size: int, parity: bool) -> None:
    if parity and size != len(tokenizer):
        raise ValueError(
            f"{name} has {len(tokenizer)} tokens but ids up to {size - 1}: parity=True needs ids without gaps"
        )


def check_target_rows(target_rows: int | None, size: int) -> int:
    if target_rows is None:
        return size
    if target_rows < size:
        raise ValueError(f"target_rows is {target_rows}, but target_tokenizer needs {size} rows")
    return operator.index(target_rows)


def check_source_rows(rows: int, size: int, parity: bool) -> None:
    if rows < size:
        raise ValueError(f"source_embeddings has {rows} rows, but source_tokenizer needs {size}")
    if parity and rows != size:
        raise ValueError(
            f"source_embeddings has {rows} rows for {size} tokens of source_tokenizer: parity=True takes no padding"
        )


def source_table(source_embeddings: torch.Tensor | np.ndarray, size: int, parity: bool) -> torch.Tensor:
    """The rows of the source's tokens, float32 [size, D]; on the CPU for ``parity``, else where they were."""
    if isinstance(source_embeddings, np.ndarray) and not source_embeddings.flags.writeable:
        source_embeddings = source_embeddings.copy()
    table = torch.as_tensor(source_embeddings).detach()
    if table.dim() != 2:
        raise ValueError(f"source_embeddings must be [Vs, D], got {list(table.shape)}")
    if not table.is_floating_point():
        raise TypeError(f"source_embeddings must be floating point, got {str(table.dtype).removeprefix('torch.')}")
    check_source_rows(len(table), size, parity)
    table = table[:size].to("cpu" if parity else table.device, torch.float32).contiguous()
    for first in range(0, size, ROWS_AT_ONCE):  # a part at a time, as this takes the memory of the part twice more
        finite = table[first : first + ROWS_AT_ONCE].isfinite().all(1)
        if not finite.all():
            row = first + int((~finite).nonzero()[0])
            raise ValueError(f"source_embeddings must be finite, but row {row} holds NaN or infinity")
    return table


def source_bias_of(source_bias, rows: int, size: int) -> torch.Tensor | None:
    """The bias of the source's tokens, float32 [size] on the CPU."""
    if source_bias is None:
        return None
    bias = torch.as_tensor(source_bias).detach().float().cpu()
    if list(bias.shape) not in ([rows], [size]):
        raise ValueError(f"source_bias must be [{rows}], one value a row of source_embeddings, got {list(bias.shape)}")
    finite = bias.isfinite()
    if not finite.all():
        raise ValueError(f"source_bias must be finite, but entry {int((~finite).nonzero()[0])} is not")
    return bias[:size]
