"""The OFA recipe: a table for a new vocabulary from the source's table and multilingual word vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch

from ofa_fast.initialization import arguments, diagnosis, report, tokenization
from ofa_fast.initialization.matching import Vocabulary, match, match_vocabularies, read_vocabulary
from ofa_fast.initialization.methods import weigh
from ofa_fast.initialization.neighbors import nearest
from ofa_fast.initialization.result import COPIED, ORIGINS, RANDOM, SIMILAR, Initialization
from ofa_fast.initialization.rows import target_rows as make_rows
from ofa_fast.initialization.sharing import Processes
from ofa_fast.initialization.subwords import covered_subwords, subword_vectors
from ofa_fast.ops import truncated_svd


def initialize(
    source_embeddings: torch.Tensor | np.ndarray,
    source_tokenizer,
    target_tokenizer,
    word_vectors,
    rank: int | Sequence[int | None] | None = 100,
    neighbors: int | None = None,
    temperature: float | None = None,
    method: str = "ofa",
    seed: int = 114514,
    parity: bool = False,
    source_bias: torch.Tensor | np.ndarray | None = None,
    target_rows: int | None = None,
    source_languages: Iterable[str] | None = None,
    target_languages: Iterable[str] | None = None,
    weighting: str | None = None,
    progress: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> Initialization | list[Initialization] | None:
    """Initialise a table for ``target_tokenizer`` from the table of ``source_tokenizer``.

    With E ≈ F P the truncated SVD of the source table (F = U_R, P = diag(S_R) V_Rᵀ; F = E at full rank), the row of a
    target token t is, the first that applies,

    - copied: F[s], where ``match_vocabularies`` finds a source token s;
    - similar: Σ_s w_s F[s] over the ``neighbors`` source subwords of largest cosine c_s to t's subword vector, with
      w = softmax(c / temperature), where t has a subword vector;
    - random: drawn from N(mean, std) of the columns of F.

    Args:
        source_embeddings: [Vs, D], floating point, at least a row for every source token (more: padding, ignored).
            The heavy steps run on its device. At full rank ``source_coordinates`` may share its memory.
        source_tokenizer, target_tokenizer: Hugging Face tokenizers.
        word_vectors: ``WordVectors``; None will do for methods that compare nothing.
        rank: R; None or D for no factorisation; or a list of these, which share one SVD and one neighbour search.
        neighbors: k, by default 10 ("focus": 256). With fewer source subwords that have a vector, the rest is padded.
        temperature: of the softmax, above 0, by default 0.1 ("focus": 1).
        method: "ofa" as above, or one of its rivals. "wechsel" copies special tokens only. "focus" mixes the rows of
            copied tokens alone, by the cosines of the target's subword vectors and sparsemax. Without word vectors,
            every row that is not copied is the source's mean row ("mean"), drawn from N(mean, covariance) ("gaussian"),
            or from N(mean, std) of each column ("random", the paper's baseline). docs/initialization.md has the table.
        seed: of the random rows. A row depends on the seed, its id and R, not on the other rows.
        parity: reproduce the published implementation, its quirks included (docs/initialization.md lists them).
        source_bias: [Vs], the bias of the source's output head; moved with its token unless ``parity``.
        target_rows: rows of the new table, at least the tokenizer's; the rest is padding and random.
        source_languages, target_languages: ISO 639-3 codes; count only words of these languages.
        weighting: of the neighbours, "softmax" or "sparsemax"; by default the method's own.
        progress: show progress bars.
        group: processes that share the work, for vocabularies of millions: a group of ``torch.distributed`` that can
            send tensors on the CPU, such as ``torch.distributed.group.WORLD`` of the backend gloo. All of them call
            this with the same arguments. They tokenise the words together, and each finds the neighbours and makes the
            rows of its part of the target vocabulary. The result is that of one process, bit for bit.

    Returns:
        One ``Initialization``, or a list of them for a list of ranks; all tensors on the CPU. None on all processes of
        ``group`` but the first.

    Raises:
        ValueError, TypeError: an argument does not fit, named with what was given and what would work.

    Peak extra memory, the results not counted: 12 Vt d + 4 Vs d bytes for the subword vectors, 4 Vs max(R) for the SVD.
    Vt is that of its part of the vocabulary for each of several processes.

    Sources: Liu et al. 2024 (arXiv 2311.08849), section 3; those of the rivals are named in ``methods.METHODS``.
    """
    ranks = arguments.ranks_of(rank)
    how = arguments.method_of(method, neighbors, temperature, weighting, word_vectors, seed, parity)
    languages = arguments.language_codes(source_languages), arguments.language_codes(target_languages)
    processes = Processes(group)
    if parity and processes.size > 1:
        raise ValueError("group has several processes, but parity=True, whose random rows are one stream, takes one")
    progress = progress and processes.rank == 0
    seconds: dict[str, float] = {}
    with report.timed(seconds, "matching"):
        source, target = _vocabularies(source_tokenizer, target_tokenizer, parity)
        rows = arguments.check_target_rows(target_rows, len(target.tokens))
        part = processes.part(rows)
        sources = torch.full((rows,), -1)
        sources[: len(target.tokens)] = torch.from_numpy(_match(source, target, parity, how.copies))
        sources = sources[part]
    with report.timed(seconds, "checks"):
        table = arguments.source_table(source_embeddings, len(source.tokens), parity)
        ranks = [arguments.fitting_rank(r, *table.shape) for r in ranks]
        bias = None if parity else arguments.source_bias_of(source_bias, len(source_embeddings), len(table))

    origin = torch.full((len(sources),), RANDOM, dtype=torch.uint8)
    origin[sources >= 0] = COPIED
    found = torch.full((len(sources), how.neighbors), -1)
    weights = torch.zeros(len(sources), how.neighbors)
    similarities = torch.zeros(len(sources), how.neighbors, dtype=torch.float16)
    counts = {"source_tokens": len(source_tokenizer), "target_tokens": len(target_tokenizer)}
    if how.keys:
        with report.timed(seconds, "subword_vectors"):
            vectors = partial(
                subword_vectors, word_vectors=word_vectors, parity=parity, progress=progress, processes=processes
            )
            target_vectors = torch.from_numpy(
                vectors(target_tokenizer, languages=languages[1], name="Target vectors", part=part)
            )
            queries = target_vectors.ne(0).any(1)
            counts["target_tokens_with_vector"] = sum(processes.exchange(int(queries.sum())))
            if how.keys == "source":
                key_vectors = torch.from_numpy(vectors(source_tokenizer, languages=languages[0], name="Source vectors"))
                key_rows = torch.arange(len(key_vectors))
                counts["source_tokens_with_vector"] = int(key_vectors.ne(0).any(1).sum())
            else:
                copied = (queries & (sources[: len(queries)] >= 0)).nonzero().flatten()
                shared = processes.exchange((target_vectors[copied], sources[copied]))
                key_vectors, key_rows = map(torch.cat, zip(*shared, strict=True))
        with report.timed(seconds, "neighbor_search"):
            # The published search ranks sources without a vector too, with cosine 0.
            keys = torch.ones(len(key_vectors), dtype=torch.bool) if parity else key_vectors.ne(0).any(1)
            queries = (queries & (sources[: len(queries)] < 0)).nonzero().flatten()
            if keys.any():
                scores, among = nearest(
                    target_vectors[queries].to(table.device),
                    key_vectors[keys].to(table.device),
                    how.neighbors,
                    published=parity,
                    progress=progress,
                )
                origin[queries] = SIMILAR
                found[queries] = torch.where(among >= 0, key_rows[keys][among.clamp_min(0)], -1)
                weights[queries] = weigh(scores, how.temperature, how.weighting)
                similarities[queries] = torch.where(among >= 0, scores, 0.0).to(similarities.dtype)
            del key_vectors, target_vectors

    with report.timed(seconds, "svd"):
        factors, spectrum = _factorize(table, ranks)
    chosen, rest = (origin, sources, found, weights), "published" if parity else how.rest
    rows_of, seconds_of = [], []
    for r in ranks:
        seconds_of.append({})
        with report.timed(seconds_of[-1], "rows"):
            coordinates = factors[r][0]
            rows_of.append(processes.gather(make_rows(coordinates, *chosen, rest, seed, part.start), rows))
    # Random rows get the mean bias, not a draw: a random bias would favour some tokens from the first step on.
    new_bias = None if bias is None else processes.gather(make_rows(bias[:, None], *chosen, "mean")[:, 0], rows)
    origin, sources, found, weights, similarities = (processes.gather(own, rows) for own in (*chosen, similarities))
    if processes.rank:
        return None
    with report.timed(seconds, "report"):
        counts |= {"rows": rows, "padding_rows": rows - len(target.tokens)}
        counts |= dict(zip(ORIGINS, torch.bincount(origin, minlength=len(ORIGINS)).tolist(), strict=True))
        shared = {
            "method": method,
            "parity": parity,
            "neighbors": how.neighbors,
            "temperature": how.temperature,
            "weighting": how.weighting,
            "seed": int(seed),
            "counts": counts,
            "scripts": report.coverage(target.texts, origin.numpy()),
            "explained_variance_by_rank": spectrum,
            "versions": report.versions(),
            "sha256": {
                "source_embeddings": report.array_sha256(table),
                "source_tokenizer": tokenization.sha256(source_tokenizer),
                "target_tokenizer": tokenization.sha256(target_tokenizer),
                "word_vectors": None if how.keys is None else report.word_vectors_sha256(word_vectors),
            },
        }
        rows_by = (origin, sources, found, weights, similarities)
        shared |= diagnosis.diagnose(source, target, *(own.numpy() for own in rows_by), how.keys and word_vectors)
        shared |= {"warnings": diagnosis.warnings_of(shared), "thresholds": diagnosis.THRESHOLDS}
        tokens = [[diagnosis.display(text) for text in vocabulary.texts] for vocabulary in (source, target)]

    results = []
    for r, new_rows, own_seconds in zip(ranks, rows_of, seconds_of, strict=True):
        coordinates, basis, explained = factors[r]
        of_rank = {
            "rank": coordinates.shape[1],
            "factorized": basis is not None,
            "parameters": report.parameters(rows, coordinates.shape[1], table.shape[1], basis is not None),
            "explained_variance": explained,
            "seconds": seconds | own_seconds,
        }
        results.append(
            Initialization(
                coordinates=new_rows,
                basis=None if basis is None else basis.cpu(),
                origin=origin.clone(),
                neighbors=found.clone(),
                weights=weights.clone(),
                sources=sources.clone(),
                bias=None if new_bias is None else new_bias.clone(),
                source_coordinates=coordinates.cpu(),
                report=shared | of_rank,
                similarities=similarities.clone(),
                source_tokens=tokens[0],
                target_tokens=tokens[1],
            )
        )
    return results if isinstance(rank, (list, tuple)) else results[0]


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
    ranks = arguments.ranks_of(rank)
    how = arguments.method_of(method, neighbors, None, None, word_vectors, 0, parity)
    source, target = _vocabularies(source_tokenizer, target_tokenizer, parity)
    rows = arguments.check_target_rows(target_rows, len(target.tokens))
    size, dim = len(source.tokens), source_shape[1]
    arguments.check_source_rows(source_shape[0], size, parity)
    ranks = [arguments.fitting_rank(r, size, dim) for r in ranks]
    origin = np.full(rows, RANDOM)
    words, width = 0, 0
    if how.keys:
        codes = arguments.language_codes(target_languages)
        covered = covered_subwords(
            target_tokenizer,
            word_vectors,
            languages=codes,
            parity=parity,
            progress=progress,
            processes=Processes(group),
        )
        origin[: len(covered)][covered] = SIMILAR
        words, width = word_vectors.vectors.nbytes, word_vectors.vectors.shape[1]
    origin[: len(target.tokens)][_match(source, target, parity, how.copies) >= 0] = COPIED
    widths = [r or dim for r in ranks]
    results = sum(4 * (rows + size) * w + rows * (9 + 12 * how.neighbors) for w in widths)
    # A chunk of words with its encodings takes about 128 MiB, a token and its text about 128 bytes.
    vectors = (12 * len(target.tokens) + 4 * size) * width + (2**27 if words else 0)
    texts = 128 * (len(target.tokens) + size)
    return {
        "counts": {"rows": rows, "padding_rows": rows - len(target.tokens)}
        | dict(zip(ORIGINS, np.bincount(origin, minlength=len(ORIGINS)).tolist(), strict=True)),
        "scripts": report.coverage(target.texts, origin),
        "parameters": [
            {"rank": r} | report.parameters(rows, w, dim, r is not None) for r, w in zip(ranks, widths, strict=True)
        ],
        "memory": {
            "peak": 4 * source_shape[0] * dim + words + texts + max(vectors, results + 4 * size * max(widths)),
            "results": results,
        },
    }


def _vocabularies(source_tokenizer, target_tokenizer, parity: bool) -> tuple[Vocabulary, Vocabulary]:
    source = read_vocabulary(source_tokenizer, "source_tokenizer")
    target = read_vocabulary(target_tokenizer, "target_tokenizer")
    for name, vocabulary in (("source_tokenizer", source), ("target_tokenizer", target)):
        arguments.check_ids(name, vocabulary.tokenizer, len(vocabulary.tokens), parity)
    return source, target


def _match(source: Vocabulary, target: Vocabulary, parity: bool, copies: str) -> np.ndarray:
    """The source token of each target token that is copied, else -1."""
    found = match_vocabularies(source.tokenizer, target.tokenizer, parity=True) if parity else match(source, target)
    if copies == "special":
        other = np.ones(len(found), dtype=bool)
        other[list(tokenization.special_ids(target.tokenizer))] = False
        found[other] = -1
    return found


def _factorize(
    table: torch.Tensor, ranks: list[int | None]
) -> tuple[dict[int | None, tuple[torch.Tensor, torch.Tensor | None, float]], list[float]]:
    """Coordinates, basis and explained variance per rank: one SVD at the largest, of which the others are a part.

    Then the explained variance at ranks 1, 2, ... up to the largest.
    """
    spectrum = []
    factors = {None: (table, None, 1.0)}
    ranks = [r for r in ranks if r is not None]
    if ranks:
        u, s, vh = truncated_svd(table, max(ranks))
        energy, total = s.double().square().cumsum(0), float(table.double().square().sum())
        for r in ranks:
            explained = min(1.0, float(energy[r - 1]) / total) if total else 1.0
            factors[r] = u[:, :r].contiguous(), s[:r, None] * vh[:r], explained
        spectrum = [round(min(1.0, value), 6) for value in (energy / (total or 1.0)).tolist()]
    return factors, spectrum
