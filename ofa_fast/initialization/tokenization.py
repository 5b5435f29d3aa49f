"""What the recipe asks of a Hugging Face tokenizer: its rows, the ids of many texts at once, its special tokens."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
from tokenizers import AddedToken, Tokenizer

from ofa_fast.initialization.unigram import native_unigram

TEXTS_PER_BATCH = 64
TEXTS_AT_ONCE = 32_768
TEXTS_WORTH_A_NATIVE_MODEL = 250_000
# Normalizers that write an ASCII character in one way whatever stands beside it.
_BY_CHARACTER = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"}
_SINGLE_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_PROBES = ("water", "ὕδωρ", "вода", "ջուր", "पानी", "水", "su2", "l'eau", "x-y")


def tokens_by_id(tokenizer, name: str = "tokenizer") -> list[str | None]:
    """The token of every id up to the largest one; None where ids have a gap.

    Raises:
        ValueError: the vocabulary is empty.
    """
    tokens = _tokens_in_order(tokenizer)
    if tokens is not None:
        return tokens
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise ValueError(f"{name} has an empty vocabulary: it needs at least one token")
    tokens = [None] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        tokens[index] = token
    return tokens


def _tokens_in_order(tokenizer) -> list[str] | None:
    """``tokens_by_id`` without a dictionary in no order, which takes longer to make; None where that might differ."""
    if not _is_plain_rust(tokenizer, "get_vocab"):
        return None
    backend = tokenizer.backend_tokenizer
    added = {index: token.content for index, token in backend.get_added_tokens_decoder().items()}
    below = {index: backend.model.id_to_token(index) for index in added}
    size = backend.get_vocab_size(with_added_tokens=False) + sum(token is None for token in below.values())
    if size <= max(added, default=0):
        return None
    tokens = list(map(backend.id_to_token, range(size)))
    for index, token in added.items():  # a normalized one is not told as it was written
        tokens[index] = token
    hidden = any(token not in (None, added[index]) for index, token in below.items())
    return tokens if None not in tokens and len(set(tokens)) == size and not hidden else None


def decoded(tokenizer, ids: Sequence[int], tokens: Sequence[str | None]) -> list[str]:
    """What ``decode`` gives for each of the ids alone; ``tokens`` are those by id."""
    if not _is_plain_rust(tokenizer, "get_vocab", "batch_decode", "decode", "_decode", "clean_up_tokenization"):
        return tokenizer.batch_decode([[index] for index in ids])
    backend = tokenizer.backend_tokenizer
    texts = [tokens[index] for index in ids]  # as they are, without a decoder; but added ones may be told otherwise
    added = backend.get_added_tokens_decoder()
    places = [place for place, index in enumerate(ids) if backend.decoder is not None or index in added]
    made = backend.decode_batch([[ids[place]] for place in places], skip_special_tokens=False)
    for place, text in zip(places, made, strict=True):
        texts[place] = text
    if tokenizer.clean_up_tokenization_spaces:  # and nothing else
        spaced = [place for place, text in enumerate(texts) if " " in text]
        # Of an empty batch, transformers 5.0 makes one text.
        cleaned = tokenizer.batch_decode([[ids[place]] for place in spaced]) if spaced else []
        for place, text in zip(spaced, cleaned, strict=True):
            texts[place] = text
    return texts


def special_ids(tokenizer) -> set[int]:
    return {index for index in tokenizer.all_special_ids if index is not None}


def is_rust(tokenizer) -> bool:
    return bool(getattr(tokenizer, "is_fast", False)) and hasattr(tokenizer, "backend_tokenizer")


def _is_plain_rust(tokenizer, *methods: str) -> bool:
    """Whether these methods of a Rust tokenizer are what transformers has for all of them."""
    if not is_rust(tokenizer):
        return False
    from transformers import PreTrainedTokenizerFast as Plain

    return all(getattr(type(tokenizer), name, None) is getattr(Plain, name) for name in methods)


@contextmanager
def whole_texts(tokenizer) -> Iterator[None]:
    """Inside the block the Rust tokenizer neither truncates nor pads; a tokenizer.json may ask for both."""
    if not is_rust(tokenizer):
        yield
        return
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def batch_encoder(tokenizer, expected: int | None = None) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """A function of texts: their ids without special tokens in a row, int64, and [len(texts) + 1] offsets into them.

    A Rust tokenizer takes batches on all its threads. Most of its time on a single word is not spent on the word, so
    many are joined by a token of their own, at which it cuts text before it does anything else. A unigram model is run
    natively, unless so few texts are ``expected`` that this would take longer to set up than it saves. Where either
    changes what is found in a few probes, each text goes alone.
    """
    if not is_rust(tokenizer):
        return lambda texts: flat(tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else [])
    backend = _of_same_model(tokenizer.backend_tokenizer)

    def alone(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return flat([encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)])

    native = native_unigram(backend) if expected is None or expected >= TEXTS_WORTH_A_NATIVE_MODEL else None
    if native is not None and _same(native, alone, [*_probes(), *native.some_pieces()]):
        return lambda texts: native(texts) or alone(texts)
    joined = _joined(backend, alone)
    return joined if _same(joined, alone, _probes()) else alone


def _of_same_model(backend: Tokenizer) -> Tokenizer:
    """A tokenizer that shares the model, which is large, and neither truncates nor pads; its settings are its own."""
    other = Tokenizer(backend.model)
    other.normalizer, other.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    added = backend.get_added_tokens_decoder()
    other.add_tokens(list(added.values()))
    if repr(other.get_added_tokens_decoder()) == repr(added):
        return other
    other = Tokenizer.from_str(backend.to_str())
    other.no_truncation()
    other.no_padding()
    return other


def _probes() -> list[str]:
    words = (*_PROBES, "", "Water", "▁x", "##x", "1.5%")
    return [f"{space}{text}" for text in words for space in ("", " ")]


def _same(one, other, texts: list[str]) -> bool:
    found = one(texts)
    return found is not None and all(np.array_equal(a, b) for a, b in zip(found, other(texts), strict=True))


def _joined(backend: Tokenizer, alone) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    separator = "\u0091ofa-fast\u0092"
    backend.add_special_tokens([AddedToken(separator, normalized=False, special=True)])
    separator_id = backend.token_to_id(separator)

    def some(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [separator.join([*texts[i : i + TEXTS_PER_BATCH], ""]) for i in range(0, len(texts), TEXTS_PER_BATCH)]
        ids, _ = alone(batches)
        ends = np.flatnonzero(ids == separator_id)
        if len(ends) != len(texts):  # a text holds the separator
            return alone(texts)
        return np.delete(ids, ends), np.concatenate([[0], ends - np.arange(len(ends))])

    def joined(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        # Encodings in Rust take some hundred bytes a subword, so not all texts at once.
        parts = [some(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, max(1, len(texts)), TEXTS_AT_ONCE)]
        before = np.cumsum([0, *(len(ids) for ids, _ in parts)])
        offsets = [[0], *(offsets[1:] + start for (_, offsets), start in zip(parts, before, strict=False))]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate(offsets)

    return joined


def flat(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)), out=offsets[1:])
    return np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=offsets[-1]), offsets


def tells_apart(tokenizer, one: Callable[[str], str], other: Callable[[str], str]) -> bool:
    """Whether words spelled in one way and in the other may be tokenised differently.

    Normalisation and pre-tokenisation treat all words alike, so a few tell: an uncased BERT, say, has one case only.
    """
    if not is_rust(tokenizer):
        return True
    normalizer, pre_tokenizer = tokenizer.backend_tokenizer.normalizer, tokenizer.backend_tokenizer.pre_tokenizer

    def pieces(text: str) -> list[str]:
        text = normalizer.normalize_str(text) if normalizer else text
        return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer else [text]

    return any(pieces(one(word)) != pieces(other(word)) for word in _PROBES)


def normalizer(tokenizer) -> Callable[[str], str] | None:
    """What the Rust tokenizer makes of a piece of text, with the space that it may have in front; None: nothing."""
    if not is_rust(tokenizer) or tokenizer.backend_tokenizer.normalizer is None:
        return None
    normalize = tokenizer.backend_tokenizer.normalizer.normalize_str
    of_ascii = _of_ascii(tokenizer.backend_tokenizer.normalizer)

    def of_piece(text: str) -> str:
        body = text.removeprefix(" ")
        if of_ascii and body.isascii() and body.isprintable() and "  " not in body:
            body = of_ascii(body).strip()
        else:  # some normalizers mark spaces, or put a mark in front
            body = normalize(body).replace("▁", " ").strip()
        return f" {body}" if body and text.startswith(" ") else body

    return of_piece


def _of_ascii(normalizer) -> Callable[[str], str] | None:
    """What a normalizer does to printable ASCII, single spaces included: nothing, or lower case; None: who knows."""
    try:
        told = json.loads(normalizer.__getstate__())
    except Exception:  # one that is written in Python
        return None
    steps = told["normalizers"] if told["type"] == "Sequence" else [told]
    if not all(step["type"] in _BY_CHARACTER or step == _SINGLE_SPACES for step in steps):
        return None
    letters = [chr(code) for code in range(32, 127)]
    made = list(map(normalizer.normalize_str, letters))
    return str if made == letters else str.lower if made == list(map(str.lower, letters)) else None


def glued_characters(tokenizer) -> Callable[[str], bool]:
    """Whether the tokenizer cuts a text off the letter before it, so that its token needs no space in front."""
    if not is_rust(tokenizer):
        return lambda text: unicodedata.category(text[0])[0] in "PS"
    backend = tokenizer.backend_tokenizer

    def is_cut_off(text: str) -> bool:
        glued = f"x{text}"
        glued = backend.normalizer.normalize_str(glued) if backend.normalizer else glued
        return backend.pre_tokenizer is not None and len(backend.pre_tokenizer.pre_tokenize_str(glued)) > 1

    return is_cut_off


def warn_if_slow(tokenizer, texts: int) -> None:
    if not is_rust(tokenizer) and texts > 10_000:
        warnings.warn(
            f"{type(tokenizer).__name__} is a Python tokenizer: {texts:,} texts will take minutes; "
            "one with a tokenizer.json takes seconds",
            stacklevel=4,
        )


def sha256(tokenizer) -> str:
    """Of tokenizer.json, truncation and padding left out; of the vocabulary where a Python tokenizer has none."""
    if is_rust(tokenizer):
        with whole_texts(tokenizer):
            text = tokenizer.backend_tokenizer.to_str()
    else:
        text = json.dumps([tokenizer.get_vocab(), sorted(special_ids(tokenizer))], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
