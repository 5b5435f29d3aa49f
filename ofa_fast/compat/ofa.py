"""The functions of the published OFA scripts (cisnlp/ofa, ``utils.py``, ``ofa.py``, ``random_init.py``).

``from ofa_fast.compat.ofa import *`` takes the place of ``from utils import *``.

Source: Liu, Lin, Wang & Schütze 2024 (arXiv 2311.08849).
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import torch

from ofa_fast.compat._shared import mixed_rows, subwords_of_words, weighted_means
from ofa_fast.initialization import initialize
from ofa_fast.initialization.matching import published_texts
from ofa_fast.initialization.neighbors import nearest
from ofa_fast.initialization.subwords import published_spellings
from ofa_fast.initialization.word_vectors import WordVectors
from ofa_fast.ops import truncated_svd

SEED = 114514
_NAMES = {"xlm-roberta-base": "xlm", "roberta-base": "roberta"}

__all__ = [
    "WordEmbedding",
    "create_target_embeddings",
    "get_overlapping_tokens",
    "get_subword_embeddings_in_word_embedding_space",
    "perform_factorize",
    "run_ofa",
    "run_random_init",
]


class WordEmbedding:
    """Word vectors under keys such as ``deu:$wasser$``: gensim's ``KeyedVectors``, or our ``WordVectors``."""

    def __init__(self, model) -> None:
        self.model = model
        if isinstance(model, WordVectors):
            self.words, self.vectors = list(model.keys), model.vectors
        elif hasattr(model, "index_to_key"):
            self.words, self.vectors = list(model.index_to_key), model.vectors
        else:
            raise ValueError(f"{type(model).__name__} is neither KeyedVectors nor WordVectors")
        self.kind = "word2vec"
        self._ids = {word: index for index, word in enumerate(self.words)}

    def get_words(self) -> list[str]:
        return self.words

    def get_dimension(self) -> int:
        return self.vectors.shape[1]

    def get_word_vector(self, word: str) -> np.ndarray:
        return self.vectors[self._ids[word]]

    def get_word_id(self, word: str) -> int:
        return self._ids[word]


def get_overlapping_tokens(target_tokenizer, source_tokenizer, fuzzy_search=True, fuzzy_whitespace=False) -> dict:
    """Target token -> (target id, source id) of the tokens that both have; ``match_vocabularies(parity=True)``.

    ``fuzzy_search`` adds tokens in another case, ``fuzzy_whitespace`` those with a space more or less in front.
    """
    source, target = published_texts(source_tokenizer), published_texts(target_tokenizer)
    found = {text: (index, source[text]) for text, index in sorted(target.items()) if text in source}
    if fuzzy_search:
        lower = {text.lower(): source[text] for text in sorted(source)}
        for text, index in sorted(target.items()):
            folded = text.lower()
            forms = (folded, f" {folded}", folded.lstrip()) if fuzzy_whitespace else (folded,)
            # A match to source id 0 is lost, as published.
            match = next(filter(None, map(lower.get, forms)), None)
            if text not in found and match:
                found[text] = index, match
    names = target_tokenizer.convert_ids_to_tokens([index for index, _ in found.values()])
    return dict(zip(names, found.values(), strict=True))


def get_subword_embeddings_in_word_embedding_space(
    tokenizer,
    model: WordEmbedding,
    multilingual=True,
    languages_considered=None,
    max_n_word_vectors=None,
    return_not_covered_set=False,
):
    """Vectors of all tokens [V, d] float64, and for each token by name the numbers of the words that made it.

    Each is the mean over the words that contain it, a word once for every spelling of three; where not
    ``multilingual``, keys are words, with two spellings. ``return_not_covered_set`` adds the ids without a word.

    Raises:
        ValueError: a key with a language has a second colon.
    """
    keys = model.get_words()[:max_n_word_vectors]
    chosen, texts = np.arange(len(keys)), keys
    if multilingual:
        parts = [_language_and_word(key) for key in keys]
        wanted = [
            i for i, (code, _) in enumerate(parts) if languages_considered is None or code in languages_considered
        ]
        chosen, texts = np.array(wanted, dtype=np.int64), [parts[i][1] for i in wanted]
    spellings = published_spellings if multilingual else lambda word: (word, f" {word}")
    subwords, members = subwords_of_words(tokenizer, texts, spellings)
    members = [chosen[rows] for rows in members]
    means = weighted_means(len(tokenizer), subwords, members, lambda rows: np.asarray(model.vectors[rows], np.float64))
    if means.shape[1] != model.get_dimension():
        means = np.zeros((len(tokenizer), model.get_dimension()))
    names = tokenizer.convert_ids_to_tokens(subwords.tolist())
    sources = {name: rows.tolist() for name, rows in zip(names, members, strict=True)}
    if return_not_covered_set:
        return means, sources, set(range(len(means))) - set(subwords.tolist())
    return means, sources


