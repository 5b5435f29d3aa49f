"""The drop-in modules give what the published tools gave on the same inputs; ``make_golden.py`` ran those."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from ofa_fast.compat import ofa
from ofa_fast.compat.deepfocus import FOCUS
from ofa_fast.compat.wechsel import WECHSEL, load_embeddings
from ofa_fast.initialization import WordVectors

GOLDEN = Path(__file__).parent / "golden"
DIM = 16
FLOAT32 = 5e-4  # the published alignment is a float32 SVD of a product whose singular values differ much; ours float64
TARGETS = ("byte-level", "unigram")
ROLES = {
    "source": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "byte-level": {"bos_token": "<s>", "unk_token": "<s>", "mask_token": "[MASK]"},
    "unigram": {"unk_token": "<unk>", "sep_token": "[SEP]"},
}


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as arrays:
        return dict(arrays)


def said(array: np.ndarray):
    return json.loads(str(array))


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / f"{name}.json"), **ROLES[name])


def source_matrix() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((len(tokenizer("source")), DIM), dtype=np.float32)


def spaces() -> list:
    return [load_embeddings(str(GOLDEN / f"{code}.bin")) for code in ("eng", "deu")]


def test_wechsel_aligns(expected):
    align = WECHSEL(*spaces(), bilingual_dictionary=str(GOLDEN / "dictionary.txt")).source_transform
    np.testing.assert_allclose(align(np.eye(DIM // 2)), expected["wechsel/align"], atol=FLOAT32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kind", "aligned", "options"),
    [
        ("subword", True, {}),
        ("words", True, {"use_subword_info": False}),
        ("plain", False, {"use_subword_info": False, "neighbors": 4, "temperature": 1, "max_n_word_vectors": 200}),
    ],
)
def test_wechsel(expected, target, kind, aligned, options):
    how = {"bilingual_dictionary": str(GOLDEN / "dictionary.txt")} if aligned else {"align_strategy": None}
    table, info = WECHSEL(*spaces(), **how).apply(tokenizer("source"), tokenizer(target), source_matrix(), **options)
    key = f"wechsel/{target}/{kind}"
    names, missing, source_words, target_words = said(expected[f"{key}/info"])
    assert list(info.sources) == names
    assert info.not_found == missing
    assert info.source_subword_sources == source_words
    assert info.target_subword_sources == target_words
    assert table.dtype == np.float32
    cosines = np.stack([of_token[2] for of_token in info.sources.values()])
    np.testing.assert_allclose(cosines, expected[f"{key}/cosines"], atol=FLOAT32)
    # Of two neighbours that are equally near to float32, either may be the tenth.
    sources = zip(info.sources.values(), said(expected[f"{key}/tokens"]), strict=True)
    same = np.array([set(mine[0]) == set(theirs) for mine, theirs in sources])
    assert same.mean() > 0.99
    other = np.array(tokenizer(target).convert_tokens_to_ids(names))[~same]
    table, published = (np.delete(rows, other, axis=0) for rows in (table, expected[f"{key}/table"]))
    np.testing.assert_allclose(table, published, atol=2e-3 if aligned else 1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["default", "symbols", "fuzzy", "words", "extended"])
def test_focus(expected, target, kind):
    other = TARGETS[1 - TARGETS.index(target)]
    tokens = {"fasttext_model_path": str(GOLDEN / f"{target}.tokens.bin")}
    options = {
        "default": tokens,
        "symbols": tokens | {"exact_match_all": False, "match_symbols": True, "fuzzy_match_all": True},
        "fuzzy": tokens | {"fuzzy_match_all": True, "seed": 7},
        "words": {
            "auxiliary_embedding_mode": "fasttext-wordlevel",
            "language_identifier": str(GOLDEN / "deu.bin"),
        },
        "extended": tokens | {"extend_tokenizer": tokenizer(other)},
    }[kind]
    table = torch.from_numpy(source_matrix())
    got = FOCUS(tokenizer(target), tokenizer("source"), table, verbosity="silent", **options)
    np.testing.assert_allclose(got.numpy(), expected[f"focus/{target}/{kind}"], atol=1e-4)


def published_words(expected) -> ofa.WordEmbedding:
    return ofa.WordEmbedding(WordVectors.from_keys(said(expected["ofa/keys"]), expected["ofa/vectors"]))


@pytest.mark.parametrize("name", ["source", *TARGETS])
def test_ofa_subword_vectors(expected, name):
    vectors, sources, missing = ofa.get_subword_embeddings_in_word_embedding_space(
        tokenizer(name),
        published_words(expected),
        languages_considered={"deu", "eng"} if name == "source" else None,
        return_not_covered_set=True,
    )
    np.testing.assert_array_equal(vectors, expected[f"ofa/{name}/vectors"])
    assert [sources, sorted(missing)] == said(expected[f"ofa/{name}/sources"])


def test_ofa_factors(expected):
    basis, coordinates = ofa.perform_factorize(source_matrix(), keep_dim=6)
    np.testing.assert_allclose(coordinates @ basis, expected["ofa/product"], atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("fuzzy", "spaces"), [(True, False), (False, False), (True, True)])
def test_ofa_overlap(expected, target, fuzzy, spaces):
    found = ofa.get_overlapping_tokens(tokenizer(target), tokenizer("source"), fuzzy, spaces)
    same = {name: list(ids) for name, ids in found.items()}
    assert same == said(expected[f"ofa/{target}/overlap/{fuzzy:d}{spaces:d}"])


@pytest.mark.parametrize("target", TARGETS)
def test_ofa_table(expected, target):
    found = ofa.get_overlapping_tokens(tokenizer(target), tokenizer("source"))
    start = np.zeros((len(tokenizer(target)), DIM), dtype=np.float32)
    for index, original in found.values():
        start[index] = source_matrix()[original]
    vectors = expected["ofa/source/vectors"], expected[f"ofa/{target}/vectors"]
    table, missing, kept = ofa.create_target_embeddings(
        *vectors, tokenizer("source"), tokenizer(target), source_matrix(), start, found, {}
    )
    np.testing.assert_allclose(table, expected[f"ofa/{target}/table"], atol=1e-5)
    assert json.loads(json.dumps([missing, kept])) == said(expected[f"ofa/{target}/found"])
