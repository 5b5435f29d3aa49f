"""A whole initialisation: beside the published script, and at full size. Each run is a process of its own.

  python -m benchmarks.initialization published CHECKOUT --source MODEL --target TOKENIZER --vectors FILE --rank 100,384
  python -m benchmarks.initialization full FOLDER --source MODEL --texts FILE ... --rank 100,200,384

CHECKOUT is a clone of the published code (github.com/cisnlp/ofa), which needs gensim and scikit-learn; its functions
are called in the order of its script. MODEL is a Hugging Face folder. FOLDER gets the inputs of ``full`` unless it has
them: millions of word vectors made from the words of the texts, and a vocabulary of 400,000.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks import full_size
from benchmarks.machine import ROOT


class Stages(dict):
    """Seconds by stage."""

    @contextmanager
    def __call__(self, name: str):
        begin = time.perf_counter()
        yield
        self[name] = self.get(name, 0.0) + time.perf_counter() - begin


def _table(model: Path):
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        name = next(name for name in file.keys() if "word_embeddings" in name or "embed_tokens" in name)  # noqa: SIM118
        return file.get_tensor(name).float().clone()


def _tokenizers(source: Path, target: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)


def _norm(table) -> float:
    """Summed in float64 a few rows at a time: a float64 copy would be the peak of the process."""
    return math.sqrt(sum(float((table[i : i + 4096].astype("f8") ** 2).sum()) for i in range(0, len(table), 4096)))


def ours(args: argparse.Namespace) -> dict:
    stages = Stages()
    with stages("import"):
        import torch

        from ofa_fast import WordVectors, initialize
    torch.set_num_threads(args.threads)
    with stages("read vectors"):
        vectors = WordVectors.load(args.vectors, folder=Path(args.vectors).parent if args.memory else None)
    with stages("read model and tokenizers"):
        tokenizers, table = _tokenizers(args.source, args.target), _table(args.source)
    table = table[: len(tokenizers[0])] if args.parity else table
    begin = time.perf_counter()
    results = initialize(
        table, *tokenizers, vectors, rank=args.rank, parity=args.parity, cache=args.cache, memory=args.memory
    )
    whole = time.perf_counter() - begin
    within = results[0].report["seconds"] | {"rows": sum(result.report["seconds"]["rows"] for result in results)}
    stages |= within
    stages["rest of initialize"] = max(0.0, whole - sum(within.values()))
    counts = {name: results[0].report["counts"][name] for name in ("copied", "similar", "random")}
    return {"stages": stages, "counts": counts, "norms": [_norm(r.coordinates.numpy()) for r in results]}


def published(args: argparse.Namespace) -> dict:
    """The published script from its functions, in its order, with what it does once per rank done once per rank."""
    stages = Stages()
    with stages("import"):
        sys.path.insert(0, str(args.checkout / "ofa"))
        import numpy as np
        import utils  # of the checkout
        from gensim.models import KeyedVectors
    with stages("read vectors"):
        vectors = utils.WordEmbedding(KeyedVectors.load(str(args.vectors)))
    with stages("read model and tokenizers"):
        source_tokenizer, target_tokenizer = _tokenizers(args.source, args.target)
        table = _table(args.source).numpy()[: len(source_tokenizer)]
    with stages("subword_vectors"):
        of_source, of_target = (
            utils.get_subword_embeddings_in_word_embedding_space(tokenizer, vectors)[0]
            for tokenizer in (source_tokenizer, target_tokenizer)
        )
    norms = []
    for rank in args.rank:
        coordinates = table
        if rank is not None:
            with stages("svd"):
                _, coordinates = utils.perform_factorize(table, keep_dim=rank)
        with stages("matching"):
            overlap = utils.get_overlapping_tokens(target_tokenizer, source_tokenizer, fuzzy_search=True)
        with stages("neighbor_search and rows"):
            start = np.zeros((len(target_tokenizer), coordinates.shape[1]), dtype=coordinates.dtype)
            for into, origin in overlap.values():
                start[into] = coordinates[origin]
            copied = {token: into for token, (into, _) in overlap.items()}
            others = {token: i for token, i in target_tokenizer.get_vocab().items() if token not in copied}
            made, *_ = utils.create_target_embeddings(
                of_source, of_target, source_tokenizer, target_tokenizer, coordinates.copy(), start, copied, others
            )
        norms.append(_norm(made))
    return {"stages": stages, "norms": norms}


def measured(what: str, args: argparse.Namespace, **changes) -> dict:
    """One of the two functions in a process of its own: what it returns, its seconds and peak memory in all."""
    given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "run"} | changes
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        asked = json.dumps(given, default=str)
        command = [sys.executable, "-P", "-m", "benchmarks.initialization", "one", what, asked, str(out)]
        begin = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=sys.stderr)
        seconds = time.perf_counter() - begin
        return json.loads(out.read_text()) | {"seconds": seconds}


def _one(what: str, given: str, out: str) -> None:
    args = argparse.Namespace(**json.loads(given))
    for name in ("source", "target", "vectors", "checkout"):
        if getattr(args, name, None):
            setattr(args, name, Path(getattr(args, name)))
    result = {"ours": ours, "published": published}[what](args)
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(out).write_text(json.dumps(result))


def show(columns: dict[str, dict]) -> None:
    names = list(dict.fromkeys(name for result in columns.values() for name in result["stages"]))
    print("| stage | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name in names:
        cells = (result["stages"].get(name) for result in columns.values())
        print(f"| {name} | " + " | ".join("" if cell is None else f"{cell:.2f} s" for cell in cells) + " |")
    print("| **whole process** | " + " | ".join(f"**{result['seconds']:.1f} s**" for result in columns.values()) + " |")
    peaks = (f"{result['peak'] / 1e6:,.0f} MB" for result in columns.values())
    print("| peak resident memory | " + " | ".join(peaks) + " |", flush=True)


def beside_published(args: argparse.Namespace) -> None:
    from gensim.models import KeyedVectors

    from ofa_fast import WordVectors

    with tempfile.TemporaryDirectory() as folder:
        words = WordVectors.load(args.vectors)
        saved = KeyedVectors(words.vectors.shape[1])
        saved.add_vectors(words.keys, words.vectors)
        path = Path(folder) / "vectors.wv"
        saved.save(str(path))
        mine = measured("ours", args, parity=True, vectors=str(path))
        show({"ofa-fast, parity": mine})
        theirs = measured("published", args, vectors=str(path))
    show({"published": theirs, "ofa-fast, parity": mine})
    one, other = (sum(result["stages"].values()) for result in (theirs, mine))
    print(
        f"{one:.1f} s / {other:.2f} s = {one / other:.1f}x, whole processes {theirs['seconds'] / mine['seconds']:.1f}x"
    )
    print(f"peak memory {mine['peak'] / theirs['peak']:.2f} of the published; norms {mine['norms']}, {theirs['norms']}")


def full(args: argparse.Namespace) -> None:
    full_size.make(args.folder, args.source, args.texts, args.words, args.dim, args.tokens)
    given = {"target": str(args.folder / "target"), "parity": False, "vectors": str(args.folder / args.vectors)}
    result = measured("ours", args, **given)
    show({args.vectors: result})
    print(result["counts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run):
        add = commands.add_parser(name).add_argument
        add("--source", type=Path, required=True)
        add("--rank", type=lambda text: [None if r == "full" else int(r) for r in text.split(",")], default=[100, None])
        add("--threads", type=int, default=os.cpu_count())
        add("--cache")
        add("--memory")
        commands.choices[name].set_defaults(run=run)
        return add

    add = command("published", beside_published)
    add("checkout", type=Path)
    add("--target", type=Path, required=True)
    add("--vectors", type=Path, required=True)
    add = command("full", full)
    add("folder", type=Path)
    add("--texts", type=Path, nargs="*", default=sorted((ROOT / "examples" / "data" / "bible").glob("*.txt")))
    add("--vectors", default="vectors.vec", help="which of the files in FOLDER: vectors.vec or vectors.safetensors")
    add("--words", type=int, default=4_060_000)
    add("--dim", type=int, default=200)
    add("--tokens", type=int, default=400_002)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        _one(*sys.argv[2:])
    else:
        main()
