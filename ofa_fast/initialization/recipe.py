"""The OFA recipe: a table for a new vocabulary from the source's table and multilingual word vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ofa_fast.initialization import arguments, diagnosis, report, tokenization
from ofa_fast.initialization.cache import Cache, opened
from ofa_fast.initialization.memory import columns_within, needs, parse_memory
from ofa_fast.initialization.methods import weigh
from ofa_fast.initialization.result import COPIED, ORIGINS, RANDOM, SIMILAR, Initialization
from ofa_fast.initialization.rows import target_rows as make_rows
from ofa_fast.initialization.sharing import Processes
from ofa_fast.initialization.stages import Stages, matched, vocabularies


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
    cache: str | os.PathLike | Cache | None = None,
    memory: int | str | None = None,
    fuzzy: bool = True,
    word_weights: str | Sequence[float] | np.ndarray | None = None,
    copied_share: float = 1.0,
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
        cache: a folder for what takes long, by a hash of what it was made from: tokenised words, subword vectors,
            neighbours, the SVD. Another call that differs in what comes after them, or one that was interrupted, finds
            them there. The result is the same bit for bit. Bounded to 16 GiB; a ``Cache`` may say otherwise.
        memory: the most that this process may hold in all, in bytes or as "8GB": the vectors are summed for as many
            dimensions at a time as fit in it.
        fuzzy: copy what is equal but for case or normalisation, too; False: only what stands for the same text.
        word_weights: how much each word counts in the mean that is a subword's vector. By default all alike; "rank":
            1 / its place among the words of its language, an estimate of its frequency where files are sorted by it;
            or a number above 0 for each of ``word_vectors``, such as its count. Not with ``parity``.
        copied_share: c in [0, 1], for "ofa": the row of a copied token with a subword vector, unless it is special, is
            c F[s] + (1 - c) Σ_s w_s F[s], as if it were both. Not with ``parity``.

    Returns:
        One ``Initialization``, or a list of them for a list of ranks; all tensors on the CPU. None on all processes of
        ``group`` but the first.

    Raises:
        ValueError, TypeError: an argument does not fit, named with what was given and what would work.

    Peak extra memory, the results not counted: 12 Vt d + 4 Vs d bytes for the subword vectors (8 Vt d less with
    ``memory``), some 160 a word, 4 Vs max(R) for the SVD, which on a GPU is there from the beginning. Word vectors that
    are mapped from a file stay on disk. Vt is that of its part of the vocabulary for each of several processes.

    Sources: Liu et al. 2024 (arXiv 2311.08849), section 3; those of the rivals are named in ``methods.METHODS``.
    """
    ranks = arguments.ranks_of(rank)
    how = arguments.method_of(method, neighbors, temperature, weighting, word_vectors, seed, parity)
    languages = arguments.language_codes(source_languages), arguments.language_codes(target_languages)
    share = arguments.copied_share_of(copied_share, method, parity)
    of_words = arguments.word_weights_of(word_weights, word_vectors if how.keys else None, parity)
    processes, kept = Processes(group), opened(cache)
    budget = None if memory is None else parse_memory(memory)
    if parity and processes.size > 1:
        raise ValueError("group has several processes, but parity=True, whose random rows are one stream, takes one")
    progress = progress and processes.rank == 0
    seconds: dict[str, float] = {}
    with report.timed(seconds, "matching"):
        source, target = vocabularies(source_tokenizer, target_tokenizer, parity)
        rows = arguments.check_target_rows(target_rows, len(target.tokens))
        part = processes.part(rows)
        sources = torch.full((rows,), -1)
        sources[: len(target.tokens)] = torch.from_numpy(matched(source, target, parity, how.copies, fuzzy))
        sources = sources[part]
    with report.timed(seconds, "checks"):
        table = arguments.source_table(source_embeddings, len(source.tokens), parity)
        ranks = [arguments.fitting_rank(r, *table.shape) for r in ranks]
        compared = word_vectors if how.keys else None
        need = needs(
            part.stop - part.start,
            len(source.tokens),
            rows,
            table.shape[1],
            [r or table.shape[1] for r in ranks],
            how.neighbors,
            compared,
            parity,
        )
        columns = min(processes.exchange(columns_within(budget, need)))
        bias = None if parity else arguments.source_bias_of(source_bias, len(source_embeddings), len(table))

    with Stages(table, compared, parity, progress, processes, kept, columns, of_words, ranks) as stages:
        origin = torch.full((len(sources),), RANDOM, dtype=torch.uint8)
        origin[sources >= 0] = COPIED
        found = torch.full((len(sources), how.neighbors), -1)
        weights = torch.zeros(len(sources), how.neighbors)
        similarities = torch.zeros(len(sources), how.neighbors, dtype=torch.float16)
        counts = {"source_tokens": len(source_tokenizer), "target_tokens": len(target_tokenizer)}
        if how.keys:
            with report.timed(seconds, "subword_vectors"):
                target_vectors, target_key = stages.subwords(target, languages[1], "Target vectors", part)
                queries = target_vectors.ne(0).any(1)
                counts["target_tokens_with_vector"] = sum(processes.exchange(int(queries.sum())))
                if how.keys == "source":
                    key_vectors, source_key = stages.subwords(source, languages[0], "Source vectors", slice(None))
                    key_rows = torch.arange(len(key_vectors))
                    counts["source_tokens_with_vector"] = int(key_vectors.ne(0).any(1).sum())
                else:
                    copied = (queries & (sources[: len(queries)] >= 0)).nonzero().flatten()
                    shared = processes.exchange((target_vectors[copied], sources[copied]))
                    key_vectors, key_rows = map(torch.cat, zip(*shared, strict=True))
                    source_key = kept and report.array_sha256(key_vectors)
            with report.timed(seconds, "neighbor_search"):
                # The published search ranks sources without a vector too, with cosine 0.
                keys = torch.ones(len(key_vectors), dtype=torch.bool) if parity else key_vectors.ne(0).any(1)
                # Special tokens have no vector, so that they are copied whole.
                mixed = (sources[: len(queries)] < 0) | (share < 1)
                queries = (queries & mixed).nonzero().flatten()
                if keys.any():
                    keys = keys.nonzero().flatten()
                    scores, among = stages.neighbors(
                        target_vectors,
                        queries,
                        key_vectors,
                        keys,
                        how.neighbors,
                        table.device,
                        [target_key, source_key],
                    )
                    copies = origin[queries] == COPIED
                    origin[queries[~copies]] = SIMILAR
                    found[queries] = torch.where(among >= 0, key_rows[keys][among.clamp_min(0)], -1)
                    weights[queries] = weigh(scores, how.temperature, how.weighting)
                    weights[queries[copies]] *= 1 - share
                    similarities[queries] = torch.where(among >= 0, scores, 0.0).to(similarities.dtype)
                del key_vectors, target_vectors

        with report.timed(seconds, "svd"):
            factors, spectrum = stages.factors()
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
                "fuzzy": fuzzy,
                "copied_share": share,
                "word_weights": word_weights if word_weights is None or isinstance(word_weights, str) else "given",
                "seed": int(seed),
                "counts": counts,
                "scripts": report.coverage(target.texts, origin.numpy()),
                "explained_variance_by_rank": spectrum,
                "versions": report.versions(),
                "sha256": {
                    "source_embeddings": stages.sha256("source_embeddings"),
                    "source_tokenizer": tokenization.sha256(source_tokenizer),
                    "target_tokenizer": tokenization.sha256(target_tokenizer),
                    "word_vectors": stages.sha256("word_vectors"),
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
