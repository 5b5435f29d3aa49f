"""Why a token's row is what it is: ``ofa-fast init --explain``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ofa_fast.initialization.result import COPIED, ORIGINS, RANDOM, Initialization

WORDS_SHOWN = 12


def find(result: Initialization, token: str) -> list[int]:
    """The ids that ``token`` means: the tokens of this text, with or without the mark of a word's beginning; else, for
    a number, that id.

    Raises:
        ValueError: there is none; the message names tokens that it begins with.
    """
    texts = result.target_tokens
    if texts is None:
        raise ValueError("this initialisation was written without its tokens: initialise again to have it explained")
    word = token.strip().removeprefix("▁")
    exact = [index for index, text in enumerate(texts) if text and text in (token, f"▁{word}", word)]
    exact.sort(key=lambda index: (texts[index] != token, texts[index] != f"▁{word}"))
    if exact:
        return exact
    if token.isdecimal() and int(token) < len(texts):
        return [int(token)]
    near = [text for text in texts if len(text) > 1 and word.startswith(text.removeprefix("▁"))]
    hint = f"; there are {', '.join(sorted(near, key=len, reverse=True)[:8])}" if near else ""
    raise ValueError(f"--explain: the new vocabulary has no token {token!r}, nor an id below {len(texts)}{hint}")


def explain(result: Initialization, index: int, words: list[str] | None = None) -> str:
    """Lines for people: the origin of a row, the source tokens with their weights and cosines, and the words behind it.

    Args:
        words: those in which the token occurs, where they are known.
    """
    origin = int(result.origin[index])
    lines = [f"{result.target_tokens[index]}   id {index}, {ORIGINS[origin]}"]
    if origin == COPIED:
        source = int(result.sources[index])
        share = 1 - float(result.weights[index].sum())
        times = "" if share > 0.999 else f"{share:.3f} x "
        lines.append(f"  {times}the row of the source's {_name(result, source)} (id {source})")
    if result.weights[index].any():
        lines.append(f"  {'weight':>8}  {'cosine':>6}  source token")
        cosines = result.similarities[index].tolist() if result.similarities is not None else None
        for place, (source, weight) in enumerate(
            zip(result.neighbors[index].tolist(), result.weights[index].tolist(), strict=True)
        ):
            if source >= 0 and weight > 0:
                cosine = f"{cosines[place]:6.3f}" if cosines else "     –"
                lines.append(f"  {weight:8.3f}  {cosine}  {_name(result, source)} (id {source})")
    elif origin == RANDOM:
        lines.append("  neither copied nor reached by a word of the vectors")
    if words:
        more = f" and {len(words) - WORDS_SHOWN:,} more" if len(words) > WORDS_SHOWN else ""
        lines.append(f"  occurs in {', '.join(words[:WORDS_SHOWN])}{more}")
    return "\n".join(lines)


def _name(result: Initialization, source: int) -> str:
    return result.source_tokens[source] if result.source_tokens else f"token {source}"


def folder_of(folder: str | os.PathLike) -> Path:
    """``folder``, or the first of its ``rank-...``: the origins are the same at all ranks."""
    folder = Path(folder)
    if (folder / "initialization.json").is_file():
        return folder
    return next(iter(sorted(path.parent for path in folder.glob("rank-*/initialization.json"))), folder)


def words_of(indices: list[int], tokenizer, word_vectors) -> dict[int, list[str]]:
    """For each token id the words, with their languages, in whose tokenisation it occurs."""
    from ofa_fast.initialization.subwords import spellings_for, texts_of
    from ofa_fast.initialization.tokenization import batch_encoder

    encode = batch_encoder(tokenizer)
    texts, counts = texts_of(word_vectors.words, spellings_for(tokenizer))
    ids, starts = encode(texts)
    word_of_text = np.repeat(np.arange(len(counts)), counts)
    word_of = np.repeat(word_of_text, np.diff(starts))
    languages = word_vectors.languages or [""] * len(counts)
    named = {}
    for index in indices:
        rows = np.unique(word_of[ids == index]).tolist()
        named[index] = [f"{word_vectors.words[row]} ({languages[row]})".removesuffix(" ()") for row in rows]
    return named
