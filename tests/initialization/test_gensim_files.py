"""Files of gensim and fastText: the same vectors as theirs, and a pickle that runs nothing."""

from __future__ import annotations

import ctypes
import gzip
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from gensim.models import FastText, KeyedVectors
from gensim.models.fasttext import load_facebook_vectors, save_facebook_model

from ofa_fast import _native
from ofa_fast.initialization import WordVectors, _pickle

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


LONG = (2**32 - 1).to_bytes(4, "little")
LONGER = (1 << 40).to_bytes(8, "little")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"]r" + LONG + b".", "byte 3: LONG_BINPUT gives an object the number 4,294,967,295, where there are 2"),
        (b"]p55257236\n.", "byte 3: PUT gives an object the number 55,257,236, where there are 2"),
        (b"]p-1\n.", "byte 3: PUT"),
        (b"B" + LONG + b"x.", "byte 2: BINBYTES announces 4,294,967,295 bytes, but 2 follow"),
        (b"T" + LONG + b"x.", "byte 2: BINSTRING announces"),
        (b"X" + LONG + b"x.", "byte 2: BINUNICODE announces"),
        (b"N\x8b" + LONG + b"x.", "byte 3: LONG4 announces"),
        (b"\x8e" + LONGER + b"x.", "byte 2: BINBYTES8 announces 1,099,511,627,776 bytes, but 2 follow"),
        (b"\x8d" + LONGER + b"x.", "byte 2: BINUNICODE8 announces"),
        (b"\x96" + LONGER + b"x.", "byte 2: BYTEARRAY8 announces"),
        (b"\x95" + LONGER + b"x.", "byte 2: FRAME announces"),
        (b"\x8c\x03x.", "byte 2: SHORT_BINUNICODE announces 3 bytes, but 2 follow"),
        (b"\x8f" * 2_000_000 + b".", "byte 2: EMPTY_SET has no place"),
        (b"\xff.", "byte 2: .* has no place"),
        (b"NNN", "byte 5: truncated"),
        (b"cnumpy\ndtype", "byte 2: truncated: the line of GLOBAL has no end"),
        (b"J\x01\x02", "byte 2: truncated within BININT"),
    ],
)
def test_what_a_pickle_announces_is_compared_with_what_is_there(tmp_path, monkeypatch, stream, message, native, packed):
    if not native:
        monkeypatch.setattr(_native, "cpu", None)
    path = tmp_path / f"huge.wv{'.gz' * packed}"
    data = b"\x80\x04" + stream
    path.write_bytes(gzip.compress(data) if packed else data)
    ctypes.CDLL(None).malloc_trim(0)  # memory that others freed would hide what is taken here
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_of_this_process()
    with pytest.raises(ValueError, match=rf"huge\.wv.*: {message}"):
        WordVectors.load(path)
    assert peak_of_this_process() - before < 30 << 10


def peak_of_this_process() -> int:
    """In KiB, since the last reset."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))


@pytest.mark.skipif(_native.cpu is None, reason="without the native scan there is nothing to compare")
def test_the_native_scan_stops_where_the_python_one_does(tmp_path, monkeypatch):
    rng = random.Random(0)
    path = tmp_path / "mutated.wv"
    verdicts = []
    for number in range(600):
        saved = keyed_vectors()
        whole = bytearray(pickle.dumps(saved, protocol=number % 6))
        for _ in range(rng.choice([0, 1, 1, 3])):
            at = rng.randrange(len(whole))
            whole[at : at + rng.randrange(3)] = rng.choice([b"r", b"p", LONG, b"X", b"\n", b"7", rng.randbytes(2)])
        path.write_bytes(whole)
        found = []
        for native in (_native.cpu, None):
            with monkeypatch.context() as patch, open(path, "rb") as stream:
                patch.setattr(_native, "cpu", native)
                try:
                    _pickle._check_opcodes(stream)
                    found.append(None)
                except ValueError as error:
                    found.append(str(error))
        with open(path, "rb") as stream:
            place, before = _pickle._scan(np.frombuffer(bytearray(whole), dtype=np.uint8))
            stream.seek(place)
            if found[1] is None:
                assert _pickle._check_opcode(stream, len(whole), before)
            else:
                assert f"byte {place:,}: " in found[1]
        assert found[0] == found[1], bytes(whole)
        verdicts.append(found[0] is None)
    assert 100 < sum(verdicts) < 500


@pytest.mark.parametrize("attribute", ["index_to_key", "vectors", "__numpys"])
@pytest.mark.parametrize(
    "value", [1, "text", None, {"a": 1}, np.float32(1), np.zeros(3)], ids=lambda v: type(v).__name__
)
def test_attributes_of_other_kinds_are_refused(tmp_path, attribute, value):
    saved = keyed_vectors()
    setattr(saved, attribute, value)
    path = tmp_path / "strange.wv"
    path.write_bytes(pickle.dumps(saved, protocol=4))
    if attribute == "__numpys":
        assert WordVectors.load(path).words == WORDS
        return
    with pytest.raises(ValueError, match=r"strange\.wv: "):
        WordVectors.load(path)


def test_a_damaged_zipped_side_array_is_refused(tmp_path):
    keyed_vectors().save(str(tmp_path / "a.kv.gz"), separately=["vectors"])
    side = tmp_path / "a.kv.gz.vectors.npz"
    whole = side.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        side.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            loaded = WordVectors.load(tmp_path / "a.kv.gz")
        except ValueError as error:
            assert "a.kv.gz: " in str(error)
            refused += 1
        else:  # a byte that says nothing about the array, such as a date
            assert loaded.words == WORDS
            np.testing.assert_array_equal(loaded.vectors, VECTORS)
    assert refused > len(whole) / 7 / 2


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
