"""FOCUS as the package ``deepfocus`` 1.0.1 offers it: ``from ofa_fast.compat.deepfocus import FOCUS``.

Source: Dobler & de Melo 2023 (arXiv 2305.14481).
"""

from __future__ import annotations

import hashlib
import os
import re
import string
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ofa_fast._files import atomic_file
from ofa_fast._text import read_lines
from ofa_fast.compat._shared import cache_folder, fasttext_file
from ofa_fast.initialization.fasttext import FastText
from ofa_fast.initialization.methods import sparsemax
from ofa_fast.initialization.tokenization import sha256
from ofa_fast.ops import topk_similarity

CACHE_DIR = cache_folder("deepfocus")
MODES = ("fasttext-tokenlevel", "fasttext-wordlevel")
SHARED = 256  # tokens among which weights are looked for first; all in the end where these do not bound them
ROWS_PER_CHUNK = 4096
LINES_PER_BATCH = 1024


@torch.no_grad()
def FOCUS(
    target_tokenizer,
    source_tokenizer,
    source_embeddings: torch.Tensor,
    auxiliary_embedding_mode: str = "fasttext-tokenlevel",
    target_training_data_path: str | None = None,
    fasttext_model_path: str | None = None,
    language_identifier: str | None = None,
    fasttext_model_epochs: int = 3,
    fasttext_model_dim: int = 100,
    fasttext_model_min_count: int = 10,
    exact_match_all: bool = True,
    match_symbols: bool = False,
    fuzzy_match_all: bool = False,
    extend_tokenizer=None,
    processes: int | None = None,
    seed: int = 42,
    device: str | torch.device = "cpu",
    verbosity: str = "info",
) -> torch.Tensor:
    """The table of ``target_tokenizer``, [V, D]: shared tokens copied, the others mixed from these by sparsemax(cos).

    Args:
        target_tokenizer, source_tokenizer: Hugging Face tokenizers.
        source_embeddings: [Vs, D].
        auxiliary_embedding_mode: whence the static vectors of the target's tokens come: "fasttext-tokenlevel", a
            fastText model of text in its tokens (``fasttext_model_path``, or trained on ``target_training_data_path``,
            for which the package ``fasttext`` must be there); "fasttext-wordlevel", the model of words of
            ``language_identifier`` (a code, or a file).
        fasttext_model_epochs, fasttext_model_dim, fasttext_model_min_count: of the training.
        exact_match_all, match_symbols, fuzzy_match_all: what is shared: all equal tokens; equal numbers, punctuation
            and special tokens; tokens that are equal without case and spaces.
        extend_tokenizer: the tokenizer of the target language whose tokens ``target_tokenizer`` was extended with; only
            these are mixed from.
        processes: threads of the training, by default all.
        seed: of rows without a vector, which are drawn from N(mean, std) of the columns.
        device: where it is computed.
        verbosity: "silent" shows no progress bar.

    Raises:
        ValueError: a mode without its file or language, or a shared token is needed and there is none.
        ImportError: training without ``fasttext``.

    Peak extra memory: O(V d), not the cosines of all pairs.
    """
    tokenizer = extend_tokenizer or target_tokenizer
    progress = verbosity != "silent"
    if auxiliary_embedding_mode not in MODES:
        raise ValueError(
            f"auxiliary_embedding_mode must be one of {', '.join(MODES)}, got {auxiliary_embedding_mode!r}"
        )
    if auxiliary_embedding_mode == "fasttext-wordlevel":
        if not language_identifier:
            raise ValueError("language_identifier is None: fasttext-wordlevel needs a language code such as 'de'")
        vector_of = _word_level(tokenizer, language_identifier)
    elif fasttext_model_path or target_training_data_path:
        path = fasttext_model_path or trained_model(
            target_training_data_path,
            tokenizer,
            fasttext_model_epochs,
            fasttext_model_dim,
            fasttext_model_min_count,
            processes,
            progress,
        )
        vector_of = _token_level(FastText(path))
    else:
        raise ValueError("fasttext-tokenlevel needs target_training_data_path or fasttext_model_path")

    sources = shared_tokens(target_tokenizer, source_tokenizer, match_symbols, exact_match_all, fuzzy_match_all)
    names = target_tokenizer.get_vocab()
    tokens = sorted(names, key=names.__getitem__)
    ids = torch.tensor([names[token] for token in tokens])
    vectors = torch.from_numpy(vector_of(tokens)).to(device)
    usable = vectors.abs().sum(1) != 0
    sources = torch.tensor([sources.get(token, -1) for token in tokens])
    shared = sources >= 0
    mixed_from = shared & usable.cpu()
    if extend_tokenizer is not None:
        # As published, its token of id 0 counts as none of its own.
        own = extend_tokenizer.get_vocab()
        mixed_from &= torch.tensor([bool(own.get(token)) for token in tokens])

    table = source_embeddings.detach().to(device)
    out = torch.zeros(len(target_tokenizer), table.shape[1], device=device)
    out[ids[shared]] = table[sources[shared]].to(out.dtype)
    mean, std = table.mean(dim=0), table.std(dim=0)
    generator = torch.Generator(device=device).manual_seed(seed)
    for index in ids[~shared & ~usable.cpu()].tolist():
        out[index] = torch.normal(mean, std, generator=generator)
    new = ~shared & usable.cpu()
    if new.any():
        if not mixed_from.any():
            raise ValueError(
                "the tokenizers share no token that has a vector, so there is nothing to mix the others from"
            )
        out[ids[new]] = _mixed(vectors[new], vectors[mixed_from], table[sources[mixed_from]], progress).to(out.dtype)
    return out


