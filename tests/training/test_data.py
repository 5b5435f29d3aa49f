"""Packing, order and masks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ofa_fast.training.data import Stream, masking_collator, pack, packed_sequences


@pytest.mark.parametrize("length", [3, 4, 7, 16])
def test_packing_loses_no_token(length):
    lines = [[10 + i] * (1 + i * 7 % 11) for i in range(40)]
    packed = list(pack(lines, length, start=[1], end=[2]))

    assert [len(ids) for ids in packed[:-1]] == [length] * (len(packed) - 1)
    assert len(packed[-1]) <= length
    assert all(ids[0] == 1 and ids[-1] == 2 for ids in packed)
    assert [i for ids in packed for i in ids if i >= 10] == [i for line in lines for i in line]
    neighbours = [pair for ids in packed for pair in pairwise(ids) if min(pair) >= 10]
    assert all(a == b for a, b in neighbours)  # each line is made of one number: lines never touch


def test_packing_without_special_tokens_cuts_the_plain_stream():
    assert list(pack([[1, 2, 3], [4, 5, 6, 7]], 3)) == [[1, 2, 3], [4, 5, 6], [7]]


def test_no_room_beside_the_special_tokens():
    with pytest.raises(ValueError, match="max_length: 2 leaves no room beside 2 special tokens"):
        list(pack([[5]], 2, start=[1], end=[2]))


@pytest.fixture
def sequences(texts, dense_dir, tmp_path):
    return packed_sequences(texts, "texts", dense_dir, "digest", 32, tmp_path, progress=False)


def test_files_are_packed_one_by_one_and_whole(sequences, texts, tokenizer):
    for file, path in enumerate(texts):
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
        expected = [i for ids in tokenizer(lines, add_special_tokens=False).input_ids for i in ids]
        rows = sequences.filter(lambda row, file=file: row["file"] == file)["input_ids"]
        packed = [i for ids in rows for i in ids.tolist()]
        special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        assert [i for i in packed if i not in special] == expected
        assert all(len(ids) == 32 for ids in list(rows)[:-1])


def test_an_epoch_is_a_permutation_and_each_epoch_another(sequences):
    n = len(sequences)
    stream = Stream(sequences, 2 * n, seed=3)
    epochs = [[stream._row(p) for p in range(n)], [stream._row(p) for p in range(n, 2 * n)]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n))
    assert epochs[0] != epochs[1]
    assert [Stream(sequences, 2 * n, seed=3)._row(p) for p in (n + 5, 2)] == [epochs[1][5], epochs[0][2]]
    assert [Stream(sequences, 2 * n, seed=4)._row(p) for p in range(n)] != epochs[0]


def test_masks_follow_the_recipe(sequences, tokenizer):
    stream = Stream(sequences, 100_000, seed=0)
    collator = masking_collator(tokenizer, 0.15, seed=0)
    counts = torch.zeros(4)
    for begin in range(0, 6400, 64):
        positions = list(range(begin, begin + 64))
        originals = [item["input_ids"] for item in stream.__getitems__(positions)]
        batch = collator(stream.__getitems__(positions))
        original = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in originals], batch_first=True)
        special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
        masked = batch["labels"] != -100
        assert not (masked & (special | (batch["attention_mask"] == 0))).any()
        assert torch.equal(batch["labels"][masked], original[masked])
        assert torch.equal(batch["input_ids"][~masked], original[~masked])
        replaced = batch["input_ids"] == tokenizer.mask_token_id
        counts += torch.tensor(
            [(~special).sum(), masked.sum(), replaced.sum(), (masked & (batch["input_ids"] == original)).sum()]
        )
    candidates, masked, replaced, unchanged = counts.tolist()
    # Binomial standard deviations are below 0.001 and 0.003 here.
    assert masked / candidates == pytest.approx(0.15, abs=0.005)
    assert replaced / masked == pytest.approx(0.8, abs=0.015)
    assert unchanged / masked == pytest.approx(0.1, abs=0.015)


def test_masks_depend_on_seed_and_position_only(sequences, tokenizer):
    stream = Stream(sequences, 1000, seed=0)

    def labels(seed, positions):
        return masking_collator(tokenizer, 0.15, seed)(stream.__getitems__(positions))["labels"]

    first = labels(0, [4, 5, 6])
    torch.rand(7)
    assert torch.equal(labels(0, [4, 5, 6]), first)
    assert not torch.equal(labels(1, [4, 5, 6]), first)
    again = [p + len(sequences) for p in [4, 5, 6]]
    assert not torch.equal(labels(0, again) != -100, first != -100)
