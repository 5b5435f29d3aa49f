"""The long stages of the recipe, each of which a cache may spare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch

from ofa_fast.initialization import arguments, report, tokenization
from ofa_fast.initialization.cache import Cache, key_of
from ofa_fast.initialization.matching import Vocabulary, match, published_match, read_vocabulary
from ofa_fast.initialization.neighbors import nearest
from ofa_fast.initialization.rows import ROWS_AT_ONCE
from ofa_fast.initialization.sharing import Processes
from ofa_fast.initialization.subwords import subword_vectors
from ofa_fast.initialization.word_list import WordList, distinct_words
from ofa_fast.ops import truncated_svd


def vocabularies(source_tokenizer, target_tokenizer, parity: bool) -> tuple[Vocabulary, Vocabulary]:
    source = read_vocabulary(source_tokenizer, "source_tokenizer")
    target = read_vocabulary(target_tokenizer, "target_tokenizer")
    for name, vocabulary in (("source_tokenizer", source), ("target_tokenizer", target)):
        arguments.check_ids(name, vocabulary.tokenizer, len(vocabulary.tokens), parity)
    return source, target


def matched(source: Vocabulary, target: Vocabulary, parity: bool, copies: str, fuzzy: bool) -> np.ndarray:
    """The source token of each target token that is copied, else -1."""
    found = (published_match if parity else match)(source, target, fuzzy)
    if copies == "special":
        other = np.ones(len(found), dtype=bool)
        other[list(tokenization.special_ids(target.tokenizer))] = False
        found[other] = -1
    return found


@dataclass
class Stages:
    """What the stages of one call share."""

    table: torch.Tensor
    word_vectors: object  # None where none are compared
    parity: bool
    progress: bool
    processes: Processes
    cache: Cache | None = None
    columns: int | None = None
    word_weights: np.ndarray | None = None
    ranks: Sequence[int | None] = ()

    def __post_init__(self) -> None:
        self._words: tuple[set[str] | None, WordList] | None = None
        self._hashes: dict[str, Future] = {}
        self._largest = max((r for r in self.ranks if r is not None), default=None)
        self._ahead: Future | None = None
        self._threads, self._over = ThreadPoolExecutor(1 + self.table.is_cuda), Event()

    def __enter__(self) -> Stages:
        if self.table.is_cuda and self._largest and self.cache is None:
            # The first one of a process waits seconds for libraries and a compiler, beside which words are tokenised.
            stream = torch.cuda.current_stream(self.table.device)
            self._ahead = self._threads.submit(_svd_on, stream, self.table, self._largest)
        if self.processes.rank and self.cache is None:
            return self
        # Python runs on while another thread reads all that memory.
        submit, over = self._threads.submit, self._over
        if self.word_vectors is not None:
            self._hashes["word_vectors"] = submit(report.word_vectors_sha256, self.word_vectors, over)
        # A thread has a current stream of its own.
        made = torch.cuda.current_stream(self.table.device).record_event() if self.table.is_cuda else None
        self._hashes["source_embeddings"] = submit(_table_sha256, self.table, made, over)
        return self

    def __exit__(self, *error) -> None:
        """The caller's memory is not read any more after this."""
        self._over.set()
        self._threads.shutdown(cancel_futures=True)

    def sha256(self, name: str) -> str | None:
        """Of the ``word_vectors`` or the ``source_embeddings``."""
        return self._hashes[name].result() if name in self._hashes else None

    def _cached(self, stage: str, key: list, make) -> tuple[dict[str, torch.Tensor], str]:
        """The tensors of a stage, and a key for what is made of them."""
        if self.cache is None:
            return make(), ""
        found = key_of(stage, key)
        tensors = self.cache.read(stage, found)
        # What all do together is done by all or none.
        if not all(self.processes.exchange(tensors is not None)):
            tensors = make()
            self.cache.write(stage, found, tensors)
        return tensors, found

    def subwords(
        self, vocabulary: Vocabulary, languages: set[str] | None, name: str, part: slice
    ) -> tuple[torch.Tensor, str]:
        def make() -> dict[str, torch.Tensor]:
            if self._words is None or self._words[0] != languages:
                self._words = languages, distinct_words(self.word_vectors, languages, self.parity)
            made = subword_vectors(
                vocabulary.tokenizer,
                self.word_vectors,
                languages=languages,
                parity=self.parity,
                progress=self.progress,
                name=name,
                processes=self.processes,
                part=part,
                cache=self.cache,
                columns=self.columns,
                word_weights=self.word_weights,
                size=len(vocabulary.tokens),
                words=self._words[1],
            )
            return {"vectors": torch.from_numpy(made)}

        key = self.cache and [
            tokenization.sha256(vocabulary.tokenizer),
            self.sha256("word_vectors"),
            None if languages is None else sorted(languages),
            self.parity,
            [part.start, part.stop],
            None if self.word_weights is None else report.array_sha256(self.word_weights),
        ]
        tensors, found = self._cached("subwords", key, make)
        return tensors["vectors"], found

    def neighbors(
        self,
        queries: torch.Tensor,
        query_rows: torch.Tensor,
        keys: torch.Tensor,
        key_rows: torch.Tensor,
        count: int,
        device: torch.device,
        made_from: list[str],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and indices, into ``key_rows``, of the ``count`` nearest ``keys[key_rows]``."""

        def make() -> dict[str, torch.Tensor]:
            scores, indices = nearest(
                queries[query_rows].to(device),
                (keys if len(key_rows) == len(keys) else keys[key_rows]).to(device),
                count,
                published=self.parity,
                progress=self.progress,
            )
            return {"scores": scores, "indices": indices}

        key = self.cache and [*made_from, _hash(query_rows), _hash(key_rows), count, self.parity]
        tensors, _ = self._cached("neighbors", key, make)
        return tensors["scores"], tensors["indices"]

    def factors(self) -> tuple[dict[int | None, tuple[torch.Tensor, torch.Tensor | None, float]], list[float]]:
        """Coordinates, basis and explained variance per rank: one SVD at the largest, of which the others are part.

        Then the explained variance at ranks 1, 2, ... up to the largest.
        """

        def make() -> dict[str, torch.Tensor]:
            made = self._ahead.result() if self._ahead else truncated_svd(table, self._largest)
            return dict(zip(("u", "s", "vh"), made, strict=True))

        table = self.table
        found = {None: (table, None, 1.0)}
        if self._largest is None:
            return found, []
        how = self._largest, table.device.type, torch.get_num_threads()
        key = self.cache and [self.sha256("source_embeddings"), *how]
        tensors, _ = self._cached("svd", key, make)
        u, s, vh = (tensors[name].to(table.device) for name in ("u", "s", "vh"))
        # A part at a time: the whole in float64 would be the peak of the process.
        total = float(sum(rows.double().square().sum() for rows in table.split(ROWS_AT_ONCE)))
        # On a GPU torch has no deterministic cumulative sum, and refuses one where it was told to be deterministic.
        energy = s.cpu().double().square().cumsum(0)
        for r in filter(None, self.ranks):
            explained = min(1.0, float(energy[r - 1]) / total) if total else 1.0
            found[r] = u[:, :r].contiguous(), s[:r, None] * vh[:r], explained
        return found, [round(min(1.0, value), 6) for value in (energy / (total or 1.0)).tolist()]


def _svd_on(stream: torch.cuda.Stream, table: torch.Tensor, rank: int) -> tuple[torch.Tensor, ...]:
    """On the caller's stream, so that the caller may use it at once."""
    with torch.cuda.stream(stream):
        return truncated_svd(table, rank)


def _table_sha256(table: torch.Tensor, made: torch.cuda.Event | None, over: Event) -> str:
    if made is not None:
        torch.cuda.current_stream(table.device).wait_event(made)
    return report.array_sha256(table, over)


def _hash(rows: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows.numpy()).data).hexdigest()
