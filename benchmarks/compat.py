"""The drop-in modules beside the packages that they stand in for, on the same inputs: results compared, seconds beside.

  python -m benchmarks.compat FOLDER --source MODEL [--published CHECKOUT]

needs wechsel 0.0.4, deepfocus 1.0.1 and gensim in the same environment; CHECKOUT, a clone of the published OFA code
(github.com/cisnlp/ofa), adds its functions. MODEL is a Hugging Face folder. FOLDER gets the inputs unless it has them:
German and English word vectors, a German vocabulary of 20,000, and a fastText model of text in its tokens.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.data import BIBLE
from benchmarks.initialization import _table

LANGUAGES = ("eng", "deu")
VOCABULARY = 20_000


def make_inputs(folder: Path) -> None:
    import fasttext
    from gensim.models import Word2Vec
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from ofa_fast.initialization import build_word_vectors

    folder.mkdir(parents=True, exist_ok=True)
    texts = {code: (BIBLE / f"{code}.txt").read_text("utf-8").split("\n") for code in LANGUAGES}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "[MASK]"]
    tokenizer.train_from_iterator(
        (line for lines in texts.values() for line in lines),
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet),
    )
    target = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<s>", mask_token="[MASK]")
    tokens = folder / "tokens.txt"
    tokens.write_text("\n".join(" ".join(target.tokenize(line)) for line in texts["deu"]), "utf-8")
    fasttext.train_unsupervised(str(tokens), dim=100, neg=10, model="cbow", epoch=3, minCount=5, verbose=0).save_model(
        str(folder / "tokens.bin")
    )
    vectors = build_word_vectors({code: BIBLE / f"{code}.txt" for code in LANGUAGES}, dim=100)
    vectors.save(folder / "vectors.safetensors")
    for code in LANGUAGES:
        own = vectors.select([code])
        counts = Counter(word for line in texts[code] for word in re.findall(r"\w+", line.lower()))
        model = Word2Vec(vector_size=own.vectors.shape[1], min_count=1)
        model.build_vocab_from_freq({word: max(1, counts[word.lower()]) for word in own.words})
        order = {word: row for row, word in enumerate(own.words)}
        model.wv.vectors = np.asarray(own.vectors[[order[word] for word in model.wv.index_to_key]], dtype=np.float32)
        model.save(str(folder / f"{code}.w2v"))
    target.save_pretrained(folder / "target")


def timed(call):
    """Its result, and the seconds of the faster of two calls: the first one loads libraries, and compiles in numba."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begin)
    return result, min(seconds)


def show(name: str, seconds: tuple[float, float], result: str) -> None:
    theirs, ours = seconds
    print(f"| {name} | {theirs:.1f} s | {ours:.2f} s | {theirs / ours:.0f} | {result} |", flush=True)


def compare_wechsel(source, target, table: np.ndarray, folder: Path) -> None:
    import wechsel
    from gensim.models import Word2Vec

    from ofa_fast.compat import wechsel as drop_in

    words = [Word2Vec.load(str(folder / f"{code}.w2v")) for code in LANGUAGES]
    tables, infos, seconds = [], [], []
    for tool in (wechsel, drop_in):
        (made, info), took = timed(
            lambda tool=tool: tool.WECHSEL(*words, align_strategy=None).apply(
                source, target, table, use_subword_info=False
            )
        )
        tables.append(made)
        infos.append(info)
        seconds.append(took)
    theirs, ours = (info.sources for info in infos)
    same = np.array([set(theirs[token][0]) == set(ours[token][0]) for token in theirs])
    ids = np.array([target.convert_tokens_to_ids(token) for token in theirs])
    rest = np.setdiff1d(np.arange(len(tables[0])), ids[~same])
    sides = ("source_subword_sources", "target_subword_sources")
    words_equal = all(getattr(infos[0], side) == getattr(infos[1], side) for side in sides)
    cosines = max(np.abs(np.subtract(theirs[token][2], ours[token][2])).max() for token in theirs)
    show(
        "wechsel 0.0.4, `WECHSEL(...).apply`",
        tuple(seconds),
        f"words of the subwords {'equal' if words_equal else 'DIFFER'}; of {len(same):,} tokens all cosines within "
        f"{cosines:.0e}, the neighbours of {same.mean():.2%} the same, and then rows within "
        f"{np.abs(tables[0] - tables[1])[rest].max():.0e}",
    )


def compare_focus(source, target, table: np.ndarray, folder: Path) -> None:
    import deepfocus
    import torch

    from ofa_fast.compat import deepfocus as drop_in

    made = [
        timed(
            lambda tool=tool: tool.FOCUS(
                target,
                source,
                torch.from_numpy(table),
                fasttext_model_path=str(folder / "tokens.bin"),
                verbosity="silent",
            )
        )
        for tool in (deepfocus, drop_in)
    ]
    difference = (made[0][0] - made[1][0]).abs().max()
    show("deepfocus 1.0.1, `FOCUS`", (made[0][1], made[1][1]), f"all {len(made[0][0]):,} rows within {difference:.0e}")


def compare_ofa(source, target, table: np.ndarray, folder: Path, checkout: Path) -> None:
    sys.path.insert(0, str(checkout / "ofa"))
    import utils
    from gensim.models import KeyedVectors

    from ofa_fast import WordVectors
    from ofa_fast.compat import ofa as drop_in

    vectors = WordVectors.load(folder / "vectors.safetensors")
    keyed = KeyedVectors(vectors.vectors.shape[1])
    keyed.add_vectors(vectors.keys, np.asarray(vectors.vectors, dtype=np.float32))

    def run(tool):
        words = tool.WordEmbedding(keyed)
        of_source, of_target = (
            tool.get_subword_embeddings_in_word_embedding_space(tokenizer, words)[0] for tokenizer in (source, target)
        )
        basis, coordinates = tool.perform_factorize(table, keep_dim=100)
        shared = tool.get_overlapping_tokens(target, source)
        start = np.zeros((len(target), 100), dtype=np.float32)
        for index, origin in shared.values():
            start[index] = coordinates[origin]
        made, missing, _ = tool.create_target_embeddings(
            of_source, of_target, source, target, coordinates, start, shared, {}
        )
        return made @ basis, of_target, shared, missing

    (theirs, took), (ours, mine) = timed(lambda: run(utils)), timed(lambda: run(drop_in))
    equal = np.array_equal(theirs[1], ours[1]) and theirs[2:] == ours[2:]
    kept = np.setdiff1d(np.arange(len(target)), list(theirs[3]))
    error = np.linalg.norm(theirs[0] - ours[0], axis=1)[kept] / np.linalg.norm(theirs[0], axis=1)[kept]
    show(
        "cisnlp/ofa, all functions of its script at rank 100",
        (took, mine),
        f"subword vectors and shared tokens {'equal bit for bit' if equal else 'DIFFER'}; "
        f"of {len(kept):,} rows that are not random {(error < 1e-5).mean():.2%} within 1e-5",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--published", type=Path)
    args = parser.parse_args()
    if not (args.folder / "target").exists():
        make_inputs(args.folder)
    from transformers import AutoTokenizer

    source, target = (AutoTokenizer.from_pretrained(path) for path in (args.source, args.folder / "target"))
    table = _table(args.source).numpy()[: len(source)]
    print("| tool | its own | drop-in | ratio | results |\n|---|---|---|---|---|", flush=True)
    compare_wechsel(source, target, table, args.folder)
    compare_focus(source, target, table, args.folder)
    if args.published:
        compare_ofa(source, target, table, args.folder, args.published)


if __name__ == "__main__":
    main()
