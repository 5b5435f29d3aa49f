"""Tokenising sentences that come as words, with the place of each word's first token, for any kind of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What stands for a space by itself: of SentencePiece, of byte-level BPE, and a space.
_SPACES = ("▁", "Ġ", " ")
EMPTY, CUT = -1, -2


@dataclass(frozen=True)
class Words:
    """Token ids with special tokens, and per word the index of its first token, ``EMPTY`` or ``CUT`` if it has none."""

    ids: list[int]
    first: list[int]


class WordTokenizer:
    """Tokenises words as they are in running text: ``ids`` are those of the words joined by spaces.

    Each word is tokenised behind an anchor word, whose tokens are then taken away, and the first one alone. This needs
    neither offsets nor ``word_ids``, which slow tokenizers lack, and gives byte-level and SentencePiece tokenizers
    their leading space. The ids differ from those of the joined words only where a piece reaches across a space.

    A word's first token is the first that is more than a bare space (XLM-R makes "▁", "中" of "中").
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.spaces = {tokenizer.get_vocab().get(piece) for piece in _SPACES} - {None}
        self.anchor = next((word for word in ("a", "1", ".", "the", "一") if self._stands(word)), None)
        self.known: dict[tuple[str, bool], tuple[list[int], int]] = {}
        self.before, self.after = self._special()
        self.room = max_length - len(self.before) - len(self.after)
        if self.room < 1:
            raise ValueError(f"max_length: {max_length} leaves no room beside the special tokens")

    def __call__(self, sentences: Sequence[Sequence[str]]) -> list[Words]:
        self._learn({(word, False) for sentence in sentences for word in sentence})
        return [self._tokenize(sentence) for sentence in sentences]

    def _tokenize(self, words: Sequence[str]) -> Words:
        ids, first, full = [], [], False
        for word in words:
            begins = not ids  # also after words that are nothing to the tokenizer
            if begins:
                self._learn({(word, begins)})
            pieces, start = self.known[word, begins]
            full = full or len(ids) + len(pieces) > self.room
            if start is None:
                first.append(EMPTY)
            elif full:
                first.append(CUT)
            else:
                first.append(len(self.before) + len(ids) + start)
            if not full:
                ids += pieces
        return Words(self.before + ids + self.after, first)

    def _learn(self, words: set[tuple[str, bool]]) -> None:
        """The ids of each word, and the place of the first that is more than a bare space; True: it begins a text."""
        for begins in (True, False):
            new = sorted(word for word, at in words - self.known.keys() if at is begins)
            anchor = [] if begins or self.anchor is None else self._plain([self.anchor])[0]
            texts = [f"{self.anchor} {word}" for word in new] if anchor else new
            for word, ids in zip(new, self._plain(texts), strict=True):
                ids = ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._plain([word])[0]
                start = next((i for i, piece in enumerate(ids) if piece not in self.spaces), None)
                self.known[word, begins] = ids, start

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []

    def _stands(self, anchor: str) -> bool:
        """Whether a word that follows the anchor leaves the anchor's own tokens alone."""
        one, two = self._plain([anchor, f"{anchor} {anchor}"])
        return bool(one) and len(two) > len(one) and two[: len(one)] == one and self.tokenizer.unk_token_id not in one

    def _special(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        word = self.anchor or "a"
        bare, whole = self._plain([word])[0], self.tokenizer(word, verbose=False).input_ids
        for begin in range(len(whole) - len(bare) + 1):
            if whole[begin : begin + len(bare)] == bare:
                return whole[:begin], whole[begin + len(bare) :]
        return [], []
