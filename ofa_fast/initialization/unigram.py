"""Unigram tokenizers such as XLM-R's: their model run natively, which on single words is most of the work."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence

import numpy as np
import torch

from ofa_fast import _native

SEPARATOR = "\u0091"  # a control character, so that no grapheme reaches over it
UNKNOWN_PENALTY = 10.0  # of SentencePiece: below the least score


class NativeUnigram:
    """A Rust tokenizer whose model is a unigram behind a Metaspace, as a function of many texts to their ids.

    Texts are normalised by the tokenizer itself, many at once; the pieces are found natively.
    """

    def __init__(self, backend, pieces: list[list], unknown: int) -> None:
        self.normalizer = backend.normalizer
        self.added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self.unknown = unknown
        self.pieces = [piece for piece, _ in pieces]
        self.scores = torch.tensor([score for _, score in pieces], dtype=torch.float64)
        self.unknown_score = float(self.scores.min()) - UNKNOWN_PENALTY
        encoded = [piece.encode("utf-8") for piece in self.pieces]
        order = sorted(range(len(encoded)), key=encoded.__getitem__)
        text = b"".join(encoded[i] for i in order)
        starts = torch.zeros(len(order) + 1, dtype=torch.int64)
        starts[1:] = torch.tensor([len(encoded[i]) for i in order]).cumsum(0)
        nodes = torch.empty(len(text) + 2, 2, dtype=torch.int32)
        labels = torch.empty(len(text) + 2, dtype=torch.uint8)
        made = _native.cpu.unigram_build_trie(_bytes(text), starts, torch.tensor(order), nodes, labels, 1)
        self.nodes, self.labels = nodes[: made + 1].clone(), labels[: made + 1].clone()

    def some_pieces(self, count: int = 1000) -> list[str]:
        """As text, in every part of the vocabulary."""
        pieces = self.pieces[:: -(-len(self.pieces) // count)]
        return [piece.replace("▁", " ") for piece in pieces if piece not in self.added]

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids in a row, int64, and [len(texts) + 1] offsets; None where a text holds what only the tokenizer knows."""
        joined = SEPARATOR.join([*texts, ""])
        normal = self.normalizer.normalize_str(joined) if self.normalizer else joined
        if normal.count(SEPARATOR) != len(texts) or any(token in joined or token in normal for token in self.added):
            return None
        data = _bytes(normal.encode("utf-8"))
        ids = torch.empty(len(data), dtype=torch.int64)
        offsets = torch.zeros(len(texts) + 1, dtype=torch.int64)
        count = _native.cpu.unigram_encode(
            self.nodes, self.labels, self.scores, self.unknown, self.unknown_score, data, ids, offsets[1:],
            torch.get_num_threads(),
        )  # fmt: skip
        return ids[:count].numpy(), offsets.numpy()


def _bytes(text: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())


def _told(backend) -> dict:
    """The tokenizer's JSON. Of the lists in it, one a piece, the collector would look at all again and again."""
    collects = gc.isenabled()
    try:
        gc.disable()
        return json.loads(backend.to_str())
    finally:
        if collects:
            gc.enable()


def native_unigram(backend) -> NativeUnigram | None:
    """The native form of a Rust tokenizer; None where it is of another kind, or the native module is missing."""
    if _native.cpu is None or type(backend.model).__name__ != "Unigram":
        return None
    told = _told(backend)
    model, pre_tokenizer = told["model"], told["pre_tokenizer"] or {}
    plain = (
        pre_tokenizer.get("type") == "Metaspace"
        and pre_tokenizer["replacement"] == "▁"
        and pre_tokenizer.get("prepend_scheme", "always" if pre_tokenizer.get("add_prefix_space") else "never")
        == "always"
        and pre_tokenizer.get("split", True)
        and not model.get("byte_fallback")
        and model.get("unk_id") is not None
        and all(piece for piece, _ in model["vocab"])
    )
    return NativeUnigram(backend, model["vocab"], model["unk_id"]) if plain else None
