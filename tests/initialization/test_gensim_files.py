"""Files of gensim and fastText: the same vectors as theirs, and a pickle that runs nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from gensim.models import FastText, KeyedVectors
from gensim.models.fasttext import load_facebook_vectors, save_facebook_model

from ofa_fast.initialization import WordVectors

WORDS = ["water", "Brot", "été", "вода", "ᎠᎹ", "ⲙⲱⲟⲩ", "नमस्ते", "耶稣", "it's", "12:30"]
VECTORS = np.random.default_rng(7).standard_normal((len(WORDS), 6)).astype(np.float32)


def keyed_vectors() -> KeyedVectors:
    saved = KeyedVectors(VECTORS.shape[1])
    saved.add_vectors(WORDS, VECTORS)
    return saved


def test_gensim_arrays_saved_beside_the_file_are_mapped(tmp_path):
    path = tmp_path / "split.wv"
    keyed_vectors().save(str(path), separately=["vectors"])
    assert (tmp_path / "split.wv.vectors.npy").exists()
    loaded = WordVectors.load(path)
    assert loaded.words == WORDS and isinstance(loaded.vectors, np.memmap)
    np.testing.assert_array_equal(loaded.vectors, VECTORS)

    damaged = (tmp_path / "split.wv.vectors.npy").read_bytes()[:-5]
    (tmp_path / "split.wv.vectors.npy").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"split\.wv: the array 'vectors' saved beside it is damaged"):
        WordVectors.load(path)
    (tmp_path / "split.wv.vectors.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"split\.wv\.vectors\.npy"):
        WordVectors.load(path)


def test_gensim_files_with_counts_and_zipped_side_arrays(tmp_path):
    saved = keyed_vectors()
    for number, word in enumerate(WORDS):
        saved.set_vecattr(word, "count", 100 - number)
    saved.add_lifecycle_event("made", note="for a test")
    saved.save(str(tmp_path / "a.kv.gz"), separately=["vectors"])
    loaded = WordVectors.load(tmp_path / "a.kv.gz")
    assert loaded.words == WORDS
    np.testing.assert_array_equal(loaded.vectors, VECTORS)


def test_the_layout_of_gensim_3_is_read(tmp_path, monkeypatch):
    import gensim.models.keyedvectors as module

    old = type("Word2VecKeyedVectors", (), {"__module__": module.__name__})
    vocab = type("Vocab", (), {"__module__": module.__name__})
    monkeypatch.setattr(module, "Word2VecKeyedVectors", old, raising=False)
    monkeypatch.setattr(module, "Vocab", vocab, raising=False)
    saved = old()
    saved.index2word, saved.vector_size, saved.syn0 = WORDS, 6, VECTORS
    saved.vocab = {}
    for number, word in enumerate(WORDS):
        saved.vocab[word] = vocab()
        saved.vocab[word].index, saved.vocab[word].count = number, np.int64(100 - number)
    with open(tmp_path / "old.wv", "wb") as file:
        pickle.dump(saved, file, protocol=2)
    loaded = WordVectors.load(tmp_path / "old.wv")
    assert loaded.words == WORDS
    np.testing.assert_array_equal(loaded.vectors, saved.syn0)


class Payload:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_foreign_pickle_is_refused_by_name_and_nothing_runs(tmp_path, protocol):
    witness = tmp_path / "witness"
    saved = keyed_vectors()
    saved.note = Payload(os.system, f"touch {witness}")
    path = tmp_path / "evil.wv"
    with open(path, "wb") as file:
        pickle.dump(saved, file, protocol=protocol)
    with pytest.raises(ValueError, match=r"evil\.wv: refused, since it holds the object (posix\.system|copy_reg)"):
        WordVectors.load(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"\x80\x04cbuiltins\neval\n(V1+1\ntR.", r"builtins\.eval"),
        (b"\x80\x04cgensim.models.keyedvectors\nKeyedVectors.__init__\n)R.", r"KeyedVectors\.__init__"),
        (b"\x80\x04cnumpy\ndtype\n(VO8\ntR.", "dtype 'O8'"),
        (b"\x80\x04Vpid\nQ.", "persistent object"),
        (b"\x80\x04c_codecs\nencode\n(Vx\nVbz2\ntR.", "_codecs.encode"),
        (b"\x80\x04]q\x00.", "holds a list, not gensim KeyedVectors"),
        (b"not a pickle", "not a complete gensim KeyedVectors file"),
        (b"\x80\x04cgensim.models.keyedvectors\nKeyedVectors\n)\x81.", "without vectors"),
    ],
)
def test_streams_made_by_hand_are_refused(tmp_path, stream, message):
    path = tmp_path / "made.kv"
    path.write_bytes(stream)
    with pytest.raises(ValueError, match=rf"made\.kv: .*{message}"):
        WordVectors.load(path)


def test_a_pickle_changes_nothing_for_the_next(tmp_path):
    mark_class = b"\x80\x04cgensim.models.keyedvectors\nKeyedVectors\n(N}Vvectors\nK\x01sVindex_to_key\nK\x01stb."
    (tmp_path / "mark.kv").write_bytes(mark_class)
    with pytest.raises(ValueError, match="not gensim KeyedVectors"):
        WordVectors.load(tmp_path / "mark.kv")
    (tmp_path / "empty.kv").write_bytes(b"\x80\x04cgensim.models.keyedvectors\nKeyedVectors\n)\x81.")
    with pytest.raises(ValueError, match="without vectors"):
        WordVectors.load(tmp_path / "empty.kv")


@pytest.mark.parametrize("options", [{}, {"min_n": 1, "max_n": 3}, {"max_n": 0}], ids=["usual", "short", "no n-grams"])
def test_fasttext_models_agree_with_gensim(tmp_path, options):
    sentences = [["Wasser", "été", "вода", "ᎠᎹ", "nämlich", "a"], ["नमस्ते", "耶稣", "water", "вода", "</s>"]] * 5
    model = FastText(sentences, vector_size=12, bucket=97, min_count=1, epochs=1, workers=1, seed=1, **options)
    path = str(tmp_path / "model.bin")
    save_facebook_model(model, path)
    theirs, ours = load_facebook_vectors(path), WordVectors.load(path)
    assert ours.words == theirs.index_to_key and len(ours) == 10
    plain = [row for row, word in enumerate(ours.words) if word != "</s>"]
    np.testing.assert_allclose(ours.vectors[plain], theirs.vectors[plain], atol=1e-6)
    end = ours.words.index("</s>")
    np.testing.assert_array_equal(ours.vectors[end], theirs.vectors_vocab[end])

    if options.get("max_n") != 0:
        asked = ["Wasserfall", "ᎠᎹᎠᎹ", "вода", "unsehen"]
        unseen = WordVectors.from_fasttext(path, asked, "deu")
        np.testing.assert_allclose(unseen.vectors, np.stack([theirs[word] for word in asked]), atol=1e-6)
        assert unseen.words == asked and unseen.languages == ["deu"] * 4
    else:
        with pytest.raises(ValueError, match=r"model\.bin: no vector for 'unsehen'"):
            WordVectors.from_fasttext(path, ["вода", "unsehen"])

    whole = Path(path).read_bytes()
    for length in range(8, len(whole) - model.syn1neg.nbytes - 17, len(whole) // 30):
        Path(path).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.bin.*truncated fastText model"):
            WordVectors.load(path)
