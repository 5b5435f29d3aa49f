"""The paper's claims tested on real languages: OFA beside other initialisations, before, while and after training.

    make study SMALL=1                         less than 20 minutes on two cores, needs nothing but this repository
    make study DATA=data MULTI=multilingual-e5-small
    make study DATA=data PARTS=large          on a machine with a GPU

Or: python examples/study.py --data data --mono MODEL --multi MODEL --out out/study. It goes on where it was stopped.

1. Texts: James and 1 Peter are held out for retrieval, Titus for the loss; neither
   the word vectors nor the tokenizer nor the training sees any of them.
2. A tokenizer for all languages of DATA/bible, and word vectors from their verses: all of them, with and without links
   to translations, and of a tenth of the verses.
3. Comparisons (``ofa_fast.study.compare``): "mono" trains models made from an English source, "multi" from a
   multilingual one; "recipes" makes OFA in other ways and trains nothing.
4. OUT/study.json with all numbers, and the page that is written from it (study_page.py).

DATA is a folder like examples/data: bible/<language>.txt and vref.txt, and where they are there, sib200/, tatoeba/,
pos/ and ner/, which are then measured too.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from get_minilm import get_minilm
from study_page import write_page
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast, logging

from ofa_fast._files import atomic_file, atomic_folder
from ofa_fast.initialization import build_word_vectors
from ofa_fast.study import Arm, Recipe, Task, compare
from ofa_fast.study.stages import locked

HELD_OUT = ("JAS", "1PE")
LOSS = ("TIT",)
SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
TEXT_PER_LANGUAGE = 8_000  # verses that the tokenizer is trained on
TRAINING = {"batch_size": 8, "max_length": 64, "temperature": 2.0, "save_steps": 100}
METHODS = ("ofa", "random", "mean", "gaussian", "wechsel", "focus")
TUNED = "ofa:copied_share=0.25:word_weights=rank"
# Each alone changes one thing about OFA; the first is the recipe as it is.
RECIPES = (
    "ofa",
    *("ofa:vectors=unlinked", "ofa:vectors=tenth"),
    *("ofa:copied_share=0.5", "ofa:copied_share=0.25", "ofa:copied_share=0"),
    *("ofa:word_weights=rank", TUNED),
    *("ofa:neighbors=1", "ofa:neighbors=3", "ofa:neighbors=30"),
    *("ofa:temperature=0.05", "ofa:temperature=0.2"),
    *METHODS[1:],
)


@dataclass(frozen=True)
class Size:
    vocabulary: int
    steps: int
    points: tuple[int, ...]
    multi_steps: int
    multi_points: tuple[int, ...]
    pairs: int
    mono_arms: tuple[tuple[str, int | None], ...]
    training: dict


FEW = (("ofa", 100), ("random", 100), ("ofa", None), ("random", None))
MANY = (
    *((method, 100) for method in (*METHODS, TUNED)),
    *((method, rank) for rank in (200, None) for method in METHODS[:2]),
)
SMALL = Size(10_000, 80, (40,), 40, (20,), 128, FEW, {"learning_rate": 1e-4})
FULL = Size(
    30_000,
    300,
    (50, 150),
    100,
    (50,),
    64,
    MANY,
    {"learning_rate": 5e-5, "warmup_steps": 30},
)
SEEDS = (0, 1, 2)
PARTS = "recipes,mono,multi"
EXTRA = ("ofa", "random")  # fine-tuned and trained for longer, at rank 100
# Steps, points and what else is different. "large" is HyperOFA's training (4,000 steps of 512 sequences of 512 tokens)
# scaled down: minutes an arm on a GPU, hours on a CPU.
LONGER = {
    "long": (3_000, (300, 1_000, 2_000), {"save_steps": 500}),
    "large": (4_000, (500, 1_000, 2_000), {"save_steps": 1_000, "batch_size": 64, "precision": "bfloat16"}),
}
# Three epochs at half the rate taught nothing; at three times the rate a trained arm ends in one class for all.
FINE_TUNING = {
    "epochs": 8,
    "max_train": 700,
    "max_dev": 100,
    "learning_rate": 1e-4,
    "batch_size": 16,
    "patience": None,
}
ISO = {"zho": "cmn"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="fewer tokens and steps")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--mono", type=Path, help="an English encoder (default: all-MiniLM-L6-v2, downloaded once)")
    parser.add_argument(
        "--multi", type=Path, help="a multilingual encoder such as multilingual-e5-small (default: none)"
    )
    parser.add_argument(
        "--parts",
        default=PARTS,
        help=f"which comparisons of recipes, mono, multi, long and large; '' to prepare alone (default: {PARTS})",
    )
    parser.add_argument(
        "--extras",
        action="store_true",
        help="fine-tune some arms of mono (topics, POS and NER, where DATA has them), and train them for longer (long)",
    )
    parser.add_argument("--processes", type=int, default=2, help="arms at work at once (default: 2)")
    parser.add_argument("--note", help="what else a reader of the page should know, such as other load on the machine")
    parser.add_argument("--out", type=Path, help="(default: out/study or out/study-small)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    size = SMALL if args.small else FULL
    out = args.out or Path("out") / ("study-small" if args.small else "study")
    texts = {path.stem: path for path in sorted((args.data / "bible").glob("*.txt"))}
    parts = list(dict.fromkeys([*filter(None, args.parts.split(",")), *["long"] * args.extras]))
    if not set(parts) <= {"recipes", "mono", "multi", *LONGER}:
        parser.error(f"--parts: expected some of recipes,mono,multi,{','.join(LONGER)}, got {args.parts}")
    if "eng" not in texts:
        parser.error(f"{args.data / 'bible'} has no eng.txt")

    with locked(out / ".lock", wait=True):  # the same command, started again beside this one, shares the work
        prepared = Prepared(out / "prepared", args.data / "vref.txt", texts, size)
        say(f"{len(texts)} languages, {len(prepared.seen):,} lines to learn from, {len(prepared.held_out)} held out")
        tokenizer, vectors = prepared.tokenizer(), prepared.vectors()
    common = {
        "tokenizer": tokenizer,
        "vectors": vectors,
        "train_files": prepared.train_files,
        "eval_files": prepared.loss_files,
        "bias": "frequencies",
        "processes": args.processes,
    }
    tasks = tasks_of(args.data, prepared.verses, texts, size.pairs)
    mono = args.mono or get_minilm()
    study = json.loads((out / "study.json").read_text("utf-8")) if (out / "study.json").exists() else {}
    study["note"] = args.note or study.get("note")
    study["languages"] = {language: len(path.read_text("utf-8").split()) for language, path in texts.items()}
    for part in parts:
        if part == "multi" and args.multi is None:
            continue
        say(f"comparison: {part}")
        study["commands"] = study.get("commands", {}) | {part: command(args)}
        source = args.multi if part == "multi" else mono
        if part == "recipes":
            arms = [Arm(Recipe.read(recipe), 100, 0, 0) for recipe in RECIPES]
            options = {"tasks": tasks, **common}
        elif part in LONGER:
            steps, points, changes = LONGER[part]
            arms = [Arm(Recipe.read(recipe), 100, seed, steps) for seed in SEEDS for recipe in EXTRA]
            measured = [*tasks, of_middle_layer(tasks[0], source), centered(tasks[0])]
            options = {"tasks": measured, "points": points, **common, **TRAINING, **size.training, **changes}
        else:
            steps, points = (size.steps, size.points) if part == "mono" else (size.multi_steps, size.multi_points)
            wanted = size.mono_arms if part == "mono" else FEW
            arms = [Arm(Recipe.read(recipe), rank, seed, steps) for seed in SEEDS for recipe, rank in wanted]
            more = [] if args.small else [of_middle_layer(tasks[0], source), centered(tasks[0])]
            options = {"tasks": [*tasks, *more], "points": points, **common, **TRAINING, **size.training}
        study[part] = compare(source=source, arms=arms, out=out / part, title=f"The study: {part}", **options)
        learned = fine_tuned_of(args.data, texts) if part == "mono" and args.extras else []
        if learned:
            chosen = [arm for arm in arms if arm.recipe.name in EXTRA and arm.rank == 100]
            study["fine-tuned"] = compare(
                source=source, arms=chosen, out=out / part, title="Fine-tuned", **options | {"tasks": learned}
            )
            compare(source=source, arms=arms, out=out / part, title=f"The study: {part}", **options)  # its own pages
        with atomic_file(out / "study.json") as file:
            file.write_text(json.dumps(without_curves(study), ensure_ascii=False) + "\n", "utf-8")
    if (out / "study.json").exists():
        write_page(out / "study.json", out)
        say(f"done: {out}/study.md, and a report.html for each comparison")


def of_middle_layer(task: Task, source: Path) -> Task:
    """The same from two thirds of the layers, as the paper measures retrieval: layer 8 of 12."""
    layer = AutoConfig.from_pretrained(source).num_hidden_layers * 2 // 3
    return replace(task, name=f"{task.name}-layer-{layer}", always=False, options=task.options | {"layer": layer})


def centered(task: Task) -> Task:
    """The same after each language's mean is taken from its sentences, so a shift of all of them does not count."""
    return replace(task, name=f"{task.name}-centered", always=False, options=task.options | {"similarity": "centered"})


