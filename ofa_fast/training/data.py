"""Text files as packed token sequences, in an order and with masks that depend on nothing but the seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ofa_fast._text import read_lines

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LINES_PER_BATCH = 2000


def generator(*key: int) -> torch.Generator:
    """A generator seeded by all numbers of ``key``: other keys give independent streams."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def check_files(files: str | os.PathLike | Sequence[str | os.PathLike], argument: str) -> list[Path]:
    paths = [Path(f) for f in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise ValueError(f"{argument}: expected at least one text file, got none")
    for path in paths:
        if not any(read_lines(path, argument)):
            raise ValueError(f"{argument}: {path} has no text, every file needs a line that is not blank")
    return paths


def pack(
    lines: Iterable[Sequence[int]], length: int, start: Sequence[int] = (), end: Sequence[int] = ()
) -> Iterator[list[int]]:
    """Cut the stream ``line end line end line …`` into sequences ``start piece end`` of ``length`` tokens.

    Only the last sequence may be shorter. Every token of every line is in exactly one sequence, in order. A line that
    ends where a sequence ends needs no further separator.
    """
    room = length - len(start) - len(end)
    if room < 1:
        raise ValueError(f"max_length: {length} leaves no room beside {len(start) + len(end)} special tokens")
    stream: list[int] = []
    for line in lines:
        if stream:
            stream.extend(end)
        stream.extend(line)
        cut = len(stream) - len(stream) % room
        for begin in range(0, cut, room):
            yield [*start, *stream[begin : begin + room], *end]
        del stream[:cut]
    if stream:
        yield [*start, *stream, *end]


def _packed_files(
    paths: tuple[str, ...],
    argument: str,
    states: tuple,
    tokenizer_folder: str,
    digest: str,
    length: int,
    progress: bool,
) -> Iterator[dict]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    start, end = (
        [i for i in ids if i is not None][:1]
        for ids in ((tokenizer.cls_token_id, tokenizer.bos_token_id), (tokenizer.sep_token_id, tokenizer.eos_token_id))
    )
    total = sum(os.path.getsize(path) for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, desc="tokenising", disable=not progress) as bar:

        def tokenized(path: str) -> Iterator[list[int]]:
            lines = (line for line in read_lines(path, argument) if line)
            while batch := list(islice(lines, LINES_PER_BATCH)):
                yield from tokenizer(
                    batch, add_special_tokens=False, return_attention_mask=False, verbose=False
                ).input_ids
                bar.update(sum(len(line.encode()) + 1 for line in batch))

        for file, path in enumerate(paths):
            for ids in pack(tokenized(path), length, start, end):
                yield {"input_ids": ids, "file": file}


def packed_sequences(
    paths: Sequence[Path],
    argument: str,
    tokenizer_folder: str | os.PathLike,
    digest: str,
    length: int,
    cache: Path,
    progress: bool,
) -> Dataset:
    """A memory-mapped data set of packed sequences: ``input_ids`` (int32) and ``file`` (index into ``paths``).

    Files are packed one by one, so that a sequence never mixes two of them. It is written once under ``cache`` and
    found again there for the same files (path, size, modification time), tokenizer (``digest``) and length.
    Memory beyond the page cache: one batch of lines.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_generator(
            _packed_files,
            features=datasets.Features(
                {"input_ids": datasets.Sequence(datasets.Value("int32")), "file": datasets.Value("int32")}
            ),
            cache_dir=str(cache),
            gen_kwargs={
                # Tuples: datasets would take a list for shards and call the generator once for each.
                "paths": tuple(str(path) for path in paths),
                "argument": argument,
                "states": tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths),
                "tokenizer_folder": str(tokenizer_folder),
                "digest": digest,
                "length": length,
                "progress": progress,
            },
        ).with_format("numpy")
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    finally:
        if shown:
            datasets.enable_progress_bars()


class Stream(torch.utils.data.Dataset):
    """All sequences that a training run sees, one epoch's shuffle after another.

    Item j is a function of (sequences, seed, j) alone, so a resumed run goes on with the very next item whatever
    happened before, and so does every process of a distributed run.
    """

    def __init__(self, sequences: Dataset, length: int, seed: int) -> None:
        self.sequences, self.length, self.seed = sequences, length, seed
        self._orders: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self.length

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.sequences))
        if epoch not in self._orders:
            # A batch spans two epochs at the seam, never needs an older one.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = torch.randperm(len(self.sequences), generator=generator(self.seed, 0, epoch))
        return int(self._orders[epoch][index])

    def __getitems__(self, positions: Sequence[int]) -> list[dict]:
        return examples(self.sequences, [self._row(p) for p in positions], positions)

    def __getitem__(self, position: int) -> dict:
        return self.__getitems__([position])[0]


def examples(sequences: Dataset, rows: Sequence[int], positions: Sequence[int]) -> list[dict]:
    ids = sequences[list(rows)]["input_ids"]
    return [{"input_ids": x, "position": p} for x, p in zip(ids, positions, strict=True)]


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
            lengths = torch.tensor([len(e["input_ids"]) for e in examples])
            input_ids = torch.full((len(examples), int(lengths.max())), tokenizer.pad_token_id)
            for row, example in zip(input_ids, examples, strict=True):
                row[: len(example["input_ids"])] = torch.from_numpy(example["input_ids"])
            attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
            unmasked = torch.isin(input_ids, special) | (attention_mask == 0)
            input_ids, labels = self.torch_mask_tokens(input_ids, special_tokens_mask=unmasked)
            return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    return MaskingCollator(tokenizer, mlm_probability=mlm_probability)
