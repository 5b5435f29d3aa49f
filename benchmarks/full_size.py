"""Inputs of the size of the paper's, made of real words: millions of word vectors, and a vocabulary of 400,000.

The words of each text are spelled anew for many languages: letters change places within a word list's alphabet, and a
fifth of the words, as names and loans do, stay as they are. A vector is that of the word it was made of, and noise.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ofa_fast.initialization import WordVectors
from ofa_fast.initialization.words import WordSplitter

LANGUAGES = 520
KEPT_AS_THEY_ARE = 0.2
KEPT_PIECES = 0.8  # of the source's vocabulary, in the new one


def word_lists(texts: Sequence[Path]) -> list[list[str]]:
    """The words of each text, the most frequent first."""
    lists = []
    for text in texts:
        split = WordSplitter()
        counts = Counter(word for line in text.read_text("utf-8").splitlines() for word in split(line.lower()))
        lists.append([word for word, _ in counts.most_common()])
    return lists


def _spellings(words: list[str], random: np.random.Generator) -> Iterator[str]:
    letters = Counter("".join(words[:5000]))
    frequent = [letter for letter, _ in letters.most_common(24) if letter.isalpha()]
    moved = random.permutation(len(frequent))[: max(2, len(frequent) // 3)]
    table = str.maketrans({frequent[a]: frequent[b] for a, b in zip(moved, np.roll(moved, 1), strict=True)})
    ending = "".join(random.choice(frequent, 2))
    kept = random.random(len(words)) < KEPT_AS_THEY_ARE
    for i, word in enumerate(words):
        yield word if kept[i] else word.translate(table) + (ending if i % 3 == 0 else "")


def words(lists: Sequence[list[str]], count: int, seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    """``count`` words of ``LANGUAGES`` languages, their codes, and the number of the word that each was made of."""
    lists = [some for some in lists if len(some) > count // LANGUAGES]
    starts = np.cumsum([0, *map(len, lists)])
    spelled: list[str] = []
    codes: list[str] = []
    origins = []
    for language in range(LANGUAGES):
        random = np.random.default_rng([seed, language])
        which = language % len(lists)
        share = count * (language + 1) // LANGUAGES - count * language // LANGUAGES
        chosen = np.sort(random.permutation(len(lists[which]))[:share])
        code = "".join(chr(ord("a") + language // 26**place % 26) for place in (2, 1, 0))
        made = dict(zip(_spellings([lists[which][i] for i in chosen], random), chosen.tolist(), strict=True))
        spelled += made
        codes += [code] * len(made)
        origins.append(starts[which] + np.fromiter(made.values(), np.int64, count=len(made)))
    return spelled, codes, np.concatenate(origins)


def vectors(origins: np.ndarray, dim: int, seed: int = 0) -> np.ndarray:
    """[W, dim] float16: a unit vector for each original word, and noise half as long."""
    base = np.random.default_rng(seed).standard_normal((origins.max() + 1, dim), dtype=np.float32)
    out = np.empty((len(origins), dim), dtype=np.float16)
    for begin in range(0, len(origins), 65_536):
        some = slice(begin, begin + 65_536)
        noise = np.random.default_rng([seed, begin]).standard_normal((len(origins[some]), dim), dtype=np.float32)
        out[some] = (base[origins[some]] + 0.5 * noise) / math.sqrt(dim)
    return out


def write_text(path: Path, keys: Sequence[str], table: np.ndarray) -> None:
    """word2vec text with four decimals, as tools write it."""
    numbers = np.array([f" {i / 1e4:.4f}".encode() for i in range(-9999, 10000)])
    numbers = numbers.view(np.uint8).reshape(len(numbers), -1)
    with open(path, "wb") as file:
        file.write(f"{len(keys)} {table.shape[1]}\n".encode())
        for begin in range(0, len(keys), 4096):
            some = np.rint(table[begin : begin + 4096].astype(np.float32).clip(-0.9999, 0.9999) * 1e4).astype(np.int64)
            for key, row in zip(keys[begin : begin + 4096], numbers[some + 9999], strict=True):
                file.write(key.encode() + row[row > 0].tobytes() + b"\n")


def vocabulary(source: Path, spelled: Sequence[str], size: int) -> dict:
    """tokenizer.json of a unigram vocabulary of ``size``: most of the source's pieces, and parts of the words."""
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    pieces = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    bound = int(KEPT_PIECES * 2**32)
    kept = [piece for piece in pieces if piece[0] in special or zlib.crc32(piece[0].encode()) < bound]
    counts: Counter[str] = Counter()
    for word in spelled:
        for length in range(3, min(len(word), 12) + 1):
            counts["▁" + word[:length]] += length
            counts[word[-length:]] += length
    known = {piece for piece, _ in pieces}
    total = math.log(sum(counts.values()))
    room = size - len(special - {piece for piece, _ in kept})
    for piece, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) == room:
            break
        if piece not in known:
            kept.append([piece, math.log(count / len(piece)) - total])
    tokenizer["model"]["vocab"] = kept
    tokenizer["model"]["unk_id"] = next(i for i, piece in enumerate(kept) if piece[0] == "<unk>")
    index = {piece: i for i, (piece, _) in enumerate(kept)}
    for token in tokenizer["added_tokens"]:
        token["id"] = index.get(token["content"], len(index))
        index.setdefault(token["content"], token["id"])
    for name, entry in tokenizer.get("post_processor", {}).get("special_tokens", {}).items():
        entry["ids"] = [index[name]]
    return tokenizer


def make(folder: Path, source: Path, texts: Sequence[Path], count: int, dim: int, size: int) -> None:
    """``vectors.safetensors``, ``vectors.vec`` and ``target/`` in ``folder``; what is there already stays."""
    target = folder / "target"
    if all((folder / name).exists() for name in ("vectors.vec", "vectors.safetensors", "target/tokenizer.json")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    spelled, codes, origins = words(word_lists(texts), count)
    if not (target / "tokenizer.json").exists():
        tokenizer = vocabulary(source, spelled, size)
        target.mkdir(exist_ok=True)
        (target / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
        (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    if not (folder / "vectors.safetensors").exists():
        WordVectors(spelled, vectors(origins, dim), codes).save(folder / "vectors.safetensors")
    if not (folder / "vectors.vec").exists():
        table = WordVectors.load(folder / "vectors.safetensors")
        write_text(folder / "vectors.vec", table.keys, table.vectors)