def tasks_of(data: Path, verses: Path, texts: dict[str, Path], pairs: int) -> list[Task]:
    """Retrieval from English into the languages of the Bibles: verses at every point, other texts at the ends."""
    options = {"max_pairs": pairs, "k": (1, 5, 10), "layer": -1}
    names = [
        path.stem for path in sorted(verses.glob("*.txt")) if path.stem != "eng" and path.read_text("utf-8").split()
    ]
    found = [Task("retrieval", verses, "verses", options={**options, "languages": names})]
    if (data / "sib200").is_dir():
        names = [p.name for p in (data / "sib200").iterdir() if p.is_dir() and p.name != "eng_Latn"]
        names = sorted(name for name in names if ISO.get(name[:3], name[:3]) in texts)
        found.append(Task("retrieval", data / "sib200", "SIB-200", False, {**options, "languages": names}))
    if (data / "tatoeba").is_dir():
        names = {p.name.rsplit(".", 1)[1] for p in (data / "tatoeba").iterdir()} & set(texts) - {"eng"}
        found.append(Task("retrieval", data / "tatoeba", "Tatoeba", False, {**options, "languages": sorted(names)}))
    return found


def fine_tuned_of(data: Path, texts: dict[str, Path]) -> list[Task]:
    """Learned from English alone, tested in the languages of the Bibles."""
    kinds = {"sib200": ("classification", "topics"), "pos": ("pos", "POS"), "ner": ("ner", "NER")}
    found = []
    for folder, (kind, name) in kinds.items():
        if (data / folder).is_dir():
            names = sorted(
                p.name for p in (data / folder).iterdir() if p.is_dir() and ISO.get(p.name[:3], p.name[:3]) in texts
            )
            found.append(Task(kind, data / folder, name, False, {"languages": names, **FINE_TUNING}))
    return found


