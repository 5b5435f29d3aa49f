"""What an initialisation would give and take, before it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ofa_fast.initialization import arguments, report
from ofa_fast.initialization.cache import Cache, opened
from ofa_fast.initialization.memory import BYTES_OF_A_TOKEN, BYTES_OF_A_WORD, needs, parse_memory
from ofa_fast.initialization.result import COPIED, ORIGINS, RANDOM, SIMILAR
from ofa_fast.initialization.sharing import Processes
from ofa_fast.initialization.stages import matched, vocabularies
from ofa_fast.initialization.subwords import covered_subwords, is_mapped


def plan(
    source_shape: Sequence[int],
    source_tokenizer,
    target_tokenizer,
    word_vectors,
    rank: int | Sequence[int | None] | None = 100,
    neighbors: int | None = None,
    method: str = "ofa",
    parity: bool = False,
    target_rows: int | None = None,
    target_languages: Iterable[str] | None = None,
    progress: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
    cache: str | os.PathLike | Cache | None = None,
    memory: int | str | None = None,
    fuzzy: bool = True,
) -> dict:
    """What ``initialize`` would do, before it: counts by origin, sizes and memory, without a vector being computed.

    The words are tokenised once, for the target only: the cheapest way to honest counts. They are those of
    ``initialize``, unless the word vectors of a subword cancel to zero or no source subword has a vector.

    Args:
        source_shape: (Vs, D) of the source table. The others: as for ``initialize``.

    Returns:
        ``counts`` (copied, similar, random, rows), ``scripts``, per rank ``parameters``, and ``memory`` in bytes:
        ``peak`` (the inputs, and what ``initialize`` holds at its largest stage), ``least`` (the smallest ``memory``
        that would do) and ``results``.
    """
    ranks = arguments.ranks_of(rank)
    how = arguments.method_of(method, neighbors, None, None, word_vectors, 0, parity)
    source, target = vocabularies(source_tokenizer, target_tokenizer, parity)
    rows = arguments.check_target_rows(target_rows, len(target.tokens))
    size, dim = len(source.tokens), source_shape[1]
    arguments.check_source_rows(source_shape[0], size, parity)
    ranks = [arguments.fitting_rank(r, size, dim) for r in ranks]
    origin = np.full(rows, RANDOM)
    if how.keys:
        codes = arguments.language_codes(target_languages)
        covered = covered_subwords(
            target_tokenizer,
            word_vectors,
            languages=codes,
            parity=parity,
            progress=progress,
            processes=Processes(group),
            cache=opened(cache),
        )
        origin[: len(covered)][covered] = SIMILAR
    origin[: len(target.tokens)][matched(source, target, parity, how.copies, fuzzy) >= 0] = COPIED
    widths = [r or dim for r in ranks]
    return {
        "counts": {"rows": rows, "padding_rows": rows - len(target.tokens)}
        | dict(zip(ORIGINS, np.bincount(origin, minlength=len(ORIGINS)).tolist(), strict=True)),
        "scripts": report.coverage(target.texts, origin),
        "parameters": [
            {"rank": r} | report.parameters(rows, w, dim, r is not None) for r, w in zip(ranks, widths, strict=True)
        ],
        "memory": estimate(
            source_shape,
            (source_tokenizer, target_tokenizer),
            word_vectors,
            rank=ranks,
            neighbors=how.neighbors,
            method=method,
            parity=parity,
            target_rows=rows,
            memory=memory,
        ),
    }


def estimate(
    source_shape: Sequence[int],
    tokenizers: Sequence,
    word_vectors,
    rank: int | Sequence[int | None] | None = 100,
    neighbors: int | None = None,
    method: str = "ofa",
    parity: bool = False,
    target_rows: int | None = None,
    memory: int | str | None = None,
) -> dict[str, int]:
    """The ``memory`` of ``plan``, at once: in bytes, beside Python and its libraries, the inputs included.

    Args:
        tokenizers: the source's and the target's. The others: as for ``initialize``.
    """
    how = arguments.method_of(method, neighbors, None, None, word_vectors, 0, parity)
    source, target = map(len, tokenizers)
    rows, dim = max(target_rows or 0, target), source_shape[1]
    widths = [r or dim for r in arguments.ranks_of(rank)]
    words = word_vectors if how.keys else None
    need = needs(target, source, rows, dim, widths, how.neighbors, words, parity)
    held = 4 * source_shape[0] * dim + BYTES_OF_A_TOKEN * (source + target)
    if words is not None:
        held += BYTES_OF_A_WORD * len(words.words) + (0 if is_mapped(words.vectors) else words.vectors.nbytes)
    peak = held + need.peak()
    return {
        "peak": peak if memory is None else max(min(peak, parse_memory(memory)), held + need.least),
        "least": held + need.least,
        "results": sum(4 * (rows + source) * w + rows * (9 + 12 * how.neighbors) for w in widths),
    }
