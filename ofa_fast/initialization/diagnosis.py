"""Whether an initialisation is any good: overlap, similarities, coverage per language, examples, warnings."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from ofa_fast.initialization import tokenization
from ofa_fast.initialization.matching import Vocabulary
from ofa_fast.initialization.report import script
from ofa_fast.initialization.result import COPIED, ORIGINS, SIMILAR

EXAMPLES = 12
NEIGHBORS_SHOWN = 5
WORDS_PER_LANGUAGE, WORDS_SAMPLED, TOKENS_SAMPLED = 150, 30_000, 25_000
BIN = 0.025

# Below (or above) these a warning is given. The published runs are far from all of them.
THRESHOLDS = {
    # 206 k of 401 k (RoBERTa) and 339 k of 401 k rows (XLM-R) were copied or similar in the published runs.
    "coverage": 0.5,
    # A script that makes up a thousandth of the vocabulary is meant; less is by-catch of the tokenizer's training.
    "script_share": 0.001,
    "script_coverage": 0.1,
    # A good multilingual tokenizer knows every letter; one piece in fifty unknown is one sentence in three damaged.
    "unknown": 0.02,
    # Pieces of words that the word vectors know; more are random only where languages were left out.
    "language_random": 0.3,
    # 22 k of 50 k (RoBERTa) and 103 k of 250 k source tokens (XLM-R) had a vector in the published runs.
    "source_with_vector": 0.1,
    # Cased vectors cover both alike: capitals are half as well covered where the words were put in lower case.
    "case": 0.5,
}
_MARKED_ROLES = ("bos", "eos", "cls", "sep", "mask")


def display(text: str | bytes | None) -> str:
    """A token's standard text as people read it: ``▁`` in front where a word begins, bytes in hexadecimal."""
    if isinstance(text, str):
        return f"▁{text[1:]}" if text[:1] == " " else text
    return "".join(f"<0x{byte:02X}>" for byte in text or b"")


def diagnose(
    source: Vocabulary,
    target: Vocabulary,
    origin: np.ndarray,
    sources: np.ndarray,
    neighbors: np.ndarray,
    weights: np.ndarray,
    similarities: np.ndarray,
    word_vectors=None,
) -> dict:
    """The parts of a report that come after all rows are known, ready for JSON.

    ``overlap``: how the copied tokens match. ``case``: origins of the tokens with and without a capital.
    ``similarity``: of the nearest neighbour of similar tokens. ``languages``: the pieces of a sample of each language's
    words by origin. ``examples``: tokens with their neighbours. ``special_random``: what has no counterpart.
    """
    size = len(target.tokens)
    origin, sources = origin[:size], sources[:size]
    return {
        "overlap": _overlap(source, target, sources),
        "case": _case(target, origin),
        "similarity": _similarity(similarities[:size][origin == SIMILAR, 0], word_vectors, source),
        "languages": {} if word_vectors is None else languages(word_vectors, source.tokenizer, target, origin),
        "examples": _examples(source, target, origin, neighbors, weights, similarities),
        "special_random": [
            target.tokens[index]
            for index in sorted(
                {getattr(target.tokenizer, f"{role}_token_id", None) for role in _MARKED_ROLES} - {None}
            )
            if index < size and origin[index] != COPIED
        ],
    }


def _overlap(source: Vocabulary, target: Vocabulary, sources: np.ndarray) -> dict:
    copied = np.flatnonzero(sources >= 0).tolist()
    special = sum(index in target.special for index in copied)
    texts, source_texts, of = target.texts, source.texts, sources.tolist()
    same = sum(texts[index] == source_texts[of[index]] for index in copied if index not in target.special)
    return {
        "source_kind": source.kind,
        "target_kind": target.kind,
        "same_text": same,
        "other_case": len(copied) - special - same,
        "special": special,
        "source_tokens_used": int(np.count_nonzero(np.bincount(sources[sources >= 0]))),
    }


