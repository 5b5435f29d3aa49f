"""The whole job on made-up inputs of full size: an initialisation, and continued pretraining beside the stock model.

  python -m benchmarks.whole_job initialization    250,002 source and 401,145 target subwords, 600,000 word vectors
  python -m benchmarks.whole_job training          XLM-R base with a table of 401,145 subwords, in transformers' Trainer

--small does the same with small numbers; --json FILE has what is known after every model or run. Each word is one
subword here, so that tokenising takes the least it can, and ids fall off as those of words do. Both models train with
the same Trainer, batches, precision and fused AdamW.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks import data, harness

FULL = SimpleNamespace(sources=250_002, targets=401_145, shared=200_000, words=600_000, dimensions=200, width=768,
                       layers=12, heads=12, inner=3072, rank=200, batch=16, length=512, warmup=5, steps=20)  # fmt: skip
SMALL = SimpleNamespace(sources=400, targets=700, shared=300, words=900, dimensions=16, width=32,
                        layers=2, heads=2, inner=64, rank=8, batch=2, length=24, warmup=1, steps=2)  # fmt: skip
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def tokenizer(first: int, size: int):
    """Of the words w<first>, w<first + 1>, … and the special tokens, ``size`` tokens in all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, *(f"w{i}" for i in range(first, first + size - len(SPECIAL)))]
    words = Tokenizer(models.WordLevel(dict(zip(tokens, range(size), strict=True)), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=words, cls_token="<s>", sep_token="</s>", **names)


def initialization(size: SimpleNamespace, device: str, write: Callable[[dict], None]) -> None:
    """Seconds of every stage of ``initialize`` with the source table on the device, twice: the first one compiles."""
    import ofa_fast

    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((size.words, size.dimensions), dtype=np.float32)
    words = ofa_fast.WordVectors([f"w{i}" for i in range(size.words)], vectors, "eng")
    source, target = tokenizer(0, size.sources), tokenizer(size.sources - size.shared, size.targets)
    table = torch.randn(size.sources, size.width, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = {}
    for run in ("first", "second"):
        begin = time.perf_counter()
        result = ofa_fast.initialize(table, source, target, words, rank=size.rank)
        seconds[run] = {"all": time.perf_counter() - begin, **result.report["seconds"]}
        write({"seconds": seconds, "counts": result.report["counts"]})


def models(size: SimpleNamespace):
    """What makes the stock model, and what makes ours of the same shape; weights are random."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    import ofa_fast

    def stock(vocabulary=size.targets):
        torch.manual_seed(0)
        config = XLMRobertaConfig(
            vocab_size=vocabulary, hidden_size=size.width, num_hidden_layers=size.layers, intermediate_size=size.inner,
            num_attention_heads=size.heads, max_position_embeddings=size.length + 2, type_vocab_size=1,
            bos_token_id=0, pad_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return XLMRobertaForMaskedLM(config)

    def ours():
        coordinates = torch.randn(size.targets, size.rank) / size.rank**0.5
        table = SimpleNamespace(coordinates=coordinates, basis=0.02 * torch.randn(size.rank, size.width), bias=None)
        return ofa_fast.build_model(stock(1_000), table, tokenizer(0, size.targets))

    return {"stock": stock, harness.OURS: ours}


def batches(size: SimpleNamespace) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    count = size.batch * (size.warmup + size.steps)
    ids = data.zipf_ids(count * size.length, size.targets - len(SPECIAL)).view(count, size.length) + len(SPECIAL)
    masked = torch.rand(ids.shape) < 0.15
    labels, ids = torch.where(masked, ids, -100), torch.where(masked, SPECIAL.index("<mask>"), ids)
    return [
        {"input_ids": a, "attention_mask": torch.ones_like(a), "labels": b} for a, b in zip(ids, labels, strict=True)
    ]


def training(size: SimpleNamespace, device: str, write: Callable[[dict], None]) -> None:
    """Tokens a second and peak memory of both models; a model that does not fit is halved in its batch."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def __init__(self):
            self.seconds = []

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (size.warmup, size.warmup + size.steps):
                if device == "cuda":
                    torch.cuda.synchronize()
                self.seconds.append(time.perf_counter())

    def train(model, batch):
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(
                folder, max_steps=size.warmup + size.steps, per_device_train_batch_size=batch, bf16=device == "cuda",
                use_cpu=device == "cpu", optim="adamw_torch_fused", report_to="none", save_strategy="no",
                logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0, learning_rate=5e-5,
            )  # fmt: skip
            loss = Trainer(model, options, train_dataset=rows, callbacks=[clock]).train().training_loss
        return loss, (clock.seconds[1] - clock.seconds[0]) / size.steps

    rows, results = batches(size), {}
    for name, make in reversed(models(size).items()):
        batch = size.batch
        while batch:
            harness._reset_peak(device)
            try:
                model = make()
                parameters = sum(p.numel() for p in model.parameters())
                loss, seconds = train(model, batch)
            except torch.OutOfMemoryError:
                batch //= 2
                continue
            finally:
                model = None
            results[name] = {
                "batch": batch,
                "tokens_per_second": batch * size.length / seconds,
                "seconds_per_step": seconds,
                "memory": harness._peak(device),
                "parameters": parameters,
                "loss": loss,
            }
            break
        else:
            results[name] = {"refused": "no batch fits into memory"}
        write(results)
    if all("tokens_per_second" in result for result in results.values()):
        results["ratio"] = results[harness.OURS]["tokens_per_second"] / results["stock"]["tokens_per_second"]
        write(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("initialization", "training"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="(printed only)")
    options = parser.parse_args()
    job = {"initialization": initialization, "training": training}[options.what]

    def write(found: dict) -> None:
        text = json.dumps(found, indent=1)
        print(text, flush=True)
        if options.json:
            whole = options.json.with_suffix(".part")
            whole.write_text(text + "\n")
            whole.replace(options.json)

    job(SMALL if options.small else FULL, options.device, write)


if __name__ == "__main__":
    main()