def _language_and_word(key: str) -> tuple[str, str]:
    if len(key) > 4 and key[3] == ":":
        if key.count(":") != 1:
            raise ValueError(f"the key {key!r} has a second colon")
        return key[:3], key[4:]
    return "eng", key


def perform_factorize(source_matrix, keep_dim=100) -> tuple[np.ndarray, np.ndarray]:
    """(primitive embeddings [R, D], coordinates [V, R]) of the truncated SVD; each dimension up to its sign."""
    u, s, vh = truncated_svd(torch.as_tensor(source_matrix).float(), keep_dim)
    return (s[:, None] * vh).numpy(), u.numpy()


def create_target_embeddings(
    source_subword_embeddings,
    target_subword_embeddings,
    source_tokenizer,
    target_tokenizer,
    source_matrix,
    target_matrix=None,
    overlapping_tokens=None,
    additional_tokens=None,
    neighbors=10,
    temperature=0.1,
) -> tuple[np.ndarray, dict[int, str], dict[int, str]]:
    """The table [Vt, R], and by id the tokens whose row is random and all others.

    Rows of ``overlapping_tokens`` are those of ``target_matrix``; the others Σ_j w_j F[s_j] over the nearest source
    tokens, w = softmax(cos / temperature), or drawn from N(mean, std) of F's columns without a vector.

    Raises:
        ValueError: ``target_matrix`` does not fit, or holds a row that is none of ``overlapping_tokens``.
    """
    size, width = len(target_tokenizer), source_matrix.shape[1]
    out = np.zeros((size, width), dtype=source_matrix.dtype) if target_matrix is None else target_matrix
    if out.shape != (size, width):
        raise ValueError(f"target_matrix must be [{size}, {width}], got {list(out.shape)}")
    names = target_tokenizer.convert_ids_to_tokens(range(size))
    kept = np.array([name in (overlapping_tokens or ()) for name in names])
    if out[~kept].any():
        raise ValueError("target_matrix must be 0 where overlapping_tokens has no token")
    targets = np.asarray(target_subword_embeddings)
    similar = ~kept & (targets != 0).any(1)
    random = ~kept & ~similar
    draws = np.random.RandomState(SEED).normal(source_matrix.mean(0), source_matrix.std(0), (size, width))
    out[random] = draws[random]
    if similar.any():
        scores, among = nearest(
            *(torch.from_numpy(np.asarray(v, dtype=np.float64)) for v in (targets[similar], source_subword_embeddings)),
            neighbors,
            published=True,
        )
        out[similar] = mixed_rows(source_matrix, among, torch.softmax(scores / temperature, dim=1))
    not_found = {index: names[index] for index in np.flatnonzero(random).tolist()}
    return out, not_found, {index: names[index] for index in np.flatnonzero(~random).tolist()}


def run_ofa(args, multilingual_embeddings, source_tokenizer, target_tokenizer, source_embeddings) -> None:
    """All steps, and the files of each rank in ``args.keep_dim`` if ``args.do_save``: ``initialize(parity=True)``.

    ``args`` has ``source_language_set``, ``target_language_set``, ``keep_dim`` (Python literals as text),
    ``max_n_word_vectors``, ``neighbors``, ``temperature``, ``do_save``, ``save_path`` and ``source_model_name``. As
    published, folders are ``save_path`` + ``xlm_all_100`` and so on; other models than the two go by their own names.
    """
    words = multilingual_embeddings
    words = WordVectors.from_keys(
        words.get_words()[: args.max_n_word_vectors], words.vectors[: args.max_n_word_vectors]
    )
    source, target = (ast.literal_eval(codes) for codes in (args.source_language_set, args.target_language_set))
    ranks = ast.literal_eval(args.keep_dim)
    results = initialize(
        source_embeddings,
        source_tokenizer,
        target_tokenizer,
        words,
        rank=list(ranks),
        neighbors=args.neighbors,
        temperature=args.temperature,
        parity=True,
        source_languages=source,
        target_languages=target,
    )
    if not args.do_save:
        return
    of_languages = "all" if source is None else "eng" if set(source) == {"eng"} else "unk"
    for rank, result in zip(ranks, results, strict=True):
        result.write(f"{args.save_path}{_name(args.source_model_name)}_{of_languages}_{rank}", export_npy=True)


def run_random_init(source_model_name, source_tokenizer, target_tokenizer, source_embeddings, save_path="") -> None:
    """The paper's baseline, where rows that no token shares are random: the files of ``save_path`` + ``xlm_rand``."""
    result = initialize(
        source_embeddings, source_tokenizer, target_tokenizer, None, rank=None, method="random", parity=True
    )
    result.write(f"{save_path}{_name(source_model_name)}_rand", export_npy=True)


def _name(model: str) -> str:
    return _NAMES.get(model, Path(model).name)
