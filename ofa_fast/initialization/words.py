"""Words in running text of any language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping

CASES = ("natural", "lower", "keep")

# Scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_JOINERS = frozenset("'’\u200c\u200d")


def _is_part(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _runs(token: str) -> Iterator[str]:
    """Maximal runs of letters, marks and numbers; an apostrophe or a zero-width joiner between two of them belongs."""
    run = ""
    for position, character in enumerate(token):
        joins = run and character in _JOINERS and _is_part(token[position + 1 : position + 2] or " ")
        if _is_part(character) or joins:
            run += character
        elif run:
            yield run
            run = ""
    if run:
        yield run


def _ngrams(text: str, longest: int) -> Iterator[str]:
    """All substrings of up to ``longest`` characters, a character being a base with its combining marks."""
    units: list[str] = []
    for character in text:
        if units and unicodedata.category(character)[0] == "M":
            units[-1] += character
        else:
            units.append(character)
    for size in range(1, longest + 1):
        for start in range(len(units) - size + 1):
            yield "".join(units[start : start + size])


class WordSplitter:
    """Splits lines into words, remembering what it has split.

    A word is a maximal run of Unicode letters, marks and numbers. Where a script has no spaces, every run of it is cut
    into all its substrings of one to ``longest`` characters instead: tokenizers' subwords in these scripts are such
    substrings, and the frequent ones among them are the words.
    """

    def __init__(self, longest: int = 3) -> None:
        self.longest = longest
        self._known: dict[str, tuple[str, ...]] = {}

    def __call__(self, line: str) -> Iterator[str]:
        for token in line.split():
            words = self._known.get(token)
            if words is None:
                words = tuple(self._split(token))
                # Whole clauses of scripts without spaces hardly come again.
                if len(words) < 8:
                    self._known[token] = words
            yield from words

    def _split(self, token: str) -> Iterator[str]:
        for run in _runs(token):
            end = 0
            for match in UNSPACED.finditer(run):
                yield from filter(None, (run[end : match.start()],))
                yield from _ngrams(match.group(), self.longest)
                end = match.end()
            if end < len(run):
                yield run[end:]


def lower(word: str) -> str:
    """``word`` in lower case, except where case folding keeps the upper: Cherokee text is written in upper case."""
    return word if word == word.casefold() else word.lower()


def written_forms(counts: Mapping[str, int], case: str) -> dict[str, str]:
    """How each spelling of running text, given with its count, is stored.

    - ``"keep"``: as it stands.
    - ``"lower"``: in lower case.
    - ``"natural"``: in lower case if the text ever writes it so, else in its most frequent spelling: *the* for *The*,
      but *Wasser*, *Jerusalem*, and Cherokee as written. A word so stored fits the text that a tokenizer will meet.
    """
    if case == "keep":
        return {spelling: spelling for spelling in counts}
    if case == "lower":
        return {spelling: lower(spelling) for spelling in counts}
    forms: dict[str, str] = {}
    for spelling, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        folded = spelling.lower()
        forms.setdefault(folded, folded if folded in counts else spelling)
    return {spelling: forms[spelling.lower()] for spelling in counts}
