"""WECHSEL as the package ``wechsel`` 0.0.4 offers it: ``from ofa_fast.compat.wechsel import WECHSEL, load_embeddings``.

Source: Minixhofer, Paischer & Rekabsaz 2022 (arXiv 2112.06598).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ofa_fast.compat._shared import cache_folder, fasttext_file, fetch, mixed_rows, subwords_of_words, weighted_means
from ofa_fast.initialization.fasttext import FastText
from ofa_fast.initialization.neighbors import nearest
from ofa_fast.initialization.word_vectors import WordVectors

CACHE_DIR = cache_folder("wechsel")
_DICTIONARIES = "https://raw.githubusercontent.com/CPJKU/wechsel/main/dicts/data"


class WordEmbedding:
    """One interface to word vectors: fastText models, gensim's ``Word2Vec`` and ``KeyedVectors``, our ``WordVectors``.

    Where a model tells no frequencies, they are 1 / rank.
    """

    def __init__(self, model) -> None:
        self.model = model
        keyed = getattr(model, "wv", model)
        if isinstance(model, FastText):
            self.kind, self._words, self._counts = "fasttext", model.words, model.counts
        elif hasattr(model, "get_words") and hasattr(model, "get_word_vector"):
            self.kind = "fasttext"
            self._words, self._counts = model.get_words(include_freq=True, on_unicode_error="ignore")
        elif isinstance(model, WordVectors):
            self.kind, self._words, self._counts = "word2vec", model.words, None
        elif hasattr(keyed, "index_to_key"):
            self.kind, self._words = "word2vec", keyed.index_to_key
            self._counts = getattr(keyed, "expandos", {}).get("count")
        else:
            raise ValueError(
                f"{type(model).__name__} is no fastText model, Word2Vec, KeyedVectors or WordVectors: read a file with "
                "load_embeddings(path)"
            )
        if self._counts is None:
            self._counts = 1.0 / np.arange(1, len(self._words) + 1)

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for index, word in enumerate(self._words):
            ids.setdefault(word, index)
        return ids

    def has_subword_info(self) -> bool:
        return self.kind == "fasttext"

    def get_words_and_freqs(self):
        return self._words, self._counts

    def get_dimension(self) -> int:
        return self.rows(np.zeros(1, dtype=np.int64)).shape[1]

    def get_word_vector(self, word: str) -> np.ndarray:
        return self.vectors([word])[0]

    def get_word_id(self, word: str) -> int:
        return self._ids.get(word, -1)

    def vectors(self, words: list[str]) -> np.ndarray:
        """[n, d]; a word that is not there has the vector of its n-grams in a fastText model, else it is a KeyError."""
        if isinstance(self.model, FastText):
            return self.model.vectors(words)
        if self.kind == "fasttext":
            return np.stack([self.model.get_word_vector(word) for word in words])
        return self.rows(np.array([self._ids[word] for word in words], dtype=np.int64))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        if self.kind == "fasttext":
            return self.vectors([self._words[i] for i in indices])
        keyed = getattr(self.model, "wv", self.model)
        return np.asarray(keyed.vectors[indices])


def load_embeddings(identifier: str, verbose: bool = True):
    """Word vectors from a file, or for a two-letter language code fastText's own, which are downloaded once.

    A fastText ``.bin`` is mapped, not read, and keeps its subword vectors; any other format of ``WordVectors.load``
    will do as well.
    """
    path = fasttext_file(identifier, CACHE_DIR)
    if path.suffix != ".bin":
        return WordVectors.load(path)
    try:
        return FastText(path)
    except ValueError as error:
        if "not a fastText model" not in str(error):
            raise
        return WordVectors.load(path)


def get_subword_embeddings_in_word_embedding_space(
    tokenizer, model: WordEmbedding, max_n_word_vectors=None, use_subword_info=True, verbose=True
):
    """Vectors of all tokens, [V, d] float64, and for each token by name the numbers of the words that made it.

    With ``use_subword_info`` the fastText vector of the token's text. Else the mean, weighted by frequency, over the
    words that contain it as they stand or after a space; a word counts for both.

    Raises:
        ValueError: ``use_subword_info`` with word vectors that have no n-grams.
    """
    if use_subword_info:
        if not model.has_subword_info():
            raise ValueError(
                "use_subword_info=True needs a fastText model; pass use_subword_info=False for word vectors"
            )
        texts = [text.strip() for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))])]
        return model.vectors(texts).astype(np.float64), {}
    words, counts = model.get_words_and_freqs()
    words = list(words[:max_n_word_vectors])
    subwords, members = subwords_of_words(tokenizer, words, lambda word: (word, f" {word}"), verbose)
    table = model.rows(np.arange(len(words)))
    means = weighted_means(len(tokenizer), subwords, members, table.__getitem__, np.asarray(counts, dtype=np.float64))
    names = tokenizer.convert_ids_to_tokens(subwords.tolist())
    return means, {name: rows.tolist() for name, rows in zip(names, members, strict=True)}


def create_target_embeddings(
    source_subword_embeddings,
    target_subword_embeddings,
    source_tokenizer,
    target_tokenizer,
    source_matrix,
    neighbors=10,
    temperature=0.1,
    verbose=True,
):
    """The new table [Vt, D], the tokens whose row is random, and for every other its neighbours, weights and cosines.

    A row is Σ_j w_j E[s_j] over the nearest source tokens, w = softmax(cos / temperature); a token without a vector is
    drawn from N(mean, std) of E's columns; the source's special tokens are copied where the target has them.
    """
    source_matrix = np.asarray(source_matrix)
    targets = np.asarray(target_subword_embeddings, dtype=np.float64)
    rng = np.random.RandomState(1234)
    table = rng.normal(source_matrix.mean(0), source_matrix.std(0), (len(targets), source_matrix.shape[1]))
    table = table.astype(source_matrix.dtype)
    found = (targets != 0).any(1)
    scores, among = nearest(
        torch.from_numpy(targets[found]),
        torch.from_numpy(np.asarray(source_subword_embeddings, dtype=np.float64)),
        neighbors,
        published=True,
        progress=verbose,
    )
    weights = torch.softmax(scores / temperature, dim=1)
    table[found] = mixed_rows(source_matrix, among, weights)
    names = np.array(source_tokenizer.convert_ids_to_tokens(range(len(source_tokenizer))), dtype=object)
    targets = target_tokenizer.convert_ids_to_tokens(range(len(table)))
    sources = {
        targets[i]: (tuple(tokens), of_tokens, tuple(cosines))
        for i, tokens, of_tokens, cosines in zip(
            np.flatnonzero(found), names[among.numpy()], weights.numpy(), scores.numpy(), strict=True
        )
    }
    source_ids, target_ids = source_tokenizer.get_vocab(), target_tokenizer.get_vocab()
    for named in source_tokenizer.special_tokens_map.values():
        for token in [named] if isinstance(named, str) else named:
            if token in target_ids:
                table[target_ids[token]] = source_matrix[source_ids[token]]
    return table, [targets[i] for i in np.flatnonzero(~found)], sources


@dataclass
class WECHSELInfo:
    source_subword_sources: dict
    target_subword_sources: dict
    sources: dict
    not_found: list


class WECHSEL:
    """Initialise a table for another language from word vectors of both.

    Args:
        source_embeddings, target_embeddings: what ``WordEmbedding`` takes, of the same dimension.
        align_strategy: "bilingual_dictionary" (orthogonal Procrustes), or None for vectors that are aligned already.
        bilingual_dictionary: a file of lines ``english<TAB>word``, or the name of a dictionary of the WECHSEL
            repository such as "german", which is downloaded once.

    Raises:
        ValueError: another strategy, no dictionary, a line that is not two words, dimensions that differ, or a
            dictionary of which no pair is among the words.
    """

    def __init__(
        self, source_embeddings, target_embeddings, align_strategy="bilingual_dictionary", bilingual_dictionary=None
    ) -> None:
        self.source_embeddings, self.target_embeddings = map(WordEmbedding, (source_embeddings, target_embeddings))
        dims = self.source_embeddings.get_dimension(), self.target_embeddings.get_dimension()
        if dims[0] != dims[1]:
            raise ValueError(
                f"source_embeddings have {dims[0]} dimensions, target_embeddings {dims[1]}: they must agree; "
                "fasttext.util.reduce_model makes a fastText model smaller"
            )
        self.source_transform = self.target_transform = lambda matrix: matrix
        if align_strategy == "bilingual_dictionary":
            if bilingual_dictionary is None:
                raise ValueError('bilingual_dictionary is None: align_strategy="bilingual_dictionary" needs one')
            align = self._compute_align_matrix_from_dictionary(
                self.source_embeddings, self.target_embeddings, _read_dictionary(bilingual_dictionary)
            )
            self.source_transform = lambda matrix: matrix @ align
        elif align_strategy is not None:
            raise ValueError(f'align_strategy must be "bilingual_dictionary" or None, got {align_strategy!r}')

    def _compute_align_matrix_from_dictionary(self, source_embeddings, target_embeddings, dictionary) -> np.ndarray:
        """argmin ‖A R − B‖ over orthogonal R for pairs (A, B) of words in three cases: as it stands, lower, title."""
        pairs = [
            (source, target)
            for pair in dictionary
            for source in map(source_embeddings.get_word_id, _cases(pair[0]))
            if source != -1
            for target in map(target_embeddings.get_word_id, _cases(pair[1]))
            if target != -1
        ]
        if not pairs:
            raise ValueError("bilingual_dictionary: of no pair are both words among the word vectors")
        source, target = np.array(pairs).T
        product = source_embeddings.rows(source).astype(np.float64).T @ target_embeddings.rows(target)
        left, _, right = np.linalg.svd(product)
        return left @ right

    def apply(
        self,
        source_tokenizer,
        target_tokenizer,
        source_matrix,
        use_subword_info=True,
        max_n_word_vectors=None,
        neighbors=10,
        temperature=0.1,
    ):
        """The table [Vt, D] in the dtype of ``source_matrix`` [Vs, D], and a ``WECHSELInfo`` of what it is made of."""
        (source, source_words), (target, target_words) = (
            get_subword_embeddings_in_word_embedding_space(
                tokenizer, model, use_subword_info=use_subword_info, max_n_word_vectors=max_n_word_vectors
            )
            for tokenizer, model in (
                (source_tokenizer, self.source_embeddings),
                (target_tokenizer, self.target_embeddings),
            )
        )
        source, target = self.source_transform(source), self.target_transform(target)
        source, target = (v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-8) for v in (source, target))
        table, not_found, sources = create_target_embeddings(
            source, target, source_tokenizer, target_tokenizer, source_matrix, neighbors, temperature
        )
        return table, WECHSELInfo(source_words, target_words, sources, not_found)


def _cases(word: str) -> tuple[str, str, str]:
    return word, word.lower(), word.title()


def _read_dictionary(name: str | os.PathLike) -> list[list[str]]:
    path = Path(name)
    if not path.exists():
        path = CACHE_DIR / f"{name}.txt"
        if not path.exists():
            fetch(f"{_DICTIONARIES}/{name}.txt", path)
    pairs = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            pair = line.strip().split("\t")
            pair = pair if len(pair) == 2 else line.split()
            if len(pair) != 2:
                raise ValueError(f"{path}, line {number}: expected two words with a tab between, got {line[:60]!r}")
            pairs.append(pair)
    return pairs
