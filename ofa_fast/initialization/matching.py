"""Vocabulary matching: the source token whose row each target token copies."""

from __future__ import annotations

import re

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
    """ "metaspace", "wordpiece" or "byte-level", by the mark that begins most tokens; "plain" if none begins any."""
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


def standard_texts(tokenizer) -> list[str | bytes | None]:
    """What each id stands for, whatever the tokenizer's kind: text with a space in front where a word begins.

    bytes where the token is less than a character (a byte-level fragment, or a byte-fallback token ``<0xE2>``); None
    where ids have a gap. Special tokens stay as they are written.
    """
    tokens = tokens_by_id(tokenizer)
    kind = vocabulary_kind(tokens)
    special = special_ids(tokenizer)
    written = set(tokenizer.added_tokens_decoder) if kind == "byte-level" else set()
    if kind == "plain":
        decoded = tokenizer.batch_decode([[index] for index in range(len(tokens))])

    def standard(index: int, token: str) -> str | bytes:
        if index in special or index in written:
            return token
        fallback = _BYTE_FALLBACK.fullmatch(token)
        if fallback:
            return bytes.fromhex(fallback[1])
        if kind == "plain":
            return token if "\ufffd" in decoded[index] else decoded[index]
        return _STANDARD[kind](token)

    return [None if token is None else standard(index, token) for index, token in enumerate(tokens)]


def match_vocabularies(source_tokenizer, target_tokenizer, parity: bool = False) -> np.ndarray:
    """The source id whose row each target token copies: [Vt] int64, -1 where there is none.

    A special token is matched by its role (beginning, end, unknown, padding, mask), else by its text among the other
    special tokens. Any other token is matched, the first that applies, to the same token of a vocabulary of the same
    kind, to the same standard text, or to the same text in another case: one in lower case first, then the lowest id.

    ``parity=True`` reproduces the published matching: of tokens with one standard text only the one with the highest id
    counts, special tokens are texts like any other, of texts that differ in case the last one in sorted order is
    taken, and a match of this kind to source id 0 is lost.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.3, after WECHSEL's and FOCUS's fuzzy matching.
    """
    if parity:
        return _published_match(source_tokenizer, target_tokenizer)
    source_tokens = tokens_by_id(source_tokenizer, "source_tokenizer")
    target_tokens = tokens_by_id(target_tokenizer, "target_tokenizer")
    source_special, target_special = special_ids(source_tokenizer), special_ids(target_tokenizer)
    same_kind = vocabulary_kind(source_tokens) == vocabulary_kind(target_tokens)
    roles = _match_roles(source_tokenizer, target_tokenizer)

    same_token, same_special, exact, lower = {}, {}, {}, {}
    in_lower_case = set()
    for index, text in enumerate(standard_texts(source_tokenizer)):
        if text is None:
            continue
        if index in source_special:
            same_special[source_tokens[index]] = index
            continue
        if same_kind:
            same_token[source_tokens[index]] = index
        exact.setdefault(text, index)
        if isinstance(text, str):
            folded = text.lower()
            if folded not in lower or (text == folded and folded not in in_lower_case):
                lower[folded] = index
            if text == folded:
                in_lower_case.add(folded)

    def source(index: int, text: str | bytes) -> int:
        token = target_tokens[index]
        if index in target_special:
            return roles.get(index, same_special.get(token, -1))
        if token in same_token:
            return same_token[token]
        if text in exact:
            return exact[text]
        if isinstance(text, bytes):
            return exact.get(text.decode("ascii"), -1) if text.isascii() else -1
        return lower.get(text.lower(), -1)

    texts = standard_texts(target_tokenizer)
    return np.array([-1 if text is None else source(index, text) for index, text in enumerate(texts)], dtype=np.int64)


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
