"""Passages as packed token sequences, in an order and with masks that depend on nothing but the seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ofa_fast.training.text import Files, labelled, passages, states

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PASSAGES_PER_BATCH = 2000


def generator(*key: int) -> torch.Generator:
    """A generator seeded by all numbers of ``key``: other keys give independent streams."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Packer:
    """Cuts the stream ``line end line end line …`` into sequences ``start piece end`` of ``length`` tokens.

    Only the last sequence may be shorter. Every token of every line is in exactly one sequence, in order. A line that
    ends where a sequence ends needs no further separator.
    """

    def __init__(self, length: int, start: Sequence[int] = (), end: Sequence[int] = ()) -> None:
        self.room, self.start, self.end = length - len(start) - len(end), start, end
        if self.room < 1:
            raise ValueError(f"max_length: {length} leaves no room beside {len(start) + len(end)} special tokens")
        self._stream: list[int] = []

    def add(self, line: Sequence[int]) -> Iterator[list[int]]:
        """The sequences that ``line`` completes."""
        stream, room = self._stream, self.room
        if stream:
            stream.extend(self.end)
        stream.extend(line)
        cut = len(stream) - len(stream) % room
        for begin in range(0, cut, room):
            yield [*self.start, *stream[begin : begin + room], *self.end]
        del stream[:cut]

    def rest(self) -> Iterator[list[int]]:
        if self._stream:
            yield [*self.start, *self._stream, *self.end]


def pack(
    lines: Iterable[Sequence[int]], length: int, start: Sequence[int] = (), end: Sequence[int] = ()
) -> Iterator[list[int]]:
    """All sequences of a ``Packer`` given ``lines``."""
    packer = Packer(length, start, end)
    for line in lines:
        yield from packer.add(line)
    yield from packer.rest()


def special_tokens(tokenizer: PreTrainedTokenizerBase, causal: bool) -> tuple[list[int], list[int]]:
    """What stands before and after a sequence, or before and after a document for a causal model; none or one each.

    A causal model whose tokenizer has one token for both, as GPT-2's has, gets it after a document only.
    """
    first = [tokenizer.cls_token_id, tokenizer.bos_token_id]
    last = [tokenizer.sep_token_id, tokenizer.eos_token_id]
    step = -1 if causal else 1
    start, end = ([i for i in ids[::step] if i is not None][:1] for ids in (first, last))
    return ([] if causal and start == end else start), end


def _packed_files(
    files: tuple[tuple[str, str], ...],
    argument: str,
    states: tuple,
    tokenizer_folder: str,
    digest: str,
    length: int,
    progress: bool,
    causal: bool,
) -> Iterator[dict]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    start, end = special_tokens(tokenizer, causal)
    around = ([], []) if causal else (start, end)
    with tqdm(unit=" passages", unit_scale=True, desc="tokenising", disable=not progress) as bar:
        for file, (language, path) in enumerate(files):
            packers: dict[str, Packer] = {}
            rows = passages(Path(path), language, argument)
            while batch := list(islice(rows, PASSAGES_PER_BATCH)):
                languages, texts = zip(*batch, strict=True)
                tokens = tokenizer(
                    list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
                ).input_ids
                for own, ids in zip(languages, tokens, strict=True):
                    if own not in packers:
                        packers[own] = Packer(length, *around)
                    for sequence in packers[own].add([*start, *ids, *end] if causal else ids):
                        yield {"input_ids": sequence, "file": file, "language": own}
                bar.update(len(batch))
            for own, packer in packers.items():
                for sequence in packer.rest():
                    yield {"input_ids": sequence, "file": file, "language": own}


def packed_sequences(
    files: Files,
    argument: str,
    tokenizer_folder: str | os.PathLike,
    digest: str,
    length: int,
    cache: Path,
    progress: bool,
    causal: bool = False,
) -> Dataset:
    """Packed sequences, memory-mapped: ``input_ids`` (int32), ``file`` (index into ``files``) and ``language``.

    Each language of each file is packed by itself, so that a sequence never mixes two of them. For a ``causal`` model
    every passage is a document with special tokens of its own; one that a sequence cuts goes on in the next one.
    It is written once under ``cache`` and found again there for the same files (language, path, sizes, modification
    times), tokenizer (``digest``), length and kind of model. Memory beyond the page cache: one batch of passages.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    files = labelled(files)
    features = {
        "input_ids": datasets.Sequence(datasets.Value("int32")),
        "file": datasets.Value("int32"),
        "language": datasets.Value("string"),
    }
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_generator(
            _packed_files,
            features=datasets.Features(features),
            cache_dir=str(cache),
            gen_kwargs={
                # Tuples: datasets would take a list for shards and call the generator once for each.
                "files": tuple((language, str(path)) for language, path in files),
                "argument": argument,
                "states": tuple(tuple(states(path)) for _, path in files),
                "tokenizer_folder": str(tokenizer_folder),
                "digest": digest,
                "length": length,
                "progress": progress,
                "causal": causal,
            },
        ).with_format("numpy")
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    finally:
        if shown:
            datasets.enable_progress_bars()


def languages(sequences: Dataset) -> tuple[list[str], np.ndarray]:
    """The languages in order of appearance, and each sequence's as an index into them [N]."""
    column = sequences.data.column("language").combine_chunks().dictionary_encode()
    return column.dictionary.to_pylist(), column.indices.to_numpy()


