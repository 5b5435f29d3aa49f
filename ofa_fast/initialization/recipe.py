"""The OFA recipe: a table for a new vocabulary from the source's table and multilingual word vectors."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ofa_fast.initialization import neighbors as search
from ofa_fast.initialization import report as reporting
from ofa_fast.initialization import tokenization
from ofa_fast.initialization.matching import match_vocabularies, standard_texts
from ofa_fast.initialization.result import COPIED, ORIGINS, RANDOM, SIMILAR, Initialization
from ofa_fast.initialization.subwords import covered_subwords, subword_vectors
from ofa_fast.ops import truncated_svd

METHODS = ("ofa", "random")
ROWS_PER_STREAM = 1024


def initialize(
    source_embeddings: torch.Tensor | np.ndarray,
    source_tokenizer,
    target_tokenizer,
    word_vectors,
    rank: int | Sequence[int | None] | None = 100,
    neighbors: int = 10,
    temperature: float = 0.1,
    method: str = "ofa",
    seed: int = 114514,
    parity: bool = False,
    source_bias: torch.Tensor | np.ndarray | None = None,
    target_rows: int | None = None,
    source_languages: Iterable[str] | None = None,
    target_languages: Iterable[str] | None = None,
    progress: bool = False,
) -> Initialization | list[Initialization]:
    """Initialise a table for ``target_tokenizer`` from the table of ``source_tokenizer``.

    With E ≈ F P the truncated SVD of the source table (F = U_R, P = diag(S_R) V_Rᵀ; F = E at full rank), the row of a
    target token t is, the first that applies,

    - copied: F[s], where ``match_vocabularies`` finds a source token s;
    - similar: Σ_s w_s F[s] over the ``neighbors`` source subwords of largest cosine c_s to t's subword vector, with
      w = softmax(c / temperature), where t has a subword vector;
    - random: drawn from N(mean, std) of the columns of F.

    Args:
        source_embeddings: [Vs, D], floating point, at least a row for every source token (more: padding, ignored).
            The heavy steps run on its device.
        source_tokenizer, target_tokenizer: Hugging Face tokenizers.
        word_vectors: ``WordVectors``; None will do for ``method="random"``.
        rank: R; None or D for no factorisation; or a list of these, which share one SVD and one neighbour search.
        neighbors: k. With fewer source subwords that have a vector, the rest is padded.
        temperature: of the softmax, above 0.
        method: "ofa", or "random", the paper's baseline: every row that is not copied is random.
        seed: of the random rows. A row depends on the seed, its id and R, not on the other rows.
        parity: reproduce the published implementation, its quirks included (docs/initialization.md lists them).
        source_bias: [Vs], the bias of the source's output head; moved with its token unless ``parity``.
        target_rows: rows of the new table, at least the tokenizer's; the rest is padding and random.
        source_languages, target_languages: ISO 639-3 codes; count only words of these languages.
        progress: show progress bars.

    Returns:
        One ``Initialization``, or a list of them for a list of ranks; all tensors on the CPU.

    Raises:
        ValueError, TypeError: an argument does not fit, named with what was given and what would work.

    Peak extra memory: 8 Vt d + 4 (Vs + Vt) d bytes for the subword vectors, then 4 (Vs + Vt) R per rank.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.
    """
    ranks = list(rank) if isinstance(rank, (list, tuple)) else [rank]
    _check_options(ranks, neighbors, temperature, method, word_vectors, seed)
    seconds: dict[str, float] = {}
    with reporting.timed(seconds, "matching"):
        source_size, target_size = _sizes(source_tokenizer, target_tokenizer, target_rows, parity)
        sources = torch.from_numpy(match_vocabularies(source_tokenizer, target_tokenizer, parity))
        texts = standard_texts(target_tokenizer)
    with reporting.timed(seconds, "checks"):
        table = _checked_table(source_embeddings, source_size, parity)
        bias = None if parity else _checked_bias(source_bias, len(source_embeddings), source_size)
        ranks = [_checked_rank(r, *table.shape) for r in ranks]

    rows = target_rows or target_size
    sources = torch.cat([sources, sources.new_full((rows - target_size,), -1)])
    origin = torch.full((rows,), RANDOM, dtype=torch.uint8)
    origin[sources >= 0] = COPIED
    neighbor_ids = torch.full((rows, neighbors), -1, dtype=torch.int64)
    weights = torch.zeros(rows, neighbors)
    counts = {"source_tokens": len(source_tokenizer), "target_tokens": len(target_tokenizer)}
    if method == "ofa":
        with reporting.timed(seconds, "subword_vectors"):
            options = {"parity": parity, "progress": progress}
            source_vectors = torch.from_numpy(
                subword_vectors(
                    source_tokenizer, word_vectors, languages=_codes(source_languages), name="Source", **options
                )
            )
            target_vectors = torch.from_numpy(
                subword_vectors(
                    target_tokenizer, word_vectors, languages=_codes(target_languages), name="Target", **options
                )
            )
        with reporting.timed(seconds, "neighbor_search"):
            has_vector = source_vectors.ne(0).any(1)
            counts["source_tokens_with_vector"] = int(has_vector.sum())
            counts["target_tokens_with_vector"] = int(target_vectors.ne(0).any(1).sum())
            wanted = (target_vectors.ne(0).any(1) & (sources[:target_size] < 0)).nonzero().flatten()
            # The published search ranks sources without a vector too, with cosine 0.
            keys = torch.arange(source_size) if parity else has_vector.nonzero().flatten()
            if len(wanted) and len(keys):
                scores, found = search.nearest(
                    target_vectors[wanted].to(table.device),
                    source_vectors[keys].to(table.device),
                    neighbors,
                    published=parity,
                    progress=progress,
                )
                origin[wanted] = SIMILAR
                neighbor_ids[wanted] = torch.where(found >= 0, keys[found.clamp_min(0)], -1)
                weights[wanted] = search.softmax_weights(scores, temperature)
            del source_vectors, target_vectors

    with reporting.timed(seconds, "svd"):
        factors = _factorize(table, [r for r in ranks if r is not None])
    with reporting.timed(seconds, "hashes"):
        hashes = {
            "source_embeddings": reporting.array_sha256(table),
            "source_tokenizer": tokenization.sha256(source_tokenizer),
            "target_tokenizer": tokenization.sha256(target_tokenizer),
            "word_vectors": None if method == "random" else reporting.word_vectors_sha256(word_vectors),
        }
    with reporting.timed(seconds, "report"):
        per_origin = torch.bincount(origin, minlength=len(ORIGINS)).tolist()
        counts |= {"rows": rows, "padding_rows": rows - target_size}
        counts |= dict(zip(ORIGINS, per_origin, strict=True))
        scripts = reporting.coverage(texts, origin.numpy())

    results = []
    for r in ranks:
        spent = dict(seconds)
        with reporting.timed(spent, "rows"):
            coordinates, basis, explained = factors[r] if r is not None else (table, None, 1.0)
            args = (origin, sources, neighbor_ids, weights)
            target = _rows(coordinates, *args, seed, parity)
            # The mean, not a draw: a random bias would favour some tokens from the first step on.
            target_bias = None if bias is None else _rows(bias[:, None], *args, None, parity)[:, 0]
        shape = target.shape[1], table.shape[1]
        results.append(
            Initialization(
                target,
                basis if basis is None else basis.cpu(),
                *(tensor.clone() if len(ranks) > 1 else tensor for tensor in (origin, neighbor_ids, weights, sources)),
                target_bias,
                coordinates.cpu(),
                {
                    "method": method,
                    "parity": parity,
                    "rank": shape[0],
                    "factorized": basis is not None,
                    "neighbors": neighbors,
                    "temperature": temperature,
                    "seed": seed,
                    "counts": counts,
                    "scripts": scripts,
                    "parameters": reporting.parameters(rows, *shape, factorized=basis is not None),
                    "explained_variance": explained,
                    "seconds": spent,
                    "versions": reporting.versions(),
                    "sha256": hashes,
                },
            )
        )
    return results if isinstance(rank, (list, tuple)) else results[0]


def plan(
    source_shape: Sequence[int],
    source_tokenizer,
    target_tokenizer,
    word_vectors,
    rank: int | Sequence[int | None] | None = 100,
    neighbors: int = 10,
    method: str = "ofa",
    parity: bool = False,
    target_rows: int | None = None,
    target_languages: Iterable[str] | None = None,
    progress: bool = False,
) -> dict:
    """What ``initialize`` would do, before it: counts by origin, sizes and memory, without a vector being computed.

    The words are tokenised once, for the target only: the cheapest way to honest counts. They are those of
    ``initialize``, unless the word vectors of a subword cancel to zero or no source subword has a vector.

    Args:
        source_shape: (Vs, D) of the source table. The others: as for ``initialize``.

    Returns:
        ``counts`` (copied, similar, random, rows), ``scripts``, per rank ``parameters``, and ``memory`` in bytes:
        ``peak`` (the inputs, and what ``initialize`` holds at its largest stage) and ``results``.
    """
    ranks = list(rank) if isinstance(rank, (list, tuple)) else [rank]
    _check_options(ranks, neighbors, 1.0, method, word_vectors, 0)
    source_size, target_size = _sizes(source_tokenizer, target_tokenizer, target_rows, parity)
    _check_rows(source_shape[0], source_size, parity)
    dim, rows = source_shape[1], target_rows or target_size
    ranks = [_checked_rank(r, source_size, dim) for r in ranks]
    origin = np.full(rows, RANDOM)
    width = 0
    if method == "ofa":
        languages = _codes(target_languages)
        covered = covered_subwords(
            target_tokenizer, word_vectors, languages=languages, parity=parity, progress=progress
        )
        origin[:target_size][covered] = SIMILAR
        width = word_vectors.vectors.shape[1]
    origin[:target_size][match_vocabularies(source_tokenizer, target_tokenizer, parity) >= 0] = COPIED
    widths = [r or dim for r in ranks]
    results = sum(4 * (rows + source_size) * w for w in widths) + rows * (9 + 12 * neighbors)
    vectors = (12 * rows + 8 * source_size) * width
    words = 0 if method == "random" else word_vectors.vectors.nbytes
    source_table = 4 * source_shape[0] * dim
    return {
        "counts": {"rows": rows, "padding_rows": rows - target_size}
        | dict(zip(ORIGINS, np.bincount(origin, minlength=len(ORIGINS)).tolist(), strict=True)),
        "scripts": reporting.coverage(standard_texts(target_tokenizer), origin),
        "parameters": [
            {"rank": r} | reporting.parameters(rows, w, dim, factorized=r is not None)
            for r, w in zip(ranks, widths, strict=True)
        ],
        "memory": {"peak": source_table + words + max(vectors, results + 4 * rows * max(widths)), "results": results},
    }


def _check_options(ranks, neighbors, temperature, method, word_vectors, seed) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not ranks:
        raise ValueError("rank must name at least one rank, got an empty list")
    for r in ranks:
        if r is not None and (isinstance(r, bool) or not hasattr(r, "__index__")):
            raise TypeError(f"rank must be an integer, None, or a list of these, got {r!r}")
    if isinstance(neighbors, bool) or not hasattr(neighbors, "__index__"):
        raise TypeError(f"neighbors must be an integer, got {neighbors!r}")
    if neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, got {neighbors}")
    if not (temperature > 0 and np.isfinite(temperature)):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if not 0 <= operator.index(seed) < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
    if method == "ofa" and word_vectors is None:
        raise ValueError('word_vectors is None: method="ofa" needs word vectors; method="random" does without')


def _codes(languages: Iterable[str] | None) -> set[str] | None:
    if isinstance(languages, str):
        raise TypeError(f"languages must be a list of codes, got the string {languages!r}")
    return None if languages is None else set(languages)


def _sizes(source_tokenizer, target_tokenizer, target_rows, parity) -> tuple[int, int]:
    sizes = []
    for name, tokenizer in (("source_tokenizer", source_tokenizer), ("target_tokenizer", target_tokenizer)):
        size = len(tokenization.tokens_by_id(tokenizer, name))
        if parity and size != len(tokenizer):
            raise ValueError(
                f"{name} has {len(tokenizer)} tokens but ids up to {size - 1}: parity=True needs ids without gaps"
            )
        sizes.append(size)
    if target_rows is not None and target_rows < sizes[1]:
        raise ValueError(f"target_rows is {target_rows}, but target_tokenizer needs {sizes[1]} rows")
    return sizes[0], sizes[1]


def _check_rows(rows: int, needed: int, parity: bool) -> None:
    if rows < needed:
        raise ValueError(f"source_embeddings has {rows} rows, but source_tokenizer needs {needed}")
    if parity and rows != needed:
        raise ValueError(
            f"source_embeddings has {rows} rows for {needed} tokens of source_tokenizer: parity=True takes no padding"
        )


def _checked_table(source_embeddings, size: int, parity: bool) -> torch.Tensor:
    if isinstance(source_embeddings, np.ndarray) and not source_embeddings.flags.writeable:
        source_embeddings = source_embeddings.copy()
    table = torch.as_tensor(source_embeddings).detach()
    if table.dim() != 2:
        raise ValueError(f"source_embeddings must be [Vs, D], got {list(table.shape)}")
    if not table.is_floating_point():
        raise TypeError(f"source_embeddings must be floating point, got {str(table.dtype).removeprefix('torch.')}")
    _check_rows(len(table), size, parity)
    table = table[:size].to("cpu" if parity else table.device, torch.float32).contiguous()
    finite = table.isfinite().all(1)
    if not finite.all():
        raise ValueError(
            f"source_embeddings must be finite, but row {int((~finite).nonzero()[0])} holds NaN or infinity"
        )
    return table


def _checked_bias(source_bias, rows: int, size: int) -> torch.Tensor | None:
    if source_bias is None:
        return None
    bias = torch.as_tensor(source_bias).detach().float().cpu()
    if list(bias.shape) not in ([rows], [size]):
        raise ValueError(f"source_bias must be [{rows}], one value a row of source_embeddings, got {list(bias.shape)}")
    if not bias.isfinite().all():
        raise ValueError(f"source_bias must be finite, but entry {int((~bias.isfinite()).nonzero()[0])} is not")
    return bias[:size]


def _checked_rank(rank: int | None, size: int, dim: int) -> int | None:
    if rank is None or rank == dim:
        return None
    if not 1 <= rank <= min(size, dim):
        raise ValueError(
            f"rank must lie in [1, {min(size, dim)}] for a source table of {size} tokens x {dim}, got {rank}; "
            f"None or {dim} means no factorisation"
        )
    return operator.index(rank)


def _factorize(table: torch.Tensor, ranks: list[int]) -> dict[int, tuple[torch.Tensor, torch.Tensor, float]]:
    """Coordinates, basis and explained variance per rank: one SVD at the largest, of which the others are a part."""
    if not ranks:
        return {}
    u, s, vh = truncated_svd(table, max(ranks))
    energy, total = s.double().square().cumsum(0), float(table.double().square().sum())
    return {
        r: (u[:, :r].contiguous(), s[:r, None] * vh[:r], min(1.0, float(energy[r - 1]) / total) if total else 1.0)
        for r in ranks
    }


def _rows(table, origin, sources, neighbors, weights, seed: int | None, parity: bool) -> torch.Tensor:
    """Rows of the target made from ``table`` [Vs, R]; random ones from ``seed``, or the mean where that is None."""
    out = torch.empty(len(origin), table.shape[1])
    copied, similar, random = ((origin == kind).nonzero().flatten() for kind in (COPIED, SIMILAR, RANDOM))
    out[copied] = table[sources[copied].to(table.device)].cpu()
    if len(similar):
        out[similar] = search.weighted_rows(table, neighbors[similar], weights[similar]).cpu()
    if len(random):
        if seed is None:
            out[random] = table.double().mean(0).float().cpu()
        else:
            out[random] = (_published_draws if parity else _draws)(table, random, len(origin), seed)
    return out


def _draws(table: torch.Tensor, random: torch.Tensor, rows: int, seed: int) -> torch.Tensor:
    """Rows ``random`` of N(mean, population std), each block of 1,024 rows with a stream of its own."""
    mean = table.double().mean(0).cpu()
    std = table.double().std(0, correction=0).cpu()
    blocks, starts = np.unique(random.numpy() // ROWS_PER_STREAM, return_index=True)
    draws = []
    for block, ids in zip(blocks.tolist(), np.split(random.numpy(), starts[1:]), strict=True):
        stream = np.random.default_rng([seed, block])
        normal = stream.standard_normal((ROWS_PER_STREAM, table.shape[1]), dtype=np.float32)
        draws.append(normal[ids % ROWS_PER_STREAM])
    return (torch.from_numpy(np.concatenate(draws)) * std + mean).float()


def _published_draws(table: torch.Tensor, random: torch.Tensor, rows: int, seed: int) -> torch.Tensor:
    values = table.cpu().numpy()
    # float32 sums of float32 columns, as published: rows are to be equal, not only close.
    draws = np.random.RandomState(seed).normal(values.mean(0), values.std(0), (rows, values.shape[1]))
    return torch.from_numpy(draws[random.numpy()]).float()
