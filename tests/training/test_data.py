"""Packing, order and masks."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ofa_fast.training.data import LONGEST_WORD, Stream, masking_collator
from ofa_fast.training.packing import Packer, encoder, packed_sequences


def pack(lines, length, every, **around) -> list[list[int]]:
    """The sequences of ``lines``, taken out after ``every`` so many lines."""
    packer, packed = Packer(length, **around), []
    for i, line in enumerate(lines):
        packer.add(line)
        if i % every == 0:
            packed += packer.full().tolist()
    return packed + packer.full().tolist() + packer.rest().tolist()


@pytest.mark.parametrize("length", [3, 4, 7, 16])
def test_packing_loses_no_token(length):
    lines = [[10 + i] * (1 + i * 7 % 11) for i in range(40)]
    packed = pack(lines, length, 1, start=[1], end=[2])
    assert packed == pack(lines, length, 7, start=[1], end=[2]) == pack(lines, length, 50, start=[1], end=[2])

    assert [len(ids) for ids in packed[:-1]] == [length] * (len(packed) - 1)
    assert len(packed[-1]) <= length
    assert all(ids[0] == 1 and ids[-1] == 2 for ids in packed)
    assert [i for ids in packed for i in ids if i >= 10] == [i for line in lines for i in line]
    neighbours = [pair for ids in packed for pair in pairwise(ids) if min(pair) >= 10]
    assert all(a == b for a, b in neighbours)  # each line is made of one number: lines never touch


def test_packing_without_special_tokens_cuts_the_plain_stream():
    assert pack([[1, 2, 3], [4, 5, 6, 7]], 3, 1) == [[1, 2, 3], [4, 5, 6], [7]]


def test_no_room_beside_the_special_tokens():
    with pytest.raises(ValueError, match="max_length: 2 leaves no room beside 2 special tokens"):
        Packer(2, start=[1], end=[2])


@pytest.fixture
def sequences(texts, dense_dir, tmp_path):
    return packed_sequences(texts, "texts", dense_dir, "digest", 32, tmp_path, progress=False)


def test_files_are_packed_one_by_one_and_whole(sequences, texts, tokenizer):
    for file, path in enumerate(texts):
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
        expected = [i for ids in tokenizer(lines, add_special_tokens=False).input_ids for i in ids]
        rows = [sequences[i] for i in np.flatnonzero(sequences.rows["file"] == file)]
        packed = [i for ids in rows for i in ids.tolist()]
        special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        assert [i for i in packed if i not in special] == expected
        assert all(len(ids) == 32 for ids in rows[:-1])


def test_other_processes_get_the_name_of_the_files_not_their_content(sequences):
    sent = pickle.dumps(sequences)
    assert len(sent) < 500
    assert [ids.tolist() for ids in pickle.loads(sent)] == [ids.tolist() for ids in sequences]


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
        original = torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in originals], batch_first=True)
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


@pytest.mark.parametrize("kind", ["wordpiece", "metaspace", "byte-level"])
def test_pieces_that_continue_a_word_are_marked(kind):
    """Every piece is a character, so that the marks say where words begin."""
    letters = [*"abc,", "##a", "##b", "##c", "▁a", "▁b", "▁c", "Ġa", "Ġb", "Ġc", "[UNK]", "[MASK]", "▁", "Ġ"]
    vocabulary = {token: i for i, token in enumerate(letters)}
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        expected = "a ##b , c ##a ##b [MASK] a"
        begins = [1, 0, 1, 1, 0, 0, 1, 1]
    elif kind == "metaspace":
        backend = Tokenizer(models.Unigram([(token, -1.0) for token in letters], unk_id=13))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        expected = "▁a b , ▁c a b ▁ [MASK] ▁a"
        begins = [1, 0, 0, 1, 0, 0, 1, 1, 1]
    else:
        backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "c"), ("Ġ", "a")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        expected = "a b , Ġc a b Ġ [MASK] Ġa"
        begins = [1, 0, 1, 1, 0, 0, 1, 1, 1]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]")
    marked = encoder(tokenizer, whole_words=True)(["ab, cab [MASK] a"])[0]
    plain = encoder(tokenizer, whole_words=False)(["ab, cab [MASK] a"])[0]
    assert tokenizer.convert_ids_to_tokens(plain) == expected.split()
    assert [~i if i < 0 else i for i in marked] == plain
    assert [int(i >= 0) for i in marked] == begins


def test_a_tokenizer_that_knows_no_words():
    backend = Tokenizer(models.BPE({"a": 0, " ": 1, "b": 2, "c": 3}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ValueError, match="whole_words: the tokenizer does not split text into words"):
        encoder(tokenizer, whole_words=True)


def test_whole_words_are_masked_whole(texts, dense_dir, tokenizer, tmp_path):
    arguments = (texts, "texts", dense_dir, "digest", 32, tmp_path, False)
    words, pieces = packed_sequences(*arguments, whole_words=True), packed_sequences(*arguments)
    collator = masking_collator(tokenizer, 0.15, seed=0)
    inside = torch.tensor([token.startswith("##") for token in tokenizer.convert_ids_to_tokens(range(400))])
    halves, counts = {True: 0, False: 0}, torch.zeros(2)
    for begin in range(0, 4000, 50):
        batches = {
            whole: collator(Stream(own, 4000, seed=0).__getitems__(list(range(begin, begin + 50))))
            for whole, own in ((True, words), (False, pieces))
        }
        originals = []
        for whole, batch in batches.items():
            masked = batch["labels"] != -100
            originals.append(torch.where(masked, batch["labels"], batch["input_ids"]))
            continues = inside[originals[-1]][:, 2:]  # column 0 is the start token, also where a word was cut
            halves[whole] += int(((masked[:, 2:] != masked[:, 1:-1]) & continues).sum())
        assert torch.equal(*originals)  # the same sequences: marks change nothing else
        candidates = ~torch.isin(originals[0], torch.tensor(tokenizer.all_special_ids))
        whole_mask = batches[True]["labels"] != -100
        assert not (whole_mask & ~candidates).any()
        counts += torch.tensor([whole_mask.sum(), candidates.sum()])
    assert halves[True] == 0 < 10_000 < halves[False]
    assert counts[0] / counts[1] == pytest.approx(0.15, abs=0.01)


def test_a_word_of_many_pieces_is_masked_in_runs(tokenizer):
    ids = np.array([2, *[~np.int32(20)] * (3 * LONGEST_WORD - 1)], np.int32)
    collator = masking_collator(tokenizer, 0.5, seed=0)
    seen = set()
    for position in range(50):
        masked = collator([{"input_ids": ids, "position": position}])["labels"][0] != -100
        runs = masked.reshape(3, LONGEST_WORD)
        assert all(len(set(run.tolist())) == 1 for run in runs[1:])
        assert len(set(runs[0, 1:].tolist())) == 1
        seen.add(tuple(runs[:, 1].tolist()))
    assert len(seen) == 8
