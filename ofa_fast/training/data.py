"""Batches of packed sequences, in an order and with masks that depend on nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ofa_fast.training.packing import Sequences, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_WORD = 16  # pieces: a script without spaces would have clauses for words


def generator(*key: int) -> torch.Generator:
    """A generator seeded by all numbers of ``key``: other keys give independent streams."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


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

    def __init__(self, sequences: Sequences, length: int, seed: int, temperature: float = 1.0) -> None:
        self.sequences, self.length, self.seed = sequences, length, seed
        self._orders: dict[int, torch.Tensor] = {}
        self._languages: list[tuple[torch.Tensor, int]] = []
        if temperature != 1:
            codes = sequences.rows["language"]
            rows = [torch.from_numpy(np.flatnonzero(codes == i)) for i in range(len(sequences.languages))]
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


def examples(sequences: Sequences, rows: Sequence[int], positions: Sequence[int]) -> list[dict]:
    return [{"input_ids": sequences[row], "position": p} for row, p in zip(rows, positions, strict=True)]


def padded(examples: list[dict], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` [batch, longest], filled up at the end."""
    lengths = torch.tensor([len(e["input_ids"]) for e in examples])
    input_ids = torch.full((len(examples), int(lengths.max())), fill)
    for row, example in zip(input_ids, examples, strict=True):
        row[: len(example["input_ids"])] = torch.tensor(example["input_ids"])
    return input_ids, (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()


def masking_collator(
    tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int, first_position: int | None = None
):
    """Batches with ``labels`` at masked tokens, -100 elsewhere: 80 % mask token, 10 % a random token, 10 % unchanged.

    Each word is masked as a whole, with that probability, where the sequences tell words apart (``Sequences``), in
    runs of at most ``LONGEST_WORD`` pieces; otherwise each piece by itself. Special tokens, ``unk`` included, are
    never masked. An item's draws are a function of the seed and of its position in the stream, whatever batch it is in:
    a running generator, such as that of transformers' collator, would be in another state after a resumption.

    With ``first_position``, the documents of a sequence are told apart: ``documents`` numbers them, -1 at padding, and
    ``position_ids`` start at ``first_position`` in each.
    """
    special = torch.tensor(tokenizer.all_special_ids)

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        marked, attention_mask = padded(examples, tokenizer.pad_token_id)
        original = torch.where(marked < 0, ~marked, marked)
        column = torch.arange(marked.shape[1]).expand_as(marked)
        within = column - torch.where(marked < 0, 0, column).cummax(1).values
        draws = torch.stack(
            [torch.rand(marked.shape[1], 3, generator=generator(seed, 1, e["position"])) for e in examples]
        )
        draw, kind = draws[..., 0].gather(1, column - within % LONGEST_WORD), draws[..., 1]
        masked = (draw < mlm_probability) & ~torch.isin(original, special) & (attention_mask > 0)
        other = (draws[..., 2].double() * len(tokenizer)).long()
        other = torch.where(kind < 0.8, tokenizer.mask_token_id, torch.where(kind < 0.9, other, original))
        batch = {
            "input_ids": torch.where(masked, other, original),
            "attention_mask": attention_mask,
            "labels": original.masked_fill(~masked, -100),
        }
        if first_position is not None:
            first = begins(original, tokenizer, causal=False)
            batch["documents"] = first.cumsum(1).masked_fill(attention_mask == 0, -1)
            batch["position_ids"] = first_position + within_document(first)
        return batch

    return collate


def begins(input_ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, causal: bool) -> torch.Tensor:
    """Where a document, or the rest of one that was cut, begins: at the start of a sequence and after the end token."""
    end = special_tokens(tokenizer, causal)[1][0]
    return torch.nn.functional.pad(input_ids[:, :-1] == end, (1, 0), value=True)


def within_document(first: torch.Tensor) -> torch.Tensor:
    """Positions counted from 0 in each document, whose beginnings are ``first``."""
    columns = torch.arange(first.shape[1], device=first.device).expand_as(first)
    return columns - torch.where(first, columns, 0).cummax(1).values


def attention_within(documents: torch.Tensor) -> torch.Tensor:
    """[batch, 1, length, length]: whether a token attends to another one, which it does in its own document."""
    return (documents[:, :, None] == documents[:, None, :])[:, None]


def causal_collator(tokenizer: PreTrainedTokenizerBase, apart: bool):
    """Batches whose ``labels`` are their tokens, but for padding and the first token of each document of a sequence.

    A document ends with its end-of-sequence token. With ``apart``, ``position_ids`` start at 0 in each, from which
    transformers builds an attention mask without attention across them.
    """
    end = special_tokens(tokenizer, causal=True)[1][0]
    fill = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = padded(examples, fill)
        first = begins(input_ids, tokenizer, causal=True)
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": input_ids.masked_fill(first | (attention_mask == 0), -100),
        }
        if apart:
            batch["position_ids"] = within_document(first)
        return batch

    return collate