def _mixed(queries: torch.Tensor, keys: torch.Tensor, rows: torch.Tensor, progress: bool) -> torch.Tensor:
    """sparsemax(cos(query, key)) @ rows. Keys beyond those of a weight are cut off once a weight of 0 bounds them."""
    out = rows.new_empty(len(queries), rows.shape[1])
    with tqdm(total=len(queries), desc="FOCUS", disable=not progress) as bar:
        for begin in range(0, len(queries), ROWS_PER_CHUNK):
            chunk = torch.arange(begin, min(begin + ROWS_PER_CHUNK, len(queries)), device=queries.device)
            bar.update(len(chunk))
            k = min(SHARED, len(keys))
            while len(chunk):
                scores, among = topk_similarity(queries[chunk], keys, k)
                # Cumulative sums on a GPU are not deterministic.
                weights = sparsemax(scores.cpu().double()).to(rows.device)
                bounded = (weights[:, -1] == 0) if k < len(keys) else torch.ones_like(chunk, dtype=torch.bool)
                out[chunk[bounded]] = torch.nn.functional.embedding_bag(
                    among[bounded], rows, per_sample_weights=weights[bounded].to(rows.dtype), mode="sum"
                )
                chunk, k = chunk[~bounded], min(4 * k, len(keys))
    return out


def _token_level(model: FastText) -> Callable[[list[str]], np.ndarray]:
    def vectors(tokens: list[str]) -> np.ndarray:
        known = model.index(tokens) >= 0
        out = np.zeros((len(tokens), model.dim), dtype=np.float32)
        out[known] = model.vectors([token for token, is_known in zip(tokens, known, strict=True) if is_known])
        return out

    return vectors


def _word_level(tokenizer, language: str) -> Callable[[list[str]], np.ndarray]:
    model, ids = FastText(fasttext_file(language, CACHE_DIR / "pretrained_fasttext")), tokenizer.get_vocab()

    def vectors(tokens: list[str]) -> np.ndarray:
        known = [token in ids for token in tokens]
        texts = tokenizer.batch_decode([[ids[token]] if token in ids else [] for token in tokens])
        return model.vectors([text.strip() for text in texts]) * np.array(known)[:, None]

    return vectors


