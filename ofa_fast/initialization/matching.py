"""Vocabulary matching: the source token whose row each target token copies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ofa_fast.initialization.tokenization import decoded, glued_characters, normalizer, special_ids, tokens_by_id

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
# Characters that stand for no byte are sent beyond Latin-1, where those above U+0143 are already.
_LATIN = dict.fromkeys(_OTHER, "\uffff") | {ord(character): byte for character, byte in _BYTE_OF.items()}
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


def _byte_level(tokens: list[str]) -> list[str | bytes]:
    # All at once: there are more characters than tokens.
    latin = _BETWEEN.join(tokens).translate(_LATIN).split(_BETWEEN)
    latin = latin if len(latin) == len(tokens) else [token.translate(_LATIN) for token in tokens]
    return [
        text if text.isascii() else token if max(text) > "\xff" else _from_bytes(text.encode("latin-1"))
        for token, text in zip(tokens, latin, strict=True)
    ]


def _bytes(tokens: list[str]) -> list[str | bytes]:
    return [_from_bytes(t.encode("latin-1")) if max(t, default="") < "\u0100" else t for t in tokens]


def _word_end(tokens: list[str]) -> list[str | bytes]:
    """A token that ends a word is taken for the whole word first, any other for a part of one."""
    texts = [token.removesuffix(_END) for token in tokens]
    texts = _byte_level(texts) if set(_BYTE_OF).issubset(tokens) else texts
    return [
        f" {text}" if token.endswith(_END) and isinstance(text, str) else text
        for token, text in zip(tokens, texts, strict=True)
    ]


_STANDARD = {
    "metaspace": lambda tokens: [token.replace("▁", " ") for token in tokens],
    "wordpiece": lambda tokens: [token[2:] if token.startswith("##") else f" {token}" for token in tokens],
    "byte-level": _byte_level,
    "bytes": _bytes,
    "word-end": _word_end,
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

    def second(self, ids: Iterable[int]) -> tuple[list[int], list[str]]:
        """Those of the tokens that are loose, and what they stand for at second best."""
        ids = [i for i in ids if i in self.loose and isinstance(self.texts[i], str)] if self.loose else []
        texts = (self.texts[i] for i in ids)
        return ids, [text[1:] if text.startswith(" ") else f" {text}" for text in texts]


def read_vocabulary(tokenizer, name: str = "tokenizer") -> Vocabulary:
    tokens = tokens_by_id(tokenizer, name)
    kind = vocabulary_kind(tokens)
    special = special_ids(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    verbatim = special | (added if kind in ("byte-level", "bytes", "word-end") else set())
    known = ["" if token is None else token for token in tokens]
    texts = _plain(tokenizer, tokens, special) if kind == "plain" else _STANDARD[kind](known)
    for index in [index for index, token in enumerate(known) if token.startswith("<0x")]:
        if fallback := _BYTE_FALLBACK.match(known[index]):
            texts[index] = bytes.fromhex(fallback[1])
    for index in [*verbatim, *(index for index, token in enumerate(tokens) if token is None)]:
        if index < len(tokens):
            texts[index] = tokens[index]

    loose: set[int] = set()
    if kind == "word-end":  # the mark says where a word ends, not where it begins
        loose = {index for index, token in enumerate(tokens) if token is not None} - special
    elif kind in ("wordpiece", "plain"):
        glued = glued_characters(tokenizer)
        loose = {
            i
            for i, text in enumerate(texts)
            if isinstance(text, str) and text[:1] == " " and len(text) > 1 and i not in special
            and (i in added or (_may_be_glued(text[1:]) and glued(text[1:])))
        }  # fmt: skip
    return Vocabulary(tokenizer, kind, tokens, texts, special, loose)


def _may_be_glued(text: str) -> bool:
    return len(text) == 1 or not any(map(str.isalnum, text))


def _plain(tokenizer, tokens: list[str | None], special: set[int]) -> list[str | None]:
    """What ``decode`` gives; with a space in front where tokens are whole words, between which no token is a space."""
    ids = [index for index, token in enumerate(tokens) if token is not None]
    letters = (i for i in ids if i not in special and tokens[i].isalpha())
    probes = list(islice(letters, 64))
    apart, joined = (
        tokenizer([f"{tokens[i]}{space}{tokens[i]}" for i in probes], add_special_tokens=False)["input_ids"]
        if probes
        else []
        for space in (" ", "")
    )
    words = sum(a == [i, i] != b for i, a, b in zip(probes, apart, joined, strict=True))
    begin = " " if 2 * words > len(probes) else ""
    texts = list(tokens)
    for i, text in zip(ids, decoded(tokenizer, ids, tokens), strict=True):
        texts[i] = begin + (tokens[i] if "\ufffd" in text else text)
    return texts


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
    tokens, texts = target.tokens, target.texts
    matches = [-1] * len(tokens)
    same_special = {source.tokens[i]: i for i in source.special if i < len(source.tokens)}
    roles = _match_roles(source.tokenizer, target.tokenizer)
    for index in target.special:
        if index < len(tokens) and tokens[index] is not None:
            matches[index] = roles.get(index, same_special.get(tokens[index], -1))

    def look_up(known: dict[str | bytes, int], ids: list[int], forms: Iterable[str | bytes]) -> None:
        for index, found in zip(ids, map(known.get, forms), strict=True):
            if found is not None:
                matches[index] = found

    rest = [index for index, token in enumerate(tokens) if token is not None and index not in target.special]
    if source.kind == target.kind:
        same_token = {t: i for i, t in enumerate(source.tokens) if t is not None and i not in source.special}
        look_up(same_token, rest, [tokens[index] for index in rest])
        rest = [index for index in rest if matches[index] < 0]

    def look_up_all(known: dict[str | bytes, int], form: Callable[[str], str] | None = None) -> None:
        nonlocal rest
        look_up(known, rest, [texts[index] if form is None else form(texts[index]) for index in rest])
        rest = [index for index in rest if matches[index] < 0]
        ids, second = target.second(rest)
        look_up(known, ids, second if form is None else map(form, second))
        rest = [index for index in rest if matches[index] < 0] if ids else rest

    exact = _index(source)
    look_up_all(exact)
    ascii_bytes = [i for i in rest if isinstance(texts[i], bytes) and texts[i].isascii()]
    look_up(exact, ascii_bytes, [texts[i].decode() for i in ascii_bytes])
    if fuzzy:
        rest = [i for i in rest if isinstance(texts[i], str)]
        if normalize := normalizer(source.tokenizer):
            look_up_all(exact, normalize)
        look_up_all(_index(source, _folded), _folded)
    return np.array(matches, dtype=np.int64)


def _folded(text: str | bytes) -> str | bytes:
    return text if isinstance(text, bytes) else unicodedata.normalize("NFC", text).lower()


def _index(source: Vocabulary, form: Callable[[str | bytes], str | bytes] | None = None) -> dict[str | bytes, int]:
    """The id for each form: of a token in that form first, then of one read so, then of one read so at second best.

    Of equals the lowest, which is the last to be entered.
    """
    ids = [i for i in range(len(source.texts) - 1, -1, -1) if source.texts[i] and i not in source.special]
    texts = [source.texts[i] for i in ids]
    loose, second = source.second(ids)
    ascii_bytes = [i for i, text in zip(ids, texts, strict=True) if isinstance(text, bytes) and text.isascii()]
    at_second_best = [
        *zip(loose, second if form is None else map(form, second), strict=True),
        *((i, source.texts[i].decode()) for i in ascii_bytes),
    ]
    known = {text: i for i, text in sorted(at_second_best, reverse=True)}
    forms = texts if form is None else list(map(form, texts))
    known.update(zip(forms, ids, strict=True))
    if form is not None:
        known.update((own, i) for own, text, i in zip(forms, texts, ids, strict=True) if own == text)
    return known


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
        texts = decoded(tokenizer, order, tokens)
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