def quotas(sizes: np.ndarray, temperature: float) -> np.ndarray:
    """How many of the N = Σ n sequences of an epoch are of each language: N p with p ∝ n^(1/T), n the ``sizes``.

    Rounded by the largest remainder, so that they sum to N. At T >= 1 each is at least 1.
    """
    shares = np.asarray(sizes, np.float64) ** (1 / temperature)
    exact = shares / shares.sum() * np.sum(sizes)
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: np.sum(sizes) - counts.sum()]] += 1
    return counts


class Stream(torch.utils.data.Dataset):
    """All sequences that a training run sees, one epoch's shuffle after another.

    Item j is a function of (sequences, seed, temperature, j) alone, so a resumed run goes on with the very next item
    whatever happened before, and so does every process of a distributed run.

    At temperature 1 an epoch has each sequence once. Above, it has as many, but ``quotas`` of each language: those of
    a small one are repeated, each as often as any other (give or take one), and those of a large one take turns over
    the epochs.
    """

    def __init__(self, sequences: Dataset, length: int, seed: int, temperature: float = 1.0) -> None:
        self.sequences, self.length, self.seed = sequences, length, seed
        self._orders: dict[int, torch.Tensor] = {}
        self._languages: list[tuple[torch.Tensor, int]] = []
        if temperature != 1:
            names, codes = languages(sequences)
            rows = [torch.from_numpy(np.flatnonzero(codes == i)) for i in range(len(names))]
            counts = quotas(np.array([len(r) for r in rows]), temperature)
            self._languages = list(zip(rows, counts.tolist(), strict=True))

    def __len__(self) -> int:
        return self.length

    def _order(self, epoch: int) -> torch.Tensor:
        shuffled = torch.randperm(len(self.sequences), generator=generator(self.seed, 0, epoch))
        if not self._languages:
            return shuffled
        drawn = [self._drawn(language, epoch) for language in range(len(self._languages))]
        return torch.cat(drawn)[shuffled]

    def _drawn(self, language: int, epoch: int) -> torch.Tensor:
        """The rows of a language in an epoch: a window of one endless stream of shuffles of all of its rows."""
        rows, count = self._languages[language]
        first, last = epoch * count // len(rows), (epoch * count + count - 1) // len(rows)
        shuffles = [
            rows[torch.randperm(len(rows), generator=generator(self.seed, 2, language, turn))]
            for turn in range(first, last + 1)
        ]
        begin = epoch * count - first * len(rows)
        return torch.cat(shuffles)[begin : begin + count]

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.sequences))
        if epoch not in self._orders:
            # A batch spans two epochs at the seam, never needs an older one.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = self._order(epoch)
        return int(self._orders[epoch][index])

    def __getitems__(self, positions: Sequence[int]) -> list[dict]:
        return examples(self.sequences, [self._row(p) for p in positions], positions)

    def __getitem__(self, position: int) -> dict:
        return self.__getitems__([position])[0]


def examples(sequences: Dataset, rows: Sequence[int], positions: Sequence[int]) -> list[dict]:
    ids = sequences[list(rows)]["input_ids"]
    return [{"input_ids": x, "position": p} for x, p in zip(ids, positions, strict=True)]


def padded(examples: list[dict], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` [batch, longest], filled up at the end."""
    lengths = torch.tensor([len(e["input_ids"]) for e in examples])
    input_ids = torch.full((len(examples), int(lengths.max())), fill)
    for row, example in zip(input_ids, examples, strict=True):
        row[: len(example["input_ids"])] = torch.from_numpy(example["input_ids"])
    return input_ids, (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()


def masking_collator(tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int):
    """Batches with ``labels`` at masked tokens, -100 elsewhere: 80 % mask token, 10 % a random token, 10 % unchanged.

    The masking is that of transformers' ``DataCollatorForLanguageModeling``. Its random draws come from one running
    generator, which a resumed run would not find in the same state: here they are a function of the seed and of the
    first item's position in the stream. Special tokens, ``unk`` included, are never masked.
    """
    from transformers import DataCollatorForLanguageModeling

    special = torch.tensor(tokenizer.all_special_ids)

    class MaskingCollator(DataCollatorForLanguageModeling):
        def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
            self.generator = generator(seed, 1, examples[0]["position"])
            input_ids, attention_mask = padded(examples, tokenizer.pad_token_id)
            unmasked = torch.isin(input_ids, special) | (attention_mask == 0)
            input_ids, labels = self.torch_mask_tokens(input_ids, special_tokens_mask=unmasked)
            return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    return MaskingCollator(tokenizer, mlm_probability=mlm_probability)


def causal_collator(tokenizer: PreTrainedTokenizerBase, apart: bool):
    """Batches whose ``labels`` are their tokens, but for padding and the first token of each document of a sequence.

    A document ends with its end-of-sequence token. With ``apart``, ``position_ids`` start at 0 in each, from which
    transformers builds an attention mask without attention across them.
    """
    end = special_tokens(tokenizer, causal=True)[1][0]
    fill = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = padded(examples, fill)
        first = torch.nn.functional.pad(input_ids[:, :-1] == end, (1, 0), value=True)
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": input_ids.masked_fill(first | (attention_mask == 0), -100),
        }
        if apart:
            columns = torch.arange(input_ids.shape[1]).expand_as(input_ids)
            batch["position_ids"] = columns - torch.where(first, columns, 0).cummax(1).values
        return batch

    return collate
