"""Text as packed token sequences, in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ofa_fast._files import atomic_folder
from ofa_fast.training.text import Files, labelled, passages, states

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARACTERS = 1_000_000  # tokenised at a time: enough work for many cores, about 100 MB
ROW = np.dtype([("file", np.int32), ("language", np.int32), ("length", np.int32)])


class Sequences:
    """N packed sequences, memory-mapped from a folder; item i has the tokens of the i-th, int32.

    ``tokens.bin`` is [N, length], zeros after the end of a shorter sequence. ``rows.bin`` is [N]: a sequence's file
    (index into the files), language (index into ``languages``) and length. A piece that continues a word is stored as
    ``~id``, a negative number, where the text was packed with ``whole_words``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.languages: list[str] = json.loads((folder / "languages.json").read_text())
        self.rows = np.memmap(folder / "rows.bin", ROW, "r")
        self.tokens = np.memmap(folder / "tokens.bin", np.int32, "r").reshape(len(self.rows), -1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.tokens[row, : self.rows["length"][row]]

    def __reduce__(self):
        return Sequences, (self.folder,)  # to another process goes the name, not the content


class Packer:
    """Cuts the stream ``line end line end line …`` into sequences ``start piece end`` of ``length`` tokens.

    Only the last sequence may be shorter. Every token of every line is in exactly one sequence, in order. A line that
    ends where a sequence ends needs no further separator.
    """

    def __init__(self, length: int, start: Sequence[int] = (), end: Sequence[int] = ()) -> None:
        self.room, self.start, self.end = length - len(start) - len(end), start, end
        if self.room < 1:
            raise ValueError(f"max_length: {length} leaves no room beside {len(start) + len(end)} special tokens")
        self._stream: list[int] = []

    def add(self, line: Sequence[int]) -> None:
        if len(self._stream) % self.room:
            self._stream.extend(self.end)
        self._stream.extend(line)

    def full(self) -> np.ndarray:
        """The sequences that are complete by now [n, length]."""
        cut = len(self._stream) - len(self._stream) % self.room
        packed = self._framed(np.array(self._stream[:cut], np.int32).reshape(-1, self.room))
        del self._stream[:cut]
        return packed

    def rest(self) -> np.ndarray:
        """The last sequence [1, shorter]; none [0, 0] where nothing is left."""
        return self._framed(np.array([self._stream], np.int32)) if self._stream else np.empty((0, 0), np.int32)

    def _framed(self, pieces: np.ndarray) -> np.ndarray:
        start, end = (np.tile(np.array(ids, np.int32), (len(pieces), 1)) for ids in (self.start, self.end))
        return np.concatenate([start, pieces, end], axis=1)


def special_tokens(tokenizer: PreTrainedTokenizerBase, causal: bool) -> tuple[list[int], list[int]]:
    """What stands before and after a sequence, or before and after a document for a causal model; none or one each.

    A causal model whose tokenizer has one token for both, as GPT-2's has, gets it after a document only.
    """
    first = [tokenizer.cls_token_id, tokenizer.bos_token_id]
    last = [tokenizer.sep_token_id, tokenizer.eos_token_id]
    step = -1 if causal else 1
    start, end = ([i for i in ids[::step] if i is not None][:1] for ids in (first, last))
    return ([] if causal and start == end else start), end


def packed_sequences(
    files: Files,
    argument: str,
    tokenizer_folder: str | os.PathLike,
    digest: str,
    length: int,
    cache: Path,
    progress: bool,
    causal: bool = False,
    whole_words: bool = False,
    apart: bool = False,
) -> Sequences:
    """The text of ``files`` as packed sequences.

    Each language of each file is packed by itself, so that a sequence never mixes two of them. For a ``causal`` model
    and for documents ``apart``, every passage is a document with special tokens of its own; one that a sequence cuts
    goes on in the next one. It is written once, to a folder of ``cache``, and found again there for the same files
    (language, path, sizes, modification times), tokenizer (``digest``) and ways to pack. All cores tokenise. Memory
    beyond the page cache: three batches of ``BATCH_CHARACTERS``, and one sequence a language.
    """
    files = labelled(files)
    about = [(language, str(path), states(path)) for language, path in files]
    key = hashlib.sha256(json.dumps([about, digest, length, causal, whole_words, apart]).encode()).hexdigest()[:16]
    folder = cache / key
    if not folder.exists():
        for left in cache.glob(f".{key}.*"):  # by a process that was killed
            shutil.rmtree(left)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        with atomic_folder(folder) as work:
            special = special_tokens(tokenizer, causal)
            around = {"document" if causal or apart else "sequence": special}
            _write(work, files, argument, encoder(tokenizer, whole_words), length, progress, **around)
    return Sequences(folder)


def _write(
    folder: Path,
    files: list[tuple[str, Path]],
    argument: str,
    encode: Callable[[list[str]], list[list[int]]],
    length: int,
    progress: bool,
    document: tuple[list[int], list[int]] = ([], []),
    sequence: tuple[list[int], list[int]] = ([], []),
) -> None:
    """``document`` and ``sequence`` are the special tokens before and after each of them."""
    before, after = document
    codes: dict[str, int] = {}
    with (
        open(folder / "tokens.bin", "wb") as tokens,
        open(folder / "rows.bin", "wb") as rows,
        tqdm(unit=" tokens", unit_scale=True, desc="tokenising", disable=not progress) as bar,
    ):

        def write(packed: np.ndarray, file: int, language: str) -> None:
            if len(packed):
                own = (file, codes.setdefault(language, len(codes)), packed.shape[1])
                rows.write(np.array([own] * len(packed), ROW))
                tokens.write(np.pad(packed, ((0, 0), (0, length - packed.shape[1]))))

        for file, (language, path) in enumerate(files):
            packers: dict[str, Packer] = {}
            for languages, lines in _ahead(encode, _batches(passages(path, language, argument))):
                for own, ids in zip(languages, lines, strict=True):
                    if own not in packers:
                        packers[own] = Packer(length, *sequence)
                    packers[own].add([*before, *ids, *after])
                for own in dict.fromkeys(languages):
                    write(packers[own].full(), file, own)
                bar.update(sum(map(len, lines)))
            for own, packer in packers.items():
                write(packer.rest(), file, own)
    if not codes:
        raise ValueError(f"{argument}: the tokenizer finds no token in {', '.join(str(path) for _, path in files)}")
    (folder / "languages.json").write_text(json.dumps(list(codes)))


def _batches(rows: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Languages and texts of about ``BATCH_CHARACTERS`` at a time."""
    languages, texts, size = [], [], 0
    for language, text in rows:
        languages.append(language)
        texts.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield languages, texts
            languages, texts, size = [], [], 0
    if texts:
        yield languages, texts


def _ahead(encode: Callable, batches: Iterable[tuple[list[str], list[str]]]) -> Iterator[tuple[list[str], list]]:
    """Languages and tokens of each batch. The next two are tokenised, without the interpreter, while one is packed."""
    with ThreadPoolExecutor(2) as pool:
        waiting = deque()
        for languages, texts in batches:
            waiting.append((languages, pool.submit(encode, texts)))
            if len(waiting) > 2:
                languages, tokens = waiting.popleft()
                yield languages, tokens.result()
        for languages, tokens in waiting:
            yield languages, tokens.result()


def encoder(tokenizer: PreTrainedTokenizerBase, whole_words: bool) -> Callable[[list[str]], list[list[int]]]:
    """A function from texts to their token ids without special tokens, on all cores.

    With ``whole_words``, a piece that continues the word before it is ``~id``. A word is what the tokenizer's
    pre-tokenizer splits off: at white space and punctuation for WordPiece and byte-level BPE, at white space for
    SentencePiece models.

    Raises:
        ValueError: ``whole_words``, and the tokenizer does not split text into words.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and not whole_words:
        return lambda texts: tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids
    if whole_words and (backend is None or len(set(backend.encode("a b c", add_special_tokens=False).word_ids)) < 3):
        raise ValueError(
            "whole_words: the tokenizer does not split text into words; mask pieces, or use a fast tokenizer with a "
            "pre-tokenizer"
        )
    backend.no_truncation()
    backend.no_padding()
    if not whole_words:
        return lambda texts: [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def marked(texts: list[str]) -> list[list[int]]:
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        return [_mark(e.ids, e.word_ids) for e in encodings]

    return marked


def _mark(ids: list[int], words: list[int | None]) -> list[int]:
    return [~i if word == before else i for i, word, before in zip(ids, words, [-1, *words], strict=False)]
