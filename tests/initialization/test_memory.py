"""A budget of memory: what it says, what it changes, and that it is kept."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from ofa_fast.initialization import WordVectors, estimate, initialize, memory, rows, subword_vectors
from ofa_fast.initialization.memory import Needs, columns_within, parse_memory


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8g", 8 * 10**9), ("512MiB", 2**29), ("1.5 kB", 1500), (4096, 4096), ("2T", 2 * 10**12)],
)
def test_sizes(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "eight", "-1GB", "0", "8 gibibytes", None, 1.5e9j])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="memory must be a size such as 8GB or 512MiB"):
        parse_memory(text)


@pytest.mark.parametrize("columns", [1, 7, 8, 23, 24, 100])
def test_columns_summed_at_a_time_do_not_change_the_vectors(tokenizers, word_vectors, columns):
    expected = subword_vectors(tokenizers["metaspace"], word_vectors)
    actual = subword_vectors(tokenizers["metaspace"], word_vectors, columns=columns)
    np.testing.assert_array_equal(actual, expected)


def test_a_budget_sets_the_columns(monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 10**9)
    need = Needs(fixed=10**8, per_column=10**7, columns=24, rest=10**8)
    assert columns_within(None, need) == need.columns
    assert columns_within(10**9 + need.peak(), need) == need.columns
    assert columns_within(10**9 + need.peak(12), need) == 12
    assert columns_within(10**9 + need.peak(12) - 1, need) == 8  # three passes of equal width
    assert columns_within(10**9 + need.least, need) <= 8
    with pytest.raises(ValueError, match=r"memory is [\d,]+ MB, but at least ([\d,]+) MB is needed") as caught:
        columns_within(10**9 + need.least - 1, need)
    said = int(re.search(r"least ([\d,]+) MB", str(caught.value))[1].replace(",", ""))
    assert 0 <= said * 10**6 - (10**9 + need.least) < 10**6


def test_results_under_a_budget_are_those_without(tokenizers, word_vectors, monkeypatch):
    source, target = tokenizers["wordpiece"], tokenizers["metaspace"]
    table = torch.randn(len(source), 32)
    inputs = table, source, target, word_vectors
    expected = initialize(*inputs, rank=8)
    monkeypatch.setattr("ofa_fast.initialization.recipe.columns_within", lambda budget, need: 5)
    actual = initialize(*inputs, rank=8, memory="64GB")
    for name in ("coordinates", "origin", "neighbors", "weights"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="memory is 1 MB, but at least"):
        initialize(*inputs, rank=8, memory="1MB")


BUDGET = """
import sys
import tracemalloc
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from ofa_fast.initialization import WordVectors, initialize, memory
WORDS = int(sys.argv[2])
vectors = WordVectors.load(sys.argv[1])
def tokenizer(first, last):
    vocabulary = {"[UNK]": 0} | {word: i for i, word in enumerate(vectors.words[first:last], 1)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
source, target = tokenizer(0, WORDS // 2), tokenizer(WORDS // 4, WORDS)
table = torch.randn(WORDS // 2 + 1, 32)
need = memory.needs(len(target), len(source), len(target), 32, [8], 10, vectors, False)
if sys.argv[3] == "least":
    budget = memory.resident() + need.least + (64 << 20)
    initialize(table, source, target, vectors, rank=8, memory=budget)
else:
    budget = memory.resident() + need.peak() + (64 << 20)
    initialize(table, source, target, vectors, rank=8)
# Not ru_maxrss, which a child inherits from the process that started it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(budget, peak * 1024, need.peak() - need.least)
"""


@pytest.mark.parametrize("which", ["least", "all"])
def test_the_peak_stays_below_the_budget_and_the_estimate(tmp_path, which):
    """30,000 words of 600 dimensions, nearly all of them tokens: most of the memory is that of the vectors."""
    count = 30_000
    random = np.random.default_rng(0)
    vectors = random.standard_normal((count, 600), dtype=np.float32)
    WordVectors([f"w{i}" for i in range(count)], vectors, "eng").save(tmp_path / "v.safetensors")
    command = [sys.executable, "-c", BUDGET, str(tmp_path / "v.safetensors"), str(count), which]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    budget, peak, spared = map(int, done.stdout.split())
    assert spared > 80e6
    assert peak < budget


def test_the_estimate_is_least_with_a_small_budget(tokenizers, word_vectors):
    both = tokenizers["wordpiece"], tokenizers["metaspace"]
    whole = estimate((900, 32), both, word_vectors)
    small = estimate((900, 32), both, word_vectors, memory=1)
    assert small["peak"] == whole["least"] <= whole["peak"]


def test_random_rows_take_the_memory_of_few_blocks_and_are_those_of_one_thread(monkeypatch):
    table = torch.randn(50, 256, generator=torch.Generator().manual_seed(0)) + 1
    ids, out, block = torch.arange(64 * rows.ROWS_PER_STREAM), {}, rows.ROWS_PER_STREAM * 256 * 4
    for threads in (1, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out[threads] = torch.empty(len(ids), 256)
        tracemalloc.start()
        rows.DRAWS["normal"](out[threads], ids, table, 0, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (2 * min(threads, 8) + 1) * block
    mean, std = (moment.float().numpy() for moment in (table.double().mean(0), table.double().std(0, correction=0)))
    normal = np.random.default_rng([0, 63]).standard_normal((rows.ROWS_PER_STREAM, 256), dtype=np.float32)
    assert np.array_equal(out[64][-rows.ROWS_PER_STREAM :].numpy(), normal * std + mean)
    assert torch.equal(out[1], out[64])
