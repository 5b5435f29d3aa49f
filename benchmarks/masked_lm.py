"""Masked-language-model training with a factorised table beside the stock dense model, on a real encoder and real text.

  python -m benchmarks.masked_lm curves ENCODER     50 steps with the same seed, batches and optimiser
  python -m benchmarks.masked_lm steps ENCODER      time and memory of a step, two processes that take turns

ENCODER is the folder of a BERT and its tokenizer, such as multilingual-e5-small. Its table stays whole, its layers are
cut to --layers, dropout is off, and the text is that of examples/data. The stock model evaluates its head at the masked
positions only, and both use torch's fused AdamW.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, logging

from benchmarks import harness
from benchmarks.machine import ROOT
from ofa_fast import FactorizedEmbedding, build_model

LEARNING_RATE = 5e-5
MASKED = 0.15


def stock_model(options: argparse.Namespace):
    torch.manual_seed(options.seed)  # of the head, which such folders lack
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    config = AutoConfig.from_pretrained(options.encoder, num_hidden_layers=options.layers, **off)
    return AutoModelForMaskedLM.from_pretrained(options.encoder, config=config, dtype=torch.float32).train()


def rebuilt(source, options: argparse.Namespace, coordinates: torch.Tensor, basis: torch.Tensor | None):
    """The model with its own vocabulary and this table."""
    result = SimpleNamespace(coordinates=coordinates, basis=basis, bias=None)
    return build_model(source, result, AutoTokenizer.from_pretrained(options.encoder))


def batches(options: argparse.Namespace, count: int) -> list[dict[str, torch.Tensor]]:
    """Verses of all languages, each batch as long as its longest; labels where a token is masked."""
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    generator = torch.Generator().manual_seed(options.seed)
    texts = sorted((ROOT / "examples" / "data" / "bible").glob("*.txt"))
    verses = [verse for text in texts for verse in text.read_text(encoding="utf-8").splitlines() if verse]
    order = torch.randperm(len(verses), generator=generator).tolist()
    found = []
    for start in range(0, count * options.batch, options.batch):
        chosen = [verses[i] for i in order[start : start + options.batch]]
        batch = tokenizer(
            chosen, return_tensors="pt", padding=True, truncation=True, max_length=options.length,
            return_special_tokens_mask=True,
        )  # fmt: skip
        ids, text = batch["input_ids"], ~batch["special_tokens_mask"].bool()
        masked = text & (torch.rand(ids.shape, generator=generator) < MASKED)
        labels = torch.where(masked, ids, -100)
        ids = torch.where(masked, tokenizer.mask_token_id, ids)
        found.append({"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels})
    return found


def loss_at_masked_positions(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a stock BERT: its head sees the masked positions only."""
    hidden = model.bert(batch["input_ids"], batch["attention_mask"])[0]
    masked = batch["labels"] != -100
    return F.cross_entropy(model.cls(hidden[masked]), batch["labels"][masked])


