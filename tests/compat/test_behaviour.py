"""What the drop-in modules do beyond the results of the tools: inputs they take, files they fetch, what they refuse."""

from __future__ import annotations

import gzip
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from ofa_fast.compat import _shared, deepfocus, ofa, wechsel
from ofa_fast.initialization import WordVectors, initialize

GOLDEN = Path(__file__).parent / "golden"
DIM = 16


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    unknown = {"source": "[UNK]", "byte-level": "<s>", "unigram": "<unk>"}[name]
    return PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / f"{name}.json"), unk_token=unknown)


@pytest.fixture(scope="module")
def words() -> WordVectors:
    model = wechsel.load_embeddings(str(GOLDEN / "eng.bin"))
    return WordVectors(model.words[:300], model.vectors(model.words[:300]), "eng")


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((len(tokenizer("source")), DIM), dtype=np.float32)


def test_wechsel_takes_word_vectors_and_gensim_alike(words, table):
    gensim = pytest.importorskip("gensim.models")
    keyed = gensim.KeyedVectors(words.vectors.shape[1])
    keyed.add_vectors(words.words, words.vectors)
    by_model = []
    for model in (words, keyed, SimpleNamespace(wv=keyed)):
        tool = wechsel.WECHSEL(model, model, align_strategy=None)
        by_model.append(tool.apply(tokenizer("source"), tokenizer("unigram"), table, use_subword_info=False)[0])
        with pytest.raises(ValueError, match="use_subword_info=True needs a fastText model"):
            tool.apply(tokenizer("source"), tokenizer("unigram"), table)
    assert np.array_equal(by_model[0], by_model[1]) and np.array_equal(by_model[0], by_model[2])


def test_wechsel_refuses_what_it_cannot_use(words, tmp_path):
    short = WordVectors(words.words, words.vectors[:, :4], "eng")
    with pytest.raises(ValueError, match="source_embeddings have 8 dimensions, target_embeddings 4"):
        wechsel.WECHSEL(words, short, align_strategy=None)
    with pytest.raises(ValueError, match="ndarray is no fastText model"):
        wechsel.WECHSEL(words.vectors, words)
    with pytest.raises(ValueError, match="align_strategy must be \"bilingual_dictionary\" or None, got 'cca'"):
        wechsel.WECHSEL(words, words, align_strategy="cca")
    with pytest.raises(ValueError, match="bilingual_dictionary is None"):
        wechsel.WECHSEL(words, words)
    (tmp_path / "bad.txt").write_text("god\tgott\none two three\n", "utf-8")
    with pytest.raises(ValueError, match=r"bad.txt, line 2: expected two words"):
        wechsel.WECHSEL(words, words, bilingual_dictionary=str(tmp_path / "bad.txt"))
    (tmp_path / "none.txt").write_text("zyx\txyz\n", "utf-8")
    with pytest.raises(ValueError, match="of no pair are both words"):
        wechsel.WECHSEL(words, words, bilingual_dictionary=str(tmp_path / "none.txt"))


def test_a_language_code_is_fetched_once(tmp_path, monkeypatch):
    folder, cache = tmp_path / "there", tmp_path / "cache"
    folder.mkdir()
    (folder / "cc.de.300.bin.gz").write_bytes(gzip.compress((GOLDEN / "deu.bin").read_bytes()))
    monkeypatch.setattr(_shared, "_FASTTEXT", folder.as_uri())
    monkeypatch.setattr(wechsel, "CACHE_DIR", cache)
    first = wechsel.load_embeddings("de")
    (folder / "cc.de.300.bin.gz").unlink()
    assert wechsel.load_embeddings("de").words == first.words
    with pytest.raises(OSError):
        wechsel.load_embeddings("xx")
    assert [path.name for path in cache.iterdir()] == ["cc.de.300.bin"]


def test_focus_trains_with_fasttext_or_says_how_to_get_it(table, tmp_path, monkeypatch):
    monkeypatch.setattr(deepfocus, "CACHE_DIR", tmp_path / "cache")
    text = tmp_path / "text.txt"
    text.write_text("im anfang schuf gott himmel und erde\n" * 3, "utf-8")
    arguments = (tokenizer("unigram"), tokenizer("source"), torch.from_numpy(table))
    options = {"target_training_data_path": str(text), "verbosity": "silent"}
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(ImportError, match=r"pip install 'ofa-fast\[fasttext\]'; or pass fasttext_model_path"):
        deepfocus.FOCUS(*arguments, **options)

    calls = []

    def train(file: str, **given):
        calls.append((Path(file).read_text("utf-8").splitlines(), given))
        return SimpleNamespace(
            save_model=lambda path: Path(path).write_bytes((GOLDEN / "unigram.tokens.bin").read_bytes())
        )

    monkeypatch.setitem(sys.modules, "fasttext", SimpleNamespace(train_unsupervised=train))
    made = deepfocus.FOCUS(*arguments, **options)
    assert torch.equal(made, deepfocus.FOCUS(*arguments, **options))
    lines, given = calls.pop()
    assert not calls  # the second call found the model
    assert lines == [" ".join(arguments[0].tokenize("im anfang schuf gott himmel und erde"))] * 3
    assert {key: given[key] for key in ("dim", "neg", "model", "epoch", "minCount")} == {
        "dim": 100,
        "neg": 10,
        "model": "cbow",
        "epoch": 3,
        "minCount": 10,
    }
    expected = deepfocus.FOCUS(*arguments, fasttext_model_path=str(GOLDEN / "unigram.tokens.bin"), verbosity="silent")
    assert torch.equal(made, expected)


