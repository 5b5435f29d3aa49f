"""Vocabulary matching: the source token whose row each target token copies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import numpy as np

from ofa_fast.initialization.tokenization import glued_characters, normalizer, special_ids, tokens_by_id

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
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_END = "</w>"
_BETWEEN = "\ud800"  # half a surrogate pair, which no token of a Rust tokenizer can hold


def vocabulary_kind(tokens: list[str | None]) -> str:
    """The kind whose mark begins (``</w>``: ends) most tokens; without any, "bytes" if all are there, or "plain"."""
    there = [token for token in tokens if token is not None]
    joined = _BETWEEN.join(["", *there, ""])
    counts = {kind: joined.count(f"{_BETWEEN}{mark}") for kind, mark in MARKS.items()}
    counts["word-end"] = joined.count(f"{_END}{_BETWEEN}")
    kind = max(counts, key=counts.__getitem__)
    if counts[kind]:
        return kind
    return "bytes" if set(map(chr, range(256))).issubset(there) else "plain"


def _from_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _byte_level(token: str) -> str | bytes:
    if not all(character in _BYTE_OF for character in token):
        return token
    return _from_bytes(bytes(_BYTE_OF[character] for character in token))


_STANDARD = {
    "metaspace": methodcaller("replace", "▁", " "),
    "wordpiece": lambda token: token[2:] if token.startswith("##") else f" {token}",
    "byte-level": _byte_level,
    "bytes": lambda token: _from_bytes(token.encode("latin-1")) if max(token) < "\u0100" else token,
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer by id, and what each stands for, whatever the tokenizer's kind.

    Texts have a space in front where a word begins; they are bytes where a token is less than a character (a byte-level
    fragment, or a byte-fallback token ``<0xE2>``). Special tokens stay as they are written. None: a gap in the ids.
    Those in ``loose`` stand for their text with the space in front and without.
    """

    tokenizer: Any
    kind: str
    tokens: list[str | None]
    texts: list[str | bytes | None]
    special: set[int]
    loose: set[int]

    def readings(self, index: int) -> list[str | bytes]:
        text = self.texts[index]
        if index not in self.loose or isinstance(text, bytes):
            return [text]
        return [text, text[1:] if text.startswith(" ") else f" {text}"]


