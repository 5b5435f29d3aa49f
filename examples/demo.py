"""The whole job on real data in a few minutes: an English model learns five more languages, two of them in new scripts.

    make demo        (or: python examples/demo.py --seed 1 --out out/demo-1)

1. Source: all-MiniLM-L6-v2, a small English model, with its English WordPiece vocabulary.
2. Word vectors of six languages, aligned by verses that are translations of each other.
3. A new tokenizer for the six languages.
4. New models at rank 100 and at full rank, their tables made by OFA and, for comparison, at random.
5. Continued masked-language-model pretraining of each, for a few dozen steps.
6. Sentence retrieval between English and the others, before and after training.

The letters of James and 1 Peter are held out: neither the vectors nor the tokenizer nor the training sees them, and
retrieval is measured on them alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from get_minilm import get_minilm
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast, logging

import ofa_fast
from ofa_fast.evaluation import evaluate
from ofa_fast.initialization import build_word_vectors
from ofa_fast.initialization.html_report import write_html_report
from ofa_fast.training import train

BIBLE = Path(__file__).parent / "data" / "bible"
VERSES = Path(__file__).parent / "data" / "vref.txt"
LANGUAGES = {"eng": "English", "deu": "German", "spa": "Spanish", "swh": "Swahili", "cop": "Coptic", "chr": "Cherokee"}
HELD_OUT = ("JAS", "1PE")
RANKS = {"rank 100": 100, "full rank": None}
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
VOCABULARY = 20_000
STEPS, BATCH, LENGTH, LEARNING_RATE = 32, 16, 64, 2e-5
LAYER, TOP = 6, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)

    say("the source model, all-MiniLM-L6-v2")
    minilm = get_minilm()
    source = AutoModelForMaskedLM.from_pretrained(minilm)
    source_tokenizer = AutoTokenizer.from_pretrained(minilm)
    # MiniLM comes without a masked-language-model head. A random one would make it unlearn its sentence vectors first,
    # so the new one starts neutral: it passes hidden states on, and (below) expects each piece as often as it occurs.
    torch.nn.init.eye_(source.cls.predictions.transform.dense.weight)

    books = [line.split()[0] for line in VERSES.read_text().splitlines()]
    held_out = [line for line, book in enumerate(books) if book in HELD_OUT]
    seen = [line for line, book in enumerate(books) if book not in HELD_OUT]
    texts = {language: BIBLE / f"{language}.txt" for language in LANGUAGES}
    training_files = [write_lines(out / "train" / f"{language}.txt", text, seen) for language, text in texts.items()]

    say(f"word vectors of {len(LANGUAGES)} languages from {len(seen):,} verses")
    vectors = build_word_vectors(texts, dim=200, lines=seen)
    vectors.save(out / "vectors.safetensors")

    say(f"a tokenizer of {VOCABULARY:,} pieces")
    tokenizer = train_tokenizer(training_files, out / "tokenizer")
    counts = {language: count_pieces(tokenizer, file) for language, file in zip(LANGUAGES, training_files, strict=True)}
    frequencies = 1 + sum(counts.values())
    log_frequencies = torch.log(frequencies / frequencies.sum())

    arms, initialised = {}, None
    for method in ("ofa", "random"):
        say(f"new vocabulary tables: {method}")
        results = ofa_fast.initialize(
            source.get_input_embeddings().weight,
            source_tokenizer,
            tokenizer,
            vectors,
            rank=list(RANKS.values()),
            method=method,
            seed=args.seed,
        )
        initialised = initialised or results[0]
        for name, result in zip(RANKS, results, strict=True):
            arm = arms[f"{method}, {name}"] = out / f"{method}-{name.replace(' ', '-')}"
            model = ofa_fast.build_model(source, result, tokenizer)
            model.get_output_embeddings().bias.data.copy_(log_frequencies)
            model.save_pretrained(arm / "initialised")
            tokenizer.save_pretrained(arm / "initialised")
            result.write(arm / "initialised", tables=False)
            write_html_report(arm / "initialised")

    measured = {"source": {"before": measure(minilm, held_out)}}
    losses = {}
    for name, arm in arms.items():
        say(f"{name}: retrieval, {STEPS} steps of training, retrieval")
        before = measure(arm / "initialised", held_out)
        report = train(
            arm / "initialised",
            training_files,
            arm / "trained",
            steps=STEPS,
            batch_size=BATCH,
            max_length=LENGTH,
            learning_rate=LEARNING_RATE,
            seed=args.seed,
            overwrite=True,
            progress=False,
        )
        losses[name] = report["losses"]
        measured[name] = {"before": before, "after": measure(arm / "trained", held_out)}

    say("done")
    print_table(measured, len(held_out))
    print_examples(initialised, source_tokenizer, tokenizer, counts)
    plot(measured, losses, out / "demo.png")
    numbers = {"seed": args.seed, "retrieval": measured, "losses": losses}
    (out / "demo.json").write_text(json.dumps(numbers, indent=2))
    print(f"\nWhat the new table was made from: {out}/ofa-rank-100/initialised/initialization.html")
    print(f"Plot: {out}/demo.png   numbers: {out}/demo.json   models: {out}/ofa-rank-100/trained and its neighbours")


def say(what: str) -> None:
    print(f"{time.perf_counter() - START:5.0f} s  {what}", flush=True)


def write_lines(path: Path, text: Path, lines: list[int]) -> Path:
    """The chosen lines of a text that are not empty, as a file of their own."""
    verses = text.read_text(encoding="utf-8").split("\n")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{verses[line]}\n" for line in lines if verses[line]), encoding="utf-8")
    return path


def train_tokenizer(files: list[Path], folder: Path) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer that ignores case, as the source's does."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    special = list(SPECIAL.values())
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train([str(file) for file in files], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **SPECIAL).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def count_pieces(tokenizer, file: Path) -> torch.Tensor:
    """How often each piece of the vocabulary stands in a text."""
    ids = tokenizer(file.read_text(encoding="utf-8").splitlines(), add_special_tokens=False).input_ids
    return torch.bincount(torch.tensor([i for line in ids for i in line]), minlength=len(tokenizer))


def measure(model: Path, lines: list[int]) -> dict[str, float]:
    """Top-10 retrieval accuracy of each language with English on the held-out verses, the mean of both directions."""
    report = evaluate(model, BIBLE, "retrieval", lines=lines, layer=LAYER, k=(1, TOP))
    accuracy = {language: result["score"] for language, result in report["languages"].items()}
    return {**accuracy, "average": report["average"]["score"]}


def print_table(measured: dict, candidates: int) -> None:
    columns = [language for language in LANGUAGES if language != "eng"] + ["average"]
    print(f"\nTop-{TOP} retrieval with English among {candidates} held-out verses (guessing: {TOP / candidates:.3f})\n")
    print(f"{'':<27}" + "".join(f"{LANGUAGES.get(column, column):>10}" for column in columns))
    for name, stages in measured.items():
        for stage, accuracy in stages.items():
            label = "source model, unchanged" if name == "source" else f"{name}, {stage}"
            print(f"{label:<27}" + "".join(f"{accuracy[column]:>10.3f}" for column in columns))
    print(f"\n{STEPS} steps show that training works; they are too few to teach a model that comes without a head.")


def print_examples(result, source_tokenizer, tokenizer, counts: dict[str, torch.Tensor]) -> None:
    """For each new language two frequent whole words that the source lacks, and what their rows were made from."""
    print("\nWhat unseen subwords were made from (weight and source subword)\n")
    similar = (result.origin == 1) & (result.weights[:, 0] > 0.2)
    for language, count in counts.items():
        frequent = count.mul(similar).argsort(descending=True)[:200].tolist()
        words = [i for i in frequent if len(tokenizer.convert_ids_to_tokens(i).removeprefix("▁")) > 3]
        for i in words[:2] if language != "eng" else ():
            made_of = zip(result.weights[i, :3].tolist(), result.neighbors[i, :3].tolist(), strict=True)
            parts = "  ".join(f"{weight:.2f} {source_tokenizer.convert_ids_to_tokens(s):<12}" for weight, s in made_of)
            print(f"  {LANGUAGES[language]:<10}{tokenizer.convert_ids_to_tokens(i).removeprefix('▁'):<16}{parts}")


def plot(measured: dict, losses: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(losses)
    for shift, stage in ((-0.2, "before"), (0.2, "after")):
        heights = [measured[name][stage]["average"] for name in names]
        left.bar([i + shift for i in range(len(names))], heights, width=0.38, label=f"{stage} training")
    left.axhline(measured["source"]["before"]["average"], color="black", linestyle=":", label="source model, unchanged")
    left.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    left.set(title="Sentence retrieval, held-out verses", ylabel=f"top-{TOP} accuracy")
    left.legend()
    for name in names:
        # Every step sees another mix of languages: a mean over eight steps shows more than one.
        steps, loss = (torch.tensor([float(point[key]) for point in losses[name]]) for key in ("step", "loss"))
        right.plot(steps[7:], loss.unfold(0, 8, 1).mean(1), label=name)
    right.set(title="Masked-language-model training", xlabel="step", ylabel="loss, mean of 8 steps (nats a token)")
    right.legend()
    figure.savefig(path, dpi=150)


START = time.perf_counter()
if __name__ == "__main__":
    main()