def trained_model(
    text_path: str, tokenizer, epochs: int, dim: int, min_count: int, processes: int | None, progress: bool
) -> Path:
    """A fastText model of the text's tokens, trained as published or found in the cache of models that were.

    Raises:
        ImportError: it is not in the cache, and ``fasttext`` is not installed.
    """
    text = Path(text_path)
    digest = hashlib.sha256(f"{sha256(tokenizer)} {epochs} {dim} {min_count}".encode())
    with open(text, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    path = CACHE_DIR / "fasttext" / f"{digest.hexdigest()}.bin"
    if path.exists():
        return path
    try:
        import fasttext
    except ImportError:
        raise ImportError(
            "target_training_data_path: training a fastText model needs the package fasttext: "
            "pip install 'ofa-fast[fasttext]'; or pass fasttext_model_path"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as tokens, atomic_file(path) as work:
        lines = tqdm(_lines(text), desc="Tokenising the text", disable=not progress)
        names = np.array(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), dtype=object)
        while batch := list(islice(lines, LINES_PER_BATCH)):
            for row in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                tokens.write(" ".join(names[row]) + "\n")
        tokens.flush()
        model = fasttext.train_unsupervised(
            tokens.name,
            dim=dim,
            neg=10,
            model="cbow",
            epoch=epochs,
            thread=processes or os.cpu_count(),
            minCount=min_count,
            verbose=2 if progress else 0,
        )
        model.save_model(str(work))
    return path


def _lines(path: Path) -> Iterable[str]:
    if path.suffix in (".json", ".jsonl"):
        import json

        return (json.loads(line)["text"] for line in read_lines(path, "target_training_data_path") if line)
    return read_lines(path, "target_training_data_path")


def _canonical(tokenizer, vocabulary: dict[str, int]) -> dict[str, str]:
    """Each token in order of its id, and its text with ``▁`` where a word begins."""
    ids = sorted(vocabulary.values())
    tokens = tokenizer.convert_ids_to_tokens(ids)
    texts = tokenizer.batch_decode([[i] for i in ids])
    if sum(token.startswith("▁") for token in vocabulary) > 100:
        mark = "▁"
    elif sum(token.startswith("##") for token in vocabulary) > 100:
        return {t: x[2:] if x.startswith("##") else f"▁{x}" for t, x in zip(tokens, texts, strict=True)}
    else:
        mark = "Ġ"
    forms = {t: f"{'▁' * t.startswith(mark)}{x.lstrip()}" for t, x in zip(tokens, texts, strict=True)}
    if mark == "▁":
        forms |= {t: t for t in tokens if re.match("<0x[0-9,A-F]{2}>", t)}
    return forms


def _fuzzy(form: str) -> str:
    return form.replace("▁", "").lower()


def shared_tokens(
    target_tokenizer, source_tokenizer, match_symbols: bool, exact_match_all: bool, fuzzy_match_all: bool
) -> dict[str, int]:
    """The source id of each shared token of the target, by the token's name.

    Of source tokens with one text the last is taken; of those that are equal without case and spaces, the last that
    is written so, else the first.
    """
    source_vocabulary = source_tokenizer.get_vocab()
    exact: dict[str, int] = {}
    fuzzy: dict[str, int] = {}
    for token, form in _canonical(source_tokenizer, source_vocabulary).items():
        exact[form] = source_vocabulary[token]
        if _fuzzy(form) == form:
            fuzzy[form] = source_vocabulary[token]
        else:
            fuzzy.setdefault(_fuzzy(form), source_vocabulary[token])
    special = set(target_tokenizer.all_special_tokens)
    shared = {}
    for token, form in _canonical(target_tokenizer, target_tokenizer.get_vocab()).items():
        loose = _fuzzy(form)
        if match_symbols and (loose in special or _is_symbol(loose)) and (form in exact or loose in fuzzy):
            shared[token] = exact[form] if form in exact else fuzzy[loose]
        elif exact_match_all and form in exact:
            shared[token] = exact[form]
        elif fuzzy_match_all and loose in fuzzy:
            shared[token] = fuzzy[loose]
    return shared


def _is_symbol(text: str) -> bool:
    return text.isnumeric() or text.isspace() or all(character in string.punctuation for character in text)