def read_vocabulary(tokenizer, name: str = "tokenizer") -> Vocabulary:
    tokens = tokens_by_id(tokenizer, name)
    kind = vocabulary_kind(tokens)
    special = special_ids(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    verbatim = special | (added if kind in ("byte-level", "bytes", "word-end") else set())
    standard = _STANDARD.get(kind)
    if kind == "word-end":
        standard = _word_end(tokens)
    elif kind == "plain":
        standard = _plain(tokenizer, tokens, special)

    texts = [token if token is None or index in verbatim else standard(token) for index, token in enumerate(tokens)]
    for index in [index for index, token in enumerate(tokens) if token is not None and token.startswith("<0x")]:
        if index not in verbatim and (fallback := _BYTE_FALLBACK.match(tokens[index])):
            texts[index] = bytes.fromhex(fallback[1])
    ordinary = [index for index, token in enumerate(tokens) if token is not None and index not in special]
    loose: set[int] = set()
    if kind == "word-end":
        loose = set(ordinary)  # the mark says where a word ends, not where it begins
    elif kind in ("wordpiece", "plain"):
        glued = glued_characters(tokenizer)
        spaced = [i for i in ordinary if isinstance(texts[i], str) and texts[i].startswith(" ") and len(texts[i]) > 1]
        loose = {i for i in spaced if i in added or (_may_be_glued(texts[i][1:]) and glued(texts[i][1:]))}
    return Vocabulary(tokenizer, kind, tokens, texts, special, loose)


def _may_be_glued(text: str) -> bool:
    return len(text) == 1 or not any(map(str.isalnum, text))


def _word_end(tokens: list[str | None]) -> Callable[[str], str | bytes]:
    """A token that ends a word is taken for the whole word first, any other for a part of one."""
    decode = _byte_level if set(_BYTE_OF).issubset(tokens) else str

    def standard(token: str) -> str | bytes:
        if not token.endswith(_END):
            return decode(token)
        text = decode(token[: -len(_END)])
        return text if isinstance(text, bytes) else f" {text}"

    return standard


def _plain(tokenizer, tokens: list[str | None], special: set[int]) -> Callable[[str], str | bytes]:
    """What ``decode`` gives; with a space in front where tokens are whole words, between which no token is a space."""
    ids = [index for index, token in enumerate(tokens) if token is not None]
    decoded = dict(zip((tokens[i] for i in ids), tokenizer.batch_decode([[i] for i in ids]), strict=True))
    probes = [i for i in ids if i not in special and tokens[i].isalpha()][:64]
    apart, joined = (
        tokenizer([f"{tokens[i]}{space}{tokens[i]}" for i in probes], add_special_tokens=False)["input_ids"]
        if probes
        else []
        for space in (" ", "")
    )
    words = sum(a == [i, i] != b for i, a, b in zip(probes, apart, joined, strict=True))
    begin = " " if 2 * words > len(probes) else ""
    return lambda token: begin + (token if "\ufffd" in decoded[token] else decoded[token])


def match_vocabularies(source_tokenizer, target_tokenizer, parity: bool = False, fuzzy: bool = True) -> np.ndarray:
    """The source id whose row each target token copies: [Vt] int64, -1 where there is none.

    A special token is matched by its role (beginning, end, unknown, padding, mask), else by its text among the other
    special tokens. Any other token is matched, the first that applies,

    - to the same token of a vocabulary of the same kind;
    - to a token that stands for the same text, the beginning of a word included;
    - if ``fuzzy``, to the text that the source's normalizer makes of it ("cafe" for "Café" in an uncased BERT), or to
      the same text in another case or Unicode composition: one in lower case first, then the lowest id.

    ``parity=True`` reproduces the published matching: of tokens with one standard text only the one with the highest id
    counts, special tokens are texts like any other, of texts that differ in case the last one in sorted order is
    taken, and a match of this kind to source id 0 is lost.

    Raises:
        ValueError: an empty vocabulary.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.3, after WECHSEL's and FOCUS's fuzzy matching.
    """
    source, target = (
        read_vocabulary(source_tokenizer, "source_tokenizer"),
        read_vocabulary(target_tokenizer, "target_tokenizer"),
    )
    return (published_match if parity else match)(source, target, fuzzy)


def match(source: Vocabulary, target: Vocabulary, fuzzy: bool = True) -> np.ndarray:
    """``match_vocabularies`` of vocabularies that are read already."""
    same_token = {}
    if source.kind == target.kind:
        same_token = {t: i for i, t in enumerate(source.tokens) if t is not None and i not in source.special}
    same_special = {source.tokens[i]: i for i in source.special if i < len(source.tokens)}
    roles = _match_roles(source.tokenizer, target.tokenizer)
    exact = _index(source, lambda text: text)
    folded = _index(source, _folded) if fuzzy else {}
    normalize = normalizer(source.tokenizer) if fuzzy else None

    def copied_from(index: int, token: str) -> int:
        if index in target.special:
            return roles.get(index, same_special.get(token, -1))
        if token in same_token:
            return same_token[token]
        readings = target.readings(index)
        found = _first(exact, readings)
        if found < 0 and isinstance(readings[0], bytes) and readings[0].isascii():
            found = exact.get(readings[0].decode(), -1)
        if found < 0 and fuzzy and isinstance(readings[0], str):
            if normalize:
                found = _first(exact, [normalize(text) for text in readings])
            if found < 0:
                found = _first(folded, map(_folded, readings))
        return found

    matches = np.full(len(target.tokens), -1, dtype=np.int64)
    for index, token in enumerate(target.tokens):
        if token is not None:
            matches[index] = copied_from(index, token)
    return matches


def _first(index: dict[str | bytes, int], texts: Iterable[str | bytes]) -> int:
    return next((index[text] for text in texts if text in index), -1)


def _folded(text: str | bytes) -> str | bytes:
    return text if isinstance(text, bytes) else unicodedata.normalize("NFC", text).lower()


def _index(source: Vocabulary, form: Callable[[str | bytes], str | bytes]) -> dict[str | bytes, int]:
    """The id for each form: of a token in that form first, then of one read so, then of one read so at second best."""
    in_form, first, second = {}, {}, {}
    for index, text in enumerate(source.texts):
        if not text or index in source.special:
            continue
        own, *other = map(form, source.readings(index))
        if text == own:
            in_form.setdefault(own, index)
        first.setdefault(own, index)
        for reading in other:
            second.setdefault(reading, index)
        if isinstance(text, bytes) and text.isascii():
            second.setdefault(text.decode(), index)
    return second | first | in_form


def _match_roles(source_tokenizer, target_tokenizer) -> dict[int, int]:
    matches: dict[int, int] = {}
    for role, stand_ins in ROLES.items():
        target = getattr(target_tokenizer, f"{role}_token_id", None)
        candidates = (getattr(source_tokenizer, f"{stand_in}_token_id", None) for stand_in in stand_ins)
        source = next((index for index in candidates if index is not None), None)
        if target is not None and source is not None:
            matches.setdefault(target, source)
    return matches


def published_texts(tokenizer, tokens: list[str | None] | None = None) -> dict[str, int]:
    """Standard text -> id; of several ids with one text, the highest stays. ``tokens`` are those by id, if known."""
    tokens = tokens_by_id(tokenizer) if tokens is None else tokens
    order = [index for index, token in enumerate(tokens) if token is not None]
    joined = _BETWEEN.join(["", *(tokens[index] for index in order)])
    if joined.count(f"{_BETWEEN}▁") > 100:
        texts = joined.replace("▁", " ").split(_BETWEEN)[1:]
    else:
        texts = tokenizer.batch_decode([[index] for index in order])
        if joined.count(f"{_BETWEEN}##") > 100:
            texts = [text[2:] if text.startswith("##") else f" {text}" for text in texts]
    return dict(zip(texts, order, strict=True))


def published_match(source: Vocabulary, target: Vocabulary, fuzzy: bool = True) -> np.ndarray:
    """``match_vocabularies`` with ``parity`` of vocabularies that are read already."""
    of_source, of_target = (published_texts(side.tokenizer, side.tokens) for side in (source, target))
    lower = {text.lower(): of_source[text] for text in sorted(of_source)} if fuzzy else {}
    matches = np.full(len(target.tokens), -1, dtype=np.int64)
    for text, index in of_target.items():
        if text in of_source:
            matches[index] = of_source[text]
        elif found := lower.get(text.lower()):
            matches[index] = found
    return matches