def test_focus_takes_a_device(device, table):
    arguments = (tokenizer("unigram"), tokenizer("source"), torch.from_numpy(table))
    options = {"fasttext_model_path": str(GOLDEN / "unigram.tokens.bin"), "verbosity": "silent"}
    expected, other_draws, got = (
        deepfocus.FOCUS(*arguments, **options, **more) for more in ({}, {"seed": 1}, {"device": device})
    )
    made = (expected == other_draws).all(1)  # and not drawn, which a GPU does otherwise
    assert got.device.type == device and made.any()
    torch.testing.assert_close(got.cpu()[made], expected[made], rtol=1e-4, atol=1e-5)


def test_focus_weighs_all_shared_tokens_however_many_are_searched_first(table, monkeypatch):
    arguments = (tokenizer("unigram"), tokenizer("source"), torch.from_numpy(table))
    options = {"fasttext_model_path": str(GOLDEN / "unigram.tokens.bin"), "verbosity": "silent"}
    expected = deepfocus.FOCUS(*arguments, **options)
    monkeypatch.setattr(deepfocus, "SHARED", 2)
    torch.testing.assert_close(deepfocus.FOCUS(*arguments, **options), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auxiliary_embedding_mode": "word2vec"}, "auxiliary_embedding_mode must be one of"),
        ({"auxiliary_embedding_mode": "fasttext-wordlevel"}, "language_identifier is None"),
        ({}, "fasttext-tokenlevel needs target_training_data_path or fasttext_model_path"),
    ],
)
def test_focus_refuses_what_it_cannot_use(table, options, message):
    with pytest.raises(ValueError, match=message):
        deepfocus.FOCUS(tokenizer("unigram"), tokenizer("source"), torch.from_numpy(table), **options)


def test_run_ofa_writes_the_published_files(words, table, tmp_path):
    args = Namespace(
        source_language_set="None",
        target_language_set="{'eng'}",
        keep_dim="[4,16]",
        max_n_word_vectors=200,
        neighbors=10,
        temperature=0.1,
        do_save=True,
        save_path=f"{tmp_path}/",
        source_model_name="xlm-roberta-base",
    )
    both = tokenizer("source"), tokenizer("unigram")
    ofa.run_ofa(args, ofa.WordEmbedding(words), *both, table)
    few = WordVectors.from_keys(words.keys[:200], words.vectors[:200])
    expected = initialize(table, *both, few, rank=[4, 16], parity=True, target_languages=["eng"])
    for rank, result in zip((4, 16), expected, strict=True):
        folder = tmp_path / f"xlm_all_{rank}"
        np.testing.assert_array_equal(np.load(folder / "target_matrix.npy"), result.coordinates.numpy())
        assert (folder / "primitive_embeddings.npy").exists() == (rank == 4)
    ofa.run_random_init("some/model", *both, table, save_path=f"{tmp_path}/")
    drawn = initialize(table, *both, None, rank=None, method="random", parity=True).coordinates.numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "model_rand" / "target_matrix.npy"), drawn)


def test_ofa_refuses_what_it_cannot_use(words, table):
    with pytest.raises(ValueError, match="ndarray is neither KeyedVectors nor WordVectors"):
        ofa.WordEmbedding(words.vectors)
    two = WordVectors.from_keys(["deu:$a:b$"], words.vectors[:1])
    with pytest.raises(ValueError, match=r"the key 'deu:\$a:b\$' has a second colon"):
        ofa.get_subword_embeddings_in_word_embedding_space(tokenizer("source"), ofa.WordEmbedding(two))
    both, vectors = (tokenizer("source"), tokenizer("unigram")), np.ones((800, 2))
    with pytest.raises(ValueError, match=r"target_matrix must be \[800, 16\], got \[3, 16\]"):
        ofa.create_target_embeddings(vectors, vectors, *both, table, table[:3], {}, {})
    with pytest.raises(ValueError, match="target_matrix must be 0 where overlapping_tokens has no token"):
        ofa.create_target_embeddings(vectors, vectors, *both, table, np.ones((800, DIM)), {}, {})