def loss_of_ours(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def curve(model, loss_of, data, optimizer) -> list[float]:
    losses = []
    for batch in data:
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def curves(options: argparse.Namespace) -> None:
    """The largest distance of each curve from the stock model's with the same optimiser.

    Full rank is a dense table. At R = D the basis is a random rotation: while it is fixed, a gradient step on the
    coordinates is the same step of the table. AdamW scales the entries of a step one by one, which makes other steps of
    a rotated table.
    """

    def dense(source):
        return rebuilt(source, options, source.get_input_embeddings().weight.detach(), None)

    def rotated(source):
        weight = source.get_input_embeddings().weight.detach()
        basis = torch.linalg.qr(torch.randn(weight.shape[1], weight.shape[1])).Q
        model = rebuilt(source, options, weight @ basis.T, basis)
        model.get_input_embeddings().basis.requires_grad_(False)
        return model

    data = batches(options, options.steps)
    for optimizer, rate, builds in (
        (torch.optim.AdamW, LEARNING_RATE, {"full rank": dense, "R = D": rotated}),
        (torch.optim.SGD, 0.01, {"R = D": rotated}),
    ):
        expected = None
        for name, build in {"stock": lambda source: source, **builds}.items():
            model = build(stock_model(options))
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            loss_of = loss_at_masked_positions if name == "stock" else loss_of_ours
            losses = curve(model, loss_of, data, optimizer(trained, lr=rate, fused=True))
            expected = expected or losses
            distance = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
            print(f"{optimizer.__name__:6} {name:10} {losses[0]:.4f} -> {losses[-1]:.4f}, at most {distance:.1e} off")
            del model, trained  # before the next one is made


def worker(options: argparse.Namespace, kind: str, pipe) -> None:
    """Answers every message with the seconds of a step's parts; the message None ends it with its peak memory."""
    before = harness._resident("cpu")
    model = stock_model(options)
    if kind == "ours":
        table = FactorizedEmbedding.from_dense(model.get_input_embeddings().weight, options.rank)
        model = rebuilt(model, options, table.coordinates, table.basis)
        del table
    loss_of = {"ours": loss_of_ours, "stock": loss_at_masked_positions}[kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    data = batches(options, 1)[0]

    def step() -> dict[str, float]:
        begin = time.perf_counter()
        loss_of(model, data).backward()
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        return {"forward and backward": middle - begin, "AdamW": time.perf_counter() - middle}

    step(), step()
    harness._reset_peak("cpu")
    tokens, masked = int(data["attention_mask"].sum()), int((data["labels"] != -100).sum())
    pipe.send({"parameters": sum(p.numel() for p in model.parameters()), "tokens": tokens, "masked": masked})
    while pipe.recv() is not None:
        pipe.send(step())
    pipe.send({"memory": harness._peak("cpu") - before})


def steps(options: argparse.Namespace) -> None:
    context, sides = multiprocessing.get_context("spawn"), {}
    for kind in ("stock", "ours"):
        pipe, theirs = context.Pipe()
        process = context.Process(target=worker, args=(options, kind, theirs), daemon=True)
        process.start()
        sides[kind] = {"pipe": pipe, "process": process} | pipe.recv()
    rounds = {kind: [] for kind in sides}
    for turn in range(options.rounds):
        for kind in list(sides)[:: 1 if turn % 2 else -1]:
            sides[kind]["pipe"].send("step")
            rounds[kind].append(sides[kind]["pipe"].recv())
    for side in sides.values():
        side["pipe"].send(None)
        side |= side["pipe"].recv()
        side["process"].join()
    stock, ours = sides["stock"], sides["ours"]
    print(f"{stock['tokens']} tokens, {stock['masked']} masked; rank {options.rank}, {options.layers} layers,", end=" ")
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds in turns")
    print(f"{'ms: p50 (p20 to p80)':22} {'stock':>22} {'ours':>22} {'ratio':>8}")
    parts = {part: [[step[part] for step in rounds[kind]] for kind in sides] for part in rounds["stock"][0]}
    parts["step"] = [[sum(step.values()) for step in rounds[kind]] for kind in sides]
    for part, both in parts.items():
        times = [{p: 1e3 * t for p, t in harness.quantiles(samples).items()} for samples in both]
        cells = [f"{t['p50']:.0f} ({t['p20']:.0f} to {t['p80']:.0f})" for t in times]
        print(f"{part:22} {cells[0]:>22} {cells[1]:>22} {times[0]['p50'] / times[1]['p50']:7.2f}x")
    for what, name, size in (("memory", "memory, MiB", 2**20), ("parameters", "parameters, M", 1e6)):
        print(f"{name:22} {stock[what] / size:22.0f} {ours[what] / size:22.0f} {stock[what] / ours[what]:7.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "steps"))
    parser.add_argument("encoder", metavar="ENCODER", help="a folder of a BERT and its tokenizer")
    parser.add_argument("--layers", type=int, default=3, help="(3)")
    parser.add_argument("--rank", type=int, default=100, help="of our table in `steps` (100)")
    parser.add_argument("--steps", type=int, default=50, help="of each curve (50)")
    parser.add_argument("--batch", type=int, default=16, help="verses (16)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a verse at most (128)")
    parser.add_argument("--rounds", type=int, default=9, help="of `steps` (9)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    {"curves": curves, "steps": steps}[options.what](options)


if __name__ == "__main__":
    main()
