"""Word vectors of many languages in one space, from nothing but text whose lines are translations of each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tqdm import tqdm

from ofa_fast._text import read_lines
from ofa_fast.initialization.word_alignment import LineCounts, align_words
from ofa_fast.initialization.word_graph import (
    Sparse,
    follow_concepts,
    meet_words,
    read_colexification,
    unit,
    walk,
    weigh_links,
)
from ofa_fast.initialization.word_vectors import WordVectors
from ofa_fast.initialization.words import CASES, WordSplitter, written_forms
from ofa_fast.ops import truncated_svd

Texts = Mapping[str, str | os.PathLike]
METHODS = ("lines", "graph")
_MERGED = "<range>"
_OVERSAMPLING = 24
_POWER_ITERATIONS = 4


def build_word_vectors(
    files: Texts | Sequence[Texts],
    dim: int = 200,
    *,
    lines: Sequence[int] | Sequence[bool] | np.ndarray | None = None,
    min_count: int = 2,
    case: str = "natural",
    ngrams: int = 3,
    pivot: str | None = None,
    iterations: int = 5,
    method: str = "lines",
    colexification: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = False,
) -> WordVectors:
    """Vectors of all words of line-aligned text, [W, dim], close for words that stand in the same lines.

    A word w of any language is described by the lines l in which it stands (sentence identifiers as the signal that all
    languages share: Levy, Søgaard & Goldberg, EACL 2017), weighted by positive pointwise mutual information and reduced
    by a truncated singular value decomposition (Levy, Goldberg & Dagan, TACL 2015, sections 2 and 7):

        M[w, l] = max(0, log(#(w, l) · T / (#(w) · #(l)))),   M ≈ U S Vᵀ,   x(w) = (U S)[w] / ‖(U S)[w]‖

    where #(w, l) counts w in line l, #(w) and #(l) are its sums and T is the sum of all. Words that only accompany each
    other, such as *king* and *Herod*, are close in M. Therefore the words of every other language are linked to those
    of one, the pivot (see ``align_words`` and ``weigh_links``), and drawn to the words that they translate
    (``follow_concepts``); last, the pivot's words are drawn to their translations (``meet_words``). A word that nothing
    links keeps x(w).

    Args:
        files: language code of three characters → UTF-8 text; line i is the same verse or sentence in every file. An
            empty line is absent; ``<range>`` means that the line above covers this one too, and its words then count in
            equal parts in each. Or several such mappings (verses, and bitexts of two languages): their lines follow
            each other, and whatever a language says in any of them is factorised together.
        dim: the dimension of the vectors, at most the number of lines used.
        lines: which lines to use, as a mask over all lines or as indices from 0; all by default. Text that covers a
            line which is not among them is not used at all, so that lines left out are unseen.
        min_count: words that stand less often in their language are left out.
        case: ``"natural"``, ``"lower"`` or ``"keep"``, see ``written_forms``.
        ngrams: where a script has no spaces (Chinese, Thai, …), all substrings of up to so many characters are words.
        pivot: the language whose words the others are linked to; by default English if it is there, else the first.
        iterations: of the word alignment; 0 leaves the links out: vector(w) = x(w).
        method: ``"lines"``; or ``"graph"``, which forgets the lines once words are linked: x(w) is random, and vectors
            are random projections of walks of up to three steps over the graph of words and the pivot's words as
            concepts (the graph of Liu et al. 2023, arXiv 2305.12818; the embedding of Chen et al. 2019, FastRP).
        colexification: a file of edges between English concepts (see ``read_colexification``), one more step of walks.
        seed: of the start of the decomposition.
        progress: show a bar.

    Returns:
        ``WordVectors`` of unit rows in float32, language by language as in ``files``, in each by falling frequency.

    Lines that are present in fewer than two languages are not used. Every run on one machine gives the same result.

    Time and memory grow with the number of words that stand in one line with each other. Twelve languages of the New
    Testament (114,450 words, 7,957 lines) take 17 s of processor time and 814 MB at the peak, torch included; of the
    whole Bible (259,067 words, 31,100 lines) 76 s and 2 GB. The text of one language is in memory at a time.

    Raises:
        ValueError: fewer than two files, a code that has not three characters, files of different length, text that is
            not UTF-8 (with file and line), lines out of range, a language with no words left, too few lines or words
            for ``dim``, or another argument out of its range.
        FileNotFoundError: a file is not there.
    """
    corpora = [files] if isinstance(files, Mapping) else list(files)
    languages = list(dict.fromkeys(code for corpus in corpora for code in corpus))
    pivot = pivot or ("eng" if "eng" in languages else next(iter(languages), None))
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if colexification is not None and pivot != "eng":
        raise ValueError(f"colexification names its concepts in English, but the pivot is {pivot!r}")
    _check_options(languages, dim, min_count, case, ngrams, pivot, iterations)
    counts, kept = _read(corpora, languages, lines, min_count, WordSplitter(ngrams), case, progress)
    words = [word for own in counts.values() for word in own.words]
    codes = [language for language, own in counts.items() for _ in own.words]
    ends = np.cumsum([len(own.words) for own in counts.values()]).tolist()
    rows = {language: slice(end - len(counts[language].words), end) for language, end in zip(counts, ends, strict=True)}
    shape = len(words), kept
    if dim > min(shape):
        raise ValueError(f"dim must be at most {min(shape)}: {shape[0]} words in {shape[1]} lines are left; got {dim}")

    if method == "graph":
        vectors = unit(torch.randn(len(words), dim, generator=torch.Generator().manual_seed(seed)))
    else:
        word = np.concatenate([own.word + rows[language].start for language, own in counts.items()])
        line, count = (np.concatenate([getattr(own, name) for own in counts.values()]) for name in ("line", "count"))
        vectors = unit(_principal_coordinates(*_positive_information(word, line, count), shape, dim, seed, progress))
    concepts = vectors[rows[pivot]]
    if colexification is not None:
        concepts = walk(concepts, read_colexification(colexification, counts[pivot].words))
    if iterations:
        graph = []
        for language, own in tqdm(counts.items(), desc="Aligning words", unit=" languages", disable=not progress):
            if language != pivot:
                edges = weigh_links(own.words, align_words(own, counts[pivot], iterations))
                vectors[rows[language]] = follow_concepts(vectors[rows[language]], concepts, edges)
                graph.append((vectors[rows[language]], edges))
        concepts = meet_words(concepts, graph)
    vectors[rows[pivot]] = concepts
    return WordVectors(words, vectors.numpy(), codes)


def _check_options(
    known: list[str], dim: int, min_count: int, case: str, ngrams: int, pivot: str | None, iterations: int
) -> None:
    if len(known) < 2:
        raise ValueError(f"files must name the texts of at least two languages, got {len(known)}")
    for code in known:
        if len(code) != 3:
            raise ValueError(f"files: a language is a code of three characters such as 'deu', got {code!r}")
    for name, value in (("dim", dim), ("min_count", min_count), ("ngrams", ngrams)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if pivot not in known:
        raise ValueError(f"pivot must be one of {', '.join(known)}, got {pivot!r}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    if case not in CASES:
        raise ValueError(f"case must be one of {', '.join(CASES)}, got {case!r}")


def _read(
    corpora: list[Texts],
    languages: list[str],
    lines: Sequence | np.ndarray | None,
    min_count: int,
    split: WordSplitter,
    case: str,
    progress: bool,
) -> tuple[dict[str, LineCounts], int]:
    """The counts of each language over the lines that are used, numbered anew, and how many these are."""
    texts: dict[str, tuple[np.ndarray, LineCounts]] = {}
    lengths = [_length(corpus) for corpus in corpora]
    total = sum(lengths)
    used = _line_mask(lines, total)
    for language in tqdm(languages, desc="Counting words", unit=" languages", disable=not progress):
        text: list[str] = []
        for corpus, length in zip(corpora, lengths, strict=True):
            own = list(read_lines(corpus[language], f"files[{language!r}]")) if language in corpus else [""] * length
            if len(own) != length:
                path = corpus[language]
                raise ValueError(f"files[{language!r}]: {path} has {len(own)} lines, but the first file has {length}")
            # The first line of a text covers nothing of the text before it.
            text += ["" if own[:1] == [_MERGED] else own[0], *own[1:]] if own else []
        texts[language] = _count_words(text, used, split, case)
    kept = np.flatnonzero(sum(covered.astype(np.int64) for covered, _ in texts.values()) >= 2)
    if len(kept) == 0:
        raise ValueError("files: no line that is used is present in two languages")
    position = np.full(total, -1)
    position[kept] = np.arange(len(kept))
    counts = {language: _frequent(own, position, min_count) for language, (_, own) in texts.items()}
    for language, own in counts.items():
        if not own.words:
            raise ValueError(f"files[{language!r}]: no word stands {min_count} times in the lines that are used")
    return counts, len(kept)


def _length(corpus: Texts) -> int:
    language, path = next(iter(corpus.items()))
    return sum(1 for _ in read_lines(path, f"files[{language!r}]"))


def _line_mask(lines: Sequence | np.ndarray | None, total: int) -> np.ndarray:
    if lines is None:
        return np.ones(total, dtype=bool)
    chosen = np.asarray(lines)
    if chosen.dtype == bool:
        if chosen.shape != (total,):
            raise ValueError(f"lines: a mask over {total} lines is needed, got the shape {chosen.shape}")
        return chosen
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ValueError(f"lines must be a mask or indices, got {chosen.dtype} {chosen.shape}")
    if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < total:
        raise ValueError(f"lines must be from 0 to {total - 1}, got {chosen.min()} to {chosen.max()}")
    mask = np.zeros(total, dtype=bool)
    mask[chosen.astype(np.int64)] = True
    return mask


def _count_words(text: list[str], used: np.ndarray, split: WordSplitter, case: str) -> tuple[np.ndarray, LineCounts]:
    """Which lines the language covers, and its counts; words of text that covers n lines count 1/n in each."""
    covered = np.zeros(len(text), dtype=bool)
    spellings: dict[str, int] = {}
    tokens: list[int] = []
    spans: list[tuple[int, int, int]] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and text[end] == _MERGED:
            end += 1
        if text[start] and text[start] != _MERGED and used[start:end].all():
            before = len(tokens)
            tokens += [spellings.setdefault(word, len(spellings)) for word in split(text[start])]
            spans.append((start, end, len(tokens) - before))
            covered[start:end] = True
        start = end
    token = np.array(tokens, dtype=np.int64)
    first, last, size = np.array(spans, dtype=np.int64).reshape(-1, 3).T

    counts = np.bincount(token, minlength=len(spellings))
    forms = written_forms(dict(zip(spellings, counts.tolist(), strict=True)), case)
    index: dict[str, int] = {}
    stored = [index.setdefault(forms[spelling], len(index)) for spelling in spellings]

    span = np.repeat(np.arange(len(first)), size)
    height = (last - first)[span]
    word = np.repeat(np.array(stored, dtype=np.int64)[token], height)
    step = np.arange(len(word)) - np.repeat(np.cumsum(height) - height, height)
    line = np.repeat(first[span], height) + step
    pair, inverse = np.unique(word * len(text) + line, return_inverse=True)
    count = np.bincount(inverse, weights=np.repeat(1.0 / height, height), minlength=len(pair))
    return covered, LineCounts(list(index), pair // max(1, len(text)), pair % max(1, len(text)), count)


def _frequent(counts: LineCounts, position: np.ndarray, min_count: int) -> LineCounts:
    """The words that stand at least ``min_count`` times in the lines kept, the most frequent first."""
    line = position[counts.line]
    kept = line >= 0
    word, line, count = counts.word[kept], line[kept], counts.count[kept]
    total = np.bincount(word, weights=count, minlength=len(counts.words))
    # A word of merged lines counts in fractions, whose sum may fall short by rounding.
    chosen = np.flatnonzero(total > min_count - 1e-6).tolist()
    chosen.sort(key=lambda index: (-round(total[index], 6), counts.words[index]))
    rank = np.full(len(counts.words), -1)
    rank[chosen] = np.arange(len(chosen))
    word = rank[word]
    kept = word >= 0
    return LineCounts([counts.words[index] for index in chosen], word[kept], line[kept], count[kept])


def _positive_information(
    word: np.ndarray, line: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The positive entries of M, as (word, line, value)."""
    of_word, of_line = np.bincount(word, weights=count), np.bincount(line, weights=count)
    value = np.log(count * count.sum() / (of_word[word] * of_line[line]))
    positive = value > 0
    return word[positive], line[positive], value[positive]


def _principal_coordinates(
    row: np.ndarray,
    column: np.ndarray,
    value: np.ndarray,
    shape: tuple[int, int],
    dim: int,
    seed: int,
    progress: bool,
) -> torch.Tensor:
    """U S of the leading ``dim`` triples of a sparse matrix M, [rows, dim].

    A subspace of a few more dimensions than asked for is turned towards the leading one by products with MᵀM (Halko,
    Martinsson & Tropp, SIAM Review 2011, algorithm 4.4); the decomposition inside it is dense and exact.
    """
    matrix, transposed = Sparse.of(row, column, value, shape[0]), Sparse.of(column, row, value, shape[1])
    width = min(dim + _OVERSAMPLING, *shape)
    subspace = torch.randn(shape[1], width, generator=torch.Generator().manual_seed(seed))
    for _ in tqdm(range(_POWER_ITERATIONS), desc="Decomposing", disable=not progress):
        subspace = torch.linalg.qr(transposed @ (matrix @ subspace)).Q
    u, s, _ = truncated_svd(matrix @ subspace, dim)
    return u * s