class Prepared:
    """Texts, tokenizer and word vectors, each made once."""

    def __init__(self, folder: Path, references: Path, texts: dict[str, Path], size: Size) -> None:
        self.folder, self.texts, self.size = folder, texts, size
        made_of = {path.stem for path in (folder / "verses").glob("*.txt")}
        if made_of and made_of != set(texts):
            raise SystemExit(f"{folder} was made of {', '.join(sorted(made_of))}; give another --out, or delete it")
        books = np.array([line.split()[0] for line in references.read_text("utf-8").splitlines()])
        self.held_out, loss = np.flatnonzero(np.isin(books, HELD_OUT)), np.flatnonzero(np.isin(books, LOSS))
        self.seen = np.flatnonzero(~np.isin(books, HELD_OUT + LOSS))
        self.verses = self._texts("verses", self.held_out, aligned=True)
        self.train_files, self.loss_files = (
            # Not every language has every book.
            [file for file in sorted(folder.glob("*.txt")) if file.stat().st_size]
            for folder in (self._texts("train", self.seen), self._texts("loss", loss))
        )

    def _texts(self, name: str, lines: np.ndarray, aligned: bool = False) -> Path:
        """The chosen lines of all languages; without those that are empty, unless they must stay aligned."""
        out = self.folder / name
        if not out.exists():
            with atomic_folder(out) as work:
                for language, path in self.texts.items():
                    verses = path.read_text("utf-8").split("\n")
                    chosen = [verses[line] for line in lines]
                    kept = chosen if aligned else [verse for verse in chosen if verse not in ("", "<range>")]
                    (work / f"{language}.txt").write_text("".join(f"{verse}\n" for verse in kept), "utf-8")
        return out

    def tokenizer(self) -> Path:
        """Unigram pieces and special tokens as XLM-R has them."""
        out = self.folder / "tokenizer"
        if out.exists():
            return out
        say(f"a tokenizer of {self.size.vocabulary:,} pieces")
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        tokenizer.decoder = decoders.Metaspace()
        special = list(SPECIAL.values())
        trainer = trainers.UnigramTrainer(
            vocab_size=self.size.vocabulary, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        # The last verses: the New Testament, which every language has.
        verses = (
            verse for path in self.train_files for verse in path.read_text("utf-8").splitlines()[-TEXT_PER_LANGUAGE:]
        )
        tokenizer.train_from_iterator(verses, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
        )
        named = {**SPECIAL, "cls_token": "<s>", "sep_token": "</s>"}
        with atomic_folder(out) as work:
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **named).save_pretrained(work)
        return out

    def vectors(self) -> dict[str, Path]:
        tenth = np.sort(np.random.default_rng(0).choice(self.seen, len(self.seen) // 10, replace=False))
        kinds = {
            "linked": {"lines": self.seen},
            "unlinked": {"lines": self.seen, "iterations": 0},
            "tenth": {"lines": tenth},
        }
        found = {}
        for name, options in kinds.items():
            found[name] = self.folder / f"{name}.safetensors"
            if not found[name].exists():
                say(f"word vectors: {name}")
                build_word_vectors(self.texts, dim=200, **options).save(found[name])
        return found


def command(args) -> str:
    """To be printed on the page: folders of this machine by their names alone."""
    parts = ["make study"]
    parts += ["SMALL=1"] if args.small else []
    parts += ["DATA=data"] if args.data != Path(__file__).parent / "data" else []
    parts += [f"MULTI={args.multi.name}"] if args.multi else []
    parts += [f"PARTS={args.parts}"] if args.parts != PARTS else []
    return " ".join(parts + ["EXTRAS=1"] * args.extras)


def without_curves(study: dict) -> dict:
    """Without the loss of each step: the points of evaluation are enough for the page; folders by their names alone."""
    found = {}
    for part, report in study.items():
        if isinstance(report, dict) and "arms" in report:
            arms = [
                arm | {"training": arm["training"] and {k: v for k, v in arm["training"].items() if k != "losses"}}
                for arm in report["arms"]
            ]
            report = report | {"arms": arms, "source": by_name(report["source"])}
        found[part] = report
    return found


def by_name(value):
    """The same with the names of folders in the place of absolute paths."""
    if isinstance(value, dict):
        return {key: by_name(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [by_name(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)


if __name__ == "__main__":
    main()
