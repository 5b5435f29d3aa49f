"""Keys of published multilingual word vectors: ``deu:$wasser$``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter

_PREFIX, _OPENING, _CLOSING = 1, 2, 4


def parse_key(key: str) -> tuple[str, str, int]:
    """Language, word and markup of a key such as ``deu:$wasser$``; a key without a prefix is English."""
    language, word, markup = "eng", key, 0
    if len(key) > 4 and key[3] == ":":
        language, word, markup = key[:3], key[4:], _PREFIX
    if len(word) > 1 and word[0] == "$":
        word, markup = word[1:], markup | _OPENING
    if len(word) > 1 and word[-1] == "$":
        word, markup = word[:-1], markup | _CLOSING
    return language, word, markup


def form_key(language: str, word: str, markup: int) -> str:
    prefix = f"{language}:" if markup & _PREFIX else ""
    return f"{prefix}{'$' * bool(markup & _OPENING)}{word}{'$' * bool(markup & _CLOSING)}"


def mostly_prefixed(keys: Sequence[str]) -> bool:
    """Whether at least half of the keys begin like ``deu:``."""
    beginnings = Counter(map(itemgetter(slice(5)), keys))  # of which there are few, and all that a prefix needs
    return 2 * sum(count for beginning, count in beginnings.items() if has_prefix(beginning)) >= len(keys)


def has_prefix(key: str) -> bool:
    return len(key) > 4 and key[3] == ":" and key[:3].isascii() and key[:3].isalpha() and key[:3].islower()


def first_of_equals(identities: Iterable) -> list[int]:
    """Where each distinct one first comes."""
    first: dict = {}
    for place, identity in enumerate(identities):
        first.setdefault(identity, place)
    return list(first.values())