def _case(target: Vocabulary, origin: np.ndarray) -> dict:
    """Of tokens in letters that have case, those with a capital and those without, by origin; of many, a sample."""
    step = -(-len(origin) // TOKENS_SAMPLED) or 1
    origin = origin[::step]
    texts = [text if isinstance(text, str) else "" for text in target.texts[::step]]
    capital = np.array([text != text.lower() for text in texts])
    cased = capital | np.array([text != text.upper() for text in texts])
    cased[[index // step for index in target.special if index % step == 0]] = False
    return {
        name: dict(zip(ORIGINS, np.bincount(origin[chosen], minlength=len(ORIGINS)).tolist(), strict=True))
        for name, chosen in (("capital", cased & capital), ("lower", cased & ~capital))
    }


def _similarity(nearest: np.ndarray, word_vectors, source: Vocabulary) -> dict:
    """Histogram of the nearest neighbour's cosine, its median, and what independent random vectors would reach."""
    if not len(nearest):
        return {"counts": [], "edges": [0.0], "median": None, "chance": None}
    values = np.clip(nearest.astype(np.float64), -1.0, 1.0)
    first = math.floor(values.min() / BIN)
    edges = np.arange(first, math.ceil(1 / BIN) + 1) * BIN
    return {
        "counts": np.histogram(values, edges)[0].tolist(),
        "edges": edges.round(6).tolist(),
        "median": round(float(np.median(values)), 4),
        "chance": round(nearest_by_chance(len(source.tokens), word_vectors.vectors.shape[1]), 4),
    }


def nearest_by_chance(count: int, dim: int) -> float:
    """About the cosine with the nearest of ``count`` random directions: where n P(cos > c) = 1 on the unit sphere."""
    if dim < 3 or count < 2:
        return 1.0
    cosine = 0.5
    for _ in range(30):
        tail = min(1.0, max(cosine, 1e-3) * math.sqrt(2 * math.pi * (dim - 1)) / count)
        cosine = math.sqrt(1 - tail ** (2 / (dim - 1)))
    return cosine


def languages(word_vectors, source_tokenizer, target: Vocabulary, origin: np.ndarray) -> dict:
    """Per language: its words, how many were sampled, pieces of each origin, and pieces a word on both sides."""
    rows_of = defaultdict(list)
    for row, code in enumerate(word_vectors.languages or ()):
        rows_of[code].append(row)
    if not rows_of:
        rows_of["all"] = range(len(word_vectors.words))
    take = max(1, min(WORDS_PER_LANGUAGE, WORDS_SAMPLED // len(rows_of)))
    sampled = {code: rows[:: max(1, len(rows) // take)][:take] for code, rows in rows_of.items()}
    texts = [f" {word_vectors.words[row]}" for rows in sampled.values() for row in rows]
    unknown = target.tokenizer.unk_token_id
    kinds = np.append(origin, len(ORIGINS))
    ids, starts = tokenization.batch_encoder(target.tokenizer, len(texts))(texts)
    kind = kinds[np.where(ids == unknown, len(origin), ids)] if unknown is not None else origin[ids]
    source_ids, source_starts = tokenization.batch_encoder(source_tokenizer, len(texts))(texts)
    found, begin = {}, 0
    for code, rows in sampled.items():
        end = begin + len(rows)
        counts = np.bincount(kind[starts[begin] : starts[end]], minlength=len(ORIGINS) + 1).tolist()
        in_source = source_ids[source_starts[begin] : source_starts[end]]
        found[code] = {
            "words": len(rows_of[code]),
            "sampled": len(rows),
            **dict(zip((*ORIGINS, "unknown"), counts, strict=True)),
            "pieces_per_word": round(sum(counts) / len(rows), 3),
            "source_pieces_per_word": round(len(in_source) / len(rows), 3),
            "source_unknown": int((in_source == source_tokenizer.unk_token_id).sum()),
        }
        begin = end
    return dict(sorted(found.items(), key=lambda item: -item[1]["words"]))


def _examples(source, target, origin, neighbors, weights, similarities) -> dict:
    """Similar tokens that begin with a letter: those of highest and lowest similarity, and some from all over."""
    similar = np.flatnonzero(origin == SIMILAR)
    nearest = similarities[similar, 0]

    def chosen(order: Callable) -> list[dict]:
        picked = []
        for index in order:
            text = target.texts[index]
            if isinstance(text, str) and len(text.strip()) > 1 and script(text) != "Common":
                picked.append(_example(source, target, int(index), neighbors, weights, similarities))
            if len(picked) == EXAMPLES:
                break
        return picked

    spread = similar[:: max(1, len(similar) // (4 * EXAMPLES))]
    begins = [index for index in spread if isinstance(target.texts[index], str) and target.texts[index][:1] == " "]
    return {
        "most_certain": chosen(similar[np.argsort(-nearest, kind="stable")]),
        "least_certain": chosen(similar[np.argsort(nearest, kind="stable")]),
        "spread": chosen(begins[:: max(1, len(begins) // EXAMPLES)]),
    }


def _example(source, target, index: int, neighbors, weights, similarities) -> dict:
    made_of = zip(neighbors[index].tolist(), weights[index].tolist(), similarities[index].tolist(), strict=True)
    return {
        "id": index,
        "token": display(target.texts[index]),
        "neighbors": [
            {"token": display(source.texts[s]), "weight": round(weight, 4), "similarity": round(similarity, 4)}
            for s, weight, similarity in list(made_of)[:NEIGHBORS_SHOWN]
            if s >= 0
        ],
    }


def warnings_of(report: dict) -> list[dict]:
    """What is too low to be useful: ``kind``, ``message``, ``value`` and the ``limit`` that it misses."""
    found: list[dict] = []

    def warn(kind: str, value: float, limit: float, message: str) -> None:
        found.append({"kind": kind, "value": round(value, 4), "limit": limit, "message": message})

    counts, limits = report["counts"], THRESHOLDS
    rows = counts["rows"] - counts["padding_rows"]
    share = (counts["copied"] + counts["similar"]) / max(1, rows)
    if share < limits["coverage"]:
        message = f"Only {share:.0%} of the rows are copied or similar; all others start at random."
        if report.get("languages") or "languages" not in report:
            message += " Word vectors of more words, or of the languages that are missing, would cover more."
        warn("coverage", share, limits["coverage"], message)
    bare = {
        name: script
        for name, script in report["scripts"].items()
        if name not in ("Common", "Bytes", "Unused")
        and script["tokens"] >= max(1, limits["script_share"] * rows)
        and script["coverage"] < limits["script_coverage"]
    }
    if bare:
        worst = min(script["coverage"] for script in bare.values())
        named = _listed([f"{name} ({script['tokens']:,} tokens)" for name, script in bare.items()])
        message = f"Scripts that start at random, almost or altogether: {named}. No word vectors reach them."
        warn("script", worst, limits["script_coverage"], message)
    of_pieces = {
        code: {kind: counts[kind] / max(1, sum(counts[name] for name in (*ORIGINS, "unknown"))) for kind in counts}
        for code, counts in report.get("languages", {}).items()
    }
    unknown = {code: shares["unknown"] for code, shares in of_pieces.items() if shares["unknown"] > limits["unknown"]}
    if unknown:
        named = _listed([f"{code} ({share:.0%})" for code, share in _most(unknown)])
        message = f"Languages whose words the new tokenizer cannot write, with the share of unknown pieces: {named}."
        warn("unknown", max(unknown.values()), limits["unknown"], message)
    random = {code: s["random"] for code, s in of_pieces.items() if s["random"] > limits["language_random"]}
    if random:
        named = _listed([f"{code} ({share:.0%})" for code, share in _most(random)])
        warn("language", max(random.values()), limits["language_random"], f"Languages mostly made at random: {named}.")
    if counts.get("source_tokens_with_vector") is not None:
        share = counts["source_tokens_with_vector"] / max(1, counts["source_tokens"])
        if share < limits["source_with_vector"]:
            message = (
                f"Only {share:.1%} of the source's tokens occur in words of the vectors, so rows are made "
                "from little. The vectors need more words of the source's languages, spelled as its tokenizer has them."
            )
            warn("source", share, limits["source_with_vector"], message)
    similarity = report.get("similarity", {})
    if similarity.get("median") is not None and similarity["median"] < similarity["chance"]:
        message = (
            f"Half of the similar tokens have no neighbour nearer than {similarity['median']:.2f}. Random vectors "
            f"would reach {similarity['chance']:.2f}, so the languages' vectors do not seem to be aligned."
        )
        warn("alignment", similarity["median"], similarity["chance"], message)
    _warn_of_case(report.get("case"), warn)
    if report.get("special_random"):
        named = _listed(report["special_random"])
        warn("special", 0.0, 1.0, f"Special tokens without a counterpart in the source model, not copied: {named}.")
    return found


def _warn_of_case(case: dict | None, warn: Callable) -> None:
    if not case:
        return
    shares = {}
    for name, counts in case.items():
        fresh = counts["similar"] + counts["random"]
        # Fewer than a hundred tokens are not a habit of the vocabulary.
        shares[name] = counts["similar"] / fresh if fresh >= 100 else None
    if None not in shares.values() and shares["capital"] < THRESHOLDS["case"] * shares["lower"]:
        message = (
            f"Of the tokens that are not copied, word vectors reach {shares['capital']:.0%} of those with a capital, "
            f"but {shares['lower']:.0%} of the others: the words seem to be in lower case, the new tokenizer is not."
        )
        warn("case", shares["capital"] / shares["lower"], THRESHOLDS["case"], message)


def _most(shares: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda item: -item[1])


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def peak_memory() -> int | None:
    """The most that this process has held so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
