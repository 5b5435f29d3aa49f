"""The native reader of word vectors as text: numpy's numbers, and the same verdict on every line as without it."""

from __future__ import annotations

import random
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from ofa_fast import _native
from ofa_fast.initialization import WordVectors, vector_text

needs_native = pytest.mark.skipif(_native.cpu is None, reason="without the native reader there is nothing to compare")


def numbers(rng: random.Random) -> str:
    """A number in one of the forms that programs write."""
    value = struct.unpack("<f", rng.randbytes(4))[0] if rng.random() < 0.3 else rng.gauss(0, 1)
    if value != value or abs(value) > 3e38:
        value = 0.0
    form = rng.choice(["{:.4f}", "{:.6g}", "{!r}", "{:+.3e}", "{:.25f}", "{:.0f}", "{:E}", "{:.45e}", "{:.0f}."])
    text = form.format(value)
    return text.replace("0.", ".", 1) if rng.random() < 0.1 and text.startswith("0.") and len(text) > 2 else text


@needs_native
def test_numbers_are_those_of_numpy(tmp_path):
    rng = random.Random(1)
    rows = [[numbers(rng) for _ in range(50)] for _ in range(2000)]
    rows[0][:8] = ["1e-45", "1e-400", "3.4028234e38", "-0", "0.1e1", "1e22", "9007199254740993", "1.17549435e-38"]
    path = tmp_path / "numbers.vec"
    path.write_text("\n".join(" ".join([f"w{i}", *row]) for i, row in enumerate(rows)))
    expected = np.array([[float(text) for text in row] for row in rows]).astype(np.float32)
    loaded = WordVectors.load(path).vectors
    assert np.array_equal(loaded.view(np.int32), expected.view(np.int32))


def outcome(path: Path, **options) -> tuple:
    """What reading gives: words, bits and warnings, or the message."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            words, rows = vector_text.read_text(path, **options)
        except ValueError as error:
            return str(error), None, None
    return tuple(words), rows.tobytes(), [str(warning.message) for warning in caught]


SNIPPETS = [b" ", b"\t", b"\n", b"\r\n", b"\0", b"-", b"+", b".", b"e", b"1e999", b"nan", b"inf", b"0x1p3", b"\xff"]
SNIPPETS += [
    "é".encode(),
    b"  ",
    b"1 2",
    b"1,5",
    b"1_0",
    "\u00a0".encode(),
    "\u0661".encode(),
    b"1e",
    b"--1",
    b"1e5000",
]


def mutate(text: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        cut = at + rng.choice([0, 1, 1, 7]) if kind else at
        text = text[:at] + (rng.choice(SNIPPETS) if kind < 3 else b"") + text[cut:]
    return text


@needs_native
@pytest.mark.parametrize("header", [True, False], ids=["header", "no header"])
def test_mutated_files_meet_the_same_verdict_as_without_the_native_reader(tmp_path, monkeypatch, header):
    rng = random.Random(header)
    lines = [" ".join([f"w{i}", *(numbers(rng) for _ in range(3))]) for i in range(5)]
    whole = "\n".join(["5 3"] * header + lines).encode() + b"\n"
    path = tmp_path / "mutated.vec"
    refused = 0
    for _ in range(400):
        path.write_bytes(mutate(whole, rng))
        for options in ({}, {"skip_bad_lines": True}, {"limit": 2}):
            found = outcome(path, **options)
            with monkeypatch.context() as patch:
                patch.setattr(_native, "cpu", None)
                assert found == outcome(path, **options), path.read_bytes()
        refused += found[1] is None
    assert 20 < refused < 380


@pytest.mark.parametrize("block", [64, 100, 1000])
def test_blocks_may_end_anywhere(tmp_path, monkeypatch, block):
    rng = random.Random(block)
    path = tmp_path / "a.txt"
    path.write_text(
        "\n".join(" ".join(["é" * rng.randrange(1, 9) + str(i), *map(str, range(i, i + 4))]) for i in range(99))
    )
    expected = outcome(path)
    monkeypatch.setattr(vector_text, "BLOCK_BYTES", block)
    monkeypatch.setattr(vector_text, "LONGEST_WORD", 40)
    monkeypatch.setattr(vector_text, "LONGEST_NUMBER", 4)
    monkeypatch.setattr(vector_text, "BLOCK_VALUES", 12)
    assert len(expected[0]) == 99 and outcome(path) == expected


@pytest.mark.parametrize("lines_at_once", [1, 4, 7, 100])
@pytest.mark.parametrize("limit", [None, 1, 6, 20, 1000])
def test_the_first_of_equal_words_stays_however_the_lines_are_divided(tmp_path, monkeypatch, lines_at_once, limit):
    words = ["a", "b", "c", "d", "e", "a", "f", "f", "b", *map(str, range(30)), "z", "a"]
    path = tmp_path / "a.vec"
    path.write_text(f"{len(words)} 1\n" + "".join(f"{word} {number}\n" for number, word in enumerate(words)))
    monkeypatch.setattr(vector_text, "BLOCK_VALUES", lines_at_once)
    expected = {word: words.index(word) for word in words}
    found, rows = vector_text.read_text(path, limit)
    assert dict(zip(found, rows[:, 0].tolist(), strict=True)) == dict(list(expected.items())[:limit])
    assert found == list(expected)[:limit]


def test_bad_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "a.vec"
    path.write_bytes(b"6 2\na 1 2\nb 3\n\nc nan 1\n\xff 1 2\nd 5 6\n")
    with pytest.raises(ValueError, match=r"a\.vec, line 3: expected a word and 2 numbers"):
        WordVectors.load(path)
    with pytest.warns(UserWarning, match=r"4 bad lines skipped; the first: .*line 3"):
        loaded = WordVectors.load(path, skip_bad_lines=True)
    assert loaded.words == ["a", "d"] and loaded.vectors.tolist() == [[1, 2], [5, 6]]


def test_a_line_without_end_is_not_read_into_memory(tmp_path):
    path = tmp_path / "endless.vec"
    path.write_bytes(b"2 2\na 1 2\n" + b"x" * (40 << 20))
    with pytest.raises(ValueError, match=r"line 3: .*"):
        WordVectors.load(path)
