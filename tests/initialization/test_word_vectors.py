"""Every format in and out, the published form of keys, and every kind of damage refused with its place."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors
from safetensors.numpy import save_file

from ofa_fast.initialization import WordVectors

WORDS = ["water", "Brot", "été", "вода", "ᎠᎹ", "ⲙⲱⲟⲩ", "नमस्ते", "耶稣", "it's", "12:30"]
KEYS = [
    "deu:$wasser$",
    "deu:$wass",
    "eng:$water$",
    "wine",
    "chr:ᎠᎹ$",
    "heb:מים",
    "cmn:耶稣",
    "xyz:$$",
    "deu:$100$",
    "abc:",
]
MIXED = [
    ("deu", "wasser"),
    ("deu", "wass"),
    ("eng", "water"),
    ("eng", "wine"),
    ("chr", "ᎠᎹ"),
    ("heb", "מים"),
    ("cmn", "耶稣"),
]


def table(rows: int, dim: int = 6, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((rows, dim)).astype(dtype)


def keyed_vectors(words: list[str], vectors: np.ndarray) -> KeyedVectors:
    saved = KeyedVectors(vectors.shape[1])
    saved.add_vectors(words, vectors)
    return saved


def write_text(path: Path, words: list[str], vectors: np.ndarray, header: bool = True) -> Path:
    lines = [" ".join([word, *(repr(float(value)) for value in row)]) for word, row in zip(words, vectors, strict=True)]
    if header:
        lines.insert(0, f"{len(words)} {vectors.shape[1]}")
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


def zipped(path: Path) -> Path:
    target = Path(f"{path}.gz")
    with open(path, "rb") as plain, gzip.open(target, "wb") as packed:
        shutil.copyfileobj(plain, packed)
    return target


def write(path: Path, words: list[str], vectors: np.ndarray) -> Path:
    if path.suffix in (".vec", ".txt"):
        return write_text(path, words, vectors, header=path.suffix == ".vec")
    if path.suffix == ".bin":
        keyed_vectors(words, vectors).save_word2vec_format(str(path), binary=True)
    elif path.suffix in (".wv", ".kv"):
        keyed_vectors(words, vectors).save(str(path))
    elif path.suffix == ".npz":
        np.savez(path, words=np.array(words), vectors=vectors)
    else:
        WordVectors(words, vectors).save(path)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("suffix", [".vec", ".txt", ".bin", ".wv", ".kv", ".npz", ".safetensors"])
def test_every_format_gives_the_words_and_the_exact_vectors(tmp_path, suffix, packed):
    vectors = table(len(WORDS))
    path = write(tmp_path / f"words{suffix}", WORDS, vectors)
    loaded = WordVectors.load(zipped(path) if packed else path)
    assert loaded.words == WORDS and loaded.keys == WORDS and loaded.languages is None
    assert loaded.vectors.dtype == np.float32
    np.testing.assert_array_equal(loaded.vectors, vectors)


@pytest.mark.parametrize("suffix", [".vec", ".txt", ".bin", ".kv", ".npz"])
def test_published_keys_come_back_exactly_and_in_order(tmp_path, suffix):
    vectors = table(len(KEYS))
    loaded = WordVectors.load(write(tmp_path / f"keys{suffix}", KEYS, vectors))
    assert loaded.keys == KEYS
    assert list(zip(loaded.languages, loaded.words, strict=True))[: len(MIXED)] == MIXED
    loaded.save(tmp_path / "again.safetensors")
    again = WordVectors.load(tmp_path / "again.safetensors")
    assert again.keys == KEYS and again.words == loaded.words and again.languages == loaded.languages
    np.testing.assert_array_equal(again.vectors, vectors)


def test_words_with_languages_take_the_published_form(tmp_path):
    made = WordVectors(["wasser", "water"], table(2), ["deu", "eng"])
    assert made.keys == ["deu:$wasser$", "eng:$water$"]
    made.save(tmp_path / "made.safetensors")
    assert WordVectors.load(tmp_path / "made.safetensors").keys == made.keys


def test_a_few_keys_that_look_prefixed_do_not_make_a_file_multilingual(tmp_path):
    words = ["the", "ftp://host", "of", "and", "to"]
    loaded = WordVectors.load(write_text(tmp_path / "a.txt", words, table(5), header=False))
    assert loaded.languages is None and loaded.words == words


def test_a_language_is_given_to_a_file_without_one(tmp_path):
    path = write_text(tmp_path / "a.vec", WORDS, table(len(WORDS)))
    loaded = WordVectors.load(path, language="deu")
    assert loaded.languages == ["deu"] * len(WORDS) and loaded.keys[1] == "deu:$Brot$"


def test_saved_vectors_are_mapped_not_read(tmp_path):
    for dtype in (np.float32, np.float16):
        path = tmp_path / f"{np.dtype(dtype)}.safetensors"
        WordVectors(WORDS, table(len(WORDS), dtype=dtype), "deu").save(path)
        loaded = WordVectors.load(path)
        assert isinstance(loaded.vectors, np.memmap) and loaded.vectors.dtype == dtype
        np.testing.assert_array_equal(loaded.vectors, table(len(WORDS), dtype=dtype))


def test_an_npz_of_half_precision_with_languages(tmp_path):
    vectors = table(3, dtype=np.float16)
    np.savez(
        tmp_path / "a.npz", words=np.array(["a", "b", "b"]), vectors=vectors, languages=np.array(["deu", "deu", "eng"])
    )
    loaded = WordVectors.load(tmp_path / "a.npz")
    assert loaded.languages == ["deu", "deu", "eng"] and loaded.vectors.dtype == np.float16
    np.testing.assert_array_equal(loaded.vectors, vectors)


@pytest.mark.parametrize("suffix", [".vec", ".bin", ".npz"])
def test_of_equal_words_the_first_stays_as_in_gensim(tmp_path, suffix):
    words, vectors = ["a", "b", "a", "c"], table(4)
    path = tmp_path / f"twice{suffix}"
    if suffix == ".bin":
        rows = b"".join(word.encode() + b" " + row.tobytes() for word, row in zip(words, vectors, strict=True))
        path.write_bytes(b"4 6\n" + rows)
    else:
        write(path, words, vectors)
    loaded = WordVectors.load(path)
    assert loaded.words == ["a", "b", "c"]
    np.testing.assert_array_equal(loaded.vectors, vectors[[0, 1, 3]])
    if suffix != ".npz":
        theirs = KeyedVectors.load_word2vec_format(str(path), binary=suffix == ".bin")
        assert list(theirs.key_to_index) == loaded.words
        np.testing.assert_array_equal(theirs.vectors[:3], loaded.vectors)
        theirs.save(str(tmp_path / "theirs.kv"))
        assert WordVectors.load(tmp_path / "theirs.kv").words == loaded.words


def test_filters_keep_file_order(tmp_path):
    path = write_text(tmp_path / "keys.vec", KEYS, table(len(KEYS)))
    assert WordVectors.load(path, max_words=3).keys == KEYS[:3]
    assert WordVectors.load(path, languages=["eng", "deu"]).keys == [
        "deu:$wasser$",
        "deu:$wass",
        "eng:$water$",
        *KEYS[3:4],
        KEYS[8],
        KEYS[9],
    ]
    chosen = WordVectors.load(path, languages=["chr", "deu"], max_words=3)
    assert chosen.keys == ["deu:$wasser$", "deu:$wass", "chr:ᎠᎹ$"]
    np.testing.assert_array_equal(chosen.vectors, table(len(KEYS))[[0, 1, 4]])
    with pytest.raises(ValueError, match=r"keys\.vec: no word in fra"):
        WordVectors.load(path, languages=["fra"])
    with pytest.raises(ValueError, match="languages already"):
        WordVectors.load(path, language="deu")
    with pytest.raises(TypeError, match="list of codes"):
        WordVectors.load(path, languages="deu")
    with pytest.raises(ValueError, match="max_words must be at least 1, got 0"):
        WordVectors.load(path, max_words=0)
    with pytest.raises(ValueError, match="no languages to choose from"):
        WordVectors.load(write_text(tmp_path / "plain.vec", WORDS, table(len(WORDS))), languages=["deu"])


def test_text_as_others_write_it(tmp_path):
    path = tmp_path / "fasttext.vec"
    path.write_bytes("3 2\r\n</s> 0.1 -2e-3 \r\n\u00a0 1 2 \r\n. . . 3 4 \r\n".encode())
    loaded = WordVectors.load(path)
    assert loaded.words == ["</s>", "\u00a0", ". . ."]
    np.testing.assert_array_equal(loaded.vectors, np.array([[0.1, -2e-3], [1, 2], [3, 4]], dtype=np.float32))


def test_lines_of_several_blocks_keep_their_rows(tmp_path):
    vectors = table(3600, 300)
    path = write_text(tmp_path / "a.vec", [f"w{i}" for i in range(3600)], vectors)
    np.testing.assert_array_equal(WordVectors.load(path, progress=True).vectors, vectors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"3 2\na 1 2\nb 3 4\n", "line 3: truncated: line 1 announces 3 words, but only 2 follow"),
        (b"2 2\na 1 2\nb 3\n", "line 3: expected a word and 2 numbers"),
        (b"2 2\na 1 2\nb 3 4 5\n", "line 3: expected a word and 2 numbers"),
        (b"1 2\na 1 2\nb 3 4\n", "line 3: line 1 announces 1 words, but there are more"),
        (b"a 1 2\nb 3 x\n", r"line 2: expected 2 numbers, got b'3 x'"),
        (b"a 1 2\nb 3 4x\nc 5 6\n", "line 2: expected 2 numbers"),
        (b"a 1 2\nb nan 4\n", "line 2: the vector holds NaN or infinity"),
        (b"a 1 2\nb 3 -inf\n", "line 2: the vector holds NaN or infinity"),
        (b"a 1 2\n\nb 3 4\n", "line 2: empty line"),
        (b"a 1 2\n\xff\xfe 3 4\n", r"line 2: the word b'\\xff\\xfe' is not UTF-8"),
        (b"a 1 2\n 3 4\n", "line 2: expected a word and 2 numbers"),
        (b"word\n", "line 1: expected a count and a dimension"),
        (b"5 0\n", "line 1: expected a count and a dimension"),
        (b"0 5\n", "no words"),
    ],
)
def test_damaged_text_is_refused_with_file_and_line(tmp_path, content, message):
    path = tmp_path / "damaged.vec"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged.vec.*{message}"):
        WordVectors.load(path)


ROWS = b"a " + struct.pack("<2f", 1, 2) + b"\nb " + struct.pack("<2f", 3, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello", "not word2vec binary"),
        (b"2 2\n" + ROWS[:-1], "word 2: truncated"),
        (b"3 2\n" + ROWS, "word 3: truncated"),
        (b"1 2\n" + ROWS, "11 bytes after the 1 words"),
        (b"2 2\n" + ROWS.replace(b"b ", b"\xff "), "word 2: .* not UTF-8"),
        (b"1 2\na " + struct.pack("<2f", 1, float("nan")), "word 1, 'a', holds NaN"),
        (struct.pack("<2i", 793712314, 12) + bytes(20), "truncated fastText model"),
        (struct.pack("<2i", 793712314, 9) + bytes(200), "fastText model of version 9"),
        (
            struct.pack("<14id", 793712314, 12, 2, 5, 5, 1, 5, 1, 1, 1, -7, 3, 6, 100, 1e-4)
            + struct.pack("<3i2q?2q", 0, 0, 0, 0, -1, False, 0, 2),
            "damaged fastText model: -7 rows for n-grams of up to 6 characters",
        ),
    ],
)
def test_damaged_binary_is_refused_with_its_word(tmp_path, content, message):
    path = tmp_path / "damaged.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged.bin.*{message}"):
        WordVectors.load(path)


@pytest.mark.parametrize("suffix", [".vec", ".bin", ".kv", ".npz", ".safetensors"])
def test_a_truncated_gzip_file_is_refused(tmp_path, suffix):
    path = zipped(write(tmp_path / f"a{suffix}", WORDS, table(len(WORDS))))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=f"a{suffix}.gz: "):
        WordVectors.load(path)


@pytest.mark.parametrize("suffix", [".kv", ".npz", ".safetensors", ".bin"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    whole = write(tmp_path / f"a{suffix}", WORDS, table(len(WORDS))).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"cut{suffix}"):
            WordVectors.load(path)


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    for arrays, message in [
        ({"words": np.array(["a"])}, "found no 'vectors'"),
        ({"words": np.array(["a", "b"]), "vectors": table(1)}, "2 words, but 1 vectors"),
        ({"words": np.array(["a"], dtype=object), "vectors": table(1)}, "Object arrays cannot be loaded"),
        ({"words": np.array(["a"]), "vectors": np.ones((1, 2), dtype=np.int64)}, "floating-point array"),
        ({"words": np.array(["a"]), "vectors": np.full((1, 2), np.inf)}, "holds NaN or infinity"),
        ({"words": np.array([], dtype=str), "vectors": np.ones((0, 2))}, "no words"),
        (
            {"words": np.array(["a"]), "vectors": table(1), "languages": np.array(["german"])},
            "code of three characters",
        ),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
            WordVectors.load(path)


def test_names_and_places_that_hold_no_vectors(tmp_path):
    (tmp_path / "folder.vec").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        WordVectors.load(tmp_path / "folder.vec")
    with pytest.raises(ValueError, match=r"expected a name ending in \.vec"):
        WordVectors.load(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError):
        WordVectors.load(tmp_path / "absent.vec")
    with pytest.raises(ValueError, match=r"written as \.safetensors"):
        WordVectors(["a"], table(1)).save(tmp_path / "a.vec")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bytes_are_within_their_error_and_stay_on_disk(tmp_path, dtype):
    vectors = table(len(WORDS), 300, dtype)
    vectors[3], vectors[4, 0] = 0, 100
    WordVectors(WORDS, vectors, "deu").save(tmp_path / "bytes.safetensors", np.int8)
    loaded = WordVectors.load(tmp_path / "bytes.safetensors")
    assert isinstance(loaded.vectors.values, np.memmap) and loaded.vectors.values.dtype == np.int8
    assert loaded.vectors.shape == vectors.shape and loaded.vectors.dtype == np.float32
    exact = vectors.astype(np.float64)
    error = np.abs(loaded.vectors[:] - exact).max(axis=1)
    bound = np.abs(exact).max(axis=1) / 254
    assert (error <= bound * 1.0001).all() and (error > bound / 2)[np.arange(len(WORDS)) != 3].all()
    assert not loaded.vectors[3].any()
    np.testing.assert_array_equal(loaded.vectors[[2, 0]], loaded.vectors[:][[2, 0]])
    np.testing.assert_array_equal(loaded.vectors[1], loaded.vectors[:][1])


def test_bytes_made_in_memory_are_those_of_the_file_and_saving_again_changes_nothing(tmp_path):
    made = WordVectors(WORDS, table(len(WORDS), 30), "deu").astype(np.int8)
    made.save(tmp_path / "once.safetensors")
    WordVectors(WORDS, table(len(WORDS), 30), "deu").save(tmp_path / "direct.safetensors", np.int8)
    WordVectors.load(tmp_path / "once.safetensors").save(tmp_path / "twice.safetensors")
    contents = {(tmp_path / f"{name}.safetensors").read_bytes() for name in ("once", "direct", "twice")}
    assert len(contents) == 1 and "int8" in repr(made)
    some = made.select(max_words=3)
    np.testing.assert_array_equal(some.vectors[:], made.vectors[:3])
    np.testing.assert_array_equal(made.astype(np.float32).vectors, np.asarray(made.vectors))


def test_damaged_scales_are_refused(tmp_path):
    tensors = {"vectors": np.ones((2, 3), np.int8), "words": np.frombuffer(b"ab", np.uint8), "offsets": np.arange(3)}
    path = tmp_path / "bytes.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"bytes\.safetensors.*no usable tensor scales"):
        WordVectors.load(path)
    for scales, reason in (
        ([1.0], "no scales for"),
        ([1.0, -1.0], "no scales for"),
        ([1.0, np.nan], "word 2, 'b', holds NaN"),
        ([1.0, 1e37], "word 2, 'b', holds NaN or infinity"),
    ):
        save_file(tensors | {"scales": np.array(scales, np.float32)}, path)
        with pytest.raises(ValueError, match=rf"bytes\.safetensors.*{reason}"):
            WordVectors.load(path)


@pytest.mark.parametrize("suffix", [".vec", ".vec.gz", ".bin"])
def test_rows_on_disk_are_those_in_memory(tmp_path, suffix):
    vectors = table(len(WORDS))
    path = write(tmp_path / f"words{suffix.removesuffix('.gz')}", WORDS, vectors)
    mapped = WordVectors.load(zipped(path) if suffix.endswith(".gz") else path, folder=tmp_path)
    assert isinstance(mapped.vectors, np.memmap) and mapped.words == WORDS
    np.testing.assert_array_equal(mapped.vectors, vectors)
    mapped.save(tmp_path / "out.safetensors", np.float16)
    np.testing.assert_array_equal(WordVectors.load(tmp_path / "out.safetensors").vectors, vectors.astype(np.float16))


def test_values_too_large_for_half_are_refused_by_word(tmp_path):
    made = WordVectors(["a", "b"], np.array([[1.0], [1e6]], np.float32))
    with pytest.raises(ValueError, match="word 2, 'b', is too large for float16"):
        made.save(tmp_path / "half.safetensors", np.float16)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="dtype must be float32, float16 or int8, got int16"):
        made.save(tmp_path / "half.safetensors", np.int16)


def test_the_first_of_each_language(tmp_path):
    made = WordVectors(list("abcdef"), table(6), ["deu", "eng", "deu", "eng", "deu", "fra"])
    assert made.select(max_rank=2).words == list("abcdf") and made.select(["deu", "fra"], max_rank=1).words == [
        "a",
        "f",
    ]
    assert made.select(max_words=3, max_rank=1).words == ["a", "b", "f"]
    made.save(tmp_path / "made.safetensors")
    assert WordVectors.load(tmp_path / "made.safetensors", max_rank=1).words == ["a", "b", "f"]
    assert WordVectors(list("abc"), table(3)).select(max_rank=2).words == ["a", "b"]
    with pytest.raises(ValueError, match="max_rank must be at least 1"):
        made.select(max_rank=0)


@pytest.mark.parametrize("others", [0, 2, 3, 4])
def test_keys_are_those_of_a_file_of_which_half_begin_like_keys(tmp_path, others):
    words = ["deu:a", "fra:$b$", "deu:c", *["abc:", "DEU:x", "d1u:x"][:others], *["x"] * (others > 3)]
    loaded = WordVectors.load(write(tmp_path / "a.vec", words, table(len(words))))
    assert (loaded.languages is not None) == (others < 4)
    assert loaded.keys == words
    if loaded.languages is not None:
        assert loaded.languages[0] is loaded.languages[2], "a string for each word, not for each language"
