"""Vocabulary matching: the source token whose row each target token copies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ofa_fast.initialization.tokenization import special_ids, tokens_by_id

# How each kind of vocabulary marks its tokens; the kind whose mark begins most tokens is a vocabulary's own.
MARKS = {"metaspace": "▁", "wordpiece": "##", "byte-level": "Ġ"}

# For each role of a special token, the source's roles that can stand in, the best one first.
ROLES = {
    "bos": ("bos", "cls"),
    "cls": ("cls", "bos"),
    "eos": ("eos", "sep"),
    "sep": ("sep", "eos"),
    "unk": ("unk",),
    "pad": ("pad",),
    "mask": ("mask",),
}

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHER = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHER)}
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def vocabulary_kind(tokens: list[str | None]) -> str:
    """The kind in ``MARKS`` whose mark begins most tokens, or "plain" if none begins any."""
    counts = {
        kind: sum(token is not None and token.startswith(mark) for token in tokens) for kind, mark in MARKS.items()
    }
    kind = max(counts, key=counts.__getitem__)
    return kind if counts[kind] else "plain"


def _byte_level(token: str) -> str | bytes:
    if not all(character in _BYTE_OF for character in token):
        return token
    data = bytes(_BYTE_OF[character] for character in token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


_STANDARD = {
    "metaspace": lambda token: token.replace("▁", " "),
    "wordpiece": lambda token: token[2:] if token.startswith("##") else f" {token}",
    "byte-level": _byte_level,
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer by id, and what each stands for, whatever the tokenizer's kind.

    Texts have a space in front where a word begins; they are bytes where a token is less than a character (a byte-level
    fragment, or a byte-fallback token ``<0xE2>``). Special tokens stay as they are written. None: a gap in the ids.
    """

    tokenizer: Any
    kind: str
    tokens: list[str | None]
    texts: list[str | bytes | None]
    special: set[int]


def read_vocabulary(tokenizer, name: str = "tokenizer") -> Vocabulary:
    tokens = tokens_by_id(tokenizer, name)
    kind = vocabulary_kind(tokens)
    special = special_ids(tokenizer)
    verbatim = special | (set(tokenizer.added_tokens_decoder) if kind == "byte-level" else set())
    decoded = tokenizer.batch_decode([[index] for index in range(len(tokens))]) if kind == "plain" else ()

    def text(index: int, token: str) -> str | bytes:
        if index in verbatim:
            return token
        fallback = token.startswith("<0x") and _BYTE_FALLBACK.fullmatch(token)
        if fallback:
            return bytes.fromhex(fallback[1])
        if kind == "plain":
            return token if "\ufffd" in decoded[index] else decoded[index]
        return _STANDARD[kind](token)

    texts = [None if token is None else text(index, token) for index, token in enumerate(tokens)]
    return Vocabulary(tokenizer, kind, tokens, texts, special)


def match_vocabularies(source_tokenizer, target_tokenizer, parity: bool = False) -> np.ndarray:
    """The source id whose row each target token copies: [Vt] int64, -1 where there is none.

    A special token is matched by its role (beginning, end, unknown, padding, mask), else by its text among the other
    special tokens. Any other token is matched, the first that applies, to the same token of a vocabulary of the same
    kind, to the same standard text, or to the same text in another case: one in lower case first, then the lowest id.

    ``parity=True`` reproduces the published matching: of tokens with one standard text only the one with the highest id
    counts, special tokens are texts like any other, of texts that differ in case the last one in sorted order is
    taken, and a match of this kind to source id 0 is lost.

    Raises:
        ValueError: an empty vocabulary.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.3, after WECHSEL's and FOCUS's fuzzy matching.
    """
    if parity:
        return _published_match(source_tokenizer, target_tokenizer)
    source = read_vocabulary(source_tokenizer, "source_tokenizer")
    return match(source, read_vocabulary(target_tokenizer, "target_tokenizer"))


def match(source: Vocabulary, target: Vocabulary) -> np.ndarray:
    """``match_vocabularies`` of vocabularies that are read already."""
    same_token, same_special, exact, lower = {}, {}, {}, {}
    in_lower_case = set()
    for index, (token, text) in enumerate(zip(source.tokens, source.texts, strict=True)):
        if text is None:
            continue
        if index in source.special:
            same_special[token] = index
            continue
        if source.kind == target.kind:
            same_token[token] = index
        exact.setdefault(text, index)
        if isinstance(text, str):
            folded = text.lower()
            if folded not in lower or (text == folded and folded not in in_lower_case):
                lower[folded] = index
            if text == folded:
                in_lower_case.add(folded)
    roles = _match_roles(source.tokenizer, target.tokenizer)

    def copied_from(index: int, token: str, text: str | bytes) -> int:
        if index in target.special:
            return roles.get(index, same_special.get(token, -1))
        if token in same_token:
            return same_token[token]
        if text in exact:
            return exact[text]
        if isinstance(text, bytes):
            return exact.get(text.decode("ascii"), -1) if text.isascii() else -1
        return lower.get(text.lower(), -1)

    matches = np.full(len(target.tokens), -1, dtype=np.int64)
    for index, (token, text) in enumerate(zip(target.tokens, target.texts, strict=True)):
        if text is not None:
            matches[index] = copied_from(index, token, text)
    return matches


def _match_roles(source_tokenizer, target_tokenizer) -> dict[int, int]:
    matches: dict[int, int] = {}
    for role, stand_ins in ROLES.items():
        target = getattr(target_tokenizer, f"{role}_token_id", None)
        candidates = (getattr(source_tokenizer, f"{stand_in}_token_id", None) for stand_in in stand_ins)
        source = next((index for index in candidates if index is not None), None)
        if target is not None and source is not None:
            matches.setdefault(target, source)
    return matches


def _published_texts(tokenizer) -> dict[str, int]:
    """Standard text -> id; of several ids with one text, the highest stays."""
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    order = sorted(tokens)
    if sum(token.startswith("▁") for token in tokens.values()) > 100:
        texts = [tokens[index].replace("▁", " ") for index in order]
    else:
        texts = tokenizer.batch_decode([[index] for index in order])
        if sum(token.startswith("##") for token in tokens.values()) > 100:
            texts = [text[2:] if text.startswith("##") else f" {text}" for text in texts]
    return dict(zip(texts, order, strict=True))


def _published_match(source_tokenizer, target_tokenizer) -> np.ndarray:
    source, target = _published_texts(source_tokenizer), _published_texts(target_tokenizer)
    lower = {text.lower(): source[text] for text in sorted(source)}
    matches = np.full(len(tokens_by_id(target_tokenizer, "target_tokenizer")), -1, dtype=np.int64)
    for text, index in target.items():
        matches[index] = source[text] if text in source else lower.get(text.lower()) or -1
    return matches
