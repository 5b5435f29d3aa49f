"""Stages that are kept: found again, made anew where damaged, and the same bit for bit as without a cache."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ofa_fast.initialization import Cache, WordVectors, initialize, plan
from ofa_fast.initialization.cache import key_of

TENSORS = ("coordinates", "basis", "origin", "neighbors", "weights", "sources", "source_coordinates")


@pytest.fixture(scope="module")
def inputs(tokenizers, word_vectors):
    source, target = tokenizers["wordpiece"], tokenizers["metaspace"]
    return torch.randn(len(source), 32, generator=torch.Generator().manual_seed(5)), source, target, word_vectors


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def assert_same(one, other) -> None:
    for name in TENSORS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and torch.equal(a, b))), name
    drop = {"seconds"}
    assert {k: v for k, v in one.report.items() if k not in drop} == {
        k: v for k, v in other.report.items() if k not in drop
    }


def stages_of(cache: Cache) -> dict[str, int]:
    names = [file.name.split("-")[0] for file in cache.folder.glob("*.safetensors")]
    return {name: names.count(name) for name in set(names)}


@pytest.mark.parametrize("options", [{}, {"parity": True}, {"method": "focus"}, {"method": "wechsel", "neighbors": 3}])
def test_results_are_the_same_without_a_cache_with_an_empty_one_and_with_a_full_one(inputs, cache, options):
    expected = initialize(*inputs, rank=8, **options)
    assert_same(initialize(*inputs, rank=8, cache=cache, **options), expected)
    assert cache.hits == 0
    again = Cache(cache.folder)
    assert_same(initialize(*inputs, rank=8, cache=again, **options), expected)
    assert again.misses == 0 and again.hits >= 3


def test_what_comes_after_a_stage_reuses_it(inputs, cache):
    table, source, target, vectors = inputs
    initialize(*inputs, rank=[8, None], cache=cache)
    made = stages_of(cache)
    assert made == {"tokens": 2, "subwords": 2, "neighbors": 1, "svd": 1}
    for options in ({"temperature": 0.5}, {"weighting": "sparsemax"}, {"seed": 1}, {"rank": None}):
        assert_same(
            initialize(*inputs, **{"rank": 8} | options, cache=cache), initialize(*inputs, **{"rank": 8} | options)
        )
    plan(table.shape, source, target, vectors, rank=8, cache=cache)
    assert stages_of(cache) == made
    initialize(*inputs, rank=4, cache=cache)
    assert stages_of(cache) == made | {"svd": 2}


def test_another_input_is_another_entry(inputs, tokenizers, cache):
    table, source, target, vectors = inputs
    initialize(*inputs, rank=8, cache=cache)
    moved = WordVectors(vectors.words, vectors.vectors[::-1].copy(), vectors.languages)
    changes = [
        (table + 1, source, target, vectors),
        (table, source, tokenizers["byte-level"], vectors),
        (table, source, target, moved),
    ]
    for changed in changes:
        assert_same(initialize(*changed, rank=8, cache=cache), initialize(*changed, rank=8))
    for options in ({"target_languages": ["deu"]}, {"source_languages": ["eng"]}, {"neighbors": 4}):
        assert_same(initialize(*inputs, rank=8, cache=cache, **options), initialize(*inputs, rank=8, **options))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "of another key"])
def test_damaged_entries_are_made_anew(inputs, cache, damage):
    expected = initialize(*inputs, rank=8, cache=cache)
    files = sorted(cache.folder.glob("*.safetensors"))
    contents = [file.read_bytes() for file in files]
    for file, raw in zip(files, contents, strict=True):
        changed = {
            "truncated": raw[: len(raw) // 2],
            "flipped": raw[:-5] + bytes([raw[-5] ^ 16]) + raw[-4:],
            "empty": b"",
            "of another key": contents[0] if file != files[0] else contents[-1],
        }
        file.write_bytes(changed[damage])
    with pytest.warns(UserWarning, match="a damaged cache entry, made anew"):
        assert_same(initialize(*inputs, rank=8, cache=cache), expected)
    again = Cache(cache.folder)
    initialize(*inputs, rank=8, cache=again)
    assert again.misses == 0


def test_the_least_recently_used_go_first(tmp_path):
    cache = Cache(tmp_path, limit=4 * 4400)
    tensor = {"x": torch.zeros(1000)}
    keys = [key_of(i) for i in range(6)]
    for key in keys[:3]:
        cache.write("stage", key, tensor)
        time.sleep(0.01)
    assert cache.read("stage", keys[0]) is not None
    for key in keys[3:]:
        time.sleep(0.01)
        cache.write("stage", key, tensor)
    assert [cache.read("stage", key) is not None for key in keys] == [True, False, False, True, True, True]


def test_many_writers_of_one_entry_leave_a_whole_one(tmp_path):
    program = (
        "import sys, torch; from ofa_fast.initialization import Cache\n"
        "cache = Cache(sys.argv[1])\n"
        "for i in range(20):\n"
        "    cache.write('stage', 'k' * 64, {'x': torch.arange(5000)})\n"
        "    assert cache.read('stage', 'k' * 64)['x'].equal(torch.arange(5000))\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, timeout=100), range(2)))
    assert [run.returncode for run in done] == [0, 0], done[0].stderr + done[1].stderr
    assert [file.name for file in tmp_path.iterdir()] == [f"stage-{'k' * 40}.safetensors"]


def test_a_folder_that_cannot_be_written_is_a_warning(inputs, tmp_path):
    (tmp_path / "file").write_text("no folder")
    expected = initialize(*inputs, rank=8)
    with pytest.warns(UserWarning, match="nothing is cached"):
        assert_same(initialize(*inputs, rank=8, cache=tmp_path / "file" / "cache"), expected)


KILLED = """
import sys, time
import torch
from transformers import AutoTokenizer
from ofa_fast.initialization import WordVectors, initialize, subwords
subwords.WORDS_PER_CHUNK = 50
tokenise = subwords._Encoder._tokenise
subwords._Encoder._tokenise = lambda self, words: (time.sleep(0.2), tokenise(self, words))[1]
folder = sys.argv[1]
source, target = (AutoTokenizer.from_pretrained(f"{folder}/{name}") for name in ("source", "target"))
table = torch.load(f"{folder}/table.pt")
initialize(table, source, target, WordVectors.load(f"{folder}/vectors.safetensors"), rank=8, cache=f"{folder}/cache")
"""


def test_a_killed_run_continues_where_it_was(inputs, tmp_path, monkeypatch):
    table, source, target, vectors = inputs
    source.save_pretrained(tmp_path / "source")
    target.save_pretrained(tmp_path / "target")
    torch.save(table, tmp_path / "table.pt")
    vectors.save(tmp_path / "vectors.safetensors")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("cache/tokens-*"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.setattr("ofa_fast.initialization.subwords.WORDS_PER_CHUNK", 50)
    cache = Cache(tmp_path / "cache")
    assert stages_of(cache).keys() == {"tokens"}
    expected = initialize(*inputs, rank=8)
    assert_same(initialize(*inputs, rank=8, cache=cache), expected)
    assert cache.hits >= 5
